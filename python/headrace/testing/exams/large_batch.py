"""LARS, LAMB and 8-bit state: references in NumPy, from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from headrace.optim import OPTIMIZERS
from headrace.testing.optim_exam import Array, Exam, Rule, Run, follows_its_rule, make
from headrace.testing.problems import perceptron


def lars(
    lr: float, momentum: float, weight_decay: float, trust_coefficient: float, clip: bool,
    exclude_1d: bool, exclude: Sequence[str],
) -> Rule:  # fmt: skip
    """You et al. 2017, algorithm 1, as w_t = w_0 - sum_i s_i d_i (1 - mu^(t-i+1)) / (1 - mu)."""
    start: Array | None = None
    moved: list[Array] = []

    def local_rate(w: Array, g: Array) -> float:
        if "*" in exclude or (exclude_1d and w.ndim < 2):
            return lr
        w_norm, g_norm = math.hypot(*w.ravel()), math.hypot(*g.ravel())
        trust = trust_coefficient * w_norm / (g_norm + weight_decay * w_norm)
        return min(trust / lr, 1.0) * lr if clip else lr * trust

    def rule(w: Array, g: Array) -> Array:
        nonlocal start
        start = w if start is None else start
        decayed = 0.0 if "*" in exclude or (exclude_1d and w.ndim < 2) else weight_decay
        moved.append(local_rate(w, g) * (g + decayed * w))
        shares = [(1 - momentum ** (len(moved) - i)) / (1 - momentum) for i in range(len(moved))]
        return np.asarray(start - sum(share * d for share, d in zip(shares, moved, strict=True)))

    return rule


def lamb(*, lr: float, eps: float, weight_decay: float, phi_bounds: tuple[float, float], **more: Any) -> Rule:
    """You et al. 2020, algorithm 2, as what is left of it: a step of length lr phi(|w|) along u."""
    moments = _moments(more["betas"], more["debias"], more["state_bits"] == 8, more["min_8bit_numel"])

    def rule(w: Array, g: Array) -> Array:
        m, v = moments(g)
        adam = m / (np.sqrt(v) + eps)
        if "*" in more["exclude"] or (more["exclude_1d"] and w.ndim < 2):
            return w - lr * adam
        u = (adam + weight_decay * w).ravel()
        length = (
            float(np.clip(math.sqrt(w.ravel() @ w.ravel()), *phi_bounds)) if more["trust_ratio"] else math.sqrt(u @ u)
        )
        return w - (lr * length * u / math.sqrt(u @ u)).reshape(w.shape)

    return rule


def adam_8bit(
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool, min_8bit_numel: int
) -> Rule:
    """Dettmers et al. 2022 on Kingma and Ba 2015."""
    moments = _moments(betas, True, True, min_8bit_numel)

    def rule(w: Array, g: Array) -> Array:
        m, v = moments(g if decoupled else g + weight_decay * w)
        return (1 - lr * weight_decay * decoupled) * w - lr * m / (np.sqrt(v) + eps)

    return rule


def _moments(
    betas: tuple[float, float], debias: bool, quantized: bool, min_numel: int
) -> Callable[[Array], list[Array]]:
    """Exponential means of g and g^2; where quantized, of what was left of the last ones by `round_trip`."""
    kept: list[Array] = []
    step = 0

    def moments(g: Array) -> list[Array]:
        nonlocal kept, step
        step += 1
        before = kept or [np.zeros_like(g)] * 2
        kept = [b * old + (1 - b) * g**power for b, old, power in zip(betas, before, (1, 2), strict=True)]
        made = [mean / (1 - b**step) if debias else mean for b, mean in zip(betas, kept, strict=True)]
        if quantized and g.size >= min_numel:
            kept = [round_trip(mean, signed) for mean, signed in zip(kept, (True, False), strict=True)]
        return made

    return moments


@cache
def decode(code: int, signed: bool) -> float:
    """The number a byte stands for: Dettmers et al. 2022, figure 2, bit by bit; 1 takes the place of minus zero."""
    bits = f"{code:08b}"
    sign, bits = (-1.0 if bits[0] == "1" else 1.0, bits[1:]) if signed else (1.0, bits)
    if "1" not in bits[:7]:
        return 1.0 if (signed and sign < 0) or bits[7:] == "1" else 0.0
    zeros = bits.index("1")
    fraction = bits[zeros + 1 :]
    middle = (int(fraction or "0", 2) + 0.5) / 2 ** len(fraction)
    return float(sign * 10.0**-zeros * (0.1 + 0.9 * middle))


def round_trip(x: Array, signed: bool, block: int = 2048) -> Array:
    """Every number to the nearest of its block's 256, by trying all; unsigned ones that are not zero not to zero."""
    values = np.sort([decode(code, signed) for code in range(256)])
    flat = x.ravel().copy()
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        scale = np.abs(part).max()
        if scale > 0:
            distances = np.abs(part[:, None] / scale - values)
            if not signed:
                distances[part > 0, 0] = np.inf
            flat[start : start + block] = values[distances.argmin(1)] * scale
    return flat.reshape(x.shape)


