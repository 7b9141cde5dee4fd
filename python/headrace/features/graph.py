"""Edges by original ids -> dense ids -> CSR shards, as Spark jobs over blocks; nothing but counts comes to the driver.

Edges meet the nodes of their target's range (`graph_ids`), then those of their source's range, then the other edges of
their shard: three exchanges of blocks (`graph_exchange`), each task holding one range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import UserError
from headrace.features.csr import checksum
from headrace.features.graph_blocks import Arrays, Merge, ShardPlan, plan_shards, shard_row, split
from headrace.features.graph_edges import Adjacency, Edges, Sample
from headrace.features.graph_exchange import WRITTEN_DDL, BlockWriter, Exchange, over, written_batch
from headrace.features.graph_files import CHUNK_EDGES, EdgeArrays
from headrace.features.graph_ids import NODES, Nodes, look_up
from headrace.features.graph_relations import Stored

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

NAMES = ("source_type", "relation", "target_type", "split", "direction")
CSR_DDL = (
    "source_type string, relation string, target_type string, split string, direction string,"
    " first_node bigint, num_nodes bigint, num_edges bigint, shard int, piece int, pieces int,"
    " crc32 bigint, key_sum bigint, indptr array<bigint>, indices array<bigint>, weights array<double>,"
    " relations array<int>"
)
_CSR_TYPES = {"shard": pa.int32(), "piece": pa.int32(), "pieces": pa.int32()}


@dataclass(frozen=True)
class Emit:
    """Dense edges to blocks of keys, by shard, for every adjacency that takes them."""

    stored: tuple[Stored, ...]
    plans: tuple[ShardPlan, ...]

    def write(self, found: Iterable[tuple[int, Sequence[Any]]], out: BlockWriter) -> None:
        """Put down a task's edges as blocks: keys, None, weights, places; a block's type is the adjacency's place.

        Edges are cut when there are many of them, whatever their types: of a thousand relations a chunk has few each.

        Args:
            found: edge types' numbers and source, target, and weight and place where edges have them.
            out: the task's file.
        """
        gathered: dict[int, list[Arrays]] = {}
        waiting = 0
        for number, (src, dst, *more) in found:
            weight, place = more or (None, None)
            for at, adjacency, relation in self._takers.get(number, ()):
                row, column, weights, places = adjacency.expand(src, dst, weight, place)
                keys = self.plans[at].keys(row, self.stored[at].columns(column, relation))
                gathered.setdefault(at, []).append((keys.view(np.int64), None, weights, places))
                waiting += len(keys)
            if waiting >= CHUNK_EDGES:
                self._cut(gathered, out)
                gathered, waiting = {}, 0
        self._cut(gathered, out)

    @cached_property
    def _takers(self) -> dict[int, list[tuple[int, Adjacency, int]]]:
        """By edge type: places of the adjacencies that take it, as what, with which number of a relation."""
        takers: dict[int, list[tuple[int, Adjacency, int]]] = {}
        for at, stored in enumerate(self.stored):
            for adjacency, relation in zip(stored.parts, stored.numbers, strict=True):
                takers.setdefault(adjacency.type, []).append((at, adjacency, relation))
        return takers

    def _cut(self, gathered: Mapping[int, list[Arrays]], out: BlockWriter) -> None:
        for at, blocks in gathered.items():
            keys, _, weights, places = (_end_to_end(column) for column in zip(*blocks, strict=True))
            for shard, arrays in split(self.plans[at].parts(keys.view(np.uint64)), (keys, None, weights, places)):
                out.add(shard, at, arrays)


def _end_to_end(arrays: Sequence[Any]) -> Any:
    if len(arrays) == 1 or arrays[0] is None:
        return arrays[0]
    return np.concatenate(arrays)


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

        def edges() -> Iterator[tuple[int, Sequence[Any]]]:
            for number in sorted(blocks):
                src, dst, *more = blocks.pop(number)
                yield number, (look_up(src, ids, numbers), nodes.dense(dst), *more)

        emit.write(edges(), out)
        yield written_batch(out.close())

    return Exchange.of(over(spark, sorted(nodes.starts), act, WRITTEN_DDL).toArrow())


def dense_keys(edges: Edges, emit: Emit, folder: str) -> Exchange:
    """The same for edges whose ids are dense already."""

    def act(found: EdgeArrays) -> Iterator[pa.RecordBatch]:
        out = BlockWriter(folder)
        emit.write(found, out)
        yield written_batch(out.close())

    return Exchange.of(edges.source.each(edges.columns, act, WRITTEN_DDL).toArrow())


def plans(
    edges: Edges,
    made: Sequence[Stored],
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
        UserError: nodes of both sides (times relations, where they are joined) multiplied pass 64 bits.
    """
    found: list[ShardPlan] = []
    first = 0
    for adjacency in made:
        rows, columns = (nodes[name] for name in adjacency.parts[0].sides(edges.types[adjacency.parts[0].type]))
        if rows * columns * adjacency.width >= 1 << 64:
            times = f" x {adjacency.width:,} relations" if adjacency.relations else ""
            problem = f"{adjacency.edge}: {rows:,} x {columns:,} nodes{times} pass 64 bits"
            raise UserError(problem, "--relations separate" if times else "split the node type")
        shards = -(-adjacency.expected(edges.counts, edges.loops) // shard_edges)
        plan = ShardPlan(0, rows, max(columns, 1) * adjacency.width, ())
        found.append(
            plan_shards(first, rows, plan.columns, _sampled_keys(adjacency, plan, sampled), shards, shard_nodes)
        )
        first += found[-1].count
    return tuple(found)


def _sampled_keys(adjacency: Stored, plan: ShardPlan, sampled: Sample) -> tuple[U64, I64]:
    """Keys of some edges of an adjacency, and how often each counts."""
    keys, counts = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part, relation in zip(adjacency.parts, adjacency.numbers, strict=True):
        if part.type in sampled:
            src, dst, count = sampled[part.type]
            row, column, _, count = part.expand(src, dst, None, count)
            keys.append(plan.keys(row, adjacency.columns(column, relation)))
            counts.append(count)
    return np.concatenate(keys), np.concatenate(counts)


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
        made, plan = emit.stored[number], emit.plans[number]
        empty = np.empty(0, np.int64)
        blocks = keys.read(plan.first + shard).get(number, (empty, None, empty.astype(np.float64), empty))
        a, _, weights, places = blocks
        merged = merge.edges(a.view(np.uint64), *((weights, places) if merge.weighted else (None, None)))
        names = (made.edge.source, made.edge.relation, made.edge.target, made.edge.split, made.direction)
        row = dict(zip(NAMES, names, strict=True)) | _with_relations(made, shard_row(plan, shard, *merged))
        yield pa.RecordBatch.from_pydict({name: _cell(name, value) for name, value in row.items()})

    return over(spark, owners, act, CSR_DDL)


def _with_relations(made: Stored, row: dict[str, Any]) -> dict[str, Any]:
    """The neighbours and their relations, where `indices` are columns of the keys of joined relations."""
    if not made.relations:
        return row | {"relations": None}
    indices, relations = np.divmod(row["indices"], made.width)
    relations = relations.astype(np.int32)
    crc = checksum(row["indptr"], indices, row["weights"], relations)
    return row | {"indices": indices, "relations": relations, "crc32": crc}


def _cell(name: str, value: Any) -> pa.Array:
    """A column of one row; an array is not copied."""
    if isinstance(value, np.ndarray):
        return pa.ListArray.from_arrays([0, len(value)], pa.array(value))
    if value is None:
        return pa.nulls(1, pa.list_(pa.int32() if name == "relations" else pa.float64()))
    return pa.array([value], pa.string() if name in NAMES else _CSR_TYPES.get(name, pa.int64()))
