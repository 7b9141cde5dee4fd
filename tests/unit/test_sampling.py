"""Neighbour sampling against a plain Python reference, against exact enumeration, and under hostile shapes."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.graph_shards import cut, power_law

from headrace.errors import UserError
from headrace.features import sampling
from headrace.features.sampling import ALL, NONE, Draw
from headrace.features.shard_sampling import ShardSampler

M = (1 << 64) - 1


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M
    return x ^ (x >> 31)


def slow_word(node: int, slot: int, draw: Draw) -> int:
    key = 0
    for part in (draw.seed, draw.epoch, draw.hop, draw.edge_type):
        key = mix(key ^ (part & M))
    return mix((mix((node + key) & M) + slot * 0x9E3779B97F4A7C15) & M)


def slow_places(node: int, degree: int, k: int, draw: Draw, replace: bool) -> list[int]:
    """Floyd's algorithm as it is printed, with a set."""
    if replace:
        drawn = sorted((slow_word(node, slot, draw) >> 32) * degree >> 32 for slot in range(k)) if degree else []
        return drawn + [NONE] * (k - len(drawn))
    if degree <= k:
        return list(range(degree)) + [NONE] * (k - degree)
    taken: set[int] = set()
    for slot, j in enumerate(range(degree - k, degree)):
        t = (slow_word(node, slot, draw) >> 32) * (j + 1) >> 32
        taken.add(j if t in taken else t)
    return sorted(taken)


@given(
    nodes=st.lists(st.integers(0, 2**62), max_size=20),
    degree=st.lists(st.integers(0, 40) | st.integers(0, 2**31 - 1), min_size=20, max_size=20),
    k=st.integers(1, 12),
    draw=st.builds(Draw, st.integers(-(2**63), 2**64), st.integers(0, 100), st.integers(0, 3), st.integers(0, 5)),
    replace=st.booleans(),
)
def test_places_equal_the_slow_reference(
    nodes: list[int], degree: list[int], k: int, draw: Draw, replace: bool
) -> None:
    ids, degrees = np.array(nodes, np.int64), np.array(degree[: len(nodes)], np.int64)
    found = sampling.places(ids, degrees, k, draw, replace=replace)
    assert found.tolist() == [slow_places(n, d, k, draw, replace) for n, d in zip(nodes, degree, strict=False)]


def chi_square(found: Counter[object], expected: dict[object, float]) -> float:
    assert set(found) <= set(expected)
    return sum((found[key] - count) ** 2 / count for key, count in expected.items())


