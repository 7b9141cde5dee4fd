"""Components of the edges of one task against scipy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from headrace.features.contraction import contract, contractor

EDGE_CASES = {
    "nothing": [],
    "a self-loop": [(7, 7)],
    "duplicates both ways": [(1, 2), (2, 1), (1, 2)],
    "the ends of int64": [(-(2**63), 2**63 - 1), (2**40, 2**40 + 1), (2**31, 2**40)],
    "negative": [(-5, -3), (-3, 4)],
    "one hub, which is the largest": [(n, 1000) for n in range(500)],
    "chain": [(n, n + 1) for n in range(2000)],
    "chain backwards": [(n + 1, n) for n in range(2000)],
    "zigzag": [(n, 4000 - n) for n in range(1500)] + [(n + 1, 4000 - n) for n in range(1500)],
}


def reference(edges: list[tuple[int, int]]) -> dict[int, int]:
    """Node -> smallest node of its component, by scipy."""
    nodes = sorted({node for edge in edges for node in edge})
    place = {node: index for index, node in enumerate(nodes)}
    rows, columns = [place[a] for a, _ in edges], [place[b] for _, b in edges]
    graph = coo_matrix((np.ones(len(edges)), (rows, columns)), shape=(len(nodes), len(nodes)))
    label = connected_components(graph, directed=False)[1] if nodes else []
    least: dict[int, int] = {}
    for node, name in zip(nodes, label, strict=True):
        least.setdefault(int(name), node)
    return {node: least[int(name)] for node, name in zip(nodes, label, strict=True)}


def ends(edges: list[tuple[int, int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    array = np.array(edges, np.int64).reshape(-1, 2)
    return array[:, 0].copy(), array[:, 1].copy()


def as_dict(nodes: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> dict[int, int]:
    return dict(zip(nodes.tolist(), labels.tolist(), strict=True))


@pytest.mark.parametrize("name", EDGE_CASES)
def test_known_graphs(name: str) -> None:
    assert as_dict(*contract(*ends(EDGE_CASES[name]))) == reference(EDGE_CASES[name])


@given(st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), max_size=60), st.integers(1, 2**50))
def test_any_graph_dense_and_sparse(edges: list[tuple[int, int]], spread: int) -> None:
    spread_out = [(a * spread, b * spread) for a, b in edges]
    assert as_dict(*contract(*ends(edges))) == reference(edges)
    assert as_dict(*contract(*ends(spread_out))) == reference(spread_out)


def batches(edges: list[tuple[int, int]], rows: int) -> list[pa.RecordBatch]:
    src, dst = ends(edges)
    return pa.table({"src": src, "dst": dst}).to_batches(max_chunksize=rows)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=80), st.integers(1, 9), st.integers(1, 30))
def test_forests_of_chunks_join_what_their_edges_joined(edges: list[tuple[int, int]], chunk: int, rows: int) -> None:
    rows_of = [
        (row["node"], row["component"])
        for batch in contractor(chunk)(batches(edges, rows))
        for row in batch.to_pylist()
    ]
    assert reference(rows_of) == reference(edges)
    assert all(component <= node for node, component in rows_of)
    if edges:
        whole = pa.Table.from_batches(list(contractor(chunk, whole=True)(batches(edges, rows))))
        assert as_dict(*(whole.column(i).to_numpy() for i in range(2))) == reference(edges)


def test_many_edges_leave_a_row_a_node() -> None:
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, 3_000, 50_000) ** 3, rng.integers(0, 3_000, 50_000) ** 3
    nodes, labels = contract(src, dst)
    assert nodes.size == np.unique(np.concatenate([src, dst])).size
    assert as_dict(nodes, labels) == reference(list(zip(src.tolist(), dst.tolist(), strict=True)))


def test_null_ends_are_refused() -> None:
    batch = pa.RecordBatch.from_pydict({"src": pa.array([1, None], pa.int64()), "dst": pa.array([1, 2], pa.int64())})
    with pytest.raises(ValueError, match="null"):
        list(contractor()([batch]))
