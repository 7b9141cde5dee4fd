"""Column summaries against numpy and Python on the whole column."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.catalog.summary import ColumnSummary, K, psi

NUMBERS = st.lists(st.one_of(st.none(), st.integers(-(10**6), 10**6)), max_size=200)


def summarize(values: Sequence[Any], kind: pa.DataType, pieces: int = 1) -> ColumnSummary:
    """Summaries of pieces, sent through JSON and merged."""
    merged = ColumnSummary()
    size = max(1, math.ceil(len(values) / pieces))
    for start in range(0, len(values), size):
        part = ColumnSummary()
        part.add(pa.array(values[start : start + size], kind))
        merged.merge(ColumnSummary.from_json(json.loads(json.dumps(part.to_json()))))
    return merged


@given(NUMBERS, st.integers(1, 5))
def test_integers(values: list[int | None], pieces: int) -> None:
    found = summarize(values, pa.int64(), pieces)
    present = [v for v in values if v is not None]
    assert (found.rows, found.nulls, found.count) == (len(values), len(values) - len(present), len(present))
    assert found.distinct == len(set(present))
    assert (found.least, found.greatest) == ((min(present), max(present)) if present else (None, None))
    assert sum(found.value_bins.values()) == found.hash_classes.sum() == len(present)
    if len(present) > 1:
        assert found.mean == pytest.approx(np.mean(present), rel=1e-9, abs=1e-6)
        assert found.stddev == pytest.approx(np.std(present, ddof=1), rel=1e-9, abs=1e-6)


@given(st.lists(st.one_of(st.none(), st.text(max_size=5)), max_size=60), st.integers(1, 4))
def test_texts(values: list[str | None], pieces: int) -> None:
    found = summarize(values, pa.string(), pieces)
    present = [v for v in values if v is not None]
    assert (found.nulls, found.distinct, found.count) == (len(values) - len(present), len(set(present)), 0)
    assert (found.least, found.greatest) == ((min(present), max(present)) if present else (None, None))


def test_floats_nan_infinity_and_both_zeros() -> None:
    found = summarize([float("nan"), 0.0, -0.0, math.inf, -math.inf, 2.5, None], pa.float32(), 2)
    assert (found.nulls, found.nans, found.distinct) == (1, 1, 4)
    assert (found.least, found.greatest) == (-math.inf, math.inf)
    assert found.mean == pytest.approx(2.5 / 3)


def test_other_types() -> None:
    assert summarize([True, False, None], pa.bool_()).distinct == 2
    long = summarize([b"a" * 10_000], pa.binary())
    assert long.greatest == "a" * 64
    assert summarize([[1], None], pa.list_(pa.int64())).nulls == 1
    assert summarize([], pa.int32()).distinct == 0


def test_distinct_is_estimated_within_five_standard_errors() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2**40, 200_000)
    found = summarize(values.tolist(), pa.int64(), 7)
    truth = len(np.unique(values))
    assert abs(found.distinct / truth - 1) < 5 / math.sqrt(K - 2)


def test_memory_is_bounded() -> None:
    found = ColumnSummary()
    for start in range(0, 500_000, 50_000):
        found.add(pa.array(np.arange(start, start + 50_000) * 2.5))
    assert found.hashes.size == K
    assert len(found.value_bins) < 100
    assert len(json.dumps(found.to_json())) < 20_000


def shares_psi(before: list[int], after: list[int]) -> float:
    """The formula, written out."""
    n = len(before)
    p = [(a + 0.5) / (sum(after) + 0.5 * n) for a in after]
    q = [(b + 0.5) / (sum(before) + 0.5 * n) for b in before]
    return sum((x - y) * math.log(x / y) for x, y in zip(p, q, strict=True))


def test_psi_by_value_is_the_formula_on_two_bins() -> None:
    before = summarize([0] * 60 + [1000] * 40, pa.int64()).bins()
    after = summarize([0] * 20 + [1000] * 80, pa.int64()).bins()
    before["hash_classes"] = after["hash_classes"] = [0] * 16
    assert psi(before, after) == pytest.approx(shares_psi([60, 40], [20, 80]))


def test_psi_tells_drift_from_noise() -> None:
    rng = np.random.default_rng(0)
    base = summarize(rng.normal(5, 1, 20_000).tolist(), pa.float64()).bins()
    same = summarize(rng.normal(5, 1, 20_000).tolist(), pa.float64()).bins()
    shifted = summarize(rng.normal(9, 1, 20_000).tolist(), pa.float64()).bins()
    small, large = psi(base, same), psi(base, shifted)
    assert small is not None and small < 0.02
    assert large is not None and large > 1
    letters = summarize(["a"] * 100 + ["b"] * 100, pa.string()).bins()
    others = summarize(["a"] * 190 + ["c"] * 10, pa.string()).bins()
    by_hash = psi(letters, others)
    assert by_hash is not None and by_hash > 0.25


def test_psi_of_nothing_is_unknown() -> None:
    nothing, some = summarize([], pa.int64()).bins(), summarize([1, 2], pa.int64()).bins()
    assert psi(nothing, some) is None
    assert psi(some, nothing) is None
