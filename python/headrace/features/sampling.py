"""Neighbour sampling as a pure function of (seed, epoch, hop, edge type, node): the same on any worker, in any batch.

    word(node, slot) = splitmix64(splitmix64(node + key) + slot * G)      key: seed, epoch, hop, edge type; mod 2^64
    number below m   = floor(high 32 bits * m / 2^32)                     every value within 2^-32 of 1 / m

Without replacement, k of d neighbours by Floyd's algorithm: for j = d-k .. d-1 draw t in 0 .. j and take place t, or j
if t is taken: every set of k places is as likely, and k places are all that is held. With replacement: k draws below d.
By weight: the k smallest of -log(u) / w over the d neighbours (u by the place of each), which is drawing one after the
other with probabilities in proportion to the weights of those left; one of weight 0 is never drawn.

A node that stands in several places of one hop has the same neighbours in all of them; another epoch, hop or edge type
draws afresh. References: Bentley, Floyd, "A Sample of Brilliance", CACM 1987; Hamilton, Ying, Leskovec, "Inductive
Representation Learning on Large Graphs", NeurIPS 2017; Efraimidis, Spirakis, "Weighted Random Sampling", IPL 2006.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

NONE = -1
"""Stands where there is no neighbour."""
ALL = -1
"""The fan-out that takes every neighbour."""
MAX_FANOUT = 4096
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Draw:
    """What a draw depends on besides the node: one value names one set of neighbours for every node of a graph.

    Args:
        seed: of the run.
        epoch: neighbours change with it.
        hop: 0 for the neighbours of the seeds, 1 for theirs, ...
        edge_type: number of the edge type that is followed.
    """

    seed: int = 0
    epoch: int = 0
    hop: int = 0
    edge_type: int = 0

    def key(self) -> np.uint64:
        """The four chained through splitmix64."""
        word = np.zeros(1, np.uint64)
        for part in (self.seed, self.epoch, self.hop, self.edge_type):
            word = splitmix64(word ^ np.uint64(part % (1 << 64)))
        return np.uint64(word[0])


def parse_fanouts(text: str, setting: str = "fanouts") -> tuple[int, ...]:
    """Read `15,10,5`: neighbours by hop.

    Raises:
        UserError: not numbers, under 1 (but -1 for all neighbours), or too large.
    """
    parts = [part.strip() for part in text.split(",")]
    fanouts = [int(part) for part in parts if part.removeprefix("-").isdecimal()]
    if len(fanouts) < len(parts) or any(f != ALL and not 1 <= f <= MAX_FANOUT for f in fanouts):
        raise UserError(
            f"--{setting} {text!r} is no list of numbers from 1 to {MAX_FANOUT}", "neighbours by hop, for example 15,10"
        )
    return tuple(fanouts)


def places(nodes: I64, degrees: I64, fanout: int, draw: Draw, *, replace: bool = False) -> I64:
    """Which of their neighbours each node draws.

    Args:
        nodes: [n] ids.
        degrees: [n] numbers of neighbours, under 2^31.
        fanout: neighbours wanted, k >= 1; a node with fewer gives all it has (with `replace`: k, unless it has none).
        draw: seed, epoch, hop, edge type.
        replace: draw with replacement.

    Returns:
        int64 [n, k]: places in 0 .. degree-1, ascending, then NONE. Does not depend on the other nodes given.
    """
    assert fanout >= 1, "ALL has no fixed width: see ragged_places"
    words = _node_words(nodes, draw)
    if replace:
        drawn = np.stack([_below(_word(words, slot), degrees) for slot in range(fanout)], axis=1)
        drawn[degrees == 0] = NONE
        drawn.sort(axis=1)
        return drawn
    result = np.tile(np.arange(fanout, dtype=np.int64), (len(nodes), 1))
    result[result >= degrees[:, None]] = NONE
    many = np.flatnonzero(degrees > fanout)
    if len(many):
        result[many] = _floyd(words[many], degrees[many], fanout)
    return result


def ragged_places(
    nodes: I64, degrees: I64, fanout: int, draw: Draw, *, replace: bool = False, weights: F64 | None = None
) -> tuple[I64, I64]:
    """As `places`, without padding; also for ALL, and by weight.

    Args:
        nodes: as in `places`.
        degrees: as in `places`.
        fanout: as in `places`, or ALL.
        draw: as in `places`.
        replace: as in `places`; not with weights.
        weights: [sum of degrees] of the neighbours of the first node, then of the second, ...; none is drawn that is 0.

    Returns:
        counts [n] and places [sum of counts], those of a node ascending.
    """
    if fanout == ALL:
        return degrees.copy(), _within(degrees)
    if weights is not None:
        return _by_weight(nodes, degrees, fanout, draw, weights)
    padded = places(nodes, degrees, fanout, draw, replace=replace)
    kept = padded != NONE
    return kept.sum(axis=1), padded[kept]


def sample(
    indptr: I64,
    indices: I64,
    nodes: I64,
    fanout: int,
    draw: Draw,
    *,
    replace: bool = False,
    first_node: int = 0,
    weights: F64 | None = None,
) -> I64:
    """Neighbours of nodes by a CSR that starts at node `first_node`.

    Args:
        indptr: [rows + 1].
        indices: [edges].
        nodes: [n] ids, or NONE (which has no neighbours).
        fanout: k.
        draw: as in `places`.
        replace: as in `places`.
        first_node: node of the first row.
        weights: [edges] to draw by, without replacement; holds, for a moment, the edges of each distinct node once.

    Returns:
        int64 [n, k] ids, NONE where there is no neighbour.
    """
    known = nodes != NONE
    rows = np.where(known, nodes - first_node, 0)
    start = indptr[rows]
    degrees = np.where(known, indptr[rows + 1] - start, 0)
    if weights is not None:
        assert not replace, "by weight is without replacement"
        chosen = _weighted_places(nodes, start, degrees, fanout, draw, weights)
    else:
        chosen = places(nodes, degrees, fanout, draw, replace=replace)
    found = np.full(chosen.shape, NONE, np.int64)
    there = chosen != NONE
    found[there] = indices[(start[:, None] + chosen)[there]]
    return found


def sample_hops(
    indptr: I64,
    indices: I64,
    seeds: I64,
    fanouts: Sequence[int],
    draw: Draw,
    *,
    replace: bool = False,
    weights: F64 | None = None,
) -> list[I64]:
    """Neighbourhoods of seeds, hop after hop, by a CSR that is in memory.

    Args:
        indptr: [nodes + 1].
        indices: [edges].
        seeds: [n].
        fanouts: k_1, k_2, ...
        draw: of the first hop; later hops count up.
        replace: as in `places`.
        weights: as in `sample`.

    Returns:
        [n, k_1], [n, k_1 k_2], ...: slot s of a hop hangs on slot s // k of the hop before.
    """
    found, frontier = [], seeds
    for hop, fanout in enumerate(fanouts):
        here = Draw(draw.seed, draw.epoch, draw.hop + hop, draw.edge_type)
        frontier = sample(indptr, indices, frontier, fanout, here, replace=replace, weights=weights).reshape(-1)
        found.append(frontier.reshape(len(seeds), -1))
    return found


def full_neighbourhood(indptr: I64, indices: I64, nodes: I64) -> tuple[I64, I64]:
    """All neighbours of nodes [n]: counts [n] and ids [sum of counts]."""
    counts = indptr[nodes + 1] - indptr[nodes]
    return counts, indices[np.repeat(indptr[nodes], counts) + _within(counts)]


def _node_words(nodes: I64, draw: Draw) -> U64:
    return splitmix64(nodes.astype(np.uint64) + draw.key())


def _word(words: U64, slot: int | U64) -> U64:
    return splitmix64(words + np.asarray(slot, np.uint64) * _GOLDEN)


def _below(words: U64, limits: I64) -> I64:
    return ((words >> _HALF) * limits.astype(np.uint64) >> _HALF).astype(np.int64)


def _floyd(words: U64, degrees: I64, k: int) -> I64:
    """Floyd's algorithm for all nodes at once: [n, k] ascending; every degree is above k."""
    taken = np.empty((k, len(words)), np.int64)
    for slot in range(k):
        last = degrees - k + slot
        place = _below(_word(words, slot), last + 1)
        again = (taken[:slot] == place).any(axis=0)
        taken[slot] = np.where(again, last, place)
    taken.sort(axis=0)
    return np.ascontiguousarray(taken.T)


