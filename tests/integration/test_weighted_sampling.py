"""Neighbourhoods drawn by weight on Spark: those of memory, at any number of tasks, also of a hub in pieces."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from integration.graph_lake import results

from headrace.catalog.delta import read
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.csr import open_csr
from headrace.features.sampling import Draw, sample_hops
from headrace.pipelines import featurize_graph, ingest_graph, sample_graph

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")


run = partial(results, graph="roads")


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roads")
    rng = np.random.default_rng(6)
    src = np.concatenate([np.zeros(900, int), rng.integers(0, 150, 2_000)])
    dst, weight = rng.integers(0, 1_000, 2_900), rng.random(2_900) * (rng.random(2_900) < 0.8)
    lines = [f"{a},{b},{w:.6f}" for a, b, w in zip(src, dst, weight, strict=True)]
    (folder / "edges.csv").write_text("src,dst,weight\n" + "\n".join(lines) + "\n")
    settings: dict[str, Any] = {"source": str(folder / "edges.csv"), "columns": "src=src,dst=dst,weight=weight"}
    run(ingest_graph, spark, folder / "lake", **settings)
    run(featurize_graph, spark, folder / "lake", shard_edges=300)
    return folder / "lake"


@pytest.mark.parametrize("tasks", ["1", "5"])
def test_rows_are_what_memory_draws(spark: SparkSession, lake: Path, tasks: str) -> None:
    before = {key: spark.conf.get(key) for key in ("spark.sql.shuffle.partitions", "spark.sql.adaptive.enabled")}
    spark.conf.set("spark.sql.shuffle.partitions", tasks)
    spark.conf.set("spark.sql.adaptive.enabled", "false")
    try:
        run(sample_graph, spark, lake, fanouts="4,3", seed=3, weighted=True, epochs="1", splits="none")
    finally:
        for key, value in before.items():
            spark.conf.set(key, str(value))
    table = open_csr(lake, "roads")
    assert max(info.pieces for info in table.shards) > 1, "the hub fills several shards"
    csr = table.whole()
    rows = read(spark, load("gold/graph_neighbourhoods"), lake).where("epoch = 1").toPandas().sort_values("key")
    assert len(rows) == table.num_nodes
    wanted = sample_hops(csr.indptr, csr.indices, np.arange(len(rows)), (4, 3), Draw(3, 1), weights=csr.weights)
    for name, hop in zip(("n1", "n2"), wanted, strict=True):
        assert np.array_equal(np.stack(rows[name].to_numpy()), hop)
    plain = sample_hops(csr.indptr, csr.indices, np.arange(len(rows)), (4, 3), Draw(3, 1))
    assert not np.array_equal(plain[0], wanted[0])


def test_weights_that_are_not_there_or_with_replacement_are_refused(spark: SparkSession, lake: Path) -> None:
    with pytest.raises(UserError, match="without replacement"):
        run(sample_graph, spark, lake, weighted=True, replace=True, splits="none")
    run(featurize_graph, spark, lake, weights=False)
    with pytest.raises(UserError, match="have no weights"):
        run(sample_graph, spark, lake, weighted=True, splits="none")
