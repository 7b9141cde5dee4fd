"""Edges in blocks: parallel arrays as bytes, split by ranges of ids, so that Spark moves blocks and numpy sorts them.

    key(row, column) = row * columns + column        one unsigned 64-bit number an edge: order by key = CSR order

A shuffle of single edges costs Spark about a microsecond an edge; a block of some thousand costs about as much. What a
task holds is bounded by a range's edges, and ranges are cut where a sample says that they are of one size: an id with
more edges than a range holds gets several ranges (`Ranges`), a row with more than a shard holds several shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.catalog.fingerprint import key_sum
from headrace.features.csr import checksum

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
Arrays = tuple[Any, ...]
Rows = list[tuple[object, ...]]
"""Rows of BLOCK_SCHEMA."""

NODES = -1  # `type` of a block of nodes with dense ids. a: ids, b: dense ids
NEW = -2  # of new nodes. a: ids, b: their rank among the new ones of the part in `place`
DTYPES = (np.dtype("<i8"), np.dtype("<i8"), np.dtype("<f8"), np.dtype("<i8"))
BLOCK_SCHEMA = pa.schema(
    [("part", pa.int32()), ("type", pa.int32()), *((name, pa.binary()) for name in ("a", "b", "weight", "place"))]
)
BLOCK_DDL = "part int, type int, a binary, b binary, weight binary, place binary"


@dataclass(frozen=True)
class Ranges:
    """Ids cut into parts: part k holds the ids in [bounds[k - 1], bounds[k]).

    A bound that stands more than once is an id with more entries than a part holds: its entries may go to any of the
    parts between, so whatever all of them must know of that id goes to each.

    Args:
        first: number of the first part.
        bounds: ascending.
    """

    first: int
    bounds: I64

    @property
    def count(self) -> int:
        """Number of parts."""
        return len(self.bounds) + 1

    def parts(self, ids: I64) -> npt.NDArray[np.int64]:
        """A part for each id; the entries of an id with several parts take turns."""
        last = np.searchsorted(self.bounds, ids, side="right")
        if self.repeated:
            width = last - np.searchsorted(self.bounds, ids, side="left")
            wide = np.flatnonzero(width > 1)
            last[wide] -= np.arange(len(wide)) % width[wide]
        return last + self.first

    def slices(self, ids: I64) -> Iterator[tuple[int, slice]]:
        """Where the ids of each part lie in ascending, distinct `ids`; one with several parts comes in each of them."""
        edges = [0, *np.searchsorted(ids, self.bounds, side="left").tolist(), len(ids)]
        for part in range(self.count):
            start, end = edges[part], edges[part + 1]
            if 0 < part < self.count - 1 and self.bounds[part - 1] == self.bounds[part]:
                end = int(np.searchsorted(ids, self.bounds[part], side="right"))
            if end > start:
                yield self.first + part, slice(start, end)

    @property
    def repeated(self) -> bool:
        """Has any id several parts?"""
        return bool(len(self.bounds) > 1 and (self.bounds[1:] == self.bounds[:-1]).any())


def quantiles(sample: npt.NDArray[np.generic], parts: int) -> npt.NDArray[np.generic]:
    """`parts` - 1 bounds, ascending, between parts of about as many entries of the sample each."""
    if parts < 2 or not len(sample):
        return sample[:0]
    ordered = np.sort(sample)
    return ordered[(np.arange(1, parts) * len(ordered)) // parts]


def pack(part: int, type_: int, arrays: Arrays) -> tuple[int, int, *tuple[bytes | None, ...]]:
    """A block as a row of BLOCK_SCHEMA; arrays that are left out are null."""
    padded = (*arrays, *([None] * (len(DTYPES) - len(arrays))))
    return part, type_, *(None if array is None else array.tobytes() for array in padded)


def table_of(rows: Sequence[tuple[object, ...]]) -> pa.Table:
    """Rows of BLOCK_SCHEMA as a table."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(BLOCK_SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, BLOCK_SCHEMA, strict=True)], schema=BLOCK_SCHEMA)


def split(parts: npt.NDArray[np.int64], type_: int, arrays: Arrays) -> Rows:
    """Parallel arrays as blocks, one a part that occurs."""
    if not len(parts):
        return []
    low, high = int(parts.min()), int(parts.max())
    if low == high:
        return [pack(low, type_, arrays)]
    local = parts - low
    # numpy sorts 16-bit numbers by radix: a tenth of the time
    order = np.argsort(local.astype(np.uint16) if high - low < 1 << 16 else local, kind="stable")
    ends = np.cumsum(np.bincount(local, minlength=high - low + 1))
    arranged = [None if array is None else array[order] for array in arrays]
    rows: Rows = []
    start = 0
    for number, end in enumerate(ends.tolist()):
        if end > start:
            cut = tuple(None if array is None else array[start:end] for array in arranged)
            rows.append(pack(low + number, type_, cut))
        start = end
    return rows


def unpack(table: pa.Table, types: Iterable[int] | None = None) -> dict[int, Arrays]:
    """A table's blocks by type, the blocks of one type laid end to end."""
    found: dict[int, list[list[Any]]] = {}
    columns = [table.column(name) for name in ("a", "b", "weight", "place")]
    for place, type_ in enumerate(table.column("type").to_pylist()):
        if types is None or type_ in types:
            cells = [column[place].as_buffer() for column in columns]
            arrays = [None if c is None else np.frombuffer(c, d) for c, d in zip(cells, DTYPES, strict=True)]
            found.setdefault(type_, []).append(arrays)
    return {
        type_: tuple(_joined(list(column)) for column in zip(*blocks, strict=True)) for type_, blocks in found.items()
    }


