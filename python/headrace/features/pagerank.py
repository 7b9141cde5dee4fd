"""PageRank on Spark, with a proof of how near it is.

    x' = d (P^T x + m v) + (1 - d) v        m: sum of x over nodes without out-edges (dangling); P: out-edges by weight
    |x - x*|_1 <= d / (1 - d) |x' - x|_1    the map contracts by d in the 1-norm: what is printed is a bound, no guess

v is uniform, or the personalisation; dangling nodes jump by v. Reference: Page, Brin, Motwani, Winograd, "The PageRank
Citation Ranking", 1999; Langville, Meyer, "Deeper Inside PageRank", Internet Mathematics 2004 (sections 3 and 5).
Self-loops count; so do repeated edges if the table has them. Every sum is in a fixed order: the same bits at any number
of partitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headrace.catalog.scratch import kept, remove
from headrace.errors import UserError
from headrace.features import node_blocks
from headrace.features.edge_weights import refuse_unfit
from headrace.features.node_blocks import STATE, Adjacency, Blocks, Row

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

F64 = npt.NDArray[np.float64]
MAX_PERSONAL = 1_000_000


@dataclass(frozen=True)
class Options:
    """How ranks are computed.

    Args:
        damping: probability d to follow an edge.
        tolerance: ask for |x - x*|_1 up to it.
        max_iterations: then it ends all the same, and the certificate says how near it is.
        personal: weights of the nodes that are jumped to; empty: all, equally.
    """

    damping: float = 0.85
    tolerance: float = 1e-6
    max_iterations: int = 200
    personal: Mapping[int, float] = field(default_factory=dict)

    def check(self, num_nodes: int) -> None:
        """Raise UserError where the settings make no sense."""
        if not 0 <= self.damping < 1:
            raise UserError(f"--damping {self.damping} is not from 0 to under 1", "0.85 is usual")
        if not self.tolerance > 0 or self.max_iterations < 1:
            raise UserError("--tolerance or --max_iterations is not above 0", "1e-6 and 200 are usual")
        if any(not 0 <= node < num_nodes for node in self.personal):
            raise UserError(f"a node of --personal is not within 0 and {num_nodes - 1:,}", "give dense ids")
        if len(self.personal) > MAX_PERSONAL:
            raise UserError(f"--personal names over {MAX_PERSONAL:,} nodes", "name fewer")
        if self.personal and not (min(self.personal.values()) >= 0 and 0 < sum(self.personal.values()) < math.inf):
            raise UserError("the weights of --personal are negative, or add up to 0", "give positive weights")


@dataclass(frozen=True)
class Certificate:
    """How near the ranks are.

    Attributes:
        iterations: done.
        residual: |x' - x|_1 of the last.
        error_bound: the most that |x - x*|_1 can be, but for rounding.
        total: sum of the ranks, 1 but for rounding.
        converged: whether the tolerance was reached.
    """

    iterations: int
    residual: float
    error_bound: float
    total: float
    converged: bool


@dataclass(frozen=True)
class Step:
    """One iteration on blocks: what Spark's tasks run, and tests without Spark."""

    blocks: Blocks
    options: Options

    def begin(self, block: int, out: F64) -> Row:
        """The first state: x = v, and the reciprocal of what leaves each node (0 where nothing does)."""
        scale = np.divide(1.0, out, out=np.zeros_like(out), where=out > 0)
        return self._state(block, self.jump(block), scale, np.zeros(self.blocks.rows(block)))

    def send(self, row: Row) -> F64:
        """What each node sends along an edge of weight 1."""
        return (np.frombuffer(row.values) * np.frombuffer(row.scale))[:, None]

    def finish(self, block: int, state: Row, received: F64, dangling: float) -> Row:
        """The next state."""
        jump, d = self.jump(block), self.options.damping
        x = d * (received + dangling * jump) + (1.0 - d) * jump
        return self._state(block, x, np.frombuffer(state.scale), np.frombuffer(state.values))

    def jump(self, block: int) -> F64:
        """v of a block."""
        start, stop = self.blocks.bounds(block)
        if not self.options.personal:
            return np.full(stop - start, 1.0 / self.blocks.num_nodes)
        v, total = np.zeros(stop - start), math.fsum(self.options.personal.values())
        for node, weight in self.options.personal.items():
            if start <= node < stop:
                v[node - start] = weight / total
        return v

    def _state(self, block: int, x: F64, scale: F64, before: F64) -> Row:
        """A state, with its figures (residual, dangling, total) where pieces have their nodes."""
        figures = np.array([np.abs(x - before).sum(), x[scale == 0].sum(), x.sum()])
        return Row(block, STATE, 0, figures.tobytes(), x.tobytes(), np.ascontiguousarray(scale).tobytes())


