"""Neighbours drawn from an adjacency on disk, a shard in memory at a time: the same as from the whole in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.features.node_blocks import Adjacency
from headrace.features.sampling import NONE, Draw, arrivals, places, sample

I64 = npt.NDArray[np.int64]


class ShardSampler:
    """Samples from an adjacency on disk, holding one shard: give nodes grouped by `shard_of`."""

    def __init__(self, adjacency: Adjacency) -> None:
        self._adjacency = adjacency
        self._firsts = np.array([info.first_node for info in adjacency.shards], np.int64)
        self._held: tuple[int, Any] = (-1, None)

    def shard_of(self, nodes: I64) -> I64:
        """The (last) shard of each node; NONE where there is no such row."""
        number = np.searchsorted(self._firsts, nodes, side="right") - 1
        return np.where((nodes >= 0) & (nodes < self._adjacency.num_nodes), number, NONE)

    def neighbours(self, nodes: I64, fanout: int, draw: Draw, *, replace: bool = False, weighted: bool = False) -> I64:
        """As `sampling.sample` by the whole adjacency, with its weights where `weighted`: [n, k]."""
        found = np.full((len(nodes), fanout), NONE, np.int64)
        shards = self.shard_of(nodes)
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order], prepend=NONE - 1)).tolist()
        for low, high in zip(cuts, [*cuts[1:], len(order)], strict=True):
            number, rows = int(shards[order[low]]), order[low:high]
            if number == NONE:
                continue
            if self._adjacency.shards[number].pieces > 1:
                take = self._first_of_pieces if weighted else partial(self._of_pieces, replace=replace)
                found[rows] = take(number, fanout, draw)
            else:
                shard = self._shard(number)
                csr = (shard.indptr, shard.indices, nodes[rows])
                by = shard.weights if weighted else None
                found[rows] = sample(*csr, fanout, draw, replace=replace, first_node=shard.first_node, weights=by)
        return found

    def _first_of_pieces(self, last: int, fanout: int, draw: Draw) -> I64:
        """By weight: every piece has its race, and those who come first in one may be first in all."""
        infos = self._adjacency.shards[last - self._adjacency.shards[last].piece : last + 1]
        times, chosen, found = np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64)
        start = 0
        for piece, info in enumerate(infos):
            shard = self._shard(last - len(infos) + 1 + piece)
            here = np.arange(start, start + info.num_edges)
            arrived = arrivals(np.full(len(here), info.first_node), here, draw, shard.weights)
            columns = [np.concatenate(pair) for pair in ((times, arrived), (chosen, here), (found, shard.indices))]
            first = np.lexsort((columns[1], columns[0]))[:fanout]
            times, chosen, found = (column[first] for column in columns)
            start += info.num_edges
        order = np.argsort(chosen)
        kept = found[order][np.isfinite(times[order])]
        return np.concatenate([kept, np.full(fanout - len(kept), NONE, np.int64)])

    def _of_pieces(self, last: int, fanout: int, draw: Draw, replace: bool) -> I64:
        """Neighbours of the one node whose edges fill several shards: only those are read that hold a chosen place."""
        infos = self._adjacency.shards[last - self._adjacency.shards[last].piece : last + 1]
        starts = np.concatenate([[0], np.cumsum([info.num_edges for info in infos])])
        node, degree = np.array([infos[0].first_node]), starts[-1:]
        chosen = places(node, degree, fanout, draw, replace=replace)[0]
        found = np.full(fanout, NONE, np.int64)
        for piece in range(len(infos)):
            here = (chosen >= starts[piece]) & (chosen < starts[piece + 1])
            if here.any():
                shard = self._shard(last - len(infos) + 1 + piece)
                found[here] = shard.indices[chosen[here] - starts[piece]]
        return found

    def _shard(self, number: int) -> Any:
        if self._held[0] != number:
            self._held = (number, self._adjacency.shard(number))
        return self._held[1]