def also(name: str, **options: Any) -> Callable[[], None]:
    """The rule is followed with other options, too."""

    def check() -> None:
        exam = EXAMS[name]
        follows_its_rule(
            f"{name} {options}", OPTIMIZERS[name], replace(exam, options={**exam.options, **options}, whole=())
        )

    return check


def trains_as_with_32_bits(name: str, name_32: str, lr: float) -> None:
    """A net with a layer of 4096 weights: the loss stays within 3 % of its way down of that with 32-bit state."""
    curves = []
    for key, options in ((name, {"state_bits": 8} if "state_bits" in OPTIMIZERS[name].defaults else {}), (name_32, {})):
        problem = perceptron((24, 64, 64, 4), rows=256, dtype=torch.float32)
        optimizer = make(OPTIMIZERS[key], problem.model, lr=lr, **options)
        curves.append(np.array(problem.train(optimizer, batch=64, steps=120)))
        held = any("m_scales" in state for state in optimizer.state.values())
        assert held == (not curves[1:]), f"{name}: 8-bit state is held by the wrong run"
    distance = np.abs(curves[0] - curves[1]).max() / (curves[1][0] - curves[1].min())
    assert distance < 0.03, f"{name}: the loss with 8-bit state is off by {distance:.1%} of its way down"


_LARS = {"lr": 0.5, "momentum": 0.8, "weight_decay": 0.01, "trust_coefficient": 0.02, "clip": False}
_LARC = {"clip": True, "trust_coefficient": 1.0, "exclude_1d": False}
_FROM_ZERO = {"phi_bounds": (1.0, 10.0), "exclude_1d": False}  # with phi = identity weights at zero would stay there
_LAMB: dict[str, Any] = {
    "lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.05, "debias": True, "trust_ratio": True,
    "phi_bounds": (0.5, 3.0), "exclude_1d": False, "exclude": (), "state_bits": 32, "min_8bit_numel": 1,
}  # fmt: skip
_ADAM = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.01, "decoupled": False, "min_8bit_numel": 1}

EXAMS: dict[str, Exam] = {
    "lars": Exam(
        rule=lars,
        options=_LARS | {"exclude_1d": False, "exclude": ()},
        whole=[
            also("lars", exclude_1d=True),
            also("lars", clip=True, lr=0.03),
            also("lars", exclude=("*",)),
            also("lars", momentum=0.0, weight_decay=0.0),
        ],
        reductions=[
            (
                {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.3, "exclude": ("*",)},
                partial(torch.optim.SGD, lr=0.1, momentum=0.8),
            ),
            (
                {"lr": 0.01, "weight_decay": 0.1, "clip": True, "trust_coefficient": 1e9, "exclude_1d": False},
                partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
            ),
        ],
        rosenbrock=Run(options=_LARC | {"lr": 2e-3}, steps=2_500, gap=1e-5),
        logistic=Run(options=_LARC | {"lr": 2.0}, steps=300, gap=1e-5),
    ),
    "lamb": Exam(
        rule=lamb,
        options=_LAMB,
        whole=[
            also("lamb", debias=False),
            also("lamb", exclude_1d=True, phi_bounds=(0.0, math.inf)),
            also("lamb", exclude=("*",)),
            also("lamb", trust_ratio=False, weight_decay=0.0),
            also("lamb", state_bits=8),
            also("lamb", state_bits=8, min_8bit_numel=10),
            partial(trains_as_with_32_bits, "lamb", "lamb", lr=0.01),
        ],
        reductions=[
            (
                {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1, "trust_ratio": False, "exclude_1d": False},
                partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
            ),
            (
                {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1, "exclude": ("*",)},
                partial(torch.optim.Adam, lr=0.01),
            ),
        ],
        rosenbrock=Run(options=_FROM_ZERO | {"lr": 2e-3}, steps=2_000, gap=1e-3),
        logistic=Run(options=_FROM_ZERO | {"lr": 0.03}, steps=300, gap=1e-3),
    ),
    "adam_8bit": Exam(
        rule=adam_8bit,
        options=_ADAM,
        whole=[
            also("adam_8bit", decoupled=True),
            also("adam_8bit", min_8bit_numel=10),
            partial(trains_as_with_32_bits, "adam_8bit", "adam", lr=1e-3),
        ],
        reductions=[
            ({"lr": 0.01, "weight_decay": 0.1}, partial(torch.optim.Adam, lr=0.01, weight_decay=0.1)),
            (
                {"lr": 0.01, "weight_decay": 0.1, "decoupled": True},
                partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
            ),
        ],
        rosenbrock=Run(options={"lr": 0.1, "min_8bit_numel": 1}, steps=800, gap=1e-3),
        logistic=Run(options={"lr": 0.05, "min_8bit_numel": 1}, steps=300, gap=1e-4),
    ),
}  # fmt: skip
