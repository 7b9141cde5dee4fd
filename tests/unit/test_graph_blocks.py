"""Blocks, ranges and shards of a graph against scipy and plain counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from headrace.catalog.fingerprint import key_sum
from headrace.features.csr import checksum
from headrace.features.graph_blocks import (
    Merge,
    Ranges,
    ShardPlan,
    plan_shards,
    quantiles,
    shard_row,
    split,
)

IDS = st.lists(st.integers(0, 30), max_size=60)


@given(IDS, st.lists(st.integers(0, 30), max_size=8))
def test_every_part_that_gets_an_entry_of_an_id_knows_the_id(ids: list[int], bounds: list[int]) -> None:
    ranges = Ranges(5, np.array(sorted(bounds), np.int64))
    array = np.array(ids, np.int64)
    parts = ranges.parts(array)
    known: dict[int, set[int]] = {}
    distinct = np.unique(array)
    for part, cut in ranges.slices(distinct):
        known.setdefault(part, set()).update(distinct[cut].tolist())
    assert all(node in known[part] for node, part in zip(ids, parts.tolist(), strict=True))
    assert all(5 <= part < 5 + ranges.count for part in parts.tolist())
    for node in distinct.tolist():  # whoever counts it gets an entry of it, and the others know who that is
        assert 5 + ranges.count > ranges.first_of(node) == min(part for part, nodes in known.items() if node in nodes)
        assert ranges.first_of(node) in parts[array == node]
    assert {(part, ranges.shared(part)) for part in known if ranges.shared(part) in known[part]} == {
        (part, node) for part, nodes in known.items() for node in nodes if part != ranges.first_of(node)
    }
    single = [node for node in distinct.tolist() if bounds.count(node) < 2]
    for node in single:  # in one part, and parts are in the order of ids
        assert sum(node in nodes for nodes in known.values()) == 1
    assert (np.diff(parts[np.isin(array, single)][np.argsort(array[np.isin(array, single)], kind="stable")]) >= 0).all()


def test_an_id_with_several_parts_spreads_over_all_of_them() -> None:
    ranges = Ranges(0, np.array([3, 7, 7, 7, 9]))
    parts = ranges.parts(np.full(300, 7))
    assert sorted(set(parts.tolist())) == [2, 3, 4]
    assert np.bincount(parts)[2:].tolist() == [100, 100, 100]
    assert [(part, cut) for part, cut in ranges.slices(np.array([1, 7, 8])) if part in (2, 3, 4)] == [
        (2, slice(1, 2)),
        (3, slice(1, 2)),
        (4, slice(1, 3)),
    ]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1 << 40)), max_size=50))
def test_split_holds_every_entry_once_in_order(entries: list[tuple[int, int]]) -> None:
    parts = np.array([part for part, _ in entries], np.int64)
    values = np.array([value for _, value in entries], np.int64)
    found = dict(split(parts, (values, None, values / 2, None)))
    assert sorted(found) == sorted(set(parts.tolist()))
    for part, (a, b, weight, place) in found.items():
        assert a.tolist() == values[parts == part].tolist()
        assert weight.tolist() == (a / 2).tolist()
        assert b is None and place is None


def adjacency(
    edges: list[tuple[int, int]], rows: int, columns: int, merge: Merge, shards: int, shard_nodes: int, **more: Any
) -> tuple[ShardPlan, list[dict[str, Any]]]:
    """All shards of some edges, as tasks would make them."""
    row, column = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
    keys = ShardPlan(0, rows, columns, ()).keys(row, column)
    plan = plan_shards(3, rows, columns, (keys, np.ones(len(keys), np.int64)), shards, shard_nodes)
    parts = plan.parts(keys)
    weights, places = more.get("weights"), more.get("places")
    made = []
    for shard in range(plan.count):
        mine = parts == plan.first + shard
        w, p = (None if a is None else a[mine] for a in (weights, places))
        made.append(shard_row(plan, shard, *merge.edges(keys[mine], w, p)))
    return plan, made


EDGES = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 6)), max_size=80)


@given(EDGES, st.integers(1, 12), st.integers(1, 13), st.sampled_from(["drop", "keep", "sum"]))
def test_shards_laid_end_to_end_are_scipys_matrix(
    edges: list[tuple[int, int]], shards: int, shard_nodes: int, duplicates: str
) -> None:
    _, made = adjacency(edges, 12, 7, Merge(duplicates, False), shards, shard_nodes)
    dense = np.zeros((12, 7), np.int64)
    np.add.at(dense, tuple(np.array(edges, np.int64).reshape(-1, 2).T), 1)
    expected = sp.csr_matrix(dense)
    if duplicates == "keep":
        expected_indices = [column for row, column in sorted(edges)]
        expected_indptr = np.concatenate([[0], np.cumsum(dense.sum(axis=1))])
    else:
        expected_indices, expected_indptr = expected.indices.tolist(), expected.indptr
    indices: list[int] = []
    degrees = np.zeros(12, np.int64)
    for row in made:
        assert row["num_nodes"] <= shard_nodes and row["num_edges"] == len(row["indices"])
        degrees[row["first_node"] : row["first_node"] + row["num_nodes"]] += np.diff(row["indptr"])
        indices += row["indices"].tolist()
        assert row["crc32"] == checksum(row["indptr"], row["indices"], row["weights"])
    assert indices == expected_indices
    assert degrees.tolist() == np.diff(expected_indptr).tolist()
    if duplicates == "sum":
        assert np.concatenate([row["weights"] for row in made]).tolist() == expected.data.tolist()
    keys = np.array([r * 7 + c for r, c in (sorted(edges) if duplicates == "keep" else sorted(set(edges)))], np.uint64)
    assert sum(row["key_sum"] for row in made) % (1 << 64) == key_sum(keys)
    covered = [
        node
        for row in made
        if row["piece"] == 0
        for node in range(row["first_node"], row["first_node"] + row["num_nodes"])
    ]
    assert covered == list(range(12))


def test_a_node_larger_than_a_shard_has_pieces_of_its_own() -> None:
    edges = [(4, column) for column in range(1000)] + [(1, 2), (9, 3)]
    _, made = adjacency(edges, 10, 1000, Merge("drop", False), 10, 100)
    pieces = [row for row in made if row["first_node"] == 4]
    assert len(pieces) >= 8 and all(row["num_nodes"] == 1 and row["pieces"] == len(pieces) for row in pieces)
    assert [row["piece"] for row in pieces] == list(range(len(pieces)))
    assert max(row["num_edges"] for row in made) <= 250
    assert np.concatenate([row["indices"] for row in pieces]).tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [
        ("drop", [5.0, 2.0]),
        ("sum", [8.0, 2.0]),
        ("min", [1.0, 2.0]),
        ("max", [5.0, 2.0]),
        ("keep", [5.0, 1.0, 2.0, 2.0]),
    ],
)
def test_what_becomes_of_weights(duplicates: str, expected: list[float]) -> None:
    keys, places = np.array([9, 3, 3, 3], np.uint64), np.array([0, 7, 1, 9])
    _, weights = Merge(duplicates, True).edges(keys, np.array([2.0, 1.0, 5.0, 2.0]), places)
    assert weights is not None and weights.tolist() == expected


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_no_edges_still_cover_every_node(rows: int) -> None:
    plan, made = adjacency([], rows, rows, Merge("drop", False), 1, 2)
    assert plan.count == -(-rows // 2)
    assert sum(row["num_nodes"] for row in made) == rows
    assert all(row["num_edges"] == 0 and len(row["indptr"]) == row["num_nodes"] + 1 for row in made)


def test_quantiles_of_nothing_are_none() -> None:
    assert quantiles(np.empty(0, np.int64), 5).tolist() == []
    assert quantiles(np.arange(100), 4).tolist() == [25, 50, 75]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1), st.integers(1, 12))
def test_a_value_that_counts_twice_is_a_value_that_stands_twice(values: list[tuple[int, int]], parts: int) -> None:
    value, count = np.array(values, np.int64).T
    assert quantiles(value, parts, count).tolist() == quantiles(np.repeat(value, count), parts).tolist()
