"""Line searches along phi(a) = F(w + a d) from a = 0, phi'(0) < 0.

    sufficient decrease   phi(a) <= phi(0) + c1 a phi'(0)
    strong curvature      |phi'(a)| <= c2 |phi'(0)|           both: the strong Wolfe conditions

References: J. Nocedal and S. J. Wright, "Numerical optimization", 2nd edition, 2006: algorithms 3.1 (backtracking),
3.5 (bracketing), 3.6 (zoom), equation 3.59 (cubic interpolation). The book leaves the next trial in the bracketing
phase open: here the cubic's minimizer between 2 and 10 times the last. In zoom it stays a tenth of the interval away
from both ends, and a value that is not finite counts as inf, after which a tenth of the interval is tried. Values that
differ by rounding only count as equal, and the slope decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from headrace.optim.flat import Objective, dot, factor

_GROWTH = (2.0, 10.0)
_EDGE = 0.1
_NOISE = 1e-15


@dataclass(frozen=True)
class Trial:
    """A point on the line: a, phi(a), phi'(a), w + a d [n] and the gradient of F there [n]."""

    step: float
    value: float
    slope: float
    at: Tensor
    gradient: Tensor


class Line:
    """phi, evaluated; counts its trials."""

    def __init__(self, objective: Objective, origin: Trial, direction: Tensor) -> None:
        self.objective, self.origin, self.direction, self.trials = objective, origin, direction, 0

    def __call__(self, step: float) -> Trial:
        self.trials += 1
        at = self.origin.at.add(self.direction, alpha=factor(step, self.direction))
        value, gradient = self.objective.value_and_gradient(at)
        slope = dot(gradient, self.direction) if math.isfinite(value) else math.nan
        return Trial(step, value, slope, at, gradient)


def strong_wolfe(line: Callable[[float], Trial], origin: Trial, first: float, c1: float, c2: float, most: int) -> Trial:
    """A point that fulfils both conditions, `origin` where none was found that is lower.

    Args:
        line: phi.
        origin: of step 0.
        first: the first step tried, above 0.
        c1: see the module's docstring; 0 < c1 < c2 < 1.
        c2: the same.
        most: trials at most; after them the lowest point with sufficient decrease.
    """
    before, step = origin, first
    for number in range(most):
        trial = line(step)
        if not _decreases(trial, origin, c1) or (number > 0 and trial.value >= before.value):
            return _zoom(line, origin, (before, trial), c1, c2, most - number - 1)
        if abs(trial.slope) <= -c2 * origin.slope:
            return trial
        if trial.slope >= 0:
            return _zoom(line, origin, (trial, before), c1, c2, most - number - 1)
        least, greatest = (factor * step for factor in _GROWTH)
        guess = cubic_minimizer(before, trial)
        before, step = trial, greatest if guess is None else min(max(guess, least), greatest)
    return before


def _zoom(
    line: Callable[[float], Trial], origin: Trial, ends: tuple[Trial, Trial], c1: float, c2: float, left: int
) -> Trial:
    """`ends`: the lowest point so far, whose slope leads towards the other."""
    low, high = ends
    for _ in range(left):
        width = high.step - low.step
        share = _EDGE
        if math.isfinite(high.value):
            guess = cubic_minimizer(low, high)
            share = 0.5 if guess is None else min(max((guess - low.step) / width, _EDGE), 1.0 - _EDGE)
        step = low.step + share * width
        if step in (low.step, high.step):
            break
        trial = line(step)
        if not _decreases(trial, origin, c1) or trial.value > low.value + _NOISE * abs(low.value):
            high = trial
            continue
        if abs(trial.slope) <= -c2 * origin.slope:
            return trial
        if trial.slope * width >= 0:
            high = low
        low = trial
    return low if low.value < origin.value else origin


def _decreases(trial: Trial, origin: Trial, c1: float) -> bool:
    return trial.value <= origin.value + c1 * trial.step * origin.slope


def cubic_minimizer(a: Trial, b: Trial) -> float | None:
    """Of the cubic with the values and slopes of two points (equation 3.59); None where it has no minimum."""
    width = b.step - a.step
    d1 = a.slope + b.slope - 3.0 * (b.value - a.value) / width
    under = d1 * d1 - a.slope * b.slope
    if not 0.0 <= under < math.inf:
        return None
    d2 = math.copysign(math.sqrt(under), width)
    denominator = b.slope - a.slope + 2.0 * d2
    found = b.step - width * (b.slope + d2 - d1) / denominator if denominator else math.inf
    return found if math.isfinite(found) else None


def backtrack(
    value: Callable[[float], float], value_0: float, slope_0: float, first: float, c1: float, rate: float, most: int
) -> float:
    """The first of first, rate first, rate^2 first, ... with sufficient decrease; 0.0 where `most` have not."""
    step = first
    for _ in range(most):
        found = value(step)
        if math.isfinite(found) and found <= value_0 + c1 * step * slope_0:
            return step
        step *= rate
    return 0.0
