"""Products with a graph's adjacency on Spark, in bounded memory: y = A^T x, block of nodes by block of nodes.

    x of a block  ->  push: each shard of the block's edges sums what it sends to a target, in pieces of bounded size
    pieces        ->  shuffled by the block of their targets, sorted by (shard, chunk), added up in that order

So y[v] is the sum of w(u, v) x[u] over the edges u -> v: messages go along the edges, as in message passing. Sums are
in float64 and in an order that only the table's shards and the blocks decide: the same bits in any partitions.
A task holds a block, a shard and a piece, however large the graph and however many edges a node has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from headrace.features.hashing import place, places

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

CELLS = 1 << 20
"""Numbers of a block and of a piece, at most (but a node's row is never cut)."""
MAX_BLOCK_NODES = 1 << 18
MAX_PARTITIONS = 4096
_CHUNK_ORDER = 1 << 24
STATE, PIECE = 0, 1
"""Kinds of rows: what a block is, and what is added to it; rows of a kind come in the order of `order`."""
DDL = "place int, block bigint, kind int, order bigint, nodes binary, values binary, scale binary"
_RECORDS_A_BATCH = "8"


class ShardInfo(Protocol):
    """What is known of a shard before it is read; pieces of one large node follow one another."""

    @property
    def first_node(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...


class Shard(Protocol):
    """A shard's arrays: indptr [num_nodes + 1] from 0, indices [num_edges], weights [num_edges] or None."""

    @property
    def first_node(self) -> int: ...
    @property
    def indptr(self) -> I64: ...
    @property
    def indices(self) -> I64: ...
    @property
    def weights(self) -> F64 | None: ...


class Adjacency(Protocol):
    """A graph in shards that any worker can read (features/csr.py); rows are sources."""

    @property
    def num_nodes(self) -> int: ...
    @property
    def num_targets(self) -> int: ...
    @property
    def weighted(self) -> bool: ...
    @property
    def shards(self) -> tuple[Any, ...]: ...
    def shard(self, number: int) -> Any: ...


class Row(NamedTuple):
    """One row between tasks.

    Attributes:
        block: of the nodes it speaks of.
        kind: STATE or PIECE.
        order: within (block, kind).
        nodes: places in the block, int32 as bytes; empty for all of them.
        values: [nodes, width], in the state's type, as bytes.
        scale: float64 [nodes] as bytes, of a state; empty where there is none.
    """

    block: int
    kind: int
    order: int
    nodes: bytes
    values: bytes
    scale: bytes = b""


@dataclass(frozen=True)
class Blocks:
    """Nodes cut into blocks of `size`, each of `width` numbers a node."""

    num_nodes: int
    width: int
    size: int
    dtype: str = "float64"

    @classmethod
    def of(cls, num_nodes: int, width: int, dtype: str = "float64") -> Blocks:
        """Blocks of at most CELLS numbers."""
        return cls(num_nodes, width, max(1, min(MAX_BLOCK_NODES, CELLS // max(1, width))), dtype)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.num_nodes // self.size)

    @property
    def num_partitions(self) -> int:
        """Of a shuffle by block: neighbours in number go together, so that a shard is read once."""
        return max(1, min(self.count, MAX_PARTITIONS))

    def bounds(self, block: int) -> tuple[int, int]:
        """First node and the one after the last."""
        return block * self.size, min((block + 1) * self.size, self.num_nodes)

    def rows(self, block: int) -> int:
        """Nodes of a block."""
        start, stop = self.bounds(block)
        return stop - start

    def values(self, row: Row) -> Array:
        """A row's values [nodes, width], read-only."""
        return np.frombuffer(row.values, self.dtype).reshape(-1, self.width)


@dataclass(frozen=True)
class Pusher:
    """Multiplies: made once a task, reads every shard once where blocks come in order.

    Args:
        adjacency: rows are sources.
        blocks: of the nodes.
    """

    adjacency: Adjacency
    blocks: Blocks

    def __call__(self, states: Iterable[tuple[int, Array]]) -> Iterator[Row]:
        """Pieces of y from blocks (number, x [nodes, width])."""
        firsts = np.array([info.first_node for info in self.adjacency.shards], np.int64)
        held: tuple[int, Any] = (-1, None)
        for block, x in states:
            start, stop = self.blocks.bounds(block)
            for number in overlapping(self.adjacency, firsts, start, stop):
                if held[0] != number:
                    held = (number, self.adjacency.shard(number))
                yield from self._push(number, held[1], start, x)

    def _push(self, number: int, shard: Any, start: int, x: Array) -> Iterator[Row]:
        """What the rows of `x` send along the edges of one shard, in the order of the targets."""
        sources, targets, weights = edges_within(shard, start, start + len(x))
        order = np.argsort(targets, kind="stable")
        step = max(1, CELLS // self.blocks.width)
        for chunk, at in enumerate(range(0, len(order), step)):
            part = order[at : at + step]
            sent = x[sources[part] - start].astype(np.float64)
            if weights is not None:
                sent *= weights[part, None]
            yield from self._pieces(number * _CHUNK_ORDER + chunk, targets[part], sent)

    def _pieces(self, order: int, targets: I64, sent: F64) -> Iterator[Row]:
        starts = np.flatnonzero(np.diff(targets, prepend=-1))
        nodes, sums = targets[starts], np.add.reduceat(sent, starts, axis=0)
        owner = nodes // self.blocks.size
        cuts = [*np.flatnonzero(np.diff(owner, prepend=-1)).tolist(), len(nodes)]
        for low, high in pairwise(cuts):
            block = int(owner[low])
            local = (nodes[low:high] - block * self.blocks.size).astype(np.int32)
            yield Row(block, PIECE, order, local.tobytes(), sums[low:high].astype(self.blocks.dtype).tobytes())


def overlapping(adjacency: Adjacency, firsts: I64, start: int, stop: int) -> Iterator[int]:
    """Numbers of the shards with rows in start..stop-1."""
    number = max(0, int(np.searchsorted(firsts, start, side="right")) - 1)
    while number > 0 and firsts[number - 1] == firsts[number]:  # pieces of one node
        number -= 1
    shards = adjacency.shards
    while number < len(shards) and shards[number].first_node < stop:
        if shards[number].first_node + shards[number].num_nodes > start:
            yield number
        number += 1


def edges_within(shard: Shard, start: int, stop: int) -> tuple[I64, I64, F64 | None]:
    """Sources, targets and weights of a shard's edges whose source is in start..stop-1."""
    low = max(0, start - shard.first_node)
    high = min(len(shard.indptr) - 1, stop - shard.first_node)
    indptr = shard.indptr[low : high + 1]
    sources = np.repeat(np.arange(low, high, dtype=np.int64) + shard.first_node, np.diff(indptr))
    edges = slice(int(indptr[0]), int(indptr[-1]))
    return sources, shard.indices[edges], None if shard.weights is None else shard.weights[edges]


def source_sums(adjacency: Adjacency, blocks: Blocks, block: int) -> F64:
    """Out-degree, or sum of weights, of the nodes of a block: float64 [nodes]."""
    start, stop = blocks.bounds(block)
    firsts = np.array([info.first_node for info in adjacency.shards], np.int64)
    total = np.zeros(stop - start)
    for number in overlapping(adjacency, firsts, start, stop):
        sources, _, weights = edges_within(adjacency.shard(number), start, stop)
        total += np.bincount(sources - start, weights, minlength=stop - start)
    return total


Finish = Callable[[int, Row | None, F64], Iterable[Row]]
"""From a block's number, its state and the sum of its pieces [nodes, width] to the rows to give on."""


def combine(rows: Iterable[Row], blocks: Blocks, finish: Finish) -> Iterator[Row]:
    """Add up the pieces of each block, in order; rows come sorted by (block, kind, order)."""
    for block, group in groupby(rows, key=lambda row: row.block):
        state, total = None, np.zeros((blocks.rows(block), blocks.width))
        for row in group:
            if row.kind == STATE:
                state = row
            else:
                total[np.frombuffer(row.nodes, np.int32)] += blocks.values(row)
        yield from finish(block, state, total)


def push(states: DataFrame, adjacency: Adjacency, blocks: Blocks, send: Callable[[Row], Array]) -> DataFrame:
    """The pieces of A^T x.

    Args:
        states: rows of kind STATE.
        adjacency: the graph.
        blocks: of the nodes.
        send: x [nodes, width] of a state.
    """

    def act(rows: Iterator[Row]) -> Iterator[Row]:
        return Pusher(adjacency, blocks)((row.block, send(row)) for row in rows)

    return mapped(states, act, blocks)


def gather(rows: DataFrame, blocks: Blocks, finish: Finish) -> DataFrame:
    """Bring rows together by block, add up the pieces, and finish each block."""
    moved = place(rows, "place", blocks.num_partitions).sortWithinPartitions("block", "kind", "order")
    return mapped(moved, lambda found: combine(found, blocks, finish), blocks)


def block_rows(spark: SparkSession, blocks: Blocks) -> DataFrame:
    """An empty state for each block, in as many partitions as a shuffle has."""
    numbers = spark.range(0, blocks.count, 1, blocks.num_partitions)
    empty = "0 AS kind", "0L AS order", "X'' AS nodes", "X'' AS values", "X'' AS scale"
    return mapped(numbers.selectExpr("id AS block", *empty), lambda rows: rows, blocks)


def mapped(frame: DataFrame, act: Callable[[Iterator[Row]], Iterable[Row]], blocks: Blocks) -> DataFrame:
    """Run `act` over each partition's rows."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for row in act(read_rows(batches)):
            yield to_batch(row, place_of(row.block, blocks))

    return frame.mapInArrow(run, DDL)


def place_of(block: int, blocks: Blocks) -> int:
    """What sends a block's rows to its partition; blocks that are neighbours go together."""
    return int(_places(blocks.num_partitions)[block * blocks.num_partitions // blocks.count])


@lru_cache(maxsize=8)
def _places(num_partitions: int) -> npt.NDArray[np.int32]:
    return places(num_partitions)


def read_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    """Rows of Arrow batches, in order."""
    for batch in batches:
        columns = [batch.column(name).to_pylist() for name in Row._fields]
        yield from map(Row._make, zip(*columns, strict=True))


def shard_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows of a table of shards, list cells as numpy arrays."""
    for i in range(batch.num_rows):
        cells = {name: column[i] for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        lists = {name for name, cell in cells.items() if hasattr(cell, "values")}
        yield {
            name: cell.values.to_numpy(zero_copy_only=False) if name in lists and cell.is_valid else cell.as_py()
            for name, cell in cells.items()
        }


def to_batch(row: Row, at: int) -> pa.RecordBatch:
    """A row, with its place in a shuffle, as a batch of its own: rows are megabytes."""
    import pyarrow

    types = [pyarrow.int32(), pyarrow.int64(), pyarrow.int32(), pyarrow.int64(), *[pyarrow.binary()] * 3]
    arrays = [pyarrow.array([value], kind) for value, kind in zip((at, *row), types, strict=True)]
    return pyarrow.RecordBatch.from_arrays(arrays, ["place", *Row._fields])


@contextlib.contextmanager
def few_records_a_batch(spark: SparkSession) -> Iterator[None]:
    """Inside the `with`, batches between Parquet, Spark and Python hold few rows, since these rows are megabytes."""
    keys = ("spark.sql.execution.arrow.maxRecordsPerBatch", "spark.sql.parquet.columnarReaderBatchSize")
    before = {key: spark.conf.get(key) for key in keys}
    try:
        for key in keys:
            spark.conf.set(key, _RECORDS_A_BATCH)
        yield
    finally:
        for key, value in before.items():
            spark.conf.set(key, str(value))
