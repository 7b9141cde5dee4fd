"""Triples of many shards in memory: each array once."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.features.csr import EdgeType, Shard
from headrace.features.graph_triples import TripleTables

NODES, EDGES = 1_000, 50_000
JOINED = EdgeType("node", "*", "node")


@dataclass(frozen=True)
class Table:
    """An adjacency of two relations whose shards are made when they are read."""

    shards: tuple[int, ...]
    direction: str = "out"
    edge_type: EdgeType = JOINED

    @property
    def num_edges(self) -> int:
        return EDGES * len(self.shards)

    def shard(self, number: int) -> Shard:
        indptr = np.arange(NODES + 1) * (EDGES // NODES)
        places = np.arange(EDGES)
        return Shard(number * NODES, indptr, places % 7, None, (places % 2).astype(np.int32))


def tables(*shards: int) -> TripleTables:
    made: Any = tuple(Table(tuple(range(count))) for count in shards)
    return TripleTables(made, ("a", "b"), NODES * max(shards, default=1))


def test_all_shards_in_their_order() -> None:
    found = tables(2, 1).whole()
    assert len(found) == 3 * EDGES
    assert found.head[[0, EDGES - 1, EDGES, -1]].tolist() == [0, NODES - 1, NODES, NODES - 1]
    assert np.array_equal(found.tail, np.tile(np.arange(EDGES) % 7, 3))
    assert np.array_equal(found.relation, np.tile(np.arange(EDGES) % 2, 3))
    assert len(tables().whole()) == 0


def test_the_peak_is_the_triples_and_a_shard() -> None:
    """Parts laid end to end would be there twice."""
    tracemalloc.start()
    found = tables(20).whole()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * 24 * len(found)
