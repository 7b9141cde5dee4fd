"""Connected components of the edges one task holds, in numpy: what a task reduces its share of a graph to.

    repeat: every root that has a smaller neighbour hangs itself under one; label <- label[label] until it stays;
            edges <- (label[a], label[b]) where these differ                        until no edge is left

A root only ever goes under a smaller one, so there is no cycle and a tree's root is its smallest node. A graph of m
edges and n nodes leaves n rows (node, smallest node joined with it), however many edges it had. Reference for hooking
and pointer jumping: Shiloach, Vishkin, "An O(log n) parallel connectivity algorithm", J. Algorithms 3 (1982).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Int64s = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]
CHUNK = 2_000_000  # edges contracted at a time: about 300 MB while it lasts
_BATCH = 1 << 17


def contract(src: Int64s, dst: Int64s) -> tuple[Int64s, Int64s]:
    """The nodes of an edge list and the smallest node that each is connected with.

    Args:
        src: int64 [M], any values, duplicates and self-loops allowed.
        dst: int64 [M].

    Returns:
        nodes int64 [N] ascending, and labels int64 [N].
    """
    nodes, first, second = _positions(src, dst)
    label = np.arange(nodes.size, dtype=np.int32)
    a, b = first, second
    while True:
        apart = a != b
        a, b = a[apart], b[apart]
        if not a.size:
            break
        label[np.maximum(a, b)] = np.minimum(a, b)  # of several, any: each is smaller
        label = _jump(label)
        a, b = label[a], label[b]
    # What the caller relies on, checked on every edge it gave.
    assert np.array_equal(label[first], label[second]) and (label <= np.arange(nodes.size)).all()
    return nodes, nodes[label]


def _positions(src: Int64s, dst: Int64s) -> tuple[Int64s, Places, Places]:
    """The distinct nodes, ascending, and the edges as places among them."""
    if not src.size:
        empty = np.empty(0, np.int32)
        return np.empty(0, np.int64), empty, empty
    low, high = int(min(src.min(), dst.min())), int(max(src.max(), dst.max()))
    if high - low <= 4 * src.size:  # dense ids: a table of flags instead of a sort
        present = np.zeros(high - low + 1, bool)
        present[src - low] = True
        present[dst - low] = True
        place = np.cumsum(present, dtype=np.int32) - np.int32(1)
        return np.flatnonzero(present).astype(np.int64) + low, place[src - low], place[dst - low]
    nodes, places = np.unique(np.concatenate([src, dst]), return_inverse=True)
    places = places.astype(np.int32)
    return nodes, places[: src.size], places[src.size :]


def _jump(label: Places) -> Places:
    while True:
        further = label[label]
        if np.array_equal(further, label):
            return label
        label = further


def contractor(
    chunk: int = CHUNK, whole: bool = False
) -> Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]]:
    """What `mapInArrow` takes: two bigint columns, an edge's ends, in; node and component out.

    Args:
        chunk: edges contracted at a time. Memory follows it, not the number of edges.
        whole: keep one forest to the end, so that a single task gives the components of all it was given; otherwise
            a forest of more than `chunk` nodes is passed on and another begun; together they join what was joined.
    """
    return lambda batches: _contract_batches(batches, chunk, whole)


def _contract_batches(batches: Iterable[pa.RecordBatch], chunk: int, whole: bool) -> Iterator[pa.RecordBatch]:
    forest = np.empty(0, np.int64), np.empty(0, np.int64)
    pending: list[tuple[Int64s, Int64s]] = []
    for batch in batches:
        for start in range(0, batch.num_rows, chunk):
            pending.append(_ends(batch.slice(start, chunk)))
            if sum(src.size for src, _ in pending) < chunk:
                continue
            forest = _grow(forest, pending)
            if not whole and forest[0].size >= chunk:
                yield from _rows(*forest)
                forest = np.empty(0, np.int64), np.empty(0, np.int64)
    yield from _rows(*_grow(forest, pending))


def _ends(batch: pa.RecordBatch) -> tuple[Int64s, Int64s]:
    columns = [batch.column(0), batch.column(1)]
    if any(column.null_count for column in columns):
        raise ValueError("an edge without one of its ends (null) joins nothing: leave it out")
    return columns[0].to_numpy(zero_copy_only=False), columns[1].to_numpy(zero_copy_only=False)


def _grow(forest: tuple[Int64s, Int64s], pending: list[tuple[Int64s, Int64s]]) -> tuple[Int64s, Int64s]:
    """The forest of what was read before and of the pending edges, which are emptied."""
    parts = [forest, *pending]
    pending.clear()
    return contract(np.concatenate([src for src, _ in parts]), np.concatenate([dst for _, dst in parts]))


def _rows(nodes: Int64s, labels: Int64s) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for start in range(0, nodes.size, _BATCH):
        part = slice(start, start + _BATCH)
        yield pa.RecordBatch.from_arrays([pa.array(nodes[part]), pa.array(labels[part])], ["node", "component"])
