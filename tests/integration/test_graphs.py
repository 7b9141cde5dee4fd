"""Real and hostile graphs through ingest-graph and featurize-graph: counts, CSR against scipy, ids that stay."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from headrace.catalog.delta import files_at, read
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.csr import Csr, EdgeType, manifest, open_csr
from headrace.pipelines import featurize_graph, ingest_graph
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
I64 = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One lake for all graphs."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module", autouse=True)
def _no_reports_of_ingest() -> Any:
    from headrace.pipelines import ingest_files

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_files, "record_quality", lambda *_: None)
        yield


def ingest(spark: SparkSession, lake: Path, graph: str, source: str, **settings: Any) -> dict[str, Any]:
    cfg = ingest_graph.Config(lake=str(lake), graph=graph, source=source, **settings)
    return ingest_graph.run(spark, cfg, Report("ingest-graph", out=io.StringIO())).results


def featurize(spark: SparkSession, lake: Path, graph: str, **settings: Any) -> dict[str, Any]:
    cfg = featurize_graph.Config(lake=str(lake), graph=graph, **settings)
    return featurize_graph.run(spark, cfg, Report("featurize-graph", out=io.StringIO())).results


def part(lake: Path, graph: str, name: str) -> dict[str, Any]:
    (row,) = (row for row in manifest(lake, graph) if row["part"] == name)
    return row


def rows_of(lake: Path, table: str, graph: str) -> list[dict[str, Any]]:
    """A graph's rows of a table's newest version."""
    version = next((row["version"] for row in manifest(lake, graph) if row["table"] == table), None)
    files = files_at(load(table), lake, version, {"graph": graph})
    return [row for file in files for row in pq.ParquetFile(file.path).read().to_pylist()]


def pairs(path: Path) -> tuple[I64, I64]:
    """An edge list read in the plainest way."""
    edges = np.array([line.split()[:2] for line in path.read_text().splitlines()], np.int64)
    return edges[:, 0], edges[:, 1]


def scipys(src: I64, dst: I64, nodes: int | None = None, *, symmetric: bool = False) -> sp.csr_matrix:
    """The independent reference: ranks by np.unique, duplicates merged by scipy."""
    ids = np.unique(np.concatenate([src, dst])) if nodes is None else np.arange(nodes)
    row, column = np.searchsorted(ids, src), np.searchsorted(ids, dst)
    if symmetric:
        row, column = np.concatenate([row, column]), np.concatenate([column, row])
    matrix = sp.coo_matrix((np.ones(len(row)), (row, column)), (len(ids), len(ids))).tocsr()
    matrix.sort_indices()
    return matrix


def assert_equal(csr: Csr, matrix: sp.csr_matrix, *, weights: bool = False) -> None:
    assert csr.indptr.tolist() == matrix.indptr.tolist()
    assert csr.indices.tolist() == matrix.indices.tolist()
    if weights:
        assert csr.weights is not None and csr.weights.tolist() == matrix.data.tolist()


@pytest.mark.parametrize(("name", "nodes", "edges", "bare"), [("cora", 2708, 5278, 0), ("citeseer", 3327, 4552, 15)])
def test_planetoid(
    spark: SparkSession, lake: Path, planetoid: Path, name: str, nodes: int, edges: int, bare: int
) -> None:
    kinds = ("edges.tsv", "labels.tsv", "features.libsvm.tsv")
    found = ingest(spark, lake, name, ",".join(f"{planetoid}/{name}_{kind}" for kind in kinds))
    assert (found["rows_read"], found["rows_quarantined"]) == (edges + 2 * (nodes - bare), 0)
    made = featurize(spark, lake, name, symmetrize=True, shard_bytes=1 << 17)
    assert made["nodes"] == {"node": nodes} and made["edges"] == 2 * edges
    src, dst = pairs(planetoid / f"{name}_edges.tsv")
    assert_equal(open_csr(lake, name).whole(), scipys(src, dst, nodes, symmetric=True))
    lines = [line.split("\t") for line in (planetoid / f"{name}_labels.tsv").read_text().splitlines()]
    expected = np.full(nodes, -1)
    expected[[int(line[0]) for line in lines]] = [int(line[1]) for line in lines]
    (labels,) = rows_of(lake, "gold/graph_labels", name)
    assert labels["labels"] == expected.tolist() and labels["num_missing"] == bare
    assert np.bincount(labels["splits"])[1:].tolist() == [120 if bare else 140, 500, 1000]
    assert part(lake, name, "features")["counts"] == {"missing": bare, "read": nodes - bare, "repeated": 0}
    assert_features(rows_of(lake, "gold/graph_features", name), planetoid / f"{name}_features.libsvm.tsv")


def assert_features(shards: list[dict[str, Any]], path: Path) -> None:
    expected = {}
    for line in path.read_text().splitlines():
        node, _, pairs_ = line.partition("\t")
        expected[int(node)] = [(int(pair.split(":")[0]) - 1, float(pair.split(":")[1])) for pair in pairs_.split()]
    assert len(shards) > 1
    seen = 0
    for shard in shards:
        values = np.frombuffer(shard["values"], np.float32)
        for number in range(shard["num_nodes"]):
            cut = slice(*shard["indptr"][number : number + 2])
            node = shard["first_node"] + number
            found = list(zip(shard["indices"][cut], values[cut].tolist(), strict=True))
            assert found == expected.get(node, []) and (node in shard["missing"]) == (node not in expected)
            seen += node in expected
    assert seen == len(expected)


def test_snap_directed(spark: SparkSession, lake: Path, snap: Path) -> None:
    assert ingest(spark, lake, "wiki", f"{snap}/WikiVote.txt", format="snap")["rows_committed"] == 103_689
    made = featurize(spark, lake, "wiki", direction="both", degrees=True, shard_edges=20_000)
    assert made["nodes"] == {"node": 7115} and made["edges"] == 2 * 103_689
    matrix = scipys(*pairs(snap / "WikiVote.txt"))
    out = open_csr(lake, "wiki")
    assert len(out.shards) >= 5 and max(info.num_edges for info in out.shards) < 45_000
    assert_equal(out.whole(), matrix)
    transposed = matrix.T.tocsr()
    transposed.sort_indices()
    assert_equal(open_csr(lake, "wiki", direction="in").whole(), transposed)
    found = {(row["direction"], row["id"]): row["degree"] for row in rows_of_degrees(lake, "wiki")}
    assert [found["out", node] for node in range(7115)] == np.diff(matrix.indptr).tolist()
    assert [found["in", node] for node in range(7115)] == np.diff(transposed.indptr).tolist()
    node = int(np.argmax(np.diff(matrix.indptr)))
    (number,) = out.shards_of(node)
    shard = out.shard(number)
    place = node - shard.first_node
    assert shard.indices[slice(*shard.indptr[place : place + 2])].tolist() == matrix[node].indices.tolist()


def rows_of_degrees(lake: Path, graph: str) -> list[dict[str, Any]]:
    files = files_at(load("gold/graph_degrees"), lake, None, {"graph": graph})
    return [row for file in files for row in pq.ParquetFile(file.path).read().to_pylist()]


def test_snap_in_both_directions(spark: SparkSession, lake: Path, snap: Path) -> None:
    assert ingest(spark, lake, "grqc", f"{snap}/GR-QC.txt")["rows_committed"] == 28_980
    made = featurize(spark, lake, "grqc", symmetrize=True)
    assert made["nodes"] == {"node": 5242} and made["edges"] == 28_980
    counts = part(lake, "grqc", "csr")["counts"]
    assert counts == {"read": 28_980, "self_loops": 12, "self_loops_dropped": 0, "mirrored": 28_968, "merged": 28_968}
    csr = open_csr(lake, "grqc").whole()
    matrix = scipys(*pairs(snap / "GR-QC.txt"))
    assert_equal(csr, matrix)
    assert (matrix != matrix.T).nnz == 0 and (matrix.nnz + matrix.diagonal().sum()) / 2 == 14_496


def test_triples_by_name(spark: SparkSession, lake: Path, wn18rr_folder: Path) -> None:
    files = ("train.txt.gz", "valid.txt", "test.txt")
    found = ingest(
        spark, lake, "wn18rr", ",".join(f"{wn18rr_folder}/{name}" for name in files), format="triples", ids="names"
    )
    assert found["rows_committed"] == 86_835 + 3_034 + 3_134
    assert featurize(spark, lake, "wn18rr")["nodes"] == {"node": 40_943}
    rows = [row for row in manifest(lake, "wn18rr") if row["part"] == "csr"]
    assert len({row["relation"] for row in rows}) == 11
    by_split = {split: sum(row["counts"]["read"] for row in rows if row["split"] == split) for split in SPLITS}
    assert by_split == {"train": 86_835, "validation": 3_034, "test": 3_134}
    names = {row["name"]: row["id"] for row in rows_of(lake, "gold/graph_nodes", "wn18rr")}
    assert [name for name, _ in sorted(names.items(), key=lambda item: item[1])] == sorted(names)
    triples = [line.split("\t") for line in (wn18rr_folder / "valid.txt").read_text().splitlines()]
    for relation in ("_hypernym", "_also_see"):
        mine = [(names[head], names[tail]) for head, name, tail in triples if name == relation]
        csr = open_csr(lake, "wn18rr", EdgeType("node", relation, "node", "validation")).whole()
        assert_equal(csr, scipys(*np.array(mine).T, len(names)))


SPLITS = ("train", "validation", "test")
HOSTILE = b"\r\n".join(
    [
        b"# comments first", b"%another", b"4294967296\t1", b"1 4294967296", b"1\t1", b"1\t4294967296", b"7", b"7 8 9",
        b"-1\t5", b"9223372036854775807\t1", b"9223372036854775808\t1", b"99999999999999999999999\t1", b"0x10\t1",
        b"\xff\t1", b"1\t\x00", b"", b"# not first", b"+1\t2", b"1.0\t2", b"a\tb", b"3\t1",
    ]
)  # fmt: skip
REASONS = {
    "1 columns instead of 2": 1,
    "3 columns instead of 2": 1,
    "source is negative": 1,
    "source overflows 64 bits": 2,
    "source is not an integer": 4,
    "not UTF-8": 1,
    "NUL byte": 1,
    "blank line": 1,
    "comment inside the file": 1,
}


def test_hostile_lines_and_ids_that_stay(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(HOSTILE)
    found = ingest(spark, lake, "hostile", str(tmp_path / "a.txt"), format="snap")
    assert (found["rows_read"], found["rows_committed"], found["rows_quarantined"]) == (19, 6, 13)
    refused = read(spark, load("quarantine/edges"), lake).where("file LIKE '%a.txt'").groupBy("reason").count()
    assert {row["reason"]: row["count"] for row in refused.collect()} == REASONS
    first = featurize(spark, lake, "hostile", self_loops="drop", duplicates="sum")
    original = {row["original"]: row["id"] for row in rows_of(lake, "gold/graph_nodes", "hostile")}
    assert original == {1: 0, 3: 1, 4294967296: 2, 9223372036854775807: 3}
    counts = part(lake, "hostile", "csr")["counts"]
    assert counts == {"read": 6, "self_loops": 1, "self_loops_dropped": 1, "mirrored": 0, "merged": 1}
    csr = open_csr(lake, "hostile").whole()
    assert csr.indptr.tolist() == [0, 1, 2, 3, 4] and csr.indices.tolist() == [2, 0, 0, 0]
    assert csr.weights is not None and csr.weights.tolist() == [2, 1, 1, 1]
    assert featurize(spark, lake, "hostile", self_loops="drop", duplicates="sum") == first | {"nothing_to_do": True}
    (tmp_path / "b.txt").write_text("0 1\n2 4294967296\n0 2\n")
    ingest(spark, lake, "hostile", str(tmp_path / "b.txt"), format="snap")
    featurize(spark, lake, "hostile")
    grown = {row["original"]: row["id"] for row in rows_of(lake, "gold/graph_nodes", "hostile")}
    assert grown == original | {0: 4, 2: 5}
    assert open_csr(lake, "hostile").whole().indptr.tolist() == [0, 2, 3, 4, 5, 7, 8]
    with pytest.raises(UserError, match="part of graph hostile"):
        ingest(spark, lake, "other", str(tmp_path / "b.txt"), format="snap")


def test_the_same_table_at_any_partitions_with_hubs(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    src, dst = rng.integers(0, 900, 30_000) ** 3, rng.integers(0, 900, 30_000) ** 3
    dst[rng.random(30_000) < 0.4] = 27
    src[rng.random(30_000) < 0.3] = 64
    table = pa.table({"from": src, "to": dst, "w": rng.integers(1, 9, 30_000).astype(float)})
    pq.write_table(table, tmp_path / "hub.parquet", row_group_size=7_000)
    ingest(spark, lake, "hub", str(tmp_path / "hub.parquet"), columns="src=from,dst=to,weight=w")
    settings = {"duplicates": "sum", "shard_edges": 2_000, "shard_nodes": 300, "direction": "both"}
    featurize(spark, lake, "hub", **settings)
    prints = [row["fingerprint"] for row in manifest(lake, "hub") if row["part"] == "csr"]
    whole = open_csr(lake, "hub")
    assert max(info.pieces for info in whole.shards) > 1 and max(info.num_edges for info in whole.shards) < 8_000
    ids = np.unique(np.concatenate([src, dst]))
    matrix = sp.coo_matrix(
        (table["w"], (np.searchsorted(ids, src), np.searchsorted(ids, dst))), (len(ids),) * 2
    ).tocsr()
    matrix.sort_indices()
    assert_equal(whole.whole(), matrix, weights=True)
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        featurize(spark, lake, "hub", **settings | {"nodes": "rebuild"})
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before or "4")
    assert [row["fingerprint"] for row in manifest(lake, "hub") if row["part"] == "csr"] == prints
    again = open_csr(lake, "hub")
    assert [info.crc32 for info in again.shards] == [info.crc32 for info in whole.shards]


def test_arrays_of_several_types(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    """OGB's layout with MAG240M's names: dense ids, half-precision features, splits, a row of NaN, a negative id."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "mag"
    writes = np.stack([rng.integers(0, 40, 200), rng.integers(0, 60, 200)])
    cites = np.stack([rng.integers(0, 60, 300), rng.integers(0, 60, 300)])
    cites[0, 17] = -1
    feat = rng.normal(size=(60, 8)).astype(np.float16)
    feat[11] = np.nan
    label = rng.integers(0, 5, 60).astype(np.float32)
    label[7] = np.nan
    save(folder / "author___writes___paper" / "edge_index.npy", writes)
    save(folder / "paper___cites___paper" / "edge_index.npy", cites)
    save(folder / "paper" / "node_feat.npy", feat)
    save(folder / "paper" / "node_label.npy", label)
    save(folder / "paper" / "node_year.npy", np.arange(1990, 2050))
    for number, name in enumerate(("train", "valid", "test")):
        save(folder / "split" / f"{name}.npy", np.arange(20 * number, 20 * number + 20))
    found = ingest(spark, lake, "mag", str(folder), format="ogb", types="paper,author", node_type="paper")
    assert (found["rows_read"], found["rows_quarantined"]) == (200 + 300 + 60 + 60 + 60 + 60, 2)
    made = featurize(spark, lake, "mag", ids="dense", symmetrize=True, num_nodes="author=50", shard_bytes=200)
    assert made["nodes"] == {"author": 50, "paper": 60}
    paper = EdgeType("paper", "cites", "paper")
    assert_equal(open_csr(lake, "mag", paper).whole(), scipys(*np.delete(cites, 17, 1), 60, symmetric=True))
    matrix = sp.coo_matrix((np.ones(200), writes), (50, 60)).tocsr()
    matrix.sort_indices()
    assert_equal(open_csr(lake, "mag", EdgeType("author", "writes", "paper")).whole(), matrix)
    back = matrix.T.tocsr()
    back.sort_indices()
    assert_equal(open_csr(lake, "mag", EdgeType("paper", "rev_writes", "author")).whole(), back)
    shards = sorted(rows_of(lake, "gold/graph_features", "mag"), key=lambda row: int(row["shard"]))
    stored = np.concatenate([np.frombuffer(row["values"], np.float16).reshape(-1, 8) for row in shards])
    feat[11] = 0
    assert len(shards) == 5 and (stored == feat).all() and [n for row in shards for n in row["missing"]] == [11]
    (labels,) = rows_of(lake, "gold/graph_labels", "mag")
    assert labels["labels"] == np.where(np.isnan(label), -1, label).astype(int).tolist()
    assert labels["years"] == list(range(1990, 2050))
    assert labels["splits"] == [1] * 20 + [2] * 20 + [3] * 20


def save(path: Path, array: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def test_nothing_and_nodes_alone(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# a comment\n")
    assert ingest(spark, lake, "empty", str(tmp_path / "empty.txt"), format="snap")["rows_read"] == 0
    with pytest.raises(UserError, match="holds no row of graph 'empty'"):
        featurize(spark, lake, "empty")
    (tmp_path / "labels.tsv").write_text("5\t1\ttrain\n")
    ingest(spark, lake, "empty", str(tmp_path / "labels.tsv"))
    made = featurize(spark, lake, "empty")
    assert made["nodes"] == {"node": 1} and made["edges"] == 0
    csr = open_csr(lake, "empty").whole()
    assert csr.indptr.tolist() == [0, 0] and csr.indices.tolist() == []
