"""Edges by original ids -> dense ids -> CSR shards, as Spark jobs over blocks; nothing but counts comes to the driver.

Edges meet the nodes of their target's range (`graph_ids`), then those of their source's range, then the other edges of
their shard: three exchanges of blocks (`graph_exchange`), each task holding one range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import UserError
from headrace.features.graph_blocks import Arrays, Merge, ShardPlan, plan_shards, shard_row, split
from headrace.features.graph_edges import Adjacency, Edges, Sample
from headrace.features.graph_exchange import WRITTEN_DDL, BlockWriter, Exchange, over, written_batch
from headrace.features.graph_files import EdgeArrays
from headrace.features.graph_ids import NODES, Nodes, look_up

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

NAMES = ("source_type", "relation", "target_type", "split", "direction")
CSR_DDL = (
    "source_type string, relation string, target_type string, split string, direction string,"
    " first_node bigint, num_nodes bigint, num_edges bigint, shard int, piece int, pieces int,"
    " crc32 bigint, key_sum bigint, indptr array<bigint>, indices array<bigint>, weights array<double>"
)
_CSR_TYPES = {"shard": pa.int32(), "piece": pa.int32(), "pieces": pa.int32()}


@dataclass(frozen=True)
class Emit:
    """Dense edges of a type to blocks of keys, by shard, for every adjacency that takes them."""

    adjacencies: tuple[Adjacency, ...]
    plans: tuple[ShardPlan, ...]

    def __call__(
        self, number: int, src: I64, dst: I64, weight: F64 | None = None, place: I64 | None = None
    ) -> Iterator[tuple[int, Arrays]]:
        """Blocks by part: keys, None, weights, places."""
        for adjacency, plan in zip(self.adjacencies, self.plans, strict=True):
            if adjacency.type == number:
                row, column, weights, places = adjacency.expand(src, dst, weight, place)
                keys = plan.keys(row, column)
                yield from split(plan.parts(keys), (keys.view(np.int64), None, weights, places))


def renumber(spark: SparkSession, nodes: Nodes, emit: Emit, folder: str) -> Exchange:
    """The edges with dense ids at both ends, as `emit` cuts them: blocks of keys by shard.

    Args:
        spark: the session.
        nodes: beside the edges.
        emit: what to do with edges whose ends are dense.
        folder: for the blocks.
    """

    def act(part: int) -> Iterator[pa.RecordBatch]:
        blocks = nodes.exchange.read(part)
        ids, codes = blocks.pop(NODES)[:2]
        numbers, out = nodes.dense(codes), BlockWriter(folder)
        for number in sorted(blocks):
            src, dst, *more = blocks.pop(number)
            for shard, arrays in emit(number, look_up(src, ids, numbers), nodes.dense(dst), *more):
                out.add(shard, number, arrays)
        yield written_batch(out.close())

    return Exchange.of(over(spark, sorted(nodes.starts), act, WRITTEN_DDL).toArrow())


def dense_keys(edges: Edges, emit: Emit, folder: str) -> Exchange:
    """The same for edges whose ids are dense already."""

    def act(found: EdgeArrays) -> Iterator[pa.RecordBatch]:
        out = BlockWriter(folder)
        for number, arrays in found:
            for shard, cut in emit(number, *arrays):
                out.add(shard, number, cut)
        yield written_batch(out.close())

    return Exchange.of(edges.source.each(edges.columns, act, WRITTEN_DDL).toArrow())


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
        sampled: some edges, by dense ids.
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
        src, dst, count = sampled.get(adjacency.type, (np.empty(0, np.int64),) * 3)
        row, column, _, counts = adjacency.expand(src, dst, None, count)
        keys = ShardPlan(0, rows, max(columns, 1), ()).keys(row, column)
        found.append(plan_shards(first, rows, columns, (keys, counts), shards, shard_nodes))
        first += found[-1].count
    return tuple(found)


def csr(spark: SparkSession, keys: Exchange, emit: Emit, merge: Merge) -> DataFrame:
    """The shards: CSR_DDL.

    Args:
        spark: the session.
        keys: blocks of keys, by shard.
        emit: the adjacencies and how each is cut.
        merge: what becomes of duplicates.
    """
    owners = [(number, shard) for number, plan in enumerate(emit.plans) for shard in range(plan.count)]

    def act(owner: tuple[int, int]) -> Iterator[pa.RecordBatch]:
        number, shard = owner
        made, plan = emit.adjacencies[number], emit.plans[number]
        empty = np.empty(0, np.int64)
        blocks = keys.read(plan.first + shard).get(made.type, (empty, None, empty.astype(np.float64), empty))
        a, _, weights, places = blocks
        merged = merge.edges(a.view(np.uint64), *((weights, places) if merge.weighted else (None, None)))
        names = (made.edge.source, made.edge.relation, made.edge.target, made.edge.split, made.direction)
        row = dict(zip(NAMES, names, strict=True)) | shard_row(plan, shard, *merged)
        yield pa.RecordBatch.from_pydict({name: _cell(name, value) for name, value in row.items()})

    return over(spark, owners, act, CSR_DDL)


def _cell(name: str, value: Any) -> pa.Array:
    """A column of one row; an array is not copied."""
    if isinstance(value, np.ndarray):
        return pa.ListArray.from_arrays([0, len(value)], pa.array(value))
    if value is None:
        return pa.nulls(1, pa.list_(pa.float64()))
    return pa.array([value], pa.string() if name in NAMES else _CSR_TYPES.get(name, pa.int64()))
