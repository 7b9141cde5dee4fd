"""What is tried for every rule: 5 settings each (3 on Criteo, whose runs are long), the same budget for all of a task,
in an order from the middle outward.

Most rules are tried at learning rates around their default, in steps of sqrt(10): with 5 settings from a tenth of it to
10 times it. The others have a grid of 8 of their own, below, of which the middle is tried. A rule that is not named
here is one of the first kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from headrace.optim import spec_of

BUDGET = 5
BUDGETS: Mapping[str, int] = {"mnist": BUDGET, "criteo": 3, "cifar10": BUDGET}
FALLING: Mapping[str, Any] = {"name": "linear"}
CONSTANT: Mapping[str, Any] = {"name": "constant"}


@dataclass(frozen=True)
class Space:
    """The settings of one rule.

    Args:
        grid: values by option; "batch" stands for multiples of the task's batch.
        fixed: options that all settings share.
        schedule: of the learning rate; the linear fall to 0 for all but rules whose step is found by a line search or
            whose theory wants it constant.
    """

    grid: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=lambda: FALLING)


def rates(centre: float) -> tuple[float, ...]:
    """8 learning rates, the fifth of them `centre`."""
    return tuple(rounded(centre * 10 ** (k / 2)) for k in range(-4, 4))


def rounded(value: float) -> float:
    """Three digits."""
    return float(f"{value:.3g}")


_REDUCED = Space({"lr": rates(0.1)}, schedule=CONSTANT)
SPACES: Mapping[str, Space] = {
    "lars": Space({"lr": rates(3.0)}),
    "adafactor": Space({"lr": rates(1e-2)}, fixed={"relative_step": False}),
    "lbfgs": Space({"batch": (2, 8, 16, 64), "history": (5, 20)}, schedule=CONSTANT),
    "hessian_free": Space({"batch": (8, 32), "damping": (0.1, 1.0), "cg_iterations": (10, 50)}, schedule=CONSTANT),
    "natural_gradient": Space(
        {"lr": (0.03, 0.1, 0.3, 1.0), "damping": (1e-3, 1e-2)}, fixed={"cg_iterations": 10, "max_kl": 0.1}
    ),
    # With momentum 0.9 its first epoch, of 54 steps, is slow: found by hand on MNIST, as was where the grid lies.
    "kfac": Space(
        {"lr": (0.01, 0.03, 0.1, 0.3), "damping": (0.03, 0.1, 0.3)}, fixed={"momentum": 0.5, "kl_clip": 0.1}
    ),
    "sag": _REDUCED,
    "saga": _REDUCED,
    "svrg": _REDUCED,
    "sarah": _REDUCED,
    "scsg": _REDUCED,
}  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """One setting of a rule: its options, and the batch as a multiple of the task's."""

    options: dict[str, Any]
    batch: int


def space_of(rule: str) -> Space:
    """A rule's space.

    Raises:
        UserError: there is no such rule.
    """
    spec = spec_of(rule)
    return SPACES.get(rule) or Space({"lr": rates(spec.defaults["lr"])})


def tried(rule: str, budget: int = BUDGET) -> list[Tried]:
    """The first `budget` settings of a rule."""
    space = space_of(rule)
    axes = list(space.grid.values())
    places = sorted(product(*(range(len(axis)) for axis in axes)), key=lambda at: (_far(at, axes), at))
    made = []
    for at in places[:budget]:
        options = dict(space.fixed) | {name: axis[i] for (name, axis), i in zip(space.grid.items(), at, strict=True)}
        made.append(Tried(options, int(options.pop("batch", 1))))
    return made


def _far(at: Sequence[int], axes: Sequence[Sequence[Any]]) -> int:
    """Steps from the middle of the grid."""
    return sum(abs(i - len(axis) // 2) for i, axis in zip(at, axes, strict=True))
