"""Degrees of all nodes from CSR shards: rows by indptr, columns by counting indices; a task holds a shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.features.csr import CsrTable

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_DDL = "adjacency int, side int, id bigint, degree bigint"
_SCHEMA = pa.schema([("adjacency", pa.int32()), ("side", pa.int32()), ("id", pa.int64()), ("degree", pa.int64())])
_OTHER = {"out": "in", "in": "out"}


def degrees(spark: SparkSession, tables: Sequence[CsrTable]) -> DataFrame:
    """id, source_type, relation, target_type, split, direction, degree: a row a node of either side, zeros included.

    Args:
        spark: the session.
        tables: adjacencies; of one in both directions the first counts.
    """
    from pyspark.sql import functions as F

    chosen = list({table.edge_type: table for table in reversed(tables)}.values())[::-1]
    tasks = [(number, shard) for number, table in enumerate(chosen) for shard in range(len(table.shards))]

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for task in batch.column(0).to_pylist():
                number, shard = tasks[task]
                yield from _of_shard(chosen[number], number, shard)

    rows = spark.range(0, len(tasks), 1, max(1, len(tasks))).mapInArrow(run, _DDL)
    for number, table in enumerate(chosen):
        columns = (f"{number} AS adjacency", "1 AS side", "id", "0L AS degree")
        rows = rows.unionAll(spark.range(table.num_targets).selectExpr(*columns))
    summed = rows.groupBy("adjacency", "side", "id").agg(F.sum("degree").alias("degree"))
    names = {
        "source_type": [table.edge_type.source for table in chosen],
        "relation": [table.edge_type.relation for table in chosen],
        "target_type": [table.edge_type.target for table in chosen],
        "split": [table.edge_type.split for table in chosen],
    }
    for name, values in names.items():
        summed = summed.withColumn(name, F.element_at(F.array(*[F.lit(v) for v in values]), F.col("adjacency") + 1))
    sides = [side for table in chosen for side in (table.direction, _OTHER[table.direction])]
    place = F.col("adjacency") * 2 + F.col("side") + 1
    directed = summed.withColumn("direction", F.element_at(F.array(*[F.lit(side) for side in sides]), place))
    return directed.drop("adjacency", "side")


def _of_shard(table: CsrTable, number: int, shard: int) -> Iterator[pa.RecordBatch]:
    found = table.shard(shard)
    rows = found.first_node + np.arange(len(found.indptr) - 1)
    yield _batch(number, 0, rows, np.diff(found.indptr))
    columns, counts = np.unique(found.indices, return_counts=True)
    yield _batch(number, 1, columns, counts)


def _batch(number: int, side: int, ids: np.ndarray, degree: np.ndarray) -> pa.RecordBatch:  # type: ignore[type-arg]
    fixed = [pa.array(np.full(len(ids), value, np.int32)) for value in (number, side)]
    return pa.RecordBatch.from_arrays([*fixed, pa.array(ids), pa.array(degree)], schema=_SCHEMA)
