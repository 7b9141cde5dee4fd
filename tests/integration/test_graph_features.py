"""Sampling, propagation, PageRank and components on Spark, of real graphs, against numpy and scipy; and streamed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.sparse as sp
from integration.graph_lake import Lake, cora, run, wiki_vote

from headrace.catalog.delta import read
from headrace.catalog.spec import load
from headrace.data.stream import DataConfig, Stream
from headrace.errors import UserError
from headrace.features.neighbourhoods import open_rows
from headrace.features.sampling import NONE, Draw, sample_hops
from headrace.pipelines import propagate_graph, rank_graph, sample_graph

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")


@pytest.fixture(scope="module")
def graphs(planetoid: Path, snap: Path) -> dict[str, Any]:
    matrix, x, labels = cora(planetoid)
    assert (matrix.nnz, x.shape) == (2 * 5_278, (2_708, 1_433))
    votes = wiki_vote(snap)
    assert votes.nnz == 103_689
    return {"cora": matrix, "x": x, "labels": labels, "votes": votes}


@pytest.fixture(scope="module")
def lake(spark: SparkSession, graphs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both graphs; the hubs of WikiVote fill several shards (its largest out-degree is 893)."""
    folder = tmp_path_factory.mktemp("lake")
    graph_lake = Lake()
    graph_lake.add("cora", graphs["cora"], 900, graphs["x"], graphs["labels"])
    graph_lake.add("votes", graphs["votes"], 700)
    graph_lake.write(spark, folder)
    return folder


def rows_of(lake: Path, table: str, **partition: Any) -> dict[str, Any]:
    """All rows in the order of the files, by Petastorm's reader."""
    pinned = open_rows(lake, partition, table)
    stream = Stream(pinned, DataConfig(lanes=1, shuffle=False, remainder="pad"), batch_size=pinned.rows)
    (batch,) = list(stream.epoch(0))
    assert "proved" in stream.audit(0).prove(pinned)
    return {name: tensor.numpy() for name, tensor in batch.tensors.items()}


@pytest.fixture(scope="module")
def sampled(spark: SparkSession, lake: Path) -> dict[int, dict[str, Any]]:
    """WikiVote, every node a seed, two hops, by so many tasks; each run replaces the one before."""
    before = {key: spark.conf.get(key) for key in ("spark.sql.shuffle.partitions", "spark.sql.adaptive.enabled")}
    spark.conf.set("spark.sql.adaptive.enabled", "false")
    found = {}
    try:
        for workers, epochs in ((1, "1-2"), (2, "2"), (4, "2")):
            spark.conf.set("spark.sql.shuffle.partitions", str(workers))
            settings = {"fanouts": "4,3", "seed": 11, "splits": "none", "rows_per_file": 3_000}
            run(sample_graph, spark, lake, graph="votes", sampling="at", epochs=epochs, **settings)
            found[workers] = rows_of(lake, "gold/graph_neighbourhoods", graph="votes", sampling="at", epoch=2)
    finally:
        for key, value in before.items():
            spark.conf.set(key, str(value))
    return found


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_neighbourhoods_are_the_same_at_any_number_of_workers(
    sampled: dict[int, dict[str, Any]], graphs: dict[str, Any], workers: int
) -> None:
    """Equal to the sampler over scipy's CSR in memory; the same rows in the same order in the same files."""
    rows, csr = sampled[workers], graphs["votes"]
    csr.sort_indices()
    assert sorted(rows["key"].tolist()) == list(range(7_115))
    wanted = sample_hops(csr.indptr.astype(np.int64), csr.indices.astype(np.int64), rows["key"], (4, 3), Draw(11, 2))
    assert np.array_equal(rows["n1"], wanted[0])
    assert np.array_equal(rows["n2"], wanted[1])
    assert all(np.array_equal(rows[name], sampled[1][name]) for name in rows)


def test_an_epoch_is_replaced_and_others_stay(sampled: dict[int, dict[str, Any]], lake: Path) -> None:
    other = rows_of(lake, "gold/graph_neighbourhoods", graph="votes", sampling="at", epoch=1)
    assert np.array_equal(other["key"], sampled[1]["key"])
    assert (other["n1"] != sampled[1]["n1"]).any()


