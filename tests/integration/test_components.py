"""Connected components on Spark against scipy: contracted at once, and by stars alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from unit.test_contraction import EDGE_CASES, reference

from headrace.catalog.scratch import FOLDER, left_behind, scratch
from headrace.features import components as module
from headrace.features.components import NotConvergedError, Options, components

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Edges = list[tuple[int, int]]


def frame(spark: SparkSession, edges: Edges, partitions: int = 3) -> DataFrame:
    array = np.array(edges, np.int64).reshape(-1, 2)
    table = pa.table({"src": array[:, 0], "dst": array[:, 1]})
    return spark.createDataFrame(table).repartition(partitions)


def run(spark: SparkSession, work: Path, edges: Edges, options: Options | None = None) -> dict[int, int]:
    with scratch(work, "components") as place:
        rows = components(frame(spark, edges), place, options).collect()
    assert len({row["node"] for row in rows}) == len(rows)
    return {row["node"]: row["component"] for row in rows}


def zoo(length: int = 200) -> Edges:
    """Many graphs beside each other: chains, a hub, cycles, trees, random ones, ids over 2^31 and under 0."""
    rng = np.random.default_rng(5)
    chain = rng.permutation(length) + 10_000
    edges = list(zip(chain[:-1].tolist(), chain[1:].tolist(), strict=True))
    edges += [(2**33 + n, 2**33 + n + 1) for n in range(length // 4)]
    edges += [(50_000, 50_000 + n) for n in rng.permutation(300).tolist()]
    edges += [(70_000 + n, 70_300) for n in range(299)]
    edges += [(-n, -(n // 2)) for n in range(1, 120)]
    edges += [(5, 5), (6, 7), (7, 6), (-(2**63), 2**63 - 1)]
    for start, density in ((100_000, 90), (200_000, 400)):
        edges += [(start + int(a), start + int(b)) for a, b in rng.integers(0, 200, (density, 2))]
    return edges


def test_contracted_and_finished_by_one_task(spark: SparkSession, tmp_path: Path) -> None:
    assert run(spark, tmp_path, zoo()) == reference(zoo())
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.campaign
def test_stars_alone_with_hubs_by_broadcast(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    large = module._large_star
    monkeypatch.setattr(module, "_large_star", lambda *args: calls.append(1) or large(*args))
    assert run(spark, tmp_path, zoo(32), Options(chunk=1, finish=0, hub_edges=50)) == reference(zoo(32))
    assert len(calls) <= 6, "a chain of 32 nodes takes about log2(32) rounds"


def test_nothing(spark: SparkSession, tmp_path: Path) -> None:
    assert run(spark, tmp_path, []) == {}


def test_a_result_that_is_not_proved_is_not_returned(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotConvergedError, match="1 rounds of large and small star"):
        run(spark, tmp_path, EDGE_CASES["chain"][:100], Options(chunk=1, finish=0, max_rounds=1))
    monkeypatch.setattr(module, "_finished", lambda tree, options: tree.where("node <> 4"))
    with pytest.raises(NotConvergedError, match="contracted edges"):
        run(spark, tmp_path, EDGE_CASES["chain"][:8], Options(chunk=1))
    assert not left_behind(tmp_path, 0.0), "what a failed run had put down is gone"