def figures(parts: Iterable[tuple[int, bytes]]) -> tuple[float, float, float]:
    """Residual, dangling mass and total of all blocks' states."""
    rows = [np.frombuffer(part) for _, part in sorted(parts)]
    return tuple(math.fsum(column) for column in zip(*rows, strict=True)) if rows else (0.0, 0.0, 0.0)  # type: ignore[return-value]


def certificate(options: Options, iterations: int, residual: float, total: float) -> Certificate:
    """Of a state whose last step moved by `residual`."""
    bound = options.damping / (1.0 - options.damping) * residual
    return Certificate(iterations, residual, bound, total, bound <= options.tolerance)


def pagerank(
    spark: SparkSession, adjacency: Adjacency, work: str, options: Options | None = None
) -> tuple[DataFrame, Certificate]:
    """The ranks of all nodes.

    Args:
        spark: the session.
        adjacency: rows are sources; square.
        work: an empty place that all executors can write to; the result is read from there.
        options: see Options.

    Returns:
        node bigint, rank double, and the certificate.

    Raises:
        UserError: settings that make no sense, an adjacency between two types of nodes, weights below 0 (with which the
            map need not contract, so that the certificate would prove nothing).
    """
    options = options or Options()
    if adjacency.num_nodes != adjacency.num_targets:
        raise UserError("PageRank walks from nodes to nodes of the same type", "choose edges within one node type")
    options.check(adjacency.num_nodes)
    refuse_unfit(spark, adjacency, "PageRank follows edges with probabilities in proportion to their weights")
    step = Step(Blocks.of(adjacency.num_nodes, 1), options)
    with node_blocks.few_records_a_batch(spark):
        states = kept(_begin(spark, adjacency, step), f"{work}/rank-0")
        _, dangling, total = figures((row[0], bytes(row[1])) for row in states.select("block", "nodes").collect())
        done = certificate(options, 0, math.inf, total)
        while not done.converged and done.iterations < options.max_iterations:
            number = done.iterations + 1
            states = kept(_iterate(states, adjacency, step, dangling), f"{work}/rank-{number}")
            remove(f"{work}/rank-{number - 1}")
            found = states.select("block", "nodes").collect()
            residual, dangling, total = figures((row[0], bytes(row[1])) for row in found)
            done = certificate(options, number, residual, total)
        return kept(_ranks(states, step.blocks), f"{work}/ranks"), done


def _begin(spark: SparkSession, adjacency: Adjacency, step: Step) -> DataFrame:
    def act(rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            yield step.begin(row.block, node_blocks.source_sums(adjacency, step.blocks, row.block))

    return node_blocks.mapped(node_blocks.block_rows(spark, step.blocks), act, step.blocks)


def _iterate(states: DataFrame, adjacency: Adjacency, step: Step, dangling: float) -> DataFrame:
    def finish(block: int, state: Row | None, total: F64) -> Iterator[Row]:
        assert state is not None, "every block has a state"
        yield step.finish(block, state, total[:, 0], dangling)

    pieces = node_blocks.push(states, adjacency, step.blocks, step.send)
    return node_blocks.gather(states.unionByName(pieces), step.blocks, finish)


def _ranks(states: DataFrame, blocks: Blocks) -> DataFrame:
    import pyarrow as pa

    def expand(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for row in node_blocks.read_rows(batches):
            start, stop = blocks.bounds(row.block)
            arrays = [pa.array(np.arange(start, stop)), pa.array(np.frombuffer(row.values))]
            yield pa.RecordBatch.from_arrays(arrays, ["node", "rank"])

    return states.mapInArrow(expand, "node bigint, rank double")
