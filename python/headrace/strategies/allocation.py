"""The least total error under a budget of bytes: one rung of a ladder for every tensor.

    minimise  sum_t e_t(r_t)   subject to  sum_t b_t(r_t) <= B

First by greed. Rungs on the lower convex hull of a tensor's points (b, e) are climbed from the fewest bytes up, always
the step of all tensors that takes most error for a byte. Up to the first step that does not fit, that is the solution
of the Lagrangian problem, min sum e + lambda b, at the step's slope lambda; with the fraction of the step that would
fit it is the least error of the linear relaxation, and no choice has less. Then smaller steps that still fit.

Where that is not within TOLERANCE of the relaxation's, exactly: tensor after tensor, all sums (bytes, error) of which
none is better in both, but for those that cannot beat the greedy choice:

    error + sum over tensors to come of min_r (e(r) + lambda b(r)) - lambda (B - bytes) >= the least error known

If there are ever more than FRONT of them, those of the least such bound go on, and the result may not be the least;
`bound` says how far off it is at most. The problem is the multiple-choice knapsack: P. Sinha, A. Zoltners, "The
multiple-choice knapsack problem", Operations Research 27, 1979; for bits of quantizers Y. Shoham, A. Gersho, "Efficient
bit allocation for an arbitrary set of quantizers", IEEE Transactions on Acoustics, Speech and Signal Processing, 1988.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

TOLERANCE = 0.01
FRONT = 4096
_Array = np.ndarray[Any, Any]


class Allocation(NamedTuple):
    """A choice.

    Args:
        rungs: of every tensor.
        nbytes: of all together, the budget at most.
        error: of all together.
        bound: no choice within the budget has less error.
    """

    rungs: list[int]
    nbytes: int
    error: float
    bound: float


class _Step(NamedTuple):
    """From rung to rung of a tensor, along its hull: so many more bytes, so much less error, so much of it a byte."""

    tensor: int
    number: int
    rung: int
    nbytes: int
    gain: float
    slope: float


class _Front(NamedTuple):
    """Choices for the tensors so far: [n] bytes, errors, the place of the choice before, the last tensor's rung."""

    nbytes: _Array
    errors: _Array
    before: _Array
    rungs: _Array


def allocate(
    nbytes: Sequence[Sequence[int]],
    errors: Sequence[Sequence[float]],
    budget: int,
    tolerance: float = TOLERANCE,
    most: int = FRONT,
) -> Allocation | None:
    """The choice; None where even the fewest bytes are more than the budget.

    Args:
        nbytes: [tensors][rungs].
        errors: [tensors][rungs], finite, not negative.
        budget: bytes of all tensors together.
        tolerance: of the error, as a part of it; 0: the least there is, but for `most`.
        most: choices that are looked at together.
    """
    greedy = _greedy(nbytes, errors, budget)
    if greedy is None or not nbytes:
        return greedy and greedy[0]
    found, slope = greedy
    if found.error - found.bound <= tolerance * found.error:
        return found
    return _searched(np.array(nbytes), np.array(errors), budget, (found, slope), most)


def _greedy(
    nbytes: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], budget: int
) -> tuple[Allocation, float] | None:
    """The greedy choice, and lambda."""
    hulls = [hull(b, e) for b, e in zip(nbytes, errors, strict=True)]
    rungs = [each[0] for each in hulls]
    left = budget - sum(b[r] for b, r in zip(nbytes, rungs, strict=True))
    if left < 0:
        return None
    bound = sum(e[r] for e, r in zip(errors, rungs, strict=True))
    steps = [step for t, each in enumerate(hulls) for step in _steps(t, each, nbytes[t], errors[t])]
    shut, slope = set[int](), 0.0
    for step in sorted(steps, key=lambda s: (-s.slope, s.tensor, s.number)):
        fits = step.tensor not in shut and step.nbytes <= left
        if not shut:
            bound -= step.gain * min(1.0, left / step.nbytes)
            slope = 0.0 if fits else step.slope
        if fits:
            rungs[step.tensor], left = step.rung, left - step.nbytes
        else:
            shut.add(step.tensor)
    left = _filled(rungs, nbytes, errors, left)
    error = sum(e[r] for e, r in zip(errors, rungs, strict=True))
    return Allocation(rungs, budget - left, error, min(bound, error)), slope


