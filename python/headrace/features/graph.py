"""Edges by original ids -> dense ids -> CSR shards, as Spark jobs over blocks; nothing but counts comes to the driver.

Edges meet the nodes of their target's range, then those of their source's range, then the other edges of their shard:
three shuffles of blocks (`graph_blocks`), each task holding one range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import UserError
from headrace.features.graph_blocks import (
    BLOCK_DDL,
    BLOCK_SCHEMA,
    NODES,
    Merge,
    Ranges,
    Rows,
    ShardPlan,
    plan_shards,
    shard_row,
    split,
    table_of,
    unpack,
)
from headrace.features.graph_edges import Adjacency, Edges, Sample
from headrace.features.graph_ids import Nodes, look_up_all, map_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

CSR_DDL = (
    "adjacency int, first_node bigint, num_nodes bigint, num_edges bigint, shard int, piece int, pieces int,"
    " crc32 bigint, key_sum bigint, indptr array<bigint>, indices array<bigint>, weights array<double>"
)
_CSR_TYPES = {
    "adjacency": pa.int32(),
    "shard": pa.int32(),
    "piece": pa.int32(),
    "pieces": pa.int32(),
    "indptr": pa.list_(pa.int64()),
    "indices": pa.list_(pa.int64()),
    "weights": pa.list_(pa.float64()),
}


def renumber(edges: Edges, nodes: Nodes, emit: Emit) -> DataFrame:
    """The edges with dense ids at both ends, as `emit` packs them: blocks of keys by shard.

    Args:
        edges: by original ids.
        nodes: that have them.
        emit: what to do with edges whose ends are dense.
    """
    targets = [nodes.ranges[edge.target] for edge in edges.types]
    sources = [nodes.ranges[edge.source] for edge in edges.types]
    blocks = edges.source.blocks(edges.columns, partial(_to_blocks, targets))
    by_target = (
        blocks.unionAll(nodes.blocks).groupBy("part").applyInArrow(_map_target(sources, nodes.starts), BLOCK_DDL)
    )
    by_source = by_target.unionAll(nodes.blocks).groupBy("part")
    return by_source.applyInArrow(_map_source(emit, nodes.starts), BLOCK_DDL)


def dense_keys(edges: Edges, emit: Emit) -> DataFrame:
    """The same for edges whose ids are dense already."""
    return edges.source.blocks(edges.columns, emit)


@dataclass(frozen=True)
class Emit:
    """Dense edges of a type to blocks of keys, by shard, for every adjacency that takes them."""

    adjacencies: tuple[Adjacency, ...]
    plans: tuple[ShardPlan, ...]

    def __call__(self, number: int, src: I64, dst: I64, weight: F64 | None = None, place: I64 | None = None) -> Rows:
        """Rows of BLOCK_SCHEMA: a: keys."""
        rows: Rows = []
        for adjacency, plan in zip(self.adjacencies, self.plans, strict=True):
            if adjacency.type == number:
                row, column, weights, places = adjacency.expand(src, dst, weight, place)
                keys = plan.keys(row, column)
                rows += split(plan.parts(keys), number, (keys, None, weights, places))
        return rows


def _to_blocks(targets: list[Ranges], number: int, src: I64, dst: I64, *more: Any) -> Rows:
    return split(targets[number].parts(dst), number, (src, dst, *more))


def _map_target(sources: list[Ranges], starts: dict[int, int]) -> Callable[[pa.Table], pa.Table]:
    def run(table: pa.Table) -> pa.Table:
        ids, dense = map_of(table, starts)
        rows: Rows = []
        for number, (src, dst, weight, place) in unpack(table, range(len(sources))).items():
            dst, (src, weight, place) = look_up_all(dst, (src, weight, place), ids, dense)
            rows += split(sources[number].parts(src), number, (src, dst, weight, place))
        return table_of(rows)

    return run


def _map_source(emit: Emit, starts: dict[int, int]) -> Callable[[pa.Table], pa.Table]:
    types = {adjacency.type for adjacency in emit.adjacencies}

    def run(table: pa.Table) -> pa.Table:
        ids, dense = map_of(table, starts)
        rows: Rows = []
        for number, (src, dst, weight, place) in unpack(table, types).items():
            src, (dst, weight, place) = look_up_all(src, (dst, weight, place), ids, dense)
            rows += emit(number, src, dst, weight, place)
        return table_of(rows)

    return run


def plans(
    edges: Edges,
    made: Sequence[Adjacency],
    nodes: Mapping[str, int],
    sampled: Sample,
    shard_edges: int,
    shard_nodes: int,
) -> tuple[ShardPlan, ...]:
    """Where the shards of every adjacency begin.

    Args:
        edges: the edges.
        made: what is made of them.
        nodes: number of nodes by type.
        sampled: dense sources and targets of some edges by type.
        shard_edges: about so many edges in a shard.
        shard_nodes: at most so many nodes in a shard.

    Raises:
        UserError: nodes of both sides multiplied pass 64 bits.
    """
    found: list[ShardPlan] = []
    first = 0
    for adjacency in made:
        edge = edges.types[adjacency.type]
        rows, columns = (nodes[name] for name in adjacency.sides(edge))
        if rows * columns >= 1 << 64:
            raise UserError(f"{edge}: {rows:,} x {columns:,} nodes pass 64 bits", "split the node type")
        shards = -(-adjacency.expected(edges.counts[adjacency.type], edges.loops[adjacency.type]) // shard_edges)
        empty = np.empty(0, np.int64)
        row, column, _, _ = adjacency.expand(*sampled.get(adjacency.type, (empty, empty)), None, None)
        keys = ShardPlan(0, rows, max(columns, 1), ()).keys(row, column)
        found.append(plan_shards(first, rows, columns, keys, shards, shard_nodes))
        first += found[-1].count
    return tuple(found)


def csr(spark: SparkSession, keys: DataFrame, emit: Emit, merge: Merge) -> DataFrame:
    """The shards: CSR_DDL, `adjacency` is the place in `emit.adjacencies`.

    Args:
        spark: the session.
        keys: blocks of keys, by shard.
        emit: the adjacencies and how each is cut.
        merge: what becomes of duplicates.
    """
    owners = [(number, shard) for number, plan in enumerate(emit.plans) for shard in range(plan.count)]
    plan_of = emit.plans

    def run(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
        number, shard = owners[key[0].as_py()]
        found = [arrays for type_, arrays in unpack(table).items() if type_ != NODES]
        a, _, weights, places = found[0] if found else (np.empty(0, np.int64), None, None, None)
        if merge.weighted and weights is None:
            weights, places = np.empty(0), np.empty(0, np.int64)
        merged, weights = merge.edges(a.view(np.uint64), weights, places)
        row = {"adjacency": number} | shard_row(plan_of[number], shard, merged, weights)
        return pa.table({name: pa.array([value], _CSR_TYPES.get(name, pa.int64())) for name, value in row.items()})

    empty = spark.range(0, len(owners), 1, 1).selectExpr(
        "CAST(id AS int) AS part", f"{NODES} AS type", *(f"CAST(NULL AS binary) AS {n}" for n in BLOCK_SCHEMA.names[2:])
    )
    return keys.unionAll(empty).groupBy("part").applyInArrow(run, CSR_DDL)
