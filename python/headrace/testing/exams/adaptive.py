"""Rules with moments of the gradient, in NumPy: every moment is a sum over the whole history."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from headrace.testing.exams.first_order import DECOUPLED, decaying, mean_of, options
from headrace.testing.optim_exam import Array, Exam, Rule, Run

Betas = tuple[float, float]


def adadelta(lr: float, rho: float, eps: float, **decay: Any) -> Rule:
    """Zeiler 2012, algorithm 1, with RMS of his eq. 9 over all gradients and all steps so far."""
    gradients: list[Array] = []
    steps: list[Array] = []

    def rms(values: list[Array]) -> Array:
        return np.asarray(np.sqrt(mean_of([x**2 for x in values], rho) + eps))

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g)
        steps.append(-(rms(steps) if steps else np.sqrt(eps)) / rms(gradients) * g)
        return w + lr * steps[-1]

    return decaying(rule, lr=lr, **decay)


def rmsprop(lr: float, alpha: float, eps: float, momentum: float, centered: bool, **decay: Any) -> Rule:
    """Tieleman and Hinton 2012; Graves 2013, eq. 38-41, the variance as a difference of sums."""
    gradients: list[Array] = []
    scaled: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g)
        v = mean_of([x**2 for x in gradients], alpha)
        v = v - mean_of(gradients, alpha) ** 2 if centered else v
        scaled.append(g / (np.sqrt(v) + eps))
        return w - lr * sum(momentum**age * old for age, old in enumerate(reversed(scaled)))

    return decaying(rule, lr=lr, **decay)


def adam(lr: float, betas: Betas, eps: float, weight_decay: float) -> Rule:
    """Kingma and Ba 2015, the moments as the sums of their eq. 1."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g + weight_decay * w)
        m, v = (
            corrected_mean([old**power for old in gradients], beta) for power, beta in zip((1, 2), betas, strict=True)
        )
        return w - lr * m / (np.sqrt(v) + eps)

    return rule


def adamw(lr: float, betas: Betas, eps: float, weight_decay: float) -> Rule:
    """Loshchilov and Hutter 2019, algorithm 2, decay times lr."""
    inner = adam(lr, betas, eps, 0.0)
    return lambda w, g: inner(w, g) - lr * weight_decay * w


def nadam(lr: float, betas: Betas, eps: float, momentum_decay: float, **decay: Any) -> Rule:
    """Dozat 2016, algorithm 2, with torch's m and v."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g)
        t = len(gradients)
        mu = [betas[0] * (1.0 - 0.5 * 0.96 ** (i * momentum_decay)) for i in range(1, t + 2)]
        m = mu[t] * mean_of(gradients, betas[0]) / (1.0 - np.prod(mu))
        m += (1.0 - mu[t - 1]) * g / (1.0 - np.prod(mu[:t]))
        return np.asarray(w - lr * m / (np.sqrt(corrected_mean([x**2 for x in gradients], betas[1])) + eps))

    return decaying(rule, lr=lr, **decay)


def amsgrad(lr: float, betas: Betas, eps: float, **decay: Any) -> Rule:
    """Reddi, Kale, Kumar 2018, algorithm 2, the largest of all second moments; torch's corrections."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        gradients.append(g)
        squares = [x**2 for x in gradients]
        x = np.max([mean_of(squares[:t], betas[1]) for t in range(1, len(squares) + 1)], axis=0)
        root = np.sqrt(x / (1.0 - betas[1] ** len(squares)))
        return w - lr * corrected_mean(gradients, betas[0]) / (root + eps)

    return decaying(rule, lr=lr, **decay)


def lion(lr: float, betas: Betas, **decay: Any) -> Rule:
    """Chen et al. 2023, algorithm 2, m as the sum over all gradients before."""
    gradients: list[Array] = []

    def rule(w: Array, g: Array) -> Array:
        m = mean_of(gradients, betas[1]) if gradients else 0.0
        gradients.append(g)
        return np.asarray(w - lr * np.sign(betas[0] * m + (1.0 - betas[0]) * g))

    return decaying(rule, lr=lr, **decay)


