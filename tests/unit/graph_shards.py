"""A graph in shards without a lake, with the interface of features/csr.py, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class Info:
    first_node: int
    num_nodes: int
    num_edges: int
    piece: int
    pieces: int


@dataclass(frozen=True)
class Shard:
    first_node: int
    indptr: np.ndarray
    indices: np.ndarray
    weights: np.ndarray | None


@dataclass(frozen=True)
class Shards:
    """A CSR matrix cut into shards of at most so many edges; rows above that into pieces."""

    num_nodes: int
    num_targets: int
    shards: tuple[Info, ...]
    arrays: tuple[Shard, ...]

    @property
    def weighted(self) -> bool:
        return any(shard.weights is not None for shard in self.arrays)

    def shard(self, number: int) -> Shard:
        return self.arrays[number]


def cut(matrix: Any, max_edges: int, weighted: bool = False) -> Shards:
    matrix = sp.csr_matrix(matrix)
    matrix.sort_indices()
    indptr, indices, data = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data.astype(float)
    infos, arrays, start = [], [], 0

    def add(low: int, high: int, edges: slice, pointer: np.ndarray, piece: int, pieces: int) -> None:
        infos.append(Info(low, high - low, edges.stop - edges.start, piece, pieces))
        arrays.append(Shard(low, pointer, indices[edges], data[edges] if weighted else None))

    while start < matrix.shape[0]:
        stop = start + 1
        while stop < matrix.shape[0] and indptr[stop + 1] - indptr[start] <= max_edges:
            stop += 1
        first, last = int(indptr[start]), int(indptr[stop])
        if last - first > max_edges:
            bounds = [*range(first, last, max_edges), last]
            for piece, (a, b) in enumerate(pairwise(bounds)):
                add(start, stop, slice(a, b), np.array([0, b - a]), piece, len(bounds) - 1)
        else:
            add(start, stop, slice(first, last), indptr[start : stop + 1] - first, 0, 1)
        start = stop
    return Shards(*matrix.shape, tuple(infos), tuple(arrays))


def power_law(n: int, edges: int, seed: int) -> Any:
    """A directed graph with hubs, self-loops and dangling nodes; entries 1."""
    rng = np.random.default_rng(seed)
    u = (n * rng.random(edges) ** 3).astype(int)
    v = (n * rng.random(edges) ** 2).astype(int)
    matrix = sp.csr_matrix((np.ones(edges), (u, v)), (n, n))
    matrix.data[:] = 1
    return matrix
