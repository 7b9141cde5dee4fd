"""Mixing weights of every graph, for every number of ranks: the mean stays, and the rest dies out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headrace.strategies.mixing import GRAPHS, Mixing, spectral_gap

RANKS = range(1, 34)


def product(mixing: Mixing, turns: int) -> np.ndarray:
    """W of several turns, the later on the left."""
    made = np.eye(mixing.ranks)
    for turn in range(turns):
        made = mixing.matrix(turn) @ made
    return made


@pytest.mark.parametrize("graph", sorted(GRAPHS))
def test_weights_are_doubly_stochastic_and_reach_everyone(graph: str) -> None:
    spec = GRAPHS[graph]
    for ranks in RANKS:
        mixing = Mixing(graph, ranks, seed=5)
        for turn in range(1 if spec.static else 6):
            w = mixing.matrix(turn)
            assert (w >= 0).all() and (w.diagonal() > 0).all()
            np.testing.assert_allclose(w.sum(0), 1, atol=1e-12)
            np.testing.assert_allclose(w.sum(1), 1, atol=1e-12)
            assert not spec.symmetric or (w == w.T).all()
            for rank in range(ranks):  # what a rank sends is what others take
                assert mixing.told(rank, turn) == {j: w[j, rank] for j in range(ranks) if j != rank and w[j, rank]}
                mutual = {j: x for j, x in enumerate((w[rank] + w[:, rank]) / 2) if j != rank and x}
                assert mixing.mutual(rank, turn) == pytest.approx(mutual)
        whole = product(mixing, spec.turns(ranks))
        assert spectral_gap(whole) > 0, (graph, ranks)
        if not spec.static:
            assert (whole > 0).all(), (graph, ranks)


@pytest.mark.parametrize("graph", sorted(g for g, spec in GRAPHS.items() if spec.static))
def test_static_graphs_are_connected(graph: str) -> None:
    for ranks in RANKS:
        hops = np.linalg.matrix_power(Mixing(graph, ranks).matrix(0), ranks)
        assert (hops > 0).all(), ranks


@pytest.mark.parametrize("power", range(1, 6))
def test_one_peer_is_the_exact_mean_after_log2_turns(power: int) -> None:
    ranks = 1 << power
    np.testing.assert_array_equal(product(Mixing("one_peer", ranks), power), np.full((ranks, ranks), 1 / ranks))
    assert spectral_gap(product(Mixing("one_peer", ranks), power - 1)) < 0.5


def test_gaps_are_those_of_theory() -> None:
    for ranks in (4, 9, 16, 25):
        ring = (1 + 2 * np.cos(2 * np.pi / ranks)) / 3
        # of W = (I + 4 neighbours) / 5 of a square: the larger of the two ends of its eigenvalues
        side = int(np.sqrt(ranks))
        modes = [2 * np.cos(2 * np.pi * k / side) for k in range(side)]
        torus = max(abs(1 + a + b) / 5 for (i, a), (j, b) in itertools.product(enumerate(modes), repeat=2) if i or j)
        assert spectral_gap(Mixing("ring", ranks).matrix(0)) == pytest.approx(1 - max(ring, 1 / 3 * (ranks % 2 == 0)))
        if side > 2:
            assert spectral_gap(Mixing("torus", ranks).matrix(0)) == pytest.approx(1 - torus)
    for power in range(1, 6):  # Ying et al. 2021: 2 / (1 + log2 n) where it is whole
        assert spectral_gap(Mixing("exponential", 1 << power).matrix(0)) == pytest.approx(2 / (1 + power))


def test_torus_with_a_short_row_has_metropolis_weights() -> None:
    """Seven ranks in rows of three: 0 1 2 / 3 4 5 / 6."""
    w = Mixing("torus", 7).matrix(0)
    degrees = (w > 0).sum(1) - 1
    assert degrees.tolist() == [4, 3, 3, 4, 3, 3, 2]
    assert w[0, 6] == 1 / 5 and w[1, 4] == 1 / 4 and w[3, 4] == 1 / 5 and w[1, 6] == 0


@pytest.mark.parametrize("ranks", [4, 5])
def test_random_pairs_are_drawn_with_equal_chance(ranks: int) -> None:
    """E W = E W^T W has the gap of theory: n / (2 (n - 1)) of an even number, 1/2 of an odd one."""
    turns = 1500
    mean = sum(Mixing("random", ranks, seed=3).matrix(t) for t in range(turns)) / turns
    chance = 1 / (ranks - 1) if ranks % 2 == 0 else 1 / ranks
    off = mean[~np.eye(ranks, dtype=bool)]
    np.testing.assert_allclose(off, chance / 2, atol=5 * np.sqrt(chance / turns) / 2)
    assert spectral_gap(mean) == pytest.approx(chance / 2 * ranks, abs=0.06)
    other = Mixing("random", 33, seed=4)
    assert any((other.matrix(t) != Mixing("random", 33, seed=3).matrix(t)).any() for t in range(3))