def arrivals(nodes: I64, places: I64, draw: Draw, weights: F64) -> F64:
    """When each neighbour arrives in the race of its node, at a rate that is its weight; infinity at 0.

    Args:
        nodes: [edges] that the edges begin at.
        places: [edges] of the neighbours among those of the node.
        draw: as in `places`.
        weights: [edges].

    Raises:
        UserError: a weight is negative or not finite.
    """
    if len(weights) and not (weights.min() >= 0 and np.isfinite(weights).all()):
        raise UserError("an edge weight is negative or not a number", "weights to draw by are 0 or more")
    words = _word(_node_words(nodes, draw), places.astype(np.uint64))
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        times = np.minimum(-np.log(uniform) / weights, np.finfo(np.float64).max)  # also of the smallest weights
    return np.asarray(np.where(weights > 0, times, np.inf))


def _weighted_places(nodes: I64, start: I64, degrees: I64, fanout: int, draw: Draw, weights: F64) -> I64:
    """As `places`, by weight: [n, k]. A node that comes again has its neighbours already."""
    distinct, first, inverse = np.unique(nodes, return_index=True, return_inverse=True)
    mine = np.repeat(start[first], degrees[first]) + _within(degrees[first])
    counts, found = _by_weight(distinct, degrees[first], fanout, draw, weights[mine])
    padded = np.full((len(distinct), fanout), NONE, np.int64)
    padded[np.repeat(np.arange(len(distinct)), counts), _within(counts)] = found
    return padded[inverse]


def _by_weight(nodes: I64, degrees: I64, k: int, draw: Draw, weights: F64) -> tuple[I64, I64]:
    owner = np.repeat(np.arange(len(nodes)), degrees)
    place = _within(degrees)
    order = np.lexsort((arrivals(nodes[owner], place, draw, weights), owner))
    kept = order[place < k]  # `owner` is sorted already, so the k first of each node stand at its first k places
    kept = np.sort(kept[weights[kept] > 0])
    return np.bincount(owner[kept], minlength=len(nodes)).astype(np.int64), place[kept]


def _within(counts: I64) -> I64:
    """0 .. count-1 for each count, end to end."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64) - np.repeat(ends - counts, counts)
