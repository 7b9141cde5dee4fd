"""A small table whose every cell is a function of its key, pinned without a log, and its streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.catalog.fingerprint import key_sum
from headrace.catalog.log import DataFile
from headrace.catalog.pinned import PinnedTable
from headrace.catalog.spec import Column, TableSpec, TensorSpec
from headrace.data.batch import PAD_KEY
from headrace.data.stream import DataConfig, Stream

SPEC = TableSpec(
    name="silver/rows",
    columns=(
        Column("key", "bigint", nullable=False),
        Column("label", "float", nullable=False),
        Column("a", "float", nullable=False),
        Column("b", "float", nullable=False),
        Column("c", "int", nullable=False),
        Column("d", "int", nullable=False),
    ),
    keys=("key",),
    tensors=(
        TensorSpec("dense", ("a", "b"), "float32"),
        TensorSpec("sparse", ("c", "d"), "int64"),
        TensorSpec("label", ("label",), "float32"),
        TensorSpec("key", ("key",), "int64"),
    ),
)


def rows_table(keys: np.ndarray[Any, Any]) -> pa.Table:
    """Every cell is a function of the key, so that a batch can be checked alone."""
    return pa.table(
        {
            "key": keys,
            "label": (keys % 3 == 0).astype(np.float32),
            "a": (keys % 97).astype(np.float32),
            "b": (keys % 89).astype(np.float32),
            "c": (keys % 83).astype(np.int32),
            "d": (keys % 79).astype(np.int32),
        }
    )


def make_table(folder: Path, files: Sequence[Sequence[int]], spec: TableSpec = SPEC) -> PinnedTable:
    """A pinned table of files with row groups of the sizes given; keys count up from 1 << 40."""
    folder.mkdir(parents=True, exist_ok=True)
    made, at = [], 1 << 40
    for number, groups in enumerate(files):
        path = folder / f"part-{number:05}.parquet"
        schema = rows_table(np.arange(0)).schema
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for rows in groups:
                writer.write_table(rows_table(np.arange(at, at + rows)))
                at += rows
        made.append(DataFile(str(path), sum(groups), {}))
    return PinnedTable(spec, str(folder), 3, tuple(made), at - (1 << 40), key_sum(np.arange(1 << 40, at)))


def check_rows(batch: Any) -> None:
    keys = batch["key"].numpy()
    real = np.ones(len(keys), bool) if batch.mask is None else batch.mask.numpy()
    for name, columns in {"dense": (97, 89), "sparse": (83, 79)}.items():
        for column, modulus in enumerate(columns):
            np.testing.assert_array_equal(batch[name].numpy()[real, column], (keys % modulus)[real])
    np.testing.assert_array_equal(batch["label"].numpy()[real], (keys % 3 == 0)[real])
    assert (keys[~real] == PAD_KEY).all() and not batch["sparse"].numpy()[~real].any()


def streams(table: PinnedTable, size: int, batch_size: int, **cfg: Any) -> list[Stream]:
    return [Stream(table, DataConfig(**cfg), rank, size, batch_size=batch_size) for rank in range(size)]
