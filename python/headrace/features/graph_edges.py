"""Edges of several types, in files or in a frame, and which adjacencies are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.catalog.fingerprint import splitmix64
from headrace.features.csr import EdgeType
from headrace.features.graph_files import CHUNK_EDGES, Act, EdgeArrays, EdgeFiles, groups

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

SAMPLES_PER_PART = 256


@dataclass(frozen=True)
class EdgeRows:
    """Edges as a DataFrame of type int, src bigint, dst bigint."""

    frame: DataFrame

    def each(self, columns: Sequence[str], act: Act, ddl: str) -> DataFrame:
        """What `act` makes of the edges of each task, in batches of `ddl`."""

        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return act(_typed(batches, columns))

        return self.frame.select("type", *columns).mapInArrow(run, ddl)


def _typed(batches: Iterable[pa.RecordBatch], columns: Sequence[str]) -> EdgeArrays:
    for chunk in chunks(batches):
        arrays = [chunk.column(name).to_numpy() for name in columns]
        for number, places in groups(chunk.column("type").to_numpy()):
            yield number, arrays if places is None else [array[places] for array in arrays]


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


Sample = Mapping[int, tuple[I64, I64, I64]]
"""Sources and targets of some edges, distinct ones, and how often each counts, by type."""
_SAMPLE_DDL = "type int, src bigint, dst bigint, edges bigint"


def sample(edges: Edges, parts: int) -> Sample:
    """Some edges by type, chosen by a hash of the edge: the same whatever the tasks; none where one part will do.

    One that stands there many times counts as often, but at most as all the samples of a part: it is in the sample by
    the chance of its hash, and then more parts than one would be cut for nothing but its copies.
    """
    if parts < 2:
        return {}
    step = max(1, sum(edges.counts) // (parts * SAMPLES_PER_PART))
    found = edges.source.each(("src", "dst"), partial(_chosen, step), _SAMPLE_DDL).toArrow()
    found = found.group_by(["type", "src", "dst"]).aggregate([("edges", "sum")])
    found = found.sort_by([(name, "ascending") for name in ("type", "src", "dst")])
    type_, src, dst, count = (found.column(name).to_numpy() for name in ("type", "src", "dst", "edges_sum"))
    count = np.minimum(count, SAMPLES_PER_PART)
    return {
        number: (src[mine], dst[mine], count[mine])
        for number in np.unique(type_).tolist()
        for mine in [type_ == number]
    }


def _chosen(step: int, edges: EdgeArrays) -> Iterator[pa.RecordBatch]:
    """One distinct edge in `step`, with the number of its copies in the chunk."""
    for number, (src, dst) in edges:
        places = np.flatnonzero(splitmix64(splitmix64(src) ^ dst.view(np.uint64)) <= np.uint64(((1 << 64) - 1) // step))
        rows = pa.table({"src": src[places], "dst": dst[places], "edges": np.ones(len(places), np.int64)})
        rows = rows.group_by(["src", "dst"]).aggregate([("edges", "sum")])
        columns = [pa.array(np.full(len(rows), number, np.int32))]
        columns += [rows.column(name).combine_chunks() for name in ("src", "dst", "edges_sum")]
        yield pa.RecordBatch.from_arrays(columns, ["type", "src", "dst", "edges"])


def sides_of(sampled: Sample, edges: Edges) -> dict[str, tuple[I64, I64]]:
    """The sampled ids by node type, and how often each counts."""
    found: dict[str, list[tuple[I64, I64]]] = {}
    for number, (src, dst, count) in sampled.items():
        for side, name in ((src, edges.types[number].source), (dst, edges.types[number].target)):
            found.setdefault(name, []).append((side, count))
    return {name: (np.concatenate([s for s, _ in p]), np.concatenate([c for _, c in p])) for name, p in found.items()}


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
