"""Numbers that a graph's verbs cannot take: counted and refused before they are committed, the way out named."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from integration.graph_lake import results

from headrace.catalog.delta import exists
from headrace.catalog.scratch import FOLDER
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.csr import open_csr
from headrace.pipelines import featurize_graph, ingest_graph, propagate_graph, rank_graph, sample_graph

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")


run = partial(results, graph="signed")


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of four weights are negative; of six feature values two are beyond float16, one is just within."""
    folder = tmp_path_factory.mktemp("signed")
    (folder / "edges.csv").write_text("src,dst,weight\n0,1,1.5\n1,2,-2\n2,0,-0.5\n0,2,0\n")
    features = ("0\t1:65519 2:1\n", "1\t1:65520 2:-3\n", "2\t1:-70000 2:40000\n")
    (folder / "features.txt").write_text("".join(features))
    run(ingest_graph, spark, folder / "lake", source=str(folder / "edges.csv"), columns="src=src,dst=dst,weight=weight")
    run(ingest_graph, spark, folder / "lake", source=str(folder / "features.txt"), format="libsvm")
    return folder / "lake"


def test_features_beyond_half_precision_are_not_stored_as_infinity(spark: SparkSession, lake: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)2 values of the features are beyond 65,504.*float32"):
        run(featurize_graph, spark, lake, feature_dtype="float16")
    assert not exists(load("gold/graph_features").path(lake))
    assert not exists(load("gold/graph_manifest").path(lake)), "no reader sees that run"


def test_negative_weights(spark: SparkSession, lake: Path) -> None:
    run(featurize_graph, spark, lake)
    assert open_csr(lake, "signed").weighted
    with pytest.raises(UserError, match=r"(?s)2 edges have a weight that is negative.*PageRank.*--weights false"):
        run(rank_graph, spark, lake)
    assert not exists(load("gold/graph_ranks").path(lake))
    with pytest.raises(UserError, match=r"(?s)2 edges have a weight that is negative.*--norm row"):
        run(propagate_graph, spark, lake, norm="row")
    assert not exists(load("gold/graph_hops").path(lake)) and not (lake / FOLDER).exists()
    with pytest.raises(UserError, match=r"(?s)2 edges have a weight that is negative.*drawn"):
        run(sample_graph, spark, lake, weighted=True, splits="none")
    assert not exists(load("gold/graph_neighbourhoods").path(lake))


def test_propagated_values_beyond_what_is_stored(spark: SparkSession, lake: Path) -> None:
    """x0: 65520, -70000; x1 = A^T x: node 1 receives 1.5 * 65519, node 2 -2 * 65520."""
    run(featurize_graph, spark, lake)
    settings: dict[str, Any] = {"norm": "none", "self_loops": False, "hops": 1}
    with pytest.raises(UserError, match=r"(?s)4 propagated values are beyond 65,504.*--precision float32"):
        run(propagate_graph, spark, lake, precision="float16", **settings)
    assert run(propagate_graph, spark, lake, **settings)["rows"] == 3
