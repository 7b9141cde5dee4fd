"""Relations joined in one adjacency: names and numbers, keys against plain Python, blocks laid together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.errors import UserError
from headrace.features import graph
from headrace.features.csr import EdgeType
from headrace.features.graph import Emit
from headrace.features.graph_blocks import Merge, shard_row
from headrace.features.graph_edges import Edges, adjacencies
from headrace.features.graph_exchange import BlockWriter, Exchange
from headrace.features.graph_files import EdgeFiles
from headrace.features.graph_relations import MAX_SEPARATE, Stored, stored

SPLITS = ("train", "test")


def kinds(relations: int) -> list[EdgeType]:
    """So many relations in two splits; the test split lacks the first; and one between other node types."""
    names = [f"r{number:03d}" for number in range(relations)]
    types = [EdgeType("node", name, "node", split) for split in SPLITS for name in names[split == "test" :]]
    return sorted([*types, EdgeType("node", "in", "place")], key=lambda e: (e.source, e.relation, e.target, e.split))


@pytest.mark.parametrize(("relations", "how", "joined"), [
    (MAX_SEPARATE, "auto", False),
    (MAX_SEPARATE + 1, "auto", True),
    (2, "joined", True),
    (MAX_SEPARATE + 1, "separate", False),
])  # fmt: skip
def test_what_is_joined(relations: int, how: str, joined: bool) -> None:
    types = kinds(relations)
    made = adjacencies(types, ("out", "in"), symmetrize=False, loops=True)
    found = stored(made, types, how)
    mine = [s for s in found if s.edge.target == "node"]
    assert len(mine) == (4 if joined else 2 * (2 * relations - 1))
    assert [part for s in found for part in s.parts] == sorted(made, key=[p for s in found for p in s.parts].index)
    if joined:
        assert {(s.edge.relation, s.edge.split, s.direction) for s in mine} == {
            ("*", split, direction) for split in SPLITS for direction in ("out", "in")
        }
        for s in mine:
            assert s.relations == tuple(f"r{number:03d}" for number in range(relations))
            assert [s.relations[number] for number in s.numbers] == [types[part.type].relation for part in s.parts]
    (other, _) = (s for s in found if s.edge.target == "place")
    assert (other.relations, other.width) == (("in",), 1) if how == "joined" else ((), 1)


def test_mirror_images_are_joined_by_themselves() -> None:
    types = [EdgeType("a", "x", "b"), EdgeType("a", "y", "b"), EdgeType("b", "z", "a")]
    found = stored(adjacencies(types, ("out",), symmetrize=True, loops=True), types, "joined")
    assert {(str(s.edge), s.relations) for s in found} == {
        ("a-*-b", ("x", "y")),
        ("b-rev_*-a", ("x", "y")),
        ("b-*-a", ("z",)),
        ("a-rev_*-b", ("z",)),
    }
    types = [EdgeType("a", "x", "b"), EdgeType("b", "rev_x", "a")]
    with pytest.raises(UserError, match="mirror image"):
        stored(adjacencies(types, ("out",), symmetrize=True, loops=True), types, "separate")


@pytest.mark.parametrize("shard_edges", [10_000, 40])
def test_shards_hold_the_triples_of_all_relations(tmp_path: Path, shard_edges: int) -> None:
    rng = np.random.default_rng(2)
    nodes, relations = 30, 90
    types = [EdgeType("node", f"r{number:02d}", "node") for number in range(relations)]
    triples = [(number, rng.integers(0, nodes, 12), rng.integers(0, 5, 12)) for number in range(relations)]
    counts = (12,) * relations
    loops = tuple(int((src == dst).sum()) for _, src, dst in triples)
    edges = Edges(EdgeFiles(None, (), {}), tuple(types), counts, loops, False)  # type: ignore[arg-type]
    kept = stored(adjacencies(types, ("in",), symmetrize=False, loops=True), types)
    assert len(kept) == 1
    sampled = {number: (src, dst, np.ones(12, np.int64)) for number, src, dst in triples}
    plans = graph.plans(edges, kept, {"node": nodes}, sampled, shard_edges, 1_000)
    out = BlockWriter(str(tmp_path))
    Emit(kept, plans).write([(number, (src, dst)) for number, src, dst in triples], out)
    written = out.close()
    assert len(out._entries) <= plans[0].count, "a block a shard, not one a relation and shard"
    found = rows(kept[0], plans[0], Exchange((written,)))
    wanted = {(int(d), int(s), number) for number, src, dst in triples for s, d in zip(src, dst, strict=True)}
    assert found == sorted(wanted)


def rows(made: Stored, plan: graph.ShardPlan, keys: Exchange) -> list[tuple[int, int, int]]:
    """(row, neighbour, relation) of all shards in order."""
    found = []
    for shard in range(plan.count):
        a = keys.read(plan.first + shard).get(0, (np.empty(0, np.int64),))[0]
        row = shard_row(plan, shard, *Merge("drop", False).edges(a.view(np.uint64), None, None))
        row = graph._with_relations(made, row)
        owner = np.repeat(np.arange(row["num_nodes"]) + row["first_node"], np.diff(row["indptr"]))
        assert row["relations"].dtype == np.int32
        found += zip(owner.tolist(), row["indices"].tolist(), row["relations"].tolist(), strict=True)
    return found


def test_keys_that_pass_64_bits_are_refused() -> None:
    types = [EdgeType("node", str(number), "node") for number in range(100)]
    edges = Edges(EdgeFiles(None, (), {}), tuple(types), (1,) * 100, (0,) * 100, False)  # type: ignore[arg-type]
    made = adjacencies(types, ("out",), symmetrize=False, loops=True)
    with pytest.raises(UserError, match="x 100 relations pass 64 bits"):
        graph.plans(edges, stored(made, types), {"node": 1 << 30}, {}, 10, 1 << 29)
    assert len(graph.plans(edges, stored(made, types, "separate"), {"node": 1 << 30}, {}, 10, 1 << 29)) == 100
