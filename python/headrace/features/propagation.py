"""Propagated node features X, S X, S^2 X, ...: what SGC and SIGN train on, computed once on Spark.

    none       S = A^T + L
    row        S = D^-1 (A^T + L)              the mean over those that send to a node
    symmetric  S = D^-1/2 (A^T + L) D^-1/2     as in a graph convolutional network

A^T: messages go along the edges, source to target, by weight where edges have weights; L = I with self-loops, else 0;
D: row sums of A^T + L; a node that receives nothing gets zeros. Blocks are float32, sums float64 and in a fixed order
(features/node_blocks.py): the same bits at any number of partitions, within 1e-6 of exact arithmetic for a hop.
References: Wu et al., "Simplifying Graph Convolutional Networks", ICML 2019; Frasca et al., "SIGN: Scalable Inception
Graph Neural Networks", 2020; Kipf, Welling, ICLR 2017 (symmetric).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.catalog.scratch import kept
from headrace.errors import UserError
from headrace.features import node_blocks
from headrace.features.edge_weights import refuse_unfit
from headrace.features.half_precision import to_half
from headrace.features.hashing import place
from headrace.features.node_blocks import PIECE, STATE, Adjacency, Blocks, Row

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

NORMS = ("none", "row", "symmetric")
PRECISIONS = ("float32", "float16")
MAX_HOPS = 8
_BATCH_CELLS = 1 << 17
_FEATURE_COLUMNS = ("first_node", "num_nodes", "dim", "dtype", "layout", "indptr", "indices", "values")


@dataclass(frozen=True)
class Options:
    """What is propagated how.

    Args:
        hops: powers of S beyond X itself.
        norm: one of NORMS.
        self_loops: add the identity.
        precision: float16 rounds what is stored to half precision (it compresses to about half); sums never.
    """

    hops: int = 2
    norm: str = "symmetric"
    self_loops: bool = True
    precision: str = "float32"

    def check(self) -> None:
        """Raise UserError where the settings make no sense."""
        for name, allowed in (("norm", NORMS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if not 1 <= self.hops <= MAX_HOPS:
            raise UserError(f"--hops {self.hops} is not within 1 and {MAX_HOPS}", "2 or 3 are usual")


@dataclass(frozen=True)
class Step:
    """One hop on blocks: what Spark's tasks run, and tests without Spark."""

    blocks: Blocks
    options: Options

    def scale(self, received: F64) -> F64:
        """The factor of each node from the sum of the weights it receives by."""
        degree = received + float(self.options.self_loops)
        if self.options.norm == "none":
            return np.ones_like(degree)
        there = degree > 0
        power = -1.0 if self.options.norm == "row" else -0.5
        return np.power(degree, power, out=np.zeros_like(degree), where=there)

    def state(self, block: int, x: F64, scale: F64) -> Row:
        """A block's features [nodes, width] and factors."""
        return Row(block, STATE, 0, b"", x.astype(np.float32).tobytes(), scale.tobytes())

    def send(self, row: Row) -> F64:
        """What each node sends along an edge of weight 1: [nodes, width]."""
        x = self.blocks.values(row).astype(np.float64)
        return x * np.frombuffer(row.scale)[:, None] if self.options.norm == "symmetric" else x

    def finish(self, block: int, state: Row, received: F64) -> Row:
        """The next hop's block."""
        scale = np.frombuffer(state.scale)
        total = received + self.send(state) if self.options.self_loops else received
        return self.state(block, total * scale[:, None] if self.options.norm != "none" else total, scale)


def feature_pieces(shard: Mapping[str, Any], blocks: Blocks) -> Iterator[Row]:
    """A row of gold/graph_features, dense or sparse, cut by blocks.

    Args:
        shard: first_node, num_nodes, dim, dtype, layout, indptr, indices, values.
        blocks: of the nodes.
    """
    first, count, dim = shard["first_node"], shard["num_nodes"], shard["dim"]
    values = np.frombuffer(shard["values"], f"<f{2 if shard['dtype'] == 'float16' else 4}")
    start = first
    while start < first + count:
        block = start // blocks.size
        stop = min(first + count, blocks.bounds(block)[1])
        low, high = start - first, stop - first
        if shard["layout"] == "dense":
            rows = values.reshape(count, dim)[low:high].astype(np.float32)
        else:
            rows = _dense(shard, values, low, high)
        local = np.arange(start, stop, dtype=np.int64) - block * blocks.size
        yield Row(block, PIECE, start, local.astype(np.int32).tobytes(), np.ascontiguousarray(rows).tobytes())
        start = stop


def _dense(shard: Mapping[str, Any], values: npt.NDArray[Any], low: int, high: int) -> F32:
    indptr = np.asarray(shard["indptr"], np.int64)[low : high + 1]
    rows = np.zeros((high - low, shard["dim"]), np.float32)
    edges = slice(int(indptr[0]), int(indptr[-1]))
    owner = np.repeat(np.arange(high - low), np.diff(indptr))
    rows[owner, np.asarray(shard["indices"], np.int64)[edges]] = values[edges]
    return rows


def propagate(
    spark: SparkSession, adjacency: Adjacency, features: DataFrame, dim: int, work: str, options: Options
) -> tuple[list[DataFrame], Blocks]:
    """X and its hops, as blocks.

    Args:
        spark: the session.
        adjacency: rows are sources; square.
        features: rows of gold/graph_features of these nodes.
        dim: their width.
        work: an empty place that all executors can write to; the result is read from there.
        options: see Options.

    Returns:
        hops + 1 frames of states for `node_rows`, and their blocks.

    Raises:
        UserError: settings that make no sense, an adjacency between two types of nodes, weights below 0 with a norm.
    """
    options.check()
    if adjacency.num_nodes != adjacency.num_targets:
        raise UserError("features propagate between nodes of the same type", "choose edges within one node type")
    if options.norm != "none":
        refuse_unfit(spark, adjacency, f"--norm {options.norm} divides by sums of weights")
    step = Step(Blocks.of(adjacency.num_nodes, dim, "float32"), options)
    with node_blocks.few_records_a_batch(spark):
        hops = [kept(_begin(spark, adjacency, features, step), f"{work}/hop-0")]
        for number in range(1, options.hops + 1):
            hops.append(kept(_hop(hops[-1], adjacency, step), f"{work}/hop-{number}"))
    return hops, step.blocks


