"""Who hears whom in decentralized training, and with which weights.

    x_r <- x_r + sum over ranks j that r hears of W_rj (x_j - x_r),     W_rj = 1 / (1 + max(d_r, d_j))

d_r is how many ranks r hears. Rows and columns of W sum to 1, so the mean over ranks stays. Graphs without direction:
weights of Metropolis and Hastings (L. Xiao, S. Boyd, S.-J. Kim, "Distributed average consensus with least-mean-square
deviation", 2007). In the others every rank hears and is heard by as many: W is circulant. Exponential graphs:
M. Assran, N. Loizou, N. Ballas, M. Rabbat, "Stochastic gradient push", ICML 2019; B. Ying, K. Yuan, Y. Chen, H. Hu,
P. Pan, W. Yin, "Exponential graph is provably efficient for decentralized deep training", NeurIPS 2021: of 2^m ranks, m
turns of `one_peer` are the exact mean. Pairs drawn anew each turn: S. Boyd, A. Ghosh, B. Prabhakar, D. Shah,
"Randomized gossip algorithms", 2006. Where ranks do not fill the torus its last row is short, and degrees differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from headrace.compress.base import generator_of

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Heard = Callable[[int, int, int, int], set[int]]  # rank, ranks, turn, seed -> ranks, never itself


@dataclass(frozen=True)
class Graph:
    """One entry of GRAPHS.

    Args:
        hears: ranks that a rank hears in a turn.
        tells: ranks that hear it; None: those that it hears, W is symmetric.
        static: the same in every turn.
        drawn: by a seed.
        turns: of so many ranks, so many turns in which word of every rank can reach every other, or does but by chance.
    """

    hears: Heard
    tells: Heard | None = None
    static: bool = True
    drawn: bool = False
    turns: Callable[[int], int] = lambda ranks: 1

    @property
    def symmetric(self) -> bool:
        """Whether ranks hear each other."""
        return self.tells is None


@dataclass(frozen=True)
class Mixing:
    """The weights of a run.

    Args:
        graph: a key of GRAPHS.
        ranks: how many there are.
        seed: of what is drawn.
    """

    graph: str
    ranks: int
    seed: int = 0

    def heard(self, rank: int, turn: int) -> dict[int, float]:
        """W_rj of the ranks that a rank hears, ascending."""
        return self._weighted(rank, GRAPHS[self.graph].hears, turn)

    def told(self, rank: int, turn: int) -> dict[int, float]:
        """W_jr of the ranks that hear a rank, ascending."""
        graph = GRAPHS[self.graph]
        return self._weighted(rank, graph.tells or graph.hears, turn)

    def mutual(self, rank: int, turn: int) -> dict[int, float]:
        """Weights of (W + W^T) / 2, which is symmetric and doubly stochastic where W is the latter."""
        heard, told = self.heard(rank, turn), self.told(rank, turn)
        return {j: 0.5 * (heard.get(j, 0.0) + told.get(j, 0.0)) for j in sorted(heard | told)}

    def matrix(self, turn: int) -> Matrix:
        """W [ranks, ranks] of a turn."""
        made = np.zeros((self.ranks, self.ranks))
        for rank in range(self.ranks):
            for j, weight in self.heard(rank, turn).items():
                made[rank, j] = weight
            made[rank, rank] = 1.0 - made[rank].sum()
        return made

    def _weighted(self, rank: int, other: Heard, turn: int) -> dict[int, float]:
        hears = GRAPHS[self.graph].hears

        def degree(of: int) -> int:
            return len(hears(of, self.ranks, turn, self.seed))

        own = degree(rank)
        return {j: 1 / (1 + max(own, degree(j))) for j in sorted(other(rank, self.ranks, turn, self.seed))}


def spectral_gap(weights: Matrix) -> float:
    """1 - |W - mean|_2: in a turn the distance to the mean shrinks by the factor 1 - gap at least."""
    deviation = weights - 1.0 / len(weights)
    return 1.0 - float(np.linalg.norm(deviation, 2))


def _ring(rank: int, ranks: int, turn: int, seed: int) -> set[int]:
    return {(rank - 1) % ranks, (rank + 1) % ranks} - {rank}


def _torus(rank: int, ranks: int, turn: int, seed: int) -> set[int]:
    """Rows of ceil(sqrt(ranks)); the last one may be short."""
    width = math.isqrt(ranks - 1) + 1
    row, column = divmod(rank, width)
    long, high = min(width, ranks - row * width), len(range(column, ranks, width))
    across = {row * width + (column + step) % long for step in (-1, 1)}
    down = {(row + step) % high * width + column for step in (-1, 1)}
    return (across | down) - {rank}


def _offsets(ranks: int) -> list[int]:
    """Powers of 2 below the number of ranks."""
    return [1 << k for k in range((ranks - 1).bit_length())]


def _exponential(sign: int) -> Heard:
    return lambda rank, ranks, turn, seed: {(rank + sign * offset) % ranks for offset in _offsets(ranks)}


def _one_peer(sign: int) -> Heard:
    def hears(rank: int, ranks: int, turn: int, seed: int) -> set[int]:
        offsets = _offsets(ranks)
        return {(rank + sign * offsets[turn % len(offsets)]) % ranks} if offsets else set()

    return hears


def _matched(rank: int, ranks: int, turn: int, seed: int) -> set[int]:
    """Ranks in pairs, all ways of pairing with equal chance; of an odd number one is left alone."""
    return _pairs(ranks, turn, seed)[rank]


@lru_cache(maxsize=16)
def _pairs(ranks: int, turn: int, seed: int) -> list[set[int]]:
    order = torch.randperm(ranks, generator=generator_of(seed, turn)).tolist()
    made: list[set[int]] = [set() for _ in range(ranks)]
    for a, b in zip(order[::2], order[1::2], strict=False):
        made[a], made[b] = {b}, {a}
    return made


def _complete(rank: int, ranks: int, turn: int, seed: int) -> set[int]:
    return set(range(ranks)) - {rank}


GRAPHS = {
    "ring": Graph(_ring),
    "torus": Graph(_torus),
    "exponential": Graph(_exponential(1), _exponential(-1)),
    "one_peer": Graph(_one_peer(1), _one_peer(-1), static=False, turns=lambda ranks: max(1, len(_offsets(ranks)))),
    "random": Graph(_matched, static=False, drawn=True, turns=lambda ranks: 8 * ranks.bit_length()),
    "complete": Graph(_complete),
}
