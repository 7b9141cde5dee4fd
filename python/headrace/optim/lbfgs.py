"""L-BFGS, on the full batch or on batches.

    s = w' - w,  y = grad F_B(w') - grad F_B(w)  of the last `history` steps, both gradients on the step's batch B
    H <- (I - s y^T / s.y) H (I - y s^T / s.y) + s s^T / s.y  over the pairs, from H_0 = (s.y / y.y) I of the last
    w' = w - a H grad F_B(w),     a by a strong Wolfe line search on F_B, or a = lr

References: J. Nocedal and S. J. Wright, "Numerical optimization", 2nd edition, 2006: algorithms 7.4 (two loops), 7.5,
equation 7.20 (H_0), procedure 18.2 (damping); A. S. Berahas, J. Nocedal, M. Takac, "A multi-batch L-BFGS method for
machine learning", NIPS 2016.

Multi-batch: the paper takes y from the rows that two batches in a row share, which saves an evaluation. Batches of an
epoch share none here, so y is taken on the whole of the step's own batch, before and after the step: the same
consistency (differences of gradients of one function), no smaller sample, for one gradient more a step where there is
no line search (with one, the gradient at the accepted point is there already). The objective includes weight_decay.
The gradient at w is evaluated anew: the one handed to the step may have been rounded to bf16 or compressed, and y would
hold that error.

Pairs with s.y <= min_curvature |s||y| are left out ("skip"; the paper's s.y < e |s|^2 without its unit), or y is moved
towards B s until s.y >= 0.2 s.B s ("damp"; B s = -a grad exactly, since s = -a H grad). Where the line search finds no
lower point, the step is not made and the pairs are forgotten: the next one is along the gradient, as the first is, and
tries min(1, 1 / |grad|_1) lr first, as torch's does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Params, State
from headrace.optim.flat import Objective, WholeModelOptimizer, check_above_zero, check_counts, dot, factor
from headrace.optim.line_search import Line, Trial, strong_wolfe
from headrace.optim.spec import DENSE_ONLY, NEEDS_CLOSURE, OWN_GRADIENT, STATEFUL, OptimizerSpec, numbers

_SHRINK = 0.1
_LINE_SEARCHES = ("strong_wolfe", "none")
_BAD_PAIRS = ("skip", "damp")


class LBFGS(WholeModelOptimizer):
    """See the module's docstring.

    Args:
        params: (name, tensor) pairs, or a group of them.
        options: lr (first step tried, or the step), history (pairs kept), line_search ("strong_wolfe", "none"), c1, c2
            (of the Wolfe conditions), max_trials (gradients evaluated in a line search, at most), bad_pairs ("skip",
            "damp"), min_curvature, weight_decay.
    """

    name = "lbfgs"

    def __init__(self, params: Params, **options: Any) -> None:
        check_counts(options, "history", "max_trials")
        check_above_zero(options, "c1")
        for name, known in (("line_search", _LINE_SEARCHES), ("bad_pairs", _BAD_PAIRS)):
            if options[name] not in known:
                raise UserError(f"lbfgs has no {name} {options[name]!r}", f"one of {', '.join(known)}")
        if not options["c1"] < options["c2"] < 1.0:
            raise UserError(f"lbfgs needs 0 < c1 < c2 < 1, not c1 {options['c1']} and c2 {options['c2']}")
        super().__init__(params, **options)

    def with_own_gradient(self) -> list[str]:
        """See `Optimizer.with_own_gradient`."""
        return [self.name]

    def move(
        self, objective: Objective, w: Tensor, gradient: Tensor, options: Mapping[str, Any], state: State
    ) -> Tensor | None:
        """See `WholeModelOptimizer.move`."""
        value, gradient = objective.value_and_gradient(w)
        self.check_start(value, gradient)
        pairs = Pairs(state)
        direction = pairs.direction(gradient)
        slope = dot(direction, gradient)
        if not -math.inf < slope < 0.0:
            pairs.forget()
            direction, slope = -gradient, -dot(gradient, gradient)
        step = options["lr"]
        if not pairs.s:
            step *= 1.0 / max(1.0, float(gradient.abs().sum(dtype=torch.float64)))
        if not _can_fall(value, slope * step, w.dtype):
            return None
        origin = Trial(0.0, value, slope, w, gradient)
        line = Line(objective, origin, direction)
        found = _search(line, origin, step, options)
        self.last = {"value": found.value, "step": found.step, "trials": line.trials, "pairs": len(pairs.s)}
        if found is origin:
            pairs.forget()
            return None
        pairs.add(found.at - w, found.gradient - gradient, -found.step * gradient, options)
        return found.at


def _can_fall(value: float, predicted: float, dtype: torch.dtype) -> bool:
    """Whether a change `predicted` < 0 can be told in a float64 mean of losses of this precision: of their own rounding
    errors a hundredth is left."""
    least = max(0.01 * torch.finfo(dtype).eps, torch.finfo(torch.float64).eps)
    return math.isfinite(value) and -predicted > least * abs(value)


def _search(line: Line, origin: Trial, step: float, options: Mapping[str, Any]) -> Trial:
    if options["line_search"] == "strong_wolfe":
        return strong_wolfe(line, origin, step, options["c1"], options["c2"], int(options["max_trials"]))
    for _ in range(int(options["max_trials"])):
        found = line(step)
        if math.isfinite(found.value):
            return found
        step *= _SHRINK
    return origin


class Pairs:
    """The history, oldest first: s and y, lists of [n]; rho = 1 / s.y."""

    def __init__(self, state: State) -> None:
        self.s: list[Tensor] = state.setdefault("s", [])
        self.y: list[Tensor] = state.setdefault("y", [])
        self.rho: list[float] = state.setdefault("rho", [])

    def forget(self) -> None:
        """Start anew."""
        self.s.clear()
        self.y.clear()
        self.rho.clear()

    def direction(self, gradient: Tensor) -> Tensor:
        """-H gradient [n] by two loops (algorithm 7.4)."""
        q = -gradient
        along = []
        for s, y, rho in zip(reversed(self.s), reversed(self.y), reversed(self.rho), strict=True):
            along.append(rho * dot(s, q))
            q.sub_(y, alpha=factor(along[-1], q))
        if self.y:
            q.mul_(1.0 / (self.rho[-1] * dot(self.y[-1], self.y[-1])))
        for s, y, rho in zip(self.s, self.y, self.rho, strict=True):
            q.add_(s, alpha=factor(along.pop() - rho * dot(y, q), q))
        return q

    def add(self, s: Tensor, y: Tensor, bent: Tensor, options: Mapping[str, Any]) -> None:
        """Keep a pair, or what is made of a bad one; `bent` is B s, s.B s > 0."""
        sy = dot(s, y)
        if options["bad_pairs"] == "damp":
            sbs = dot(s, bent)
            if sy < 0.2 * sbs:
                share = 0.8 * sbs / (sbs - sy)
                y = share * y + (1.0 - share) * bent
                sy = dot(s, y)
        size = math.sqrt(dot(s, s) * dot(y, y))
        if not options["min_curvature"] * size < sy < math.inf:
            return
        self.s.append(s)
        self.y.append(y)
        self.rho.append(1.0 / sy)
        spare = len(self.s) - int(options["history"])
        if spare > 0:
            del self.s[:spare], self.y[:spare], self.rho[:spare]


SPEC = OptimizerSpec(
    factory=LBFGS,
    paper="Nocedal and Wright 2006, alg. 7.5; Berahas, Nocedal, Takac 2016",
    rule="w <- w - a H g;  H by BFGS over the last pairs (s, y), y on one batch;  a by strong Wolfe conditions",
    use="convex or smooth problems on the full batch or large ones, to high precision",
    state="2 history numbers a parameter",
    state_bytes=lambda param, options: numbers(2 * int(options["history"]))(param, options),
    cost="2 to 3 gradients of the batch (1 + trials of the line search), 4 history + 10 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, OWN_GRADIENT}),
    defaults={
        "lr": 1.0, "history": 10, "line_search": "strong_wolfe", "c1": 1e-4, "c2": 0.9, "max_trials": 25,
        "bad_pairs": "skip", "min_curvature": 1e-8, "weight_decay": 0.0,
    },
)  # fmt: skip
