"""Nodes with names: ids that hold where the sort is done again, and a scratch folder that never stays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headrace.catalog.delta import files_at, read
from headrace.catalog.scratch import FOLDER, kept, scratch
from headrace.catalog.spec import load
from headrace.features import graph_names
from headrace.pipelines import featurize_graph, ingest_graph
from headrace.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
NAMES = [f"n{number:03d}" for number in range(300)]


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    order = np.random.default_rng(3).permutation(300)
    lines = [f"{NAMES[a]}\tsays\t{NAMES[b]}" for a, b in zip(order, np.roll(order, 1), strict=True)]
    (folder / "triples.txt").write_text("\n".join(lines) + "\n")
    settings: dict[str, Any] = {"source": str(folder / "triples.txt"), "format": "triples", "ids": "names"}
    cfg = ingest_graph.Config(lake=str(folder / "lake"), graph="named", **settings)
    ingest_graph.run(spark, cfg, Report("ingest-graph", out=io.StringIO()))
    return folder / "lake"


@pytest.fixture
def several_partitions(spark: SparkSession) -> Iterator[None]:
    """Sorts that are cut in three although there are few names."""
    keys = ("spark.sql.shuffle.partitions", "spark.sql.adaptive.coalescePartitions.enabled")
    before = {key: spark.conf.get(key) for key in keys}
    spark.conf.set(keys[0], "3")
    spark.conf.set(keys[1], "false")
    yield
    for key, value in before.items():
        spark.conf.set(key, str(value))


def featurize(spark: SparkSession, lake: Path, **settings: Any) -> dict[str, Any]:
    cfg = featurize_graph.Config(lake=str(lake), graph="named", **settings)
    return featurize_graph.run(spark, cfg, Report("featurize-graph", out=io.StringIO())).results


@pytest.mark.campaign
@pytest.mark.usefixtures("several_partitions")
def test_ids_hold_where_the_names_would_be_sorted_again(
    spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = graph_names.number

    def lose(*args: Any) -> Any:
        """As if the executors with the sorted names were lost after counting, and others were to sort them anew."""
        numbered = number(*args)
        spark.catalog.clearCache()
        spark.conf.set("spark.sql.shuffle.partitions", "7")
        return numbered

    monkeypatch.setattr(graph_names, "number", lose)
    assert featurize(spark, lake)["nodes"] == {"node": 300}
    rows = read(spark, load("gold/graph_nodes"), lake).where("graph = 'named'").collect()
    assert {row["name"]: row["id"] for row in rows} == {name: place for place, name in enumerate(NAMES)}
    assert not (lake / FOLDER).exists()


def test_a_run_that_fails_leaves_no_scratch_folder(
    spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[list[str]] = []

    def fail(*_: Any) -> None:
        held.append([path.name for path in (lake / FOLDER).glob("*/*")])
        raise RuntimeError("lost")

    monkeypatch.setattr(graph_names, "number", fail)
    before = len(files_at(load("gold/graph_nodes"), lake)) if (lake / "gold/graph_nodes").exists() else 0
    with pytest.raises(RuntimeError, match="lost"):
        featurize(spark, lake, nodes="rebuild")
    assert held == [["names"]], "the names lay there when it failed"
    assert not (lake / FOLDER).exists()
    assert before == (len(files_at(load("gold/graph_nodes"), lake)) if before else 0)


def test_two_runs_of_one_name_do_not_meet(spark: SparkSession, tmp_path: Path) -> None:
    with scratch(tmp_path, "featurize-graph") as one, scratch(tmp_path, "featurize-graph") as other:
        assert one != other
        first, second = kept(spark.range(3), f"{one}/names"), kept(spark.range(5), f"{other}/names")
        assert (first.count(), second.count()) == (3, 5)
        with pytest.raises(Exception, match="already exists"):
            kept(spark.range(9), f"{one}/names")
    assert not (tmp_path / FOLDER).exists()
