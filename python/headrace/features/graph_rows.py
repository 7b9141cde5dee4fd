"""Features and labels of nodes in the order of the dense ids: row i of a shard is node first_node + i.

A node without a row has zeros and is named in `missing`; of several rows of one node the first in input order counts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import UserError
from headrace.features.half_precision import LARGEST, overflows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

I64 = npt.NDArray[np.int64]

SPLIT_CODES = {"train": 1, "validation": 2, "test": 3}
FEATURES_DDL = (
    "type int, shard int, first_node bigint, num_nodes bigint, num_missing bigint, dim int, dtype string,"
    " layout string, crc32 bigint, missing array<bigint>, indptr array<bigint>, indices array<int>, `values` binary"
)
LABELS_DDL = (
    "type int, shard int, first_node bigint, num_nodes bigint, num_missing bigint, labels array<bigint>,"
    " splits array<tinyint>, years array<int>"
)
_ARROW = {
    "type": pa.int32(),
    "shard": pa.int32(),
    "dim": pa.int32(),
    "dtype": pa.string(),
    "layout": pa.string(),
    "missing": pa.list_(pa.int64()),
    "indptr": pa.list_(pa.int64()),
    "indices": pa.list_(pa.int32()),
    "values": pa.binary(),
    "labels": pa.list_(pa.int64()),
    "splits": pa.list_(pa.int8()),
    "years": pa.list_(pa.int32()),
}
_LABEL_NODES = 1 << 20
_MAX_SHARD_NODES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How the features of a node type are kept.

    Args:
        dim: features of a node.
        dtype: float16 or float32.
        sparse: kept as CSR.
        nodes: number of nodes.
        shard_nodes: nodes in a shard.
        rows: feature rows in the input.
    """

    dim: int
    dtype: str
    sparse: bool
    nodes: int
    shard_nodes: int
    rows: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.nodes // self.shard_nodes)


def layouts(rows: DataFrame, nodes: Mapping[str, int], shard_bytes: int, dtype: str) -> dict[str, Layout]:
    """The layout of every node type that has features.

    Args:
        rows: of bronze/node_features.
        nodes: by type.
        shard_bytes: about the size of a shard.
        dtype: float16, float32, or keep (float32 where the input has both).

    Raises:
        UserError: rows of different length, or dense and sparse ones, of one node type; values beyond half precision.
    """
    from pyspark.sql import functions as F

    found = rows.groupBy("node_type").agg(
        F.count(F.lit(1)).alias("rows"),
        F.min("dim").alias("least"),
        F.max("dim").alias("dim"),
        F.count("indices").alias("sparse"),
        F.max("dtype").alias("dtype"),
        F.sum(F.octet_length("values")).alias("bytes"),
    )
    made = {row.node_type: _layout(row, nodes[row.node_type], shard_bytes, dtype) for row in found.collect()}
    if dtype == "float16":
        _refuse_overflows(rows)
    return made


def _refuse_overflows(rows: DataFrame) -> None:
    """Count what is too large for float16, rather than store infinity."""

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = [overflows(np.frombuffer(cell.as_buffer(), "<f4")) for cell in batch.column(0) if cell.is_valid]
            yield pa.RecordBatch.from_arrays([pa.array([sum(found)], pa.int64())], ["values"])

    wide = rows.where("dtype = 'float32'").select("`values`")
    if total := sum(
        row[0] for row in wide.mapInArrow(count, "`values` bigint").groupBy().sum("values").collect() if row[0]
    ):
        problem = f"{total:,} values of the features are beyond {LARGEST:,}, the largest of float16"
        raise UserError(problem, "--feature_dtype keep or float32, or scale the features")


