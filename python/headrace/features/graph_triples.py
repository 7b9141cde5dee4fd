"""Triples of a graph by dense ids from gold/graph_csr, a shard at a time, whether relations are joined or apart.

The number of a relation is its place among the sorted names of the relations within a node type, in all splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.errors import UserError
from headrace.features.csr import ALL_RELATIONS, CsrTable, EdgeType, manifest, open_row
from headrace.features.negatives import Triples


@dataclass(frozen=True)
class TripleTables:
    """Where triples within one node type lie; picklable.

    Args:
        tables: their adjacencies, in the order of relation and split.
        relations: names by number.
        num_entities: nodes of the type.
    """

    tables: tuple[CsrTable, ...]
    relations: tuple[str, ...]
    num_entities: int

    @property
    def count(self) -> int:
        """Triples of all tables."""
        return sum(table.num_edges for table in self.tables)

    @property
    def shards(self) -> list[tuple[int, int]]:
        """All shards: which table, which shard of it."""
        return [(at, shard) for at, table in enumerate(self.tables) for shard in range(len(table.shards))]

    def of_splits(self, splits: Sequence[str]) -> TripleTables:
        """Those of some splits; of all where triples are not split."""
        mine = tuple(table for table in self.tables if table.edge_type.split in (*splits, "all"))
        return TripleTables(mine, self.relations, self.num_entities)

    def read(self, at: int, shard: int) -> Triples:
        """The triples of a shard, in its order."""
        table = self.tables[at]
        found = table.shard(shard)
        row = np.repeat(np.arange(len(found.indptr) - 1) + found.first_node, np.diff(found.indptr))
        if found.relations is None:
            relation = np.full(len(row), self.relations.index(table.edge_type.relation), np.int64)
        else:
            relation = found.relations.astype(np.int64)
        head, tail = (row, found.indices) if table.direction == "out" else (found.indices, row)
        return Triples(head, relation, tail)

    def walk(self) -> Iterator[Triples]:
        """Shard by shard."""
        for at, shard in self.shards:
            yield self.read(at, shard)

    def whole(self) -> Triples:
        """All in memory: 24 bytes each, and a shard."""
        found = Triples(*(np.empty(self.count, np.int64) for _ in range(3)))
        filled = 0
        for part in self.walk():
            mine = slice(filled, filled + len(part))
            found.head[mine], found.relation[mine], found.tail[mine] = part.head, part.relation, part.tail
            filled += len(part)
        return found


def open_triples(lake: str, graph: str, node_type: str = "node", version: int | None = None) -> TripleTables:
    """Find a graph's triples within a node type: by their heads, or by their tails where only those rows were made.

    Args:
        lake: folder of the tables.
        graph: its name.
        node_type: of heads and tails.
        version: of gold/graph_manifest.

    Raises:
        UserError: no such graph, or no edges within that type.
    """
    rows = [row for row in manifest(lake, graph, version) if row["part"] == "csr"]
    within = [row for row in rows if row["source_type"] == row["target_type"] == node_type]
    direction = "out" if any(row["direction"] == "out" for row in within) else "in"
    mine = sorted((row for row in within if row["direction"] == direction), key=lambda r: (r["relation"], r["split"]))
    if not mine:
        have = ", ".join(sorted({str(EdgeType(r["source_type"], r["relation"], r["target_type"])) for r in rows})[:20])
        raise UserError(f"graph {graph!r} has no edges within node type {node_type!r}", f"there are: {have}")
    joined = [row for row in mine if row["relation"] == ALL_RELATIONS and row.get("relations")]
    names = joined[0]["relations"] if joined else sorted({row["relation"] for row in mine})
    tables = tuple(open_row(lake, graph, row) for row in mine)
    return TripleTables(tables, tuple(names), tables[0].num_nodes)
