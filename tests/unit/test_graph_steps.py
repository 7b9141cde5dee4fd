"""Edges in files to shards without Spark, tasks one after the other: against scipy, whatever the files and hubs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from headrace.features import graph, graph_edges, graph_files, graph_ids, graph_relations
from headrace.features.csr import EdgeType
from headrace.features.graph_blocks import Merge

EDGES = 30_000
PART = 2_000
I64 = npt.NDArray[np.int64]


@pytest.fixture(autouse=True)
def _tasks_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def over(spark: Any, items: Any, act: Callable[[Any], Iterator[pa.RecordBatch]], ddl: str) -> Any:
        return SimpleNamespace(toArrow=lambda: pa.Table.from_batches([batch for item in items for batch in act(item)]))

    for module in (graph, graph_files, graph_ids):
        monkeypatch.setattr(module, "over", over)


def with_hubs() -> tuple[I64, I64, npt.NDArray[np.float64]]:
    """Three ids with more edges than a part holds, two of them on both sides."""
    rng = np.random.default_rng(3)
    src, dst = rng.integers(0, 900, (2, EDGES)) ** 3
    dst[rng.random(EDGES) < 0.4], src[rng.random(EDGES) < 0.3] = 27, 64
    src[rng.random(EDGES) < 0.2], dst[rng.random(EDGES) < 0.2] = 27, 64
    return src, dst, rng.integers(1, 9, EDGES).astype(float)


def shards(folder: Path, files: int, direction: str) -> tuple[list[dict[str, Any]], dict[str, Any], pa.Table]:
    """The shards in order, the ranges, and the nodes."""
    units = []
    for number, mine in enumerate(np.array_split(np.arange(EDGES), files)):
        src, dst, weight = (column[mine] for column in with_hubs())
        columns = {"key": mine, "src": src, "dst": dst, "weight": weight}
        columns |= {name: pa.repeat("x", len(mine)) for name in graph_files.TYPE}
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=3_000)
        units.append((str(folder / f"{number}.parquet"), 0, 1))
    spark: Any = None
    loops = int((with_hubs()[0] == with_hubs()[1]).sum())
    source = graph_files.EdgeFiles(spark, tuple(units), {("x",) * 4: 0})
    edges = graph_edges.Edges(source, (EdgeType(),), (EDGES,), (loops,), True)
    sampled = graph_edges.sample(edges, EDGES // PART)
    ranges = graph_ids.id_ranges(edges, sampled, {}, PART)
    scattered = graph_ids.scatter(edges, None, None, ranges, str(folder / "found"))
    nodes, dense = graph_ids.number_nodes(spark, edges, scattered, ranges, {}, sampled, str(folder / "numbered"))
    made = graph_edges.adjacencies(edges.types, (direction,), symmetrize=False, loops=True)
    kept = graph_relations.stored(made, edges.types, "auto")
    emit = graph.Emit(kept, graph.plans(edges, kept, nodes.totals, dense, PART, 300))
    keys = graph.renumber(spark, nodes, emit, str(folder / "keys"))
    rows = graph.csr(spark, keys, emit, Merge("sum", True)).toArrow().to_pylist()
    return rows, ranges, graph_ids.new_nodes(spark, nodes).toArrow()


@pytest.mark.parametrize("direction", ["out", "in"])
def test_shards_are_scipys_matrix_whatever_the_files(tmp_path: Path, direction: str) -> None:
    src, dst, weight = with_hubs()
    ids = np.unique(np.concatenate([src, dst]))
    matrix = sp.coo_matrix((weight, (np.searchsorted(ids, src), np.searchsorted(ids, dst))), (len(ids),) * 2).tocsr()
    matrix = matrix if direction == "out" else matrix.T.tocsr()
    matrix.sort_indices()
    made = []
    for files in (1, 4):
        (tmp_path / str(files)).mkdir()
        rows, ranges, nodes = shards(tmp_path / str(files), files, direction)
        assert ranges["node"].repeated and ranges["node"].count > 10
        assert dict(zip(nodes["original"].to_pylist(), nodes["id"].to_pylist(), strict=True)) == {
            int(node): place for place, node in enumerate(ids)
        }
        assert np.concatenate([row["indices"] for row in rows]).tolist() == matrix.indices.tolist()
        assert np.concatenate([row["weights"] for row in rows]).tolist() == matrix.data.tolist()
        assert max(row["num_edges"] for row in rows) < 1.5 * PART
        made.append([(row["first_node"], row["piece"], row["crc32"]) for row in rows])
    assert made[0] == made[1]
