"""First-order rules in NumPy, as the papers have them, one tensor at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from headrace.testing.optim_exam import Array, Exam, Rule, Run


def sgd(lr: float, weight_decay: float) -> Rule:
    """Robbins and Monro 1951."""
    return lambda w, g: w - lr * (g + weight_decay * w)


def momentum(lr: float, momentum: float, weight_decay: float) -> Rule:
    """Polyak 1964: w_{t+1} = w_t - lr g + momentum (w_t - w_{t-1}), which at a constant lr is the same."""
    before: Array | None = None

    def rule(w: Array, g: Array) -> Array:
        nonlocal before
        pushed = 0.0 if before is None else momentum * (w - before)
        before = w
        return w - lr * (g + weight_decay * w) + pushed

    return rule


def nesterov(lr: float, momentum: float, weight_decay: float) -> Rule:
    """Sutskever et al. 2013, eq. 3 and 4, on theta = (what is kept) - momentum v, with v = -lr m."""
    velocity: Array | float = 0.0

    def rule(w: Array, g: Array) -> Array:
        nonlocal velocity
        theta = w - momentum * velocity
        velocity = momentum * velocity - lr * (g + weight_decay * w)
        theta = theta + velocity
        return theta + momentum * velocity

    return rule


def adagrad(lr: float, eps: float, initial_accumulator: float) -> Rule:
    """Duchi, Hazan, Singer 2011, diagonal."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g)
        return w - lr * g / (np.sqrt(initial_accumulator + sum(old**2 for old in gradients)) + eps)

    return rule


def rowwise_adagrad(lr: float, eps: float, initial_accumulator: float) -> Rule:
    """Naumov et al. 2019."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g.reshape(w.shape[0], -1))
        seen = initial_accumulator + sum((old**2).mean(axis=1) for old in gradients)
        return w - (lr * gradients[-1] / (np.sqrt(seen) + eps)[:, None]).reshape(w.shape)

    return rule


def adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> Rule:
    """Kingma and Ba 2015, the moments as the sums of their eq. 1."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g + weight_decay * w)
        m, v = (
            _corrected_mean([old**power for old in gradients], beta) for power, beta in zip((1, 2), betas, strict=True)
        )
        return w - lr * m / (np.sqrt(v) + eps)

    return rule


def adamw(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> Rule:
    """Loshchilov and Hutter 2019, algorithm 2, decay times lr."""
    inner = adam(lr, betas, eps, 0.0)
    return lambda w, g: inner(w, g) - lr * weight_decay * w


def _corrected_mean(values: list[Array], beta: float) -> Array:
    """sum beta^(t-i) x_i / sum beta^(t-i): exponential mean with its bias corrected."""
    weights = [beta ** (len(values) - 1 - i) for i in range(len(values))]
    return np.asarray(sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights))


def _options(**more: Any) -> dict[str, Any]:
    return {"lr": 0.05, "weight_decay": 0.01} | more


_ADAM = _options(betas=(0.8, 0.95), eps=1e-4)

EXAMS: dict[str, Exam] = {
    "sgd": Exam(
        rule=sgd,
        options=_options(),
        reductions=[({"lr": 0.1, "weight_decay": 0.02}, partial(torch.optim.SGD, lr=0.1, weight_decay=0.02))],
        rosenbrock=Run(options={"lr": 4e-3}, steps=6_000, gap=1e-3),
        logistic=Run(options={"lr": 4.0}, steps=2_000, gap=1e-5),
    ),
    "momentum": Exam(
        rule=momentum,
        options=_options(momentum=0.8),
        reductions=[({"lr": 0.1, "momentum": 0.0}, partial(torch.optim.SGD, lr=0.1))],
        rosenbrock=Run(options={"lr": 2e-3, "momentum": 0.9}, steps=2_500, gap=1e-5),
        logistic=Run(options={"lr": 2.0}, steps=300, gap=1e-6),
    ),
    "nesterov": Exam(
        rule=nesterov,
        options=_options(momentum=0.8),
        reductions=[({"lr": 0.1}, partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True))],
        rosenbrock=Run(options={"lr": 2e-3, "momentum": 0.9}, steps=2_500, gap=1e-5),
        logistic=Run(options={"lr": 2.0}, steps=300, gap=1e-6),
    ),
    "adagrad": Exam(
        rule=adagrad,
        options={"lr": 0.1, "eps": 1e-3, "initial_accumulator": 0.1},
        reductions=[({"lr": 0.1}, partial(torch.optim.Adagrad, lr=0.1))],
        rosenbrock=Run(options={"lr": 1.0}, steps=4_000, gap=1e-3),
        logistic=Run(options={"lr": 1.0}, steps=300, gap=1e-6),
    ),
    "rowwise_adagrad": Exam(
        rule=rowwise_adagrad,
        options={"lr": 0.1, "eps": 1e-3, "initial_accumulator": 0.1},
        rosenbrock=Run(options={"lr": 1.0}, steps=4_000, gap=1e-3),
        logistic=Run(options={"lr": 1.0}, steps=300, gap=1e-6),
    ),
    "adam": Exam(
        rule=adam,
        options=_ADAM,
        reductions=[({"lr": 0.01, "weight_decay": 0.1}, partial(torch.optim.Adam, lr=0.01, weight_decay=0.1))],
        rosenbrock=Run(options={"lr": 0.1}, steps=1_500, gap=1e-5),
        logistic=Run(options={"lr": 0.05}, steps=300, gap=1e-6),
    ),
    "adamw": Exam(
        rule=adamw,
        options=_ADAM,
        reductions=[
            ({"lr": 0.01, "weight_decay": 0.0}, partial(torch.optim.Adam, lr=0.01)),
            ({"lr": 0.01, "weight_decay": 0.1}, partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)),
        ],
        rosenbrock=Run(options={"lr": 0.1, "weight_decay": 0.0}, steps=1_500, gap=1e-5),
        logistic=Run(options={"lr": 0.05, "weight_decay": 0.0}, steps=300, gap=1e-6),
    ),
}