class _NAdam(torch.optim.NAdam):
    """torch's, with the product of its mu in float64: it is a tensor of the default type."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            super().step()
        finally:
            torch.set_default_dtype(before)


def corrected_mean(values: list[Array], beta: float) -> Array:
    """sum beta^(t-i) x_i / sum beta^(t-i): exponential mean with its bias corrected."""
    weights = [beta ** (len(values) - 1 - i) for i in range(len(values))]
    return np.asarray(sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights))


_ADAM: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.01, "betas": (0.8, 0.95), "eps": 1e-4}
_L2: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}

EXAMS: dict[str, Exam] = {
    "adadelta": Exam(
        rule=adadelta,
        options=options(lr=0.7, rho=0.8, eps=1e-4),
        variants=[DECOUPLED],
        reductions=[
            ({}, torch.optim.Adadelta),
            ({"rho": 0.95, **_L2}, partial(torch.optim.Adadelta, rho=0.95, **_L2)),
        ],
        rosenbrock=Run(options={}, steps=2_000, gap=2e-3, schedule="linear"),
        logistic=Run(options={"lr": 10.0}, steps=400, gap=1e-5),
    ),
    "rmsprop": Exam(
        rule=rmsprop,
        options=options(alpha=0.9, eps=1e-3, momentum=0.0, centered=False),
        variants=[
            DECOUPLED,
            {"centered": True},
            {"momentum": 0.7},
            {"momentum": 0.7, "centered": True, "decoupled": True},
        ],
        reductions=[
            ({}, torch.optim.RMSprop),
            (_L2, partial(torch.optim.RMSprop, **_L2)),
            (
                {"centered": True, "momentum": 0.9, "lr": 1e-3},
                partial(torch.optim.RMSprop, centered=True, momentum=0.9, lr=1e-3),
            ),
        ],
        rosenbrock=Run(options={"lr": 0.01, "momentum": 0.9}, steps=1_000, gap=1e-5, schedule="linear"),
        logistic=Run(options={"lr": 0.03}, steps=300, gap=1e-6, schedule="linear"),
    ),
    "adam": Exam(
        rule=adam,
        options=_ADAM,
        reductions=[(_L2, partial(torch.optim.Adam, **_L2))],
        rosenbrock=Run(options={"lr": 0.1}, steps=1_500, gap=1e-5),
        logistic=Run(options={"lr": 0.05}, steps=300, gap=1e-6),
    ),
    "adamw": Exam(
        rule=adamw,
        options=_ADAM,
        reductions=[
            ({"lr": 0.01, "weight_decay": 0.0}, partial(torch.optim.Adam, lr=0.01)),
            (_L2, partial(torch.optim.AdamW, **_L2)),
        ],
        rosenbrock=Run(options={"lr": 0.1, "weight_decay": 0.0}, steps=1_500, gap=1e-5),
        logistic=Run(options={"lr": 0.05, "weight_decay": 0.0}, steps=300, gap=1e-6),
    ),
    "nadam": Exam(
        rule=nadam,
        options=options(betas=(0.8, 0.95), eps=1e-4, momentum_decay=0.1),
        variants=[DECOUPLED],
        reductions=[
            ({}, _NAdam),
            (_L2, partial(_NAdam, **_L2)),
            ({**_L2, **DECOUPLED}, partial(_NAdam, decoupled_weight_decay=True, **_L2)),
        ],
        rosenbrock=Run(options={"lr": 0.1}, steps=1_000, gap=5e-3, schedule="linear"),
        logistic=Run(options={"lr": 0.05}, steps=300, gap=1e-6),
    ),
    "amsgrad": Exam(
        rule=amsgrad,
        options=options(betas=(0.8, 0.95), eps=1e-4),
        variants=[DECOUPLED],
        reductions=[
            (_L2, partial(torch.optim.Adam, amsgrad=True, **_L2)),
            ({**_L2, **DECOUPLED}, partial(torch.optim.AdamW, amsgrad=True, **_L2)),
        ],
        rosenbrock=Run(options={"lr": 0.3}, steps=800, gap=1e-5),
        logistic=Run(options={"lr": 0.1}, steps=200, gap=1e-8),
    ),
    "lion": Exam(
        rule=lion,
        options=options(betas=(0.8, 0.95)),
        variants=[DECOUPLED],
        rosenbrock=Run(options={"lr": 5e-3}, steps=1_500, gap=1e-4, schedule="linear"),
        logistic=Run(options={"lr": 0.01}, steps=800, gap=1e-4, schedule="linear"),
    ),
}