def test_means_of_hops_are_those_of_the_ids(spark: SparkSession, lake: Path, graphs: dict[str, Any]) -> None:
    run(sample_graph, spark, lake, graph="cora", fanouts="3,2", means=True, splits="train", sampling="means")
    rows = rows_of(lake, "gold/graph_neighbourhoods", graph="cora", sampling="means", epoch=0, split="train")
    labels, splits = graphs["labels"]
    assert sorted(rows["key"].tolist()) == np.flatnonzero(splits == 1).tolist()
    assert np.array_equal(rows["label"], labels[rows["key"]])
    x = graphs["x"].toarray()
    assert np.array_equal(rows["x0"], x[rows["key"]])
    for hop, ids in (("x1", rows["n1"]), ("x2", rows["n2"])):
        for mean, nodes in zip(rows[hop], ids, strict=True):
            there = nodes[nodes != NONE]
            wanted = x[there].mean(axis=0) if len(there) else np.zeros(x.shape[1])
            assert np.abs(mean - wanted).max() < 1e-6


def test_propagated_features_equal_scipys(spark: SparkSession, lake: Path, graphs: dict[str, Any]) -> None:
    run(propagate_graph, spark, lake, graph="cora", rows_per_file=1_000)
    rows = rows_of(lake, "gold/graph_hops", graph="cora", propagation="default")
    order = np.argsort(rows["key"])
    assert rows["key"][order].tolist() == list(range(2_708))
    a = graphs["cora"].T + sp.eye(2_708)
    degree = np.asarray(a.sum(axis=1)).ravel()
    half = sp.diags(degree**-0.5)
    s = half @ a @ half
    wanted = graphs["x"].toarray().astype(np.float64)
    for name in ("x0", "x1", "x2"):
        assert np.abs(rows[name][order] - wanted).max() < 1e-6
        wanted = s @ wanted
    assert np.array_equal(rows["label"][order], graphs["labels"][0])


def test_ranks_and_components_equal_scipys(spark: SparkSession, lake: Path, graphs: dict[str, Any]) -> None:
    report = run(rank_graph, spark, lake, graph="votes", damping=0.2, tolerance=1e-3, personal="4,17=3")
    rows = read(spark, load("gold/graph_ranks"), lake).toPandas().sort_values("key")
    matrix, n = graphs["votes"], 7_115
    v = np.zeros(n)
    v[4], v[17] = 0.25, 0.75
    out = np.asarray(matrix.sum(axis=1)).ravel()
    p = (sp.diags(np.divide(1.0, out, out=np.zeros(n), where=out > 0)) @ matrix).T
    x = v.copy()
    steps = 0
    while steps < report.results["iterations"]:
        x, steps = 0.2 * (p @ x + x[out == 0].sum() * v) + 0.8 * v, steps + 1
    assert np.abs(rows["rank"].to_numpy() - x).sum() < 1e-12
    exact = x
    for _ in range(60):
        exact = 0.2 * (p @ exact + exact[out == 0].sum() * v) + 0.8 * v
    assert np.abs(rows["rank"].to_numpy() - exact).sum() <= report.results["error_bound"] <= 1e-3
    _, component = sp.csgraph.connected_components(matrix, directed=False)
    smallest = np.full(component.max() + 1, n)
    np.minimum.at(smallest, component, np.arange(n))
    assert np.array_equal(rows["component"].to_numpy(), smallest[component])


def test_batches_of_a_stream(lake: Path) -> None:
    """Two ranks, shuffled: tensors of the stated shapes, every row once."""
    pinned = open_rows(lake, {"graph": "cora", "sampling": "means", "split": "train"})
    streams = [Stream(pinned, DataConfig(lanes=4), rank, 2, batch_size=32) for rank in (0, 1)]
    batches = [list(stream.epoch(0)) for stream in streams]
    assert {name: tuple(t.shape) for name, t in batches[0][0].tensors.items()} == {
        "key": (16,), "label": (16,), "n1": (16, 3), "n2": (16, 6), "x0": (16, 1433), "x1": (16, 1433), "x2": (16, 1433)
    }  # fmt: skip
    assert "every row" in (streams[0].audit(0) + streams[1].audit(0)).prove(pinned)


def test_what_is_not_there_is_said(lake: Path) -> None:
    for settings, match in (
        ({"graph": "core"}, "no graph 'core'"),
        ({"graph": "cora", "edges": "paper-cites-paper"}, "node-edge-node out"),
        ({"graph": "cora", "direction": "in"}, "0 kinds of edges in"),
        ({"graph": "cora", "fanouts": "-1"}, "fixed width"),
        ({"graph": "cora", "splits": "trian"}, "trian"),
        ({"graph": "co ra"}, "is no name"),
    ):
        with pytest.raises(UserError, match=match):
            sample_graph.early(sample_graph.Config(lake=str(lake), **settings))
    with pytest.raises(UserError, match="no rows of"):
        open_rows(lake, {"graph": "cora", "sampling": "other"})
    with pytest.raises(UserError, match="is no node"):
        rank_graph.early(rank_graph.Config(lake=str(lake), graph="cora", personal="a=b"))
