"""Edges in blocks: parallel arrays, split by ranges of ids into parts of bounded size, which numpy sorts.

    key(row, column) = row * columns + column        one unsigned 64-bit number an edge: order by key = CSR order

What a task holds is bounded by a range's edges, and ranges are cut where a sample says that they are of one size: an id
with more edges than a range holds gets several ranges (`Ranges`), a row with more than a shard holds several shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.catalog.fingerprint import key_sum
from headrace.features.csr import checksum

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
Arrays = tuple[Any, ...]


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
        """A part for each id; the entries of an id with several parts take turns, the first goes to its first part."""
        last = np.searchsorted(self.bounds, ids, side="right")
        if self.repeated:
            width = last - np.searchsorted(self.bounds, ids, side="left")
            wide = np.flatnonzero(width > 1)
            firsts = wide[np.unique(ids[wide], return_index=True)[1]]
            turns = np.arange(len(wide)) % width[wide]
            last[wide] -= width[wide] - 1 - turns
            last[firsts] = np.searchsorted(self.bounds, ids[firsts], side="left") + 1
        return last + self.first

    def shared(self, part: int) -> int | None:
        """The id whose entries go to this part too though an earlier one is its first, if there is one."""
        place = part - self.first
        if place < 2 or self.bounds[place - 1] != self.bounds[place - 2]:
            return None
        return int(self.bounds[place - 1])

    def first_of(self, node: int) -> int:
        """The first part of an id."""
        first = int(np.searchsorted(self.bounds, node, side="left"))
        return self.first + first + int(first < len(self.bounds) and self.bounds[first] == node)

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


def quantiles(sample: npt.NDArray[Any], parts: int, counts: I64 | None = None) -> npt.NDArray[Any]:
    """`parts` - 1 bounds, ascending, between parts of about as many entries of the sample each.

    Args:
        sample: values.
        parts: how many.
        counts: how often each value counts; None: once.
    """
    if parts < 2 or not len(sample):
        return sample[:0]
    order = np.argsort(sample, kind="stable")
    ends = np.cumsum(np.ones(len(sample), np.int64) if counts is None else counts[order])
    wanted = (np.arange(1, parts) * ends[-1]) // parts
    return sample[order[np.searchsorted(ends, wanted, side="right")]]


def split(parts: npt.NDArray[np.int64], arrays: Arrays) -> Iterator[tuple[int, Arrays]]:
    """Parallel arrays (or None) by part, for each part that occurs."""
    if not len(parts):
        return
    low, high = int(parts.min()), int(parts.max())
    if low == high:
        yield low, arrays
        return
    local = parts - low
    # numpy sorts 16-bit numbers by radix: a tenth of the time
    order = np.argsort(local.astype(np.uint16) if high - low < 1 << 16 else local, kind="stable")
    ends = np.cumsum(np.bincount(local, minlength=high - low + 1))
    arranged = [None if array is None else array[order] for array in arrays]
    start = 0
    for number, end in enumerate(ends.tolist()):
        if end > start:
            yield low + number, tuple(None if array is None else array[start:end] for array in arranged)
        start = end


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


def plan_shards(
    first: int, rows: int, columns: int, sample: tuple[U64, I64], shards: int, shard_nodes: int
) -> ShardPlan:
    """Cut an adjacency where rows begin, into about equal shards; only a row that fills several is cut inside.

    Args:
        first: number of the first part.
        rows: nodes of the row side.
        columns: nodes of the other side.
        sample: keys of some edges, and how often each counts.
        shards: how many.
        shard_nodes: a shard has no more nodes.
    """
    columns = max(columns, 1)
    bounds = [int(bound) for bound in quantiles(sample[0], shards, sample[1])]
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