def _joined(arrays: list[npt.NDArray[np.generic] | None]) -> npt.NDArray[np.generic] | None:
    kept = [array for array in arrays if array is not None]
    if not kept:
        return None
    return kept[0] if len(kept) == 1 else np.concatenate(kept)


@dataclass(frozen=True)
class ShardPlan:
    """How an adjacency of rows x columns is cut: shard i holds the keys in [cuts[i], cuts[i + 1]).

    Args:
        first: number of its first part, that is of shard 0.
        rows: nodes of the row side.
        columns: nodes of the other.
        cuts: ascending, from 0 to rows * columns; a cut inside a row separates two pieces of it.
    """

    first: int
    rows: int
    columns: int
    cuts: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of shards."""
        return len(self.cuts) - 1

    def keys(self, row: I64, column: I64) -> U64:
        """The edges' keys."""
        return row.astype(np.uint64) * np.uint64(self.columns) + column.astype(np.uint64)

    def parts(self, keys: U64) -> npt.NDArray[np.int64]:
        """The part of each key."""
        inner = np.array(self.cuts[1:-1], np.uint64)
        return np.searchsorted(inner, keys, side="right") + self.first

    def extent(self, shard: int) -> tuple[int, int, int, int]:
        """First node, number of nodes, piece, pieces."""
        start, end = self.cuts[shard], self.cuts[shard + 1]
        node = start // self.columns
        if start % self.columns == 0 and end % self.columns == 0 and end - start >= self.columns:
            return node, (end - start) // self.columns, 0, 1
        borders = [cut for cut in self.cuts if node * self.columns <= cut < (node + 1) * self.columns]
        return node, 1, borders.index(start), len(borders)


def plan_shards(first: int, rows: int, columns: int, sample: U64, shards: int, shard_nodes: int) -> ShardPlan:
    """Cut an adjacency where rows begin, into about equal shards; only a row that fills several is cut inside.

    Args:
        first: number of the first part.
        rows: nodes of the row side.
        columns: nodes of the other side.
        sample: keys of some edges.
        shards: how many.
        shard_nodes: a shard has no more nodes.
    """
    columns = max(columns, 1)
    bounds = [int(bound) for bound in quantiles(sample, shards)]
    nodes = [bound // columns for bound in bounds]
    cuts = {number * columns for number in range(0, rows, shard_nodes)} | {rows * columns}
    for place, (bound, node) in enumerate(zip(bounds, nodes, strict=True)):
        cuts.add(node * columns)
        if place and nodes[place - 1] == node:  # the row fills what lies between the two
            cuts |= {bound, (node + 1) * columns} if bound > node * columns else {(node + 1) * columns}
    ordered = tuple(sorted(cut for cut in cuts if cut <= rows * columns))
    return ShardPlan(first, rows, columns, ordered)


@dataclass(frozen=True)
class Merge:
    """What becomes of several edges between the same two nodes: keep, drop, sum, min or max."""

    duplicates: str
    weighted: bool

    def edges(self, keys: U64, weights: F64 | None, places: I64 | None) -> tuple[U64, F64 | None]:
        """Edges in CSR order, duplicates treated.

        `drop` keeps the one that came first (by `places`), and weights are added up in that order, so that the result
        does not depend on how the edges were spread over tasks.
        """
        if weights is None:
            keys = np.sort(keys)
            return self._unweighted(keys)
        assert places is not None
        order = np.argsort(places, kind="stable")
        order = order[np.argsort(keys[order], kind="stable")]
        keys, weights = keys[order], weights[order]
        if self.duplicates == "keep" or not len(keys):
            return keys, weights
        starts = _run_starts(keys)
        if self.duplicates == "drop":
            return keys[starts], weights[starts]
        reduce: Any = {"sum": np.add, "min": np.minimum, "max": np.maximum}[self.duplicates]
        return keys[starts], reduce.reduceat(weights, starts)

    def _unweighted(self, keys: U64) -> tuple[U64, F64 | None]:
        if self.duplicates == "keep" or not len(keys):
            return keys, np.ones(len(keys)) if self.duplicates == "sum" else None
        starts = _run_starts(keys)
        if self.duplicates == "sum":
            return keys[starts], np.diff(starts, append=len(keys)).astype(np.float64)
        return (keys if len(starts) == len(keys) else keys[starts]), None


def _run_starts(keys: U64) -> I64:
    """Where a new key begins in ascending ones."""
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))


def shard_row(plan: ShardPlan, shard: int, keys: U64, weights: F64 | None) -> dict[str, object]:
    """A row of gold/graph_csr from a shard's edges in order.

    Args:
        plan: of the adjacency.
        shard: which.
        keys: ascending.
        weights: as keys, or None.
    """
    node, count, piece, pieces = plan.extent(shard)
    width = np.uint64(plan.columns)
    rows = keys // width
    indices = (keys - rows * width).astype(np.int64)
    degrees = np.bincount((rows - np.uint64(node)).astype(np.int64), minlength=count)
    indptr = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64)
    total = key_sum(keys)
    return {
        "first_node": node,
        "num_nodes": count,
        "num_edges": len(keys),
        "shard": shard,
        "piece": piece,
        "pieces": pieces,
        "crc32": checksum(indptr, indices, weights),
        "key_sum": total - (1 << 64) if total >= 1 << 63 else total,
        "indptr": indptr,
        "indices": indices,
        "weights": weights,
    }
