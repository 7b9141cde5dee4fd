"""Edges of several types as a frame of numbers, and which adjacencies are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.features.csr import EdgeType

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

CHUNK_EDGES = 1 << 20
SAMPLES_PER_PART = 64


@dataclass(frozen=True)
class Edges:
    """Edges of a graph: a DataFrame of type int, src bigint, dst bigint, weight double, place bigint (the last two null
    where there are no weights), and what the types are.

    Args:
        frame: the edges.
        types: the edge type of each number in `type`.
        counts: edges of each type.
        loops: self-loops of each type.
        weighted: have they weights?
    """

    frame: DataFrame
    types: tuple[EdgeType, ...]
    counts: tuple[int, ...]
    loops: tuple[int, ...]
    weighted: bool

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
    from pyspark.sql import functions as F

    wanted = parts * SAMPLES_PER_PART
    if parts < 2:
        return {}
    step = max(1, sum(edges.counts) // wanted)
    chosen = F.pmod(F.xxhash64("src", "dst"), F.lit(step)) == 0
    found: dict[int, tuple[I64, I64]] = {}
    rows = edges.frame.where(chosen).select("type", "src", "dst").limit(8 * wanted).toArrow()
    types = rows.column("type").to_numpy()
    for number in np.unique(types).tolist():
        mask = types == number
        found[number] = (rows.column("src").to_numpy()[mask], rows.column("dst").to_numpy()[mask])
    return found


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


def by_type(chunk: pa.Table, names: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The columns of a chunk as numpy, for each edge type."""
    types = chunk.column("type").to_numpy()
    arrays = [chunk.column(name).to_numpy() for name in names]
    if not len(types):
        return
    if (types == types[0]).all():
        yield int(types[0]), tuple(arrays)
        return
    for number in np.unique(types).tolist():
        mask = types == number
        yield number, tuple(array[mask] for array in arrays)
