"""Categories as sparse vectors against a row-by-row reference; vectors read back from Arrow."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.baselines import vectors
from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError

SIZES = {"c1": 4, "c2": 7, "c3": 5}
DENSE = ("i1", "i2")


def slow(dense: list[float], ids: list[int], kind: str, buckets: int) -> dict[int, float]:
    """One row as {feature: value}, as the module's docstring has it."""
    found = dict(enumerate(dense))
    for column, each in enumerate(ids):
        if kind == "onehot":
            feature = len(dense) + sum(list(SIZES.values())[:column]) + each
        else:
            feature = len(dense) + int(splitmix64(np.array([column << 32 | each]))[0]) % buckets
        found[feature] = found.get(feature, 0.0) + 1.0
    return found


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)),
            st.tuples(*(st.integers(0, size - 1) for size in SIZES.values())),
        ),
        max_size=12,
    ),
    kind=st.sampled_from(["onehot", "hashed"]),
    buckets=st.integers(1, 6),
)
def test_every_row_is_the_references(rows, kind, buckets):
    encoding = vectors.plan(DENSE, SIZES, kind, buckets if kind == "hashed" else 0, narrow=False)
    dense = np.array([row[0] for row in rows], np.float32).reshape(len(rows), 2)
    ids = np.array([row[1] for row in rows], np.int32).reshape(len(rows), 3)
    csr = vectors.encode_rows(dense, ids, encoding)
    assert csr.width == (2 + 16 if kind == "onehot" else 2 + buckets)
    for at, (numbers, each) in enumerate(rows):
        own = slice(csr.indptr[at], csr.indptr[at + 1])
        assert (np.diff(csr.indices[own]) > 0).all()
        made = dict(zip(csr.indices[own].tolist(), csr.values[own].tolist(), strict=True))
        assert made == slow(list(numbers), list(each), kind, buckets)


def test_arrow_gives_the_numbers_back():
    encoding = vectors.plan(DENSE, SIZES, "hashed", 3, narrow=False)
    csr = vectors.encode_rows(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0, 1, 2], [3, 6, 4]]), encoding)
    back = vectors.entries_of(vectors.to_arrow(csr))
    np.testing.assert_array_equal(back.features, csr.indices)
    np.testing.assert_array_equal(back.values, csr.values)
    np.testing.assert_array_equal(back.rows, np.repeat([0, 1], np.diff(csr.indptr)))
    np.testing.assert_array_equal(back.widths, [5, 5])


def test_dense_and_sparse_vectors_and_lists_stand_beside_each_other():
    kind = vectors.to_arrow(vectors.Csr(np.array([0, 0], np.int32), np.array([], np.int32), np.array([]), 3)).type
    mixed = pa.array(
        [
            {"type": 1, "size": None, "indices": None, "values": [1.0, 0.0, 2.0]},
            {"type": 0, "size": 3, "indices": [2], "values": [5.0]},
            {"type": 0, "size": 3, "indices": [], "values": []},
        ],
        kind,
    )
    back = vectors.entries_of(mixed)
    assert back.rows.tolist() == [0, 0, 0, 1]
    assert back.features.tolist() == [0, 1, 2, 2]
    assert back.widths.tolist() == [3, 3, 3]
    listed = vectors.entries_of(pa.array([[1.0, None], [], [3.0]]))
    assert listed.rows.tolist() == [0, 0, 2] and listed.widths.tolist() == [2, 0, 1]
    assert np.isnan(listed.values[1])


def test_auto_goes_by_the_width_and_the_model():
    assert vectors.plan(DENSE, SIZES, "auto", 0, narrow=False).kind == "onehot"
    few = vectors.plan(DENSE, SIZES, "auto", 0, narrow=True)
    assert (few.kind, few.width) == ("hashed", 2 + vectors.FEW_BUCKETS)
    wide = vectors.plan(DENSE, {"c1": vectors.WIDEST_ONEHOT}, "auto", 0, narrow=False)
    assert (wide.kind, wide.width) == ("hashed", 2 + vectors.BUCKETS)
    assert vectors.plan(DENSE, SIZES, "auto", 9, narrow=False).width == 11


@pytest.mark.parametrize(
    ("kind", "buckets", "said"),
    [("one-hot", 0, "is unknown"), ("hashed", -1, "out of range"), ("onehot", 8, "leave one of them out")],
)
def test_plans_that_cannot_be(kind, buckets, said):
    with pytest.raises(UserError, match=said):
        vectors.plan(DENSE, SIZES, kind, buckets, narrow=False)
    with pytest.raises(UserError, match="more than a vector of MLlib has"):
        vectors.plan(DENSE, {"c1": 2**31}, "onehot", 0, narrow=False)