def _layout(row: Any, nodes: int, shard_bytes: int, dtype: str) -> Layout:
    sparse = row.sparse > 0
    if 0 < row.sparse < row.rows:
        raise UserError(f"nodes of type {row.node_type} have dense and sparse features", "ingest one kind")
    if not sparse and row.least != row.dim:
        problem = f"feature rows of node type {row.node_type} have from {row.least} to {row.dim} values"
        raise UserError(problem, "a dense matrix has one length: mend the input")
    chosen = row.dtype if dtype == "keep" else dtype
    row_bytes = row.bytes // row.rows * 2 + 8 if sparse else row.dim * np.dtype(chosen).itemsize
    shard_nodes = max(1, min(_MAX_SHARD_NODES, shard_bytes // max(1, row_bytes)))
    return Layout(row.dim, chosen, sparse, nodes, shard_nodes, row.rows)


def feature_shards(spark: SparkSession, rows: DataFrame, of_type: Mapping[str, Layout]) -> DataFrame:
    """Shards of features: FEATURES_DDL, `type` is the place among the sorted names.

    Args:
        spark: the session.
        rows: node_type, id bigint (dense), key, dim, dtype, indices, values.
        of_type: the layouts.
    """
    names = sorted(of_type)
    kept = [of_type[name] for name in names]
    columns = ("key", "dtype", "indices", "`values`")
    sizes = [layout.shard_nodes for layout in kept]
    return _by_shard(spark, rows, names, sizes, [layout.shards for layout in kept], columns).applyInArrow(
        _feature_shard(kept), FEATURES_DDL
    )


def label_shards(spark: SparkSession, rows: DataFrame, nodes: Mapping[str, int]) -> DataFrame:
    """Shards of labels: LABELS_DDL, `type` is the place among the sorted names.

    Args:
        spark: the session.
        rows: node_type, id bigint (dense), key, label, split, year.
        nodes: by type, only types that have labels.
    """
    names = sorted(nodes)
    shards = [-(-nodes[name] // _LABEL_NODES) for name in names]
    grouped = _by_shard(spark, rows, names, [_LABEL_NODES] * len(names), shards, ("key", "label", "split", "year"))
    return grouped.applyInArrow(_label_shard([nodes[name] for name in names]), LABELS_DDL)


def _by_shard(
    spark: SparkSession,
    rows: DataFrame,
    names: list[str],
    sizes: list[int],
    shards: list[int],
    columns: tuple[str, ...],
) -> Any:
    """Rows by node type and shard; every shard is there, if only with a row of nulls."""
    from pyspark.sql import functions as F

    type_ = F.array_position(F.array(*[F.lit(name) for name in names]), F.col("node_type")).cast("int") - 1
    size = F.element_at(F.array(*[F.lit(size) for size in sizes]), F.col("type") + 1)
    placed = rows.withColumn("type", type_).withColumn("shard", F.floor(F.col("id") / size).cast("int"))
    cells = placed.select("type", "shard", "id", *columns)
    empty = None
    for number, count in enumerate(shards):
        nulls = [
            f"CAST(NULL AS {field.dataType.simpleString()}) AS `{field.name}`" for field in cells.schema.fields[2:]
        ]
        frame = spark.range(0, count, 1, 1).selectExpr(f"{number} AS type", "CAST(id AS int) AS shard", *nulls)
        empty = frame if empty is None else empty.unionAll(frame)
    return (cells if empty is None else cells.unionAll(empty)).groupBy("type", "shard")


def _feature_shard(of_type: list[Layout]) -> Callable[[tuple[pa.Scalar, ...], pa.Table], pa.Table]:
    def run(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
        type_, shard = key[0].as_py(), key[1].as_py()
        layout = of_type[type_]
        first = shard * layout.shard_nodes
        count = min(layout.shard_nodes, layout.nodes - first)
        places, rows = first_rows(table)
        fill = _sparse if layout.sparse else _dense
        arrays = fill(layout, count, places - first, rows)
        missing = np.setdiff1d(np.arange(first, first + count), places)
        return _one_row(
            {"type": type_, "shard": shard, "first_node": first, "num_nodes": count, "num_missing": len(missing)}
            | {"dim": layout.dim, "dtype": layout.dtype, "layout": "csr" if layout.sparse else "dense"}
            | {"crc32": zlib.crc32(arrays["values"]), "missing": missing}
            | arrays
        )

    return run


def first_rows(table: pa.Table) -> tuple[I64, pa.Table]:
    """The nodes that have a row, ascending, and of each the row that came first."""
    table = table.filter(table.column("id").is_valid())
    ids = table.column("id").to_numpy()
    order = np.lexsort((table.column("key").to_numpy(), ids))
    nodes, starts = np.unique(ids[order], return_index=True)
    return nodes, table.take(pa.array(order[starts]))


def _dense(layout: Layout, count: int, places: I64, rows: pa.Table) -> dict[str, Any]:
    matrix = np.zeros((count, layout.dim), layout.dtype)
    for place, cell, dtype in zip(places, rows.column("values"), rows.column("dtype"), strict=True):
        matrix[place] = np.frombuffer(cell.as_buffer(), dtype.as_py())
    return {"indptr": None, "indices": None, "values": matrix.astype(f"<{matrix.dtype.str[1:]}").tobytes()}


def _sparse(layout: Layout, count: int, places: I64, rows: pa.Table) -> dict[str, Any]:
    degrees = np.zeros(count, np.int64)
    lists = rows.column("indices").combine_chunks()
    degrees[places] = np.diff(lists.offsets.to_numpy())
    cells = zip(rows.column("values"), rows.column("dtype"), strict=True)
    values = [np.frombuffer(cell.as_buffer(), dtype.as_py()).astype(layout.dtype) for cell, dtype in cells]
    joined = np.concatenate(values) if values else np.empty(0, layout.dtype)
    indices = lists.flatten().to_numpy()
    return {"indptr": np.concatenate([[0], np.cumsum(degrees)]), "indices": indices, "values": joined.tobytes()}


def _label_shard(nodes: list[int]) -> Callable[[tuple[pa.Scalar, ...], pa.Table], pa.Table]:
    def run(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
        type_, shard = key[0].as_py(), key[1].as_py()
        first = shard * _LABEL_NODES
        count = min(_LABEL_NODES, nodes[type_] - first)
        table = table.filter(table.column("id").is_valid()).sort_by(
            [("key", "descending")]
        )  # the first is written last
        places = table.column("id").to_numpy() - first
        codes = [SPLIT_CODES.get(name) for name in table.column("split").to_pylist()]
        labels = _scatter(count, places, table.column("label").to_pylist(), -1, np.int64)
        return _one_row(
            {"type": type_, "shard": shard, "first_node": first, "num_nodes": count}
            | {"num_missing": int((labels < 0).sum()), "labels": labels}
            | {"splits": _scatter(count, places, codes, 0, np.int8)}
            | {"years": _scatter(count, places, table.column("year").to_pylist(), 0, np.int32)}
        )

    return run


def _scatter(count: int, places: I64, values: list[Any], empty: int, dtype: Any) -> npt.NDArray[Any]:
    """Values at their places; None leaves what another row said."""
    result = np.full(count, empty, dtype)
    present = np.array([value is not None for value in values], bool)
    result[places[present]] = [value for value in values if value is not None]
    return result


def _one_row(values: dict[str, Any]) -> pa.Table:
    return pa.table({name: pa.array([value], _ARROW.get(name, pa.int64())) for name, value in values.items()})
