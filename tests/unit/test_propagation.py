"""Propagated features, block by block without Spark, against scipy's sparse products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from unit.graph_shards import cut, power_law

from headrace.errors import UserError
from headrace.features import node_blocks, propagation
from headrace.features.node_blocks import Blocks, Pusher, Row, combine
from headrace.features.propagation import Options, Step

N, D = 300, 7


def operator(matrix: Any, options: Options) -> Any:
    """S as scipy makes it."""
    a = sp.csr_matrix(matrix).T + (sp.eye(N) if options.self_loops else sp.csr_matrix((N, N)))
    degree = np.asarray(a.sum(axis=1)).ravel()
    with np.errstate(divide="ignore"):
        if options.norm == "row":
            return sp.diags(np.where(degree > 0, 1 / degree, 0)) @ a
        half = sp.diags(np.where(degree > 0, degree**-0.5, 0))
    return half @ a @ half if options.norm == "symmetric" else a


def run(matrix: Any, x: np.ndarray, options: Options, size: int, max_edges: int, weighted: bool) -> list[np.ndarray]:
    """What `propagate` does, with lists for frames."""
    adjacency = cut(matrix, max_edges, weighted)
    step = Step(Blocks(N, D, size, "float32"), options)
    blocks, ones = step.blocks, replace(step.blocks, width=1, dtype="float64")

    def gather(rows: list[Row], over: Blocks, finish: Any) -> list[Row]:
        return list(combine(sorted(rows, key=lambda r: (r.block, r.kind, r.order)), over, finish))

    pusher = Pusher(adjacency, ones)
    sent = list(pusher((b, np.ones((ones.rows(b), 1))) for b in range(ones.count)))
    empty = [Row(b, node_blocks.STATE, 0, b"", b"") for b in range(ones.count)]
    scales = gather([*empty, *sent], ones, lambda b, _, t: [Row(b, 0, 0, b"", b"", step.scale(t[:, 0]).tobytes())])
    shard = {"first_node": 0, "num_nodes": N, "dim": D, "dtype": "float32", "layout": "dense", "values": x.tobytes()}
    pieces = list(propagation.feature_pieces(shard, blocks))
    states = gather([*scales, *pieces], blocks, lambda b, s, t: [step.state(b, t, np.frombuffer(s.scale))])
    found = [np.concatenate([blocks.values(row) for row in states])]
    for _ in range(options.hops):
        pieces = list(Pusher(adjacency, blocks)((row.block, step.send(row)) for row in states))
        states = gather([*states, *pieces], blocks, lambda b, s, t: [step.finish(b, s, t)])
        found.append(np.concatenate([blocks.values(row) for row in states]))
    return found


@pytest.mark.parametrize("norm", propagation.NORMS)
@pytest.mark.parametrize("self_loops", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_hops_equal_scipys(norm: str, self_loops: bool, weighted: bool) -> None:
    rng = np.random.default_rng(5)
    matrix, x = power_law(N, 2_000, 5), rng.standard_normal((N, D)).astype(np.float32)
    if weighted:
        matrix.data[:] = rng.random(len(matrix.data)) + 0.1
    options = Options(hops=3, norm=norm, self_loops=self_loops)
    s, wanted = operator(matrix, options), x.astype(np.float64)
    for hop in run(matrix, x, options, 32, 60, weighted):
        assert np.abs(hop - wanted).max() <= 2e-6 * max(1.0, np.abs(wanted).max())
        wanted = s @ wanted


def test_sparse_and_half_precision_shards_are_cut_alike() -> None:
    blocks = Blocks(N, D, 32, "float32")
    x = sp.random(40, D, 0.4, "csr", random_state=1, dtype=np.float32)
    common = {"first_node": 50, "num_nodes": 40, "dim": D}
    dense = {"dtype": "float16", "layout": "dense", "values": x.toarray().astype(np.float16).tobytes()}
    sparse = {"dtype": "float16", "layout": "csr", "values": x.data.astype(np.float16).tobytes()}
    sparse |= {"indptr": x.indptr.tolist(), "indices": x.indices.tolist()}
    a, b = (list(propagation.feature_pieces(common | shard, blocks)) for shard in (dense, sparse))
    assert a == b
    assert [row.block for row in a] == [1, 2]
    rows = np.concatenate([blocks.values(row) for row in a])
    assert np.array_equal(rows, x.toarray().astype(np.float16).astype(np.float32))


def test_rows_of_a_block() -> None:
    blocks = Blocks(N, D, 32, "float32")
    x = np.random.default_rng(0).standard_normal((12, D)).astype(np.float32)  # the last block has 12 nodes
    (batch,) = propagation.block_batches(9, [x, 2 * x], blocks, "float16")
    assert batch.column("node").to_pylist() == list(range(288, 300))
    assert np.array_equal(np.array(batch.column("x1").to_pylist(), np.float32), (2 * x).astype(np.float16))
    assert batch.column("unfit").to_pylist() == [0] * 12
    x[3, :2] = 40_000, -40_000
    (batch,) = propagation.block_batches(9, [x, 2 * x], blocks, "float16")
    assert batch.column("unfit").to_pylist() == [0, 0, 0, 2, *[0] * 8]
    (batch,) = propagation.block_batches(9, [x, 2 * x], blocks, "float32")
    assert sum(batch.column("unfit").to_pylist()) == 0


@pytest.mark.parametrize(("options", "match"), [(Options(norm="mean"), "norm"), (Options(hops=0), "hops")])
def test_settings_that_make_no_sense_are_refused(options: Options, match: str) -> None:
    with pytest.raises(UserError, match=match):
        options.check()