def _begin(spark: SparkSession, adjacency: Adjacency, features: DataFrame, step: Step) -> DataFrame:
    """The first states: features from their shards, factors from the degrees."""
    blocks = step.blocks

    def cut(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for shard in node_blocks.shard_rows(batch):
                for row in feature_pieces(shard, blocks):
                    yield node_blocks.to_batch(row, node_blocks.place_of(row.block, blocks))

    def finish(block: int, state: Row | None, total: F64) -> Iterator[Row]:
        assert state is not None, "every block has its factors"
        yield step.state(block, total, np.frombuffer(state.scale))

    pieces = features.select(*_FEATURE_COLUMNS).mapInArrow(cut, node_blocks.DDL)
    return node_blocks.gather(_scales(spark, adjacency, step).unionByName(pieces), blocks, finish)


def _scales(spark: SparkSession, adjacency: Adjacency, step: Step) -> DataFrame:
    """A state without features a block."""
    ones = replace(step.blocks, width=1, dtype="float64")

    def finish(block: int, state: Row | None, total: F64) -> Iterator[Row]:
        yield Row(block, STATE, 0, b"", b"", step.scale(total[:, 0]).tobytes())

    empty = node_blocks.block_rows(spark, ones)
    if step.options.norm == "none":
        return node_blocks.gather(empty, ones, finish)
    sent = node_blocks.push(empty, adjacency, ones, lambda row: np.ones((ones.rows(row.block), 1)))
    return node_blocks.gather(empty.unionByName(sent), ones, finish)


def _hop(states: DataFrame, adjacency: Adjacency, step: Step) -> DataFrame:
    def finish(block: int, state: Row | None, total: F64) -> Iterator[Row]:
        assert state is not None, "every block has a state"
        yield step.finish(block, state, total)

    pieces = node_blocks.push(states, adjacency, step.blocks, step.send)
    return node_blocks.gather(states.unionByName(pieces), step.blocks, finish)


def node_rows(hops: Sequence[DataFrame], blocks: Blocks, precision: str = "float32") -> DataFrame:
    """One row a node: node bigint, x0 .. xH array<float> of the width, unfit bigint (values that are not finite).

    Run it within `few_records_a_batch`.
    """
    from pyspark.sql import functions as F

    numbered = [frame.drop("order").withColumn("order", F.lit(hop).cast("bigint")) for hop, frame in enumerate(hops)]
    frame = reduce(lambda a, b: a.unionByName(b), numbered)
    moved = place(frame, "place", blocks.num_partitions).sortWithinPartitions("block", "order")
    ddl = ", ".join(["node bigint", *(f"x{hop} array<float>" for hop in range(len(hops))), "unfit bigint"])

    def expand(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for block, group in groupby(node_blocks.read_rows(batches), key=lambda row: row.block):
            yield from block_batches(block, [blocks.values(row) for row in group], blocks, precision)

    return moved.mapInArrow(expand, ddl)


def feature_rows(shards: DataFrame) -> DataFrame:
    """Rows of gold/graph_features as one row a node: node bigint, x array<float>."""

    def expand(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for shard in node_blocks.shard_rows(batch):
                blocks = Blocks.of(shard["first_node"] + shard["num_nodes"], shard["dim"], "float32")
                for row in feature_pieces(shard, blocks):
                    first = row.block * blocks.size + int(np.frombuffer(row.nodes, np.int32)[0])
                    yield from _batches(first, [("x", blocks.values(row))])

    return shards.select(*_FEATURE_COLUMNS).mapInArrow(expand, "node bigint, x array<float>")


def block_batches(block: int, values: Sequence[F32], blocks: Blocks, precision: str) -> Iterator[pa.RecordBatch]:
    """A block's hops [nodes, width] as Arrow batches of rows, each with the number of its values that do not fit."""
    if precision == "float16":
        values = [to_half(x).astype(np.float32) for x in values]
    unfit = sum((~np.isfinite(x)).sum(axis=1) for x in values)
    return _batches(blocks.bounds(block)[0], [(f"x{hop}", x) for hop, x in enumerate(values)], unfit)


def _batches(first: int, columns: Sequence[tuple[str, F32]], unfit: Any = None) -> Iterator[pa.RecordBatch]:
    """Matrices [nodes, width] of the nodes from `first` on as list columns, some 100,000 numbers of each a batch.

    `unfit` [nodes], where given, is a column of its own.
    """
    import pyarrow

    nodes, width = columns[0][1].shape
    size = max(1, _BATCH_CELLS // max(1, width))
    for low in range(0, nodes, size):
        high = min(low + size, nodes)
        offsets = pyarrow.array(np.arange(high - low + 1, dtype=np.int32) * width)
        arrays = [pyarrow.ListArray.from_arrays(offsets, pyarrow.array(x[low:high].reshape(-1))) for _, x in columns]
        ids = pyarrow.array(np.arange(first + low, first + high))
        names = ["node", *(name for name, _ in columns)]
        if unfit is not None:
            arrays.append(pyarrow.array(unfit[low:high], pyarrow.int64()))
            names.append("unfit")
        yield pyarrow.RecordBatch.from_arrays([ids, *arrays], names)