def limit(freedom: int) -> float:
    """The 0.9999 quantile of chi-square by Wilson and Hilferty."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(("degree", "k"), [(2, 1), (5, 2), (7, 3), (6, 5), (9, 4)])
@pytest.mark.parametrize("over", ["nodes", "epochs"])
def test_every_set_of_neighbours_is_as_likely(degree: int, k: int, over: str) -> None:
    """All subsets enumerated; chi-square over nodes of one epoch, and over epochs of one node."""
    n = 40_000 if over == "nodes" else 1_500
    if over == "nodes":
        drawn = sampling.places(np.arange(n), np.full(n, degree), k, Draw(7, 1))
    else:
        one, d = np.array([12345]), np.array([degree])
        drawn = np.concatenate([sampling.places(one, d, k, Draw(7, epoch)) for epoch in range(n)])
    sets = list(itertools.combinations(range(degree), k))
    found = Counter(map(tuple, drawn.tolist()))
    assert chi_square(found, dict.fromkeys(sets, n / len(sets))) < limit(len(sets) - 1)


def test_draws_of_hops_types_epochs_and_neighbouring_nodes_are_independent() -> None:
    """Pairs of choices of 1 in 6, all 36 pairs as likely."""
    nodes, degrees = np.arange(36_000), np.full(36_000, 6)
    here = sampling.places(nodes, degrees, 1, Draw(1, 0, 0, 0))[:, 0]
    others = [Draw(1, 0, 1, 0), Draw(1, 1, 0, 0), Draw(1, 0, 0, 1), Draw(2, 0, 0, 0), Draw(0, 1, 0, 0)]
    pairs = [sampling.places(nodes, degrees, 1, other)[:, 0] for other in others] + [np.roll(here, 1)]
    for there in pairs:
        found = Counter(zip(here.tolist(), there.tolist(), strict=True))
        assert chi_square(found, dict.fromkeys(itertools.product(range(6), repeat=2), 1_000)) < limit(35)


def test_replacement_draws_each_place_independently() -> None:
    n = 30_000
    drawn = sampling.places(np.arange(n), np.full(n, 4), 2, Draw(3), replace=True)
    expected = {(a, b): n / 16 * (1 if a == b else 2) for a in range(4) for b in range(a, 4)}
    assert chi_square(Counter(map(tuple, drawn.tolist())), expected) < limit(9)


def test_weighted_draws_have_their_exact_probabilities() -> None:
    """2 of 4 drawn one after the other in proportion to weight; a neighbour of weight 0 never."""
    n, weights = 40_000, [1.0, 2.0, 0.0, 5.0]
    nodes, degrees = np.arange(n), np.full(n, 4)
    counts, flat = sampling.ragged_places(nodes, degrees, 2, Draw(5), weights=np.tile(weights, n))
    assert counts.tolist() == [2] * n
    expected: dict[object, float] = {}
    for a, b in itertools.permutations((0, 1, 3), 2):
        share = weights[a] / 8 * weights[b] / (8 - weights[a])
        expected[min(a, b), max(a, b)] = expected.get((min(a, b), max(a, b)), 0.0) + n * share
    assert chi_square(Counter(map(tuple, flat.reshape(-1, 2).tolist())), expected) < limit(2)


def test_weights_of_one_node_do_not_move_anothers_draw() -> None:
    weights = np.array([1.0, 2.0, 3.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    counts, flat = sampling.ragged_places(np.array([8, 9, 4]), np.array([3, 2, 3]), 2, Draw(5), weights=weights)
    alone = sampling.ragged_places(np.array([4]), np.array([3]), 2, Draw(5), weights=weights[5:])
    assert counts.tolist() == [2, 0, 2]
    assert flat[2:].tolist() == alone[1].tolist()
    with pytest.raises(UserError, match="negative"):
        sampling.ragged_places(np.array([1]), np.array([1]), 1, Draw(), weights=np.array([-1.0]))


def graph(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    degrees = np.minimum(rng.zipf(1.6, n), n) * (rng.random(n) < 0.8)
    indptr = np.concatenate([[0], np.cumsum(degrees)])
    return indptr, np.concatenate([np.sort(rng.choice(n, d, replace=False)) for d in degrees]).astype(np.int64)


def test_neighbourhoods_do_not_depend_on_the_batch_or_the_shard() -> None:
    indptr, indices = graph(np.random.default_rng(0), 500)
    seeds = np.arange(500)
    whole = sampling.sample_hops(indptr, indices, seeds, (4, 3, 2), Draw(9, 2))
    assert [hop.shape for hop in whole] == [(500, 4), (500, 12), (500, 24)]
    shuffled = np.random.default_rng(1).permutation(500)
    for part in np.array_split(shuffled, 7):
        for here, there in zip(sampling.sample_hops(indptr, indices, part, (4, 3, 2), Draw(9, 2)), whole, strict=True):
            assert np.array_equal(here, there[part])
    cut = sampling.sample(
        indptr[200:301] - indptr[200], indices[indptr[200] : indptr[300]], seeds[200:300], 4, Draw(9, 2), first_node=200
    )
    assert np.array_equal(cut, whole[0][200:300])


def test_what_is_sampled_are_edges_each_once() -> None:
    indptr, indices = graph(np.random.default_rng(2), 300)
    first, second = sampling.sample_hops(indptr, indices, np.arange(300), (5, 3), Draw(1))
    for node in range(300):
        mine = set(indices[indptr[node] : indptr[node + 1]].tolist())
        drawn = [x for x in first[node].tolist() if x != NONE]
        assert len(drawn) == len(set(drawn)) == min(5, len(mine))
        assert set(drawn) <= mine
        for slot, parent in enumerate(first[node].tolist()):
            children = [x for x in second[node, 3 * slot : 3 * slot + 3].tolist() if x != NONE]
            theirs = set() if parent == NONE else set(indices[indptr[parent] : indptr[parent + 1]].tolist())
            assert len(children) == min(3, len(theirs))
            assert set(children) <= theirs


def test_all_neighbours() -> None:
    indptr, indices = graph(np.random.default_rng(3), 100)
    nodes = np.array([5, 99, 5, 0])
    counts, found = sampling.full_neighbourhood(indptr, indices, nodes)
    expected = [indices[indptr[n] : indptr[n + 1]].tolist() for n in nodes]
    assert counts.tolist() == [len(part) for part in expected]
    assert found.tolist() == [x for part in expected for x in part]
    degrees = np.diff(indptr)[nodes]
    ragged = sampling.ragged_places(nodes, degrees, ALL, Draw())
    assert ragged[0].tolist() == degrees.tolist()
    assert ragged[1].tolist() == [p for d in degrees.tolist() for p in range(d)]


def test_ragged_places_are_the_padded_ones() -> None:
    degrees = np.array([0, 3, 9, 40])
    counts, flat = sampling.ragged_places(np.arange(4), degrees, 5, Draw(2))
    padded = sampling.places(np.arange(4), degrees, 5, Draw(2))
    assert counts.tolist() == [0, 3, 5, 5]
    assert flat.tolist() == padded[padded != NONE].tolist()


@pytest.mark.parametrize("text", ["", "a", "5,", "0", "-2", "5000", "1.5"])
def test_fanouts_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="fanouts"):
        sampling.parse_fanouts(text)
    assert sampling.parse_fanouts("15, 10,-1") == (15, 10, -1)


def test_a_worker_on_disk_draws_what_memory_draws() -> None:
    """Shard by shard, hubs in pieces, nodes in any order and twice, NONE among them."""
    matrix = power_law(300, 4_000, 7)
    matrix.sort_indices()
    indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)
    nodes = np.random.default_rng(0).integers(-1, 300, 500)
    for max_edges in (7, 100, 10_000):
        shards = cut(matrix, max_edges)
        assert max_edges > 7 or max(info.pieces for info in shards.shards) > 5
        sampler = ShardSampler(shards)
        for replace in (False, True):
            wanted = sampling.sample(indptr, indices, nodes, 6, Draw(4, 1), replace=replace)
            assert np.array_equal(sampler.neighbours(nodes, 6, Draw(4, 1), replace=replace), wanted)


def test_a_worker_on_disk_draws_by_weight_what_memory_draws() -> None:
    matrix = power_law(300, 4_000, 7)
    matrix.sort_indices()
    rng = np.random.default_rng(1)
    matrix.data[:] = rng.random(matrix.nnz) * (rng.random(matrix.nnz) < 0.7)
    matrix.data[matrix.indptr[3] : matrix.indptr[4]] = 0
    matrix.data[matrix.indptr[4] : matrix.indptr[5]] = 5e-324  # arrives beyond all numbers, is drawn
    indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)
    nodes = rng.integers(-1, 300, 500)
    wanted = sampling.sample(indptr, indices, nodes, 6, Draw(4, 1), weights=matrix.data)
    assert not np.array_equal(wanted, sampling.sample(indptr, indices, nodes, 6, Draw(4, 2), weights=matrix.data))
    alone = sampling.sample(indptr, indices, nodes[17:18], 6, Draw(4, 1), weights=matrix.data)
    assert np.array_equal(alone[0], wanted[17]), "whatever else is in the batch"
    positive = {(row, column) for row, column in zip(*matrix.nonzero(), strict=True)}
    for node, drawn in zip(nodes.tolist(), wanted.tolist(), strict=True):
        there = [n for n in drawn if n != NONE]
        assert len(there) == min(6, sum(row == node for row, _ in positive))
        assert all((node, n) in positive for n in there) and len(set(there)) == len(there)
    for max_edges in (7, 100, 10_000):
        shards = cut(matrix, max_edges, weighted=True)
        sampler = ShardSampler(shards)
        assert np.array_equal(sampler.neighbours(nodes, 6, Draw(4, 1), weighted=True), wanted)


def test_inclusion_by_weight_is_that_of_successive_draws() -> None:
    """100,000 nodes with the same five weights: how often each neighbour is among three, against all orders counted."""
    weights, k, n = np.array([5.0, 3.0, 1.0, 0.5, 0.0, 2.0]), 3, 100_000
    inclusion = np.zeros(6)
    for order in itertools.permutations([0, 1, 2, 3, 5], k):
        left, probability = weights.sum(), 1.0
        for place in order:
            probability *= weights[place] / left
            left -= weights[place]
        inclusion[list(order)] += probability
    assert inclusion.sum() == pytest.approx(k)
    indptr, indices = np.arange(n + 1) * 6, np.tile(np.arange(6), n)
    for draw in (Draw(1, 0), Draw(1, 1), Draw(2, 0, 1)):
        found = sampling.sample(indptr, indices, np.arange(n), k, draw, weights=np.tile(weights, n))
        counts = np.bincount(found.ravel(), minlength=6)
        deviation = np.sqrt(n * inclusion * (1 - inclusion))
        assert counts[4] == 0
        assert (np.abs(counts - n * inclusion) <= 4.5 * deviation).all(), (counts / n, inclusion)