def hull(nbytes: Sequence[int], errors: Sequence[float]) -> list[int]:
    """Rungs on the lower convex hull, from the fewest bytes to the least error; each takes less error for a byte."""
    found: list[int] = []
    for rung in sorted(range(len(nbytes)), key=lambda r: (nbytes[r], errors[r], r)):
        if found and errors[rung] >= errors[found[-1]]:
            continue
        while len(found) > 1 and _above(found[-2], found[-1], rung, nbytes, errors):
            found.pop()
        found.append(rung)
    return found


def _above(a: int, b: int, c: int, nbytes: Sequence[int], errors: Sequence[float]) -> bool:
    """Whether point b lies on or above the line from a to c."""
    return (errors[a] - errors[b]) * (nbytes[c] - nbytes[b]) <= (errors[b] - errors[c]) * (nbytes[b] - nbytes[a])


def _steps(tensor: int, rungs: Sequence[int], nbytes: Sequence[int], errors: Sequence[float]) -> list[_Step]:
    made, slope = [], math.inf
    for number, (before, rung) in enumerate(pairwise(rungs)):
        more, gain = nbytes[rung] - nbytes[before], errors[before] - errors[rung]
        slope = min(slope, gain / more)  # falls along a hull, but for rounding: steps are taken in their order
        made.append(_Step(tensor, number, rung, more, gain, slope))
    return made


def _filled(rungs: list[int], nbytes: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], left: int) -> int:
    """Take what still fits, the largest gain first; bytes that are left then."""
    while True:
        fitting = [
            (errors[t][now] - errors[t][r], t, r)
            for t, now in enumerate(rungs)
            for r in range(len(nbytes[t]))
            if errors[t][r] < errors[t][now] and nbytes[t][r] - nbytes[t][now] <= left
        ]
        if not fitting:
            return left
        _, t, r = max(fitting)
        left -= nbytes[t][r] - nbytes[t][rungs[t]]
        rungs[t] = r


def _searched(
    nbytes: _Array, errors: _Array, budget: int, greedy: tuple[Allocation, float], most: int
) -> Allocation:  # fmt: skip
    """The least error, or the greedy choice where none is less."""
    found, slope = greedy
    least = (errors + slope * nbytes).min(1)  # of every tensor, in the Lagrangian problem
    fewest = nbytes.min(1)
    front = _Front(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    fronts, whole = [front], True
    for tensor in range(len(nbytes)):
        room = budget - int(fewest[tensor + 1 :].sum())
        to_come = float(least[tensor + 1 :].sum()) - slope * budget
        front, all_of_them = _wider(front, nbytes[tensor], errors[tensor], (room, slope, found.error - to_come), most)
        whole &= all_of_them
        fronts.append(front)
    if not len(front.errors) or front.errors.min() >= found.error:
        return found._replace(bound=found.error) if whole else found
    best = int(front.errors.argmin())
    error, total, rungs = float(front.errors[best]), int(front.nbytes[best]), list[int]()
    for each in reversed(fronts[1:]):
        rungs.insert(0, int(each.rungs[best]))
        best = int(each.before[best])
    return Allocation(rungs, total, error, error if whole else min(found.bound, error))


def _wider(
    front: _Front, nbytes: _Array, errors: _Array, limits: tuple[int, float, float], most: int
) -> tuple[_Front, bool]:
    """The front with one tensor more, and whether nothing was left out that might have been the least.

    Args:
        front: of the tensors before.
        nbytes: [rungs] of the tensor.
        errors: [rungs] of the tensor.
        limits: bytes at most; lambda; error + lambda bytes are less than this.
        most: choices at most.
    """
    room, slope, beaten = limits
    total, error = np.add.outer(front.nbytes, nbytes).ravel(), np.add.outer(front.errors, errors).ravel()
    bound = error + slope * total
    kept = np.flatnonzero((total <= room) & (bound < beaten))
    kept = kept[np.lexsort((error[kept], total[kept]))]
    lowest = np.minimum.accumulate(error[kept])
    kept = kept[np.diff(lowest, prepend=np.inf) < 0]  # fewer bytes and less error: the others are never better
    whole = len(kept) <= most
    if not whole:
        kept = np.sort(kept[np.argpartition(bound[kept], most)[:most]])
    return _Front(total[kept], error[kept], kept // len(nbytes), kept % len(nbytes)), whole
