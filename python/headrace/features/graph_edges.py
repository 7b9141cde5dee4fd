"""Edges of several types, in files or in a frame, and which adjacencies are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.features.csr import EdgeType
from headrace.features.graph_blocks import BLOCK_DDL, Rows, pack, table_of, unpack
from headrace.features.graph_files import CHUNK_EDGES, Act, EdgeFiles, groups
from headrace.features.hashing import xxhash64

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

SAMPLES_PER_PART = 64


@dataclass(frozen=True)
class EdgeRows:
    """Edges as a DataFrame of type int, src bigint, dst bigint."""

    frame: DataFrame

    def blocks(self, columns: Sequence[str], act: Act) -> DataFrame:
        """What `act` makes of the edges, type by type in every chunk: BLOCK_DDL."""

        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for chunk in chunks(batches):
                arrays = [chunk.column(name).to_numpy() for name in columns]
                for number, places in groups(chunk.column("type").to_numpy()):
                    mine = arrays if places is None else [array[places] for array in arrays]
                    yield from table_of(act(number, *mine)).to_batches()

        return self.frame.select("type", *columns).mapInArrow(run, BLOCK_DDL)


@dataclass(frozen=True)
class Edges:
    """Edges of a graph.

    Args:
        source: where they are.
        types: the edge type of each number in `type`.
        counts: edges of each type.
        loops: self-loops of each type.
        weighted: have they weights?
    """

    source: EdgeFiles | EdgeRows
    types: tuple[EdgeType, ...]
    counts: tuple[int, ...]
    loops: tuple[int, ...]
    weighted: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """What an edge consists of."""
        return ("src", "dst", "weight", "place") if self.weighted else ("src", "dst")

    @property
    def node_types(self) -> tuple[str, ...]:
        """Node types that have edges, sorted."""
        return tuple(sorted({name for edge in self.types for name in (edge.source, edge.target)}))


@dataclass(frozen=True)
class Adjacency:
    """One CSR to be made.

    Args:
        type: number of the edge type whose edges it takes.
        edge: what the result is called.
        direction: out or in.
        swap: rows are the input's targets.
        both: every edge stands in both directions.
        loops: edges from a node to itself stay.
    """

    type: int
    edge: EdgeType
    direction: str
    swap: bool = False
    both: bool = False
    loops: bool = True

    def sides(self, edges: EdgeType) -> tuple[str, str]:
        """Node types of rows and columns, of input edges of this type."""
        return (edges.target, edges.source) if self.swap else (edges.source, edges.target)

    def expand(self, src: I64, dst: I64, weight: F64 | None, place: I64 | None) -> tuple[Any, ...]:
        """Rows, columns, weights, places of the entries that these edges make."""
        row, column = (dst, src) if self.swap else (src, dst)
        if self.loops and not self.both:
            return row, column, weight, place
        proper = row != column
        keep = slice(None) if self.loops else proper
        arrays = [None if a is None else a[keep] for a in (row, column, weight, place)]
        if not self.both:
            return tuple(arrays)
        mirrored = [None if a is None else a[proper] for a in (column, row, weight, place)]
        return tuple(None if a is None else np.concatenate([a, b]) for a, b in zip(arrays, mirrored, strict=True))

    def expected(self, edges: int, loops: int) -> int:
        """Entries before duplicates are treated."""
        proper = edges - loops
        return proper * (2 if self.both else 1) + (loops if self.loops else 0)


def adjacencies(
    types: Sequence[EdgeType], directions: Sequence[str], *, symmetrize: bool, loops: bool
) -> tuple[Adjacency, ...]:
    """What is to be made of each edge type.

    Symmetrizing an edge type between two node types makes a second one in the other direction, `rev_RELATION`.
    """
    found = []
    for number, edge in enumerate(types):
        same = edge.source == edge.target
        for direction in directions:
            swap = direction == "in"
            keep = loops or not same
            found.append(Adjacency(number, edge, direction, swap, symmetrize and same, keep))
            if symmetrize and not same:
                back = EdgeType(edge.target, f"rev_{edge.relation}", edge.source, edge.split)
                found.append(Adjacency(number, back, direction, not swap))
    return tuple(found)


Sample = Mapping[int, tuple[I64, I64]]
"""Sources and targets of some edges, by type."""


def sample(edges: Edges, parts: int) -> Sample:
    """Sources and targets of some edges by type: the same ones whatever the partitions; none where one part will do."""
    if parts < 2:
        return {}
    step = max(1, sum(edges.counts) // (parts * SAMPLES_PER_PART))
    found = unpack(edges.source.blocks(("src", "dst"), partial(_chosen, step)).toArrow())
    return {number: (src, dst) for number, (src, dst, _, _) in sorted(found.items())}


def _chosen(step: int, number: int, src: I64, dst: I64) -> Rows:
    """One edge in `step` by its hash; of one that stands there many times, no more than the driver can hold."""
    chosen = np.flatnonzero(xxhash64(dst, xxhash64(src)) % step == 0)[: 8 * (len(src) // step + 8)]
    return [pack(0, number, (src[chosen], dst[chosen]))] if len(chosen) else []


def sides_of(sampled: Sample, edges: Edges) -> dict[str, list[I64]]:
    """The sampled ids by node type."""
    found: dict[str, list[I64]] = {}
    for number, pair in sampled.items():
        for side, name in zip(pair, (edges.types[number].source, edges.types[number].target), strict=True):
            found.setdefault(name, []).append(side)
    return found


def chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Spark's small batches in larger ones."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= CHUNK_EDGES:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if rows:
        yield pa.Table.from_batches(held)
