"""Which adjacencies of a graph are stored: one an edge type, or one over all relations between two node types.

    key(row, column, relation) = row * (columns * R) + column * R + relation        R: number of relations

An adjacency has offsets for all its nodes, so one for each of R relations takes 8 R bytes a node whatever the edges:
of WikiKG90Mv2, 91 million nodes and 1,387 relations, a terabyte. Joined, a node has one list of neighbours, and beside
each the relation's number: an edge is still one key, and what is cut and sorted is as of any other adjacency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.errors import UserError
from headrace.features.csr import ALL_RELATIONS, EdgeType
from headrace.features.graph_edges import Adjacency

I64 = npt.NDArray[np.int64]

CHOICES = ("auto", "separate", "joined")
MAX_SEPARATE = 64
"""Relations between two node types that `auto` keeps apart: up to 512 bytes a node."""


@dataclass(frozen=True)
class Stored:
    """An adjacency as it is stored.

    Args:
        edge: what it is called; the relation is ALL_RELATIONS where they are joined.
        direction: out or in.
        parts: what it is made of: one, or one a relation that has edges.
        relations: names by number; empty where it is of one relation.
        numbers: of the relations of `parts`.
    """

    edge: EdgeType
    direction: str
    parts: tuple[Adjacency, ...]
    relations: tuple[str, ...] = ()
    numbers: tuple[int, ...] = (0,)

    @property
    def width(self) -> int:
        """Keys that a pair of nodes has."""
        return max(1, len(self.relations))

    def columns(self, column: I64, relation: int) -> I64:
        """Columns of the keys of one relation's edges."""
        return column * self.width + relation if self.relations else column

    def expected(self, counts: Sequence[int], loops: Sequence[int]) -> int:
        """Entries before duplicates are treated, from edges and self-loops by type."""
        return sum(part.expected(counts[part.type], loops[part.type]) for part in self.parts)


def stored(made: Sequence[Adjacency], types: Sequence[EdgeType], relations: str = "auto") -> tuple[Stored, ...]:
    """Join what is to be joined.

    Args:
        made: an adjacency for each edge type, direction and mirror image.
        types: the edge types.
        relations: one of CHOICES; auto joins above MAX_SEPARATE relations between two node types.

    Returns:
        In the order of `made`. A relation has the same number in all splits and directions: its place among the sorted
        names of the relations between the two node types.

    Raises:
        UserError: a relation of the input has the name of another's mirror image.
    """
    names = _names(types)
    groups: dict[tuple[EdgeType, str, bool], list[Adjacency]] = {}
    for adjacency in made:
        edge, of = adjacency.edge, types[adjacency.type]
        joined = relations == "joined" or (relations == "auto" and len(names[of.source, of.target]) > MAX_SEPARATE)
        mirror = "rev_" if edge.relation != of.relation else ""
        called = replace(edge, relation=mirror + ALL_RELATIONS) if joined else edge
        groups.setdefault((called, adjacency.direction, joined), []).append(adjacency)
    found = []
    for (called, direction, joined), parts in groups.items():
        first = types[parts[0].type]
        both = names[first.source, first.target]
        if not joined and len(parts) > 1:
            problem = f"{called} is a relation of the input, and the mirror image of another"
            raise UserError(problem, "--symmetrize false, or ingest it under another name")
        found.append(_joined(called, parts, types, both) if joined else Stored(called, direction, tuple(parts)))
    return tuple(found)


def _joined(called: EdgeType, parts: Sequence[Adjacency], types: Sequence[EdgeType], names: Sequence[str]) -> Stored:
    numbers = {name: number for number, name in enumerate(names)}
    mine = tuple(numbers[types[part.type].relation] for part in parts)
    return Stored(called, parts[0].direction, tuple(parts), tuple(names), mine)


def _names(types: Sequence[EdgeType]) -> dict[tuple[str, str], list[str]]:
    """The relations between two node types, sorted."""
    found: dict[tuple[str, str], set[str]] = {}
    for edge in types:
        found.setdefault((edge.source, edge.target), set()).add(edge.relation)
    return {ends: sorted(relations) for ends, relations in found.items()}
