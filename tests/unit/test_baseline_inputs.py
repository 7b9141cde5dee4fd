"""What a batch of rows shows to the checks, without Spark."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headrace.baselines import inputs, vectors
from headrace.baselines.spec import Columns
from headrace.errors import UserError

COLUMNS = Columns()


def batch_of(labels, rows, weights=None):
    columns = [pa.array(labels, pa.float64()), pa.array(rows, pa.list_(pa.float64()))]
    columns += [] if weights is None else [pa.array(weights, pa.float64())]
    return pa.RecordBatch.from_arrays(columns, names=["label", "features", "weight"][: len(columns)])


def account(*batches, columns=COLUMNS, width=2):
    """As `check_vectors` goes on with what workers have found."""
    found = inputs._Found()
    for batch in batches:
        found = found.add(inputs.look_at(batch, width))
    inputs._refuse_labels(columns.label, found, "train")
    inputs._refuse_faults(columns, found, width, "train")
    return found


@pytest.mark.parametrize(
    ("labels", "rows", "said"),
    [
        ([], [], "there are no rows of train"),
        ([0, -1, 1], [[1, 2]] * 3, r"label: 1 of 3 rows of train are neither .*: -1\n.*--input.negative -1"),
        ([0, None, 0.5], [[1, 2]] * 3, r"label: 2 of 3 rows .*: 0\.5, null or NaN"),
        ([0, 1, 1e6], [[1, 2]] * 3, "label: 1 of 3 rows .* under 1,000: 1e[+]06"),
        ([0, 1], [[1, 2], None], r"features: 1 of 2 rows of train hold no vector \(null\)"),
        ([0, 1], [[1, 2], [1, 2, 3]], "features: 1 of 2 rows of train hold no vector of 2 features"),
        ([0, 1, 1], [[1, 2], [1, np.nan], [np.inf, 2]], "features: 2 of 3 rows .* NaN, .* the first .* feature 0"),
        ([0, 1], [[1, 2], [1, None]], "features: 1 of 2 rows of train hold NaN, infinite or missing"),
    ],
)
def test_bad_rows_are_refused_with_column_reason_and_count(labels, rows, said):
    with pytest.raises(UserError, match=f"(?s){said}"):
        account(batch_of(labels, rows))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, None])
def test_bad_weights(bad):
    with pytest.raises(UserError, match="weight: 1 of 2 rows of train are no weights"):
        account(batch_of([0, 1], [[1, 2], [1, 2]], [1.0, bad]), columns=Columns(weight="weight"))


def test_parts_add_up_and_name_constant_features():
    one = batch_of([0, 1], [[1, 0], [1, 0]])
    sparse = vectors.to_arrow(
        vectors.Csr(np.array([0, 2, 3], np.int32), np.array([0, 1, 0], np.int32), np.array([1.0, 0.0, 1.0]), 2)
    )
    other = pa.RecordBatch.from_arrays([pa.array([1.0, 1.0]), sparse], names=["label", "features"])
    found = account(one, batch_of([], []), other)
    assert (found.rows, dict(found.labels)) == (4, {0.0: 1, 1.0: 3})
    assert inputs._constants(found).tolist() == [0, 1]  # a feature that a row does not name is zero there
    more = account(one, other, batch_of([0], [[1, 3]]))
    assert inputs._constants(more).tolist() == [0]
    assert inputs._constants(account(batch_of([0], [[0, -2]]))).tolist() == [0, 1]


def test_a_sparse_vector_that_names_features_it_has_not_is_no_vector():
    hostile = vectors.to_arrow(vectors.Csr(np.array([0, 1, 2], np.int32), np.array([0, 7], np.int32), np.ones(2), 2))
    batch = pa.RecordBatch.from_arrays([pa.array([0.0, 1.0]), hostile], names=["label", "features"])
    with pytest.raises(UserError, match="1 of 2 rows of train hold no vector of 2 features"):
        account(batch)


def columns_of(split, labels, ints, ids):
    names = ["split", "label", "i1", "c1"]
    arrays = [pa.array(split), pa.array(labels, pa.float32()), pa.array(ints, pa.float32()), pa.array(ids, pa.int32())]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def accounts(batch):
    encoding = vectors.Encoding(("i1",), {"c1": 3}, "onehot")
    return {
        split: inputs._account(found, encoding, "label", split)
        for split, found in inputs.look_at_columns(batch, encoding).items()
    }


def test_columns_are_checked_by_split():
    good = accounts(columns_of(["train", "test", "train"], [0, 1, 1], [2.5, 0.1, 2.5], [0, 2, 1]))
    assert good["train"] == inputs.Account(2, {0: 1, 1: 1}, ("i1",))
    assert good["test"] == inputs.Account(1, {1: 1}, ("i1", "c1"))


@pytest.mark.parametrize(
    ("label", "number", "each", "said"),
    [
        (0, np.nan, 1, "i1: 1 of 2 rows of train are NaN, infinite or missing"),
        (0, None, 1, "i1: 1 of 2 rows of train"),
        (0, 1.0, 3, "c1: 1 of 2 rows of train are no ids from 0 to 2"),
        (0, 1.0, -1, "c1: 1 of 2 rows of train"),
        (0, 1.0, None, "c1: 1 of 2 rows of train"),
        (None, 1.0, 1, "label: 1 of 2 rows of train"),
    ],
)
def test_bad_cells_are_refused_with_their_column(label, number, each, said):
    with pytest.raises(UserError, match=said):
        accounts(columns_of(["train"] * 2, [1, label], [1.0, number], [1, each]))


def test_one_class_is_refused():
    with pytest.raises(UserError, match="label: all 7 rows of train are of class 1"):
        inputs.refuse_one_class(inputs.Account(7, {1: 7}), "label", "train")
