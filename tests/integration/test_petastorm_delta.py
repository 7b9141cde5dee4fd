"""Streaming a pinned Delta version: what was deleted stays deleted, what was pinned stays readable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headrace.catalog.delta import ensure, read, write
from headrace.catalog.pinned import pin
from headrace.catalog.spec import Column, TableSpec, TensorSpec
from headrace.data.stream import DataConfig, Stream
from headrace.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SPEC = TableSpec(
    name="silver/streamed",
    columns=(
        Column("key", "bigint", nullable=False),
        Column("x", "float", nullable=False),
        Column("y", "float", nullable=False),
        Column("c", "int", nullable=False),
        Column("part", "string", nullable=False),
    ),
    keys=("key",),
    partition_by=("part",),
    tensors=(
        TensorSpec("key", ("key",), "int64"),
        TensorSpec("dense", ("x", "y"), "float32"),
        TensorSpec("c", ("c",), "int64"),
    ),
)


def keys_read(lake: Path, version: int | None, part: str = "a b/ü") -> set[int]:
    """The keys of two epochs on two ranks, each proved against what was committed."""
    table = pin(SPEC, lake, version, {"part": part})
    found: list[set[int]] = []
    for epoch in range(2):
        ranks = [Stream(table, DataConfig(lanes=4, remainder="pad"), rank, 2, batch_size=32) for rank in range(2)]
        keys = [int(key) for rank in ranks for b in rank.epoch(epoch) for key in b["key"] if key >= 0]
        (ranks[0].audit(epoch) + ranks[1].audit(epoch)).prove(table)
        assert len(keys) == len(set(keys)) == table.rows
        found.append(set(keys))
    assert found[0] == found[1]
    return found[0]


def test_deleted_rows_never_come_back(spark: SparkSession, lake: Path) -> None:
    frame = spark.range(0, 700, numPartitions=3).selectExpr(
        "id AS key",
        "CAST(id AS FLOAT) AS x",
        "CAST(-id AS FLOAT) AS y",
        "CAST(id % 5 AS INT) AS c",
        "IF(id < 600, 'a b/ü', 'other') AS part",
    )
    ensure(spark, SPEC, lake)
    version = write(frame, SPEC, lake).version
    spark.sql(f"DELETE FROM delta.`{SPEC.path(lake)}` WHERE key % 7 = 3 OR key < 20")
    kept = {key for key in range(600) if key % 7 != 3 and key >= 20}
    assert keys_read(lake, None) == kept
    assert keys_read(lake, version) == set(range(600))  # the version pinned before is still what it was
    assert read(spark, SPEC, lake).where("part <> 'other'").count() == len(kept)

    spark.sql(f"DELETE FROM delta.`{SPEC.path(lake)}` WHERE part = 'other'")
    assert keys_read(lake, None, "other") == set()

    gone = pin(SPEC, lake, version, {"part": "a b/ü"})
    for file in gone.files:
        Path(file.path).unlink(missing_ok=True)  # what a vacuum does
    with pytest.raises(UserError, match=f"silver/streamed version {version} is not there"):
        Stream(gone, DataConfig(lanes=4), batch_size=32)
    assert keys_read(lake, None) == kept
