"""Gradient descent and AdaGrad in NumPy, as the papers have them, one tensor at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from headrace.testing.exams import rates
from headrace.testing.optim_exam import Array, Exam, Rule, Run


def decaying(rule: Rule, *, lr: float, weight_decay: float, decoupled: bool) -> Rule:
    """A rule of (w, g) with weight decay, L2 or decoupled (times lr)."""
    if decoupled:
        return lambda w, g: rule(w - lr * weight_decay * w, g)
    return lambda w, g: rule(w, g + weight_decay * w)


def mean_of(values: list[Array], beta: float) -> Array:
    """(1 - beta) sum beta^(t-i) x_i: the exponential mean from 0, without correction."""
    weights = [(1.0 - beta) * beta ** (len(values) - 1 - i) for i in range(len(values))]
    return np.asarray(sum(w * x for w, x in zip(weights, values, strict=True)))


def sgd(lr: float, **decay: Any) -> Rule:
    """Robbins and Monro 1951."""
    return decaying(lambda w, g: w - lr * g, lr=lr, **decay)


def momentum(lr: float, momentum: float, **decay: Any) -> Rule:
    """Polyak 1964 as the sum of all gradients: w_{t+1} = w_t - lr sum momentum^(t-i) g_i."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g)
        return w - lr * sum(momentum**age * old for age, old in enumerate(reversed(gradients)))

    return decaying(rule, lr=lr, **decay)


def polyak(lr: float, momentum: float, **decay: Any) -> Rule:
    """Polyak 1964 as he has it: w_{t+1} = w_t - lr g + momentum (w_t - w_{t-1})."""
    before: Array | None = None

    def rule(w: Array, g: Array) -> Array:
        nonlocal before
        pushed = 0.0 if before is None else momentum * (w - before)
        before = w
        return w - lr * g + pushed

    return decaying(rule, lr=lr, **decay)


def nesterov(lr: float, momentum: float, **decay: Any) -> Rule:
    """Sutskever et al. 2013, eq. 3 and 4, on theta = (what is kept) - momentum v, with v = -lr m."""
    velocity: Array | float = 0.0

    def rule(w: Array, g: Array) -> Array:
        nonlocal velocity
        theta = w - momentum * velocity
        velocity = momentum * velocity - lr * g
        theta = theta + velocity
        return theta + momentum * velocity

    return decaying(rule, lr=lr, **decay)


def adagrad(lr: float, eps: float, initial_accumulator: float, **decay: Any) -> Rule:
    """Duchi, Hazan, Singer 2011, diagonal."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g)
        return w - lr * g / (np.sqrt(initial_accumulator + sum(old**2 for old in gradients)) + eps)

    return decaying(rule, lr=lr, **decay)


def rowwise_adagrad(lr: float, eps: float, initial_accumulator: float) -> Rule:
    """Naumov et al. 2019."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g.reshape(w.shape[0], -1))
        seen = initial_accumulator + sum((old**2).mean(axis=1) for old in gradients)
        return w - (lr * gradients[-1] / (np.sqrt(seen) + eps)[:, None]).reshape(w.shape)

    return rule


def options(**more: Any) -> dict[str, Any]:
    """lr and L2 decay that matter in 50 steps."""
    return {"lr": 0.05, "weight_decay": 0.1, "decoupled": False} | more


DECOUPLED = {"decoupled": True}

EXAMS: dict[str, Exam] = {
    "sgd": Exam(
        rule=sgd,
        whole=[rates.sgd_falls_as_one_over_t],
        options=options(),
        variants=[DECOUPLED],
        reductions=[({"lr": 0.1, "weight_decay": 0.02}, partial(torch.optim.SGD, lr=0.1, weight_decay=0.02))],
        rosenbrock=Run(options={"lr": 4e-3}, steps=2_500, gap=2e-2),
        logistic=Run(options={"lr": 4.0}, steps=1_000, gap=1e-6),
    ),
    "momentum": Exam(
        rule=momentum,
        whole=[rates.momentum_contracts_by_its_root],
        options=options(momentum=0.8),
        variants=[DECOUPLED],
        reductions=[({"lr": 0.1, "momentum": 0.0}, partial(torch.optim.SGD, lr=0.1))],
        rosenbrock=Run(options={"lr": 2e-3, "momentum": 0.9}, steps=1_500, gap=1e-3),
        logistic=Run(options={"lr": 2.0}, steps=300, gap=1e-6),
    ),
    "nesterov": Exam(
        rule=nesterov,
        whole=[rates.nesterov_contracts_by_its_rate],
        options=options(momentum=0.8),
        variants=[DECOUPLED],
        reductions=[({"lr": 0.1}, partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True))],
        rosenbrock=Run(options={"lr": 2e-3, "momentum": 0.9}, steps=1_500, gap=1e-3),
        logistic=Run(options={"lr": 2.0}, steps=300, gap=1e-6),
    ),
    "adagrad": Exam(
        rule=adagrad,
        options=options(lr=0.1, eps=1e-3, initial_accumulator=0.1),
        variants=[DECOUPLED],
        reductions=[
            ({"lr": 0.1}, partial(torch.optim.Adagrad, lr=0.1)),
            ({"lr": 0.1, "weight_decay": 0.1}, partial(torch.optim.Adagrad, lr=0.1, weight_decay=0.1)),
        ],
        rosenbrock=Run(options={"lr": 1.0}, steps=1_500, gap=1e-2),
        logistic=Run(options={"lr": 1.0}, steps=300, gap=1e-6),
    ),
    "rowwise_adagrad": Exam(
        rule=rowwise_adagrad,
        options={"lr": 0.1, "eps": 1e-3, "initial_accumulator": 0.1},
        rosenbrock=Run(options={"lr": 1.0}, steps=1_500, gap=1e-2),
        logistic=Run(options={"lr": 1.0}, steps=300, gap=1e-6),
    ),
}
