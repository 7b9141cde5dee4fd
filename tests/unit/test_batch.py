"""Batches follow the table's description, whatever its columns are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from headrace.catalog.spec import Column, TableSpec, TensorSpec, load
from headrace.data.batch import PAD_KEY, Batch, layouts
from headrace.data.footers import _check_schema
from headrace.errors import UserError


def spec(*tensors: TensorSpec, partition_by: tuple[str, ...] = ()) -> TableSpec:
    return TableSpec(
        name="silver/things",
        columns=(
            Column("key", "bigint"),
            Column("tokens", "int", shape=(4,)),
            Column("image", "float", shape=(2, 3)),
            Column("x", "int"),
            Column("y", "bigint"),
            Column("split", "string"),
        ),
        keys=("key",),
        partition_by=partition_by,
        tensors=(TensorSpec("key", ("key",), "int64"), *tensors),
    )


def table(rows: int) -> pa.Table:
    tokens = np.arange(rows * 4, dtype=np.int32)
    image = np.arange(rows * 6, dtype=np.float32)
    return pa.table(
        {
            "key": np.arange(rows, dtype=np.int64),
            "tokens": pa.FixedSizeListArray.from_arrays(tokens, 4),
            "image": pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * 6, image),
            "x": np.arange(rows, dtype=np.int32) * 10,
            "y": np.arange(rows, dtype=np.int64) * 100,
        }
    )


def test_click_tensors_come_from_the_catalog() -> None:
    made = {layout.name: (layout.shape, str(layout.dtype)) for layout in layouts(load("silver/ctr"))}
    assert made == {
        "key": ((), "int64"),
        "label": ((), "float32"),
        "dense": ((13,), "float32"),
        "sparse": ((26,), "int64"),
    }


def test_lists_scalars_and_side_by_side_columns() -> None:
    """Text and images come the way clicks do; the reference is plain indexing of Python lists."""
    description = spec(
        TensorSpec("tokens", ("tokens",), "int64"),
        TensorSpec("image", ("image",), "float32"),
        TensorSpec("pair", ("x", "y"), "float32"),
    )
    source, order = table(7), np.array([5, 0, 6, 2])
    plain = source.to_pylist()
    for layout in layouts(description):
        held = layout.hold(source, order)
        batch = layout.empty(3)
        layout.put(batch, 1, held, 2, 4)
        layout.pad(batch, np.array([True, False, False]))
        tensor = layout.tensor(batch)
        assert tensor.dtype == getattr(torch, str(layout.dtype))
        for place, row in ((1, 6), (2, 2)):
            cells = [plain[row][name] for name in layout.columns]
            expected = np.array(cells if layout.stacked else cells[0]).reshape(layout.shape)
            np.testing.assert_array_equal(tensor[place].numpy(), expected)
        assert (tensor[0] == (PAD_KEY if layout.name == "key" else 0)).all()


def test_ids_wait_as_int32() -> None:
    layout = layouts(spec(TensorSpec("sparse", ("x", "x"), "int64")))[1]
    assert layout.hold(table(3), np.arange(3)).dtype == np.int32
    assert layout.empty(3).dtype == np.int64


def test_ragged_lists_are_refused() -> None:
    layout = layouts(spec(TensorSpec("tokens", ("tokens",), "int64")))[1]
    ragged = pa.table({"tokens": [[1, 2, 3, 4], [5]]})
    with pytest.raises(UserError, match=r"lists that are not of shape \(4,\)"):
        layout.hold(ragged, np.arange(2))


@pytest.mark.parametrize(
    ("tensor", "columns"),
    [
        (TensorSpec("t", ("x",), "int32"), {"x": pa.int64()}),  # would cut ids over 2^31
        (TensorSpec("t", ("x",), "int64"), {"x": pa.float32()}),
        (TensorSpec("t", ("x",), "float32"), {"x": pa.string()}),
        (TensorSpec("t", ("tokens",), "int64"), {"tokens": pa.int32()}),
        (TensorSpec("t", ("x", "y"), "int64"), {"x": pa.int64(), "y": pa.list_(pa.int64())}),
    ],
)
def test_columns_that_would_give_wrong_values_are_refused(tensor: TensorSpec, columns: dict[str, pa.DataType]) -> None:
    with pytest.raises(UserError, match=r"part\.parquet is .*, tensor 't'"):
        _check_schema("part.parquet", pa.schema(columns), layouts(spec(tensor))[1:])


def test_refused_descriptions() -> None:
    with pytest.raises(UserError, match="has no tensor 'key'"):
        layouts(TableSpec(name="silver/x", columns=(Column("a", "int"),), tensors=(TensorSpec("a", ("a",), "int32"),)))
    with pytest.raises(UserError, match="'t' of silver/things needs split"):
        layouts(spec(TensorSpec("t", ("split",), "int64"), partition_by=("split",)))


def test_batch_rows_inputs_and_moves() -> None:
    tensors = {"key": torch.arange(3), "label": torch.ones(3), "dense": torch.zeros(3, 2)}
    batch = Batch(tensors, torch.tensor([True, False, True]), step=4, fingerprint=9)
    assert (len(batch), batch.rows, list(batch.inputs())) == (3, 2, ["dense"])
    moved = batch.to("meta")
    assert moved["dense"].device.type == "meta" and moved.mask is not None and moved.mask.device.type == "meta"
    assert (moved.step, moved.fingerprint) == (4, 9)
    assert Batch(tensors).rows == 3


def test_numbers_in_bytes() -> None:
    """What is in the cells is said by the description, or by the commit; a slice of a column reads like a whole one."""
    fixed = Column("grid", "binary", shape=(2, 2), element="float16")
    said = Column("words", "binary", element="commit")
    description = TableSpec(
        name="gold/cells",
        columns=(Column("key", "bigint"), fixed, said),
        tensors=tuple(
            TensorSpec(*each)
            for each in (("key", ("key",), "int64"), ("grid", ("grid",), "float32"), ("words", ("words",), "int64"))
        ),
    )
    words = np.arange(15, dtype=np.uint16).reshape(5, 3) * 4000
    grid = np.arange(20, dtype=np.float16).reshape(5, 2, 2)
    columns = {"key": range(5), "grid": [each.tobytes() for each in grid], "words": [each.tobytes() for each in words]}
    metadata = {"cells": {"words": {"element": "uint16", "shape": [3]}}}
    made = {layout.name: layout for layout in layouts(description, metadata)}
    source, order = pa.table(columns).slice(1), np.array([3, 0])
    np.testing.assert_array_equal(made["words"].hold(source, order), words[[4, 1]])
    np.testing.assert_array_equal(made["grid"].hold(source, order), grid[[4, 1]])
    assert made["words"].hold(source.slice(0, 0), np.arange(0)).shape == (0, 3)
    _check_schema("part.parquet", source.schema, tuple(made.values()))
    with pytest.raises(UserError, match="does not say what the cells of words hold"):
        layouts(description)
    with pytest.raises(UserError, match="cells are not of 6 bytes"):
        made["words"].hold(pa.table({"words": [b"123456", b"12"]}), np.arange(2))
    with pytest.raises(UserError, match=r"part\.parquet is int32, tensor 'words'"):
        _check_schema("part.parquet", pa.schema({"words": pa.int32()}), (made["words"],))
