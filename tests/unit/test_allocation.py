"""Codecs by tensor under a budget: the least error, by enumeration of all choices."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from headrace.strategies.allocation import TOLERANCE, Allocation, allocate, hull


def problem(seed: int) -> tuple[list[list[int]], list[list[float]], int]:
    """Tensors of unlike sizes, rungs in no order, some worse than others in both."""
    rng = np.random.default_rng(seed)
    tensors, rungs = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    scale = 10.0 ** rng.uniform(0, 3, (tensors, 1))
    nbytes = (scale * rng.uniform(0.05, 1, (tensors, rungs))).astype(int)
    errors = 10.0 ** rng.uniform(-3, 3, (tensors, 1)) * rng.choice([0.0, 0.1, 0.5, 1.0, 2.0], (tensors, rungs))
    least, most = int(nbytes.min(1).sum()), int(nbytes.max(1).sum())
    return nbytes.tolist(), errors.tolist(), int(rng.integers(least - 1, most + 2))


def enumerated(nbytes: list[list[int]], errors: list[list[float]], budget: int) -> float | None:
    """The least error of all choices."""
    found = [
        sum(errors[t][r] for t, r in enumerate(choice))
        for choice in product(*(range(len(each)) for each in nbytes))
        if sum(nbytes[t][r] for t, r in enumerate(choice)) <= budget
    ]
    return min(found, default=None)


def checked(found: Allocation, nbytes: list[list[int]], errors: list[list[float]], budget: int) -> None:
    """What it says of itself is so."""
    assert found.nbytes == sum(b[r] for b, r in zip(nbytes, found.rungs, strict=True)) <= budget
    assert found.error == pytest.approx(sum(e[r] for e, r in zip(errors, found.rungs, strict=True)))


def test_no_choice_has_less_error() -> None:
    off = 0
    for seed in range(300):
        nbytes, errors, budget = problem(seed)
        least, found = enumerated(nbytes, errors, budget), allocate(nbytes, errors, budget, tolerance=0.0)
        loose, narrow = allocate(nbytes, errors, budget), allocate(nbytes, errors, budget, tolerance=0.0, most=2)
        assert (found is None) == (least is None) == (loose is None) == (narrow is None)
        if found is None or loose is None or narrow is None or least is None:
            continue
        for each in (found, loose, narrow):
            checked(each, nbytes, errors, budget)
            assert each.bound <= least * (1 + 1e-9) + 1e-12 <= each.error * (1 + 1e-9) + 2e-12
        assert found.error == pytest.approx(least) and found.bound == pytest.approx(least)
        assert loose.error - least <= TOLERANCE * loose.error + 1e-12
        off += narrow.error > least * (1 + 1e-9)
    assert off < 15  # of 300, where only two choices are looked at together


def test_many_tensors_are_within_the_bound() -> None:
    rng = np.random.default_rng(1)
    sizes = (10.0 ** rng.uniform(3, 6, 150)).astype(int)
    parts = np.array([0.01, 0.03, 0.06, 0.1, 0.13, 0.25, 0.5, 1.0])
    errors = np.outer(10.0 ** rng.uniform(-2, 2, 150), [1.0, 0.7, 0.4, 0.2, 0.1, 0.01, 1e-4, 0.0])
    nbytes = np.outer(sizes, parts).astype(int)
    for share in (0.02, 0.1, 0.4):
        found = allocate(nbytes.tolist(), errors.tolist(), int(share * sizes.sum()))
        assert found is not None
        checked(found, nbytes.tolist(), errors.tolist(), int(share * sizes.sum()))
        assert found.error - found.bound <= TOLERANCE * found.error
    assert allocate(nbytes.tolist(), errors.tolist(), 10) is None


def test_a_hull_is_convex_and_below_all() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        nbytes, errors = rng.integers(1, 60, 9).tolist(), rng.uniform(0, 5, 9).round(1).tolist()
        found = hull(nbytes, errors)
        at = [(nbytes[r], errors[r]) for r in found]
        slopes = [(a[1] - b[1]) / (b[0] - a[0]) for a, b in pairwise(at)]
        assert slopes == sorted(slopes, reverse=True) and all(s > 0 for s in slopes)
        for b, e in zip(nbytes, errors, strict=True):
            assert e >= np.interp(b, [x for x, _ in at], [y for _, y in at]) - 1e-9
