"""PageRank's block steps without Spark against scipy: an exact solution, and the bound that the certificate states."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from unit.graph_shards import cut, power_law

from headrace.errors import UserError
from headrace.features import node_blocks, pagerank
from headrace.features.node_blocks import Blocks, Pusher, Row, combine
from headrace.features.pagerank import Options, Step

N = 400


def exact(matrix: Any, damping: float, v: np.ndarray) -> np.ndarray:
    """Solve x = d (P^T + v a^T) x + (1 - d) v, a = dangling nodes, as a dense system."""
    out = np.asarray(matrix.sum(axis=1)).ravel()
    p = sp.diags(np.divide(1.0, out, out=np.zeros(N), where=out > 0)) @ matrix
    system = np.eye(N) - damping * (p.T.toarray() + np.outer(v, out == 0))
    return np.linalg.solve(system, (1 - damping) * v)


def run(matrix: Any, options: Options, size: int, max_edges: int, weighted: bool = False) -> tuple[np.ndarray, Any]:
    """What `pagerank` does, with lists for frames."""
    adjacency = cut(matrix, max_edges, weighted)
    step = Step(Blocks(N, 1, size), options)
    blocks = step.blocks
    states = [step.begin(b, node_blocks.source_sums(adjacency, blocks, b)) for b in range(blocks.count)]
    done = pagerank.certificate(options, 0, math.inf, 1.0)
    while not done.converged and done.iterations < options.max_iterations:
        _, dangling, _ = pagerank.figures((row.block, row.nodes) for row in states)
        pieces = list(Pusher(adjacency, blocks)((row.block, step.send(row)) for row in states))

        def finish(block: int, state: Row | None, total: np.ndarray, m: float = dangling) -> list[Row]:
            assert state is not None
            return [step.finish(block, state, total[:, 0], m)]

        rows = sorted([*states, *pieces], key=lambda row: (row.block, row.kind, row.order))
        states = list(combine(rows, blocks, finish))
        residual, _, total = pagerank.figures((row.block, row.nodes) for row in states)
        done = pagerank.certificate(options, done.iterations + 1, residual, total)
    return np.concatenate([np.frombuffer(row.values) for row in states]), done


@pytest.mark.parametrize("damping", [0.0, 0.5, 0.85])
@pytest.mark.parametrize("personal", [{}, {3: 1.0, 250: 3.0}])
def test_ranks_equal_the_exact_solution(damping: float, personal: dict[int, float]) -> None:
    matrix = power_law(N, 3_000, 1)
    assert (np.asarray(matrix.sum(axis=1)) == 0).any(), "some nodes are dangling"
    v = np.full(N, 1 / N)
    if personal:
        v = np.zeros(N)
        v[3], v[250] = 0.25, 0.75
    found, done = run(matrix, Options(damping, 1e-11, 300, personal), 64, 100)
    wanted = exact(matrix, damping, v)
    assert np.abs(found - wanted).sum() < 1e-9
    assert done.converged
    assert done.total == pytest.approx(1.0, abs=1e-12)


def test_the_certificate_bounds_the_error() -> None:
    matrix = power_law(N, 2_000, 2)
    wanted = exact(matrix, 0.85, np.full(N, 1 / N))
    for tolerance in (1e-1, 1e-3, 1e-6):
        found, done = run(matrix, Options(tolerance=tolerance), 64, 100)
        assert np.abs(found - wanted).sum() <= done.error_bound + 1e-14 <= tolerance + 1e-14
    found, done = run(matrix, Options(tolerance=1e-12, max_iterations=3), 64, 100)
    assert (done.converged, done.iterations) == (False, 3)
    assert np.abs(found - wanted).sum() <= done.error_bound


def test_weights_and_shards_that_cut_hubs() -> None:
    matrix = power_law(N, 3_000, 3)
    matrix.data[:] = np.random.default_rng(0).random(len(matrix.data)) + 0.1
    wanted = exact(matrix, 0.85, np.full(N, 1 / N))
    for size, max_edges in ((64, 7), (400, 10_000), (11, 50)):
        found, _ = run(matrix, Options(tolerance=1e-11), size, max_edges, weighted=True)
        assert np.abs(found - wanted).sum() < 1e-9


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = power_law(N, 3_000, 4)
    whole, _ = run(matrix, Options(), 64, 100)
    monkeypatch.setattr(node_blocks, "CELLS", 3)
    pieces, _ = run(matrix, Options(), 64, 100)
    assert np.abs(whole - pieces).max() < 1e-15


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (Options(damping=1.0), "damping"),
        (Options(tolerance=0.0), "tolerance"),
        (Options(personal={N: 1.0}), "not within"),
        (Options(personal={1: -1.0, 2: 2.0}), "weights"),
        (Options(personal={1: 0.0}), "weights"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: Options, match: str) -> None:
    with pytest.raises(UserError, match=match):
        options.check(N)
