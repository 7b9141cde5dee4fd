"""Rows g and g' at a thousandth of their size: data, curves, a race, the page; results against slow forms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from linear_reference import Rows, Settings, objective

from bench import als, linear_data, saga, saga_report
from bench.linear_contestants import Arena, Entry, curve
from bench.linear_data import Arrays, Problem, Source
from bench.saga_memory import LiveHeap
from bench.studies.lines import Lines, read
from headrace.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SMALL = ["--sources", "generated", "--rows", "400", "--features", "60", "--penalties", "l2"]


def test_generated_rows_are_a_function_of_seed_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_data, "CHUNK", 100)
    source = Source("generated", 250, 40)
    files = source.files(tmp_path)
    assert [file.name for file in files] == [f"part-0000{n}.libsvm" for n in range(3)]
    found = Arrays.read(files, 40)
    assert found.x.shape == (250, 40) and set(found.x.data) == {1.0} and found.x.has_canonical_format
    assert found.x.indices.dtype == np.int32 and 50 < found.y.sum() < 200
    fewer = Arrays.read(Source("generated", 130, 40).files(tmp_path), 40)
    assert (found.x[:130] != fewer.x).nnz == 0 and (found.y[:130] == fewer.y).all()
    kept = files[1].read_text()
    assert files[0].read_text() != kept  # chunks differ
    files[1].unlink()
    assert source.files(tmp_path)[1].read_text() == kept
    other = Arrays.read(Source("generated", 250, 40, seed=1).files(tmp_path), 40)
    assert (found.x != other.x).nnz > 0
    with pytest.raises(UserError, match="--sources generated"):
        linear_data.A9A.files(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("least", "cpu", "iterations"),
    [(1.0, 1e9, [1, 2, 3, 5, 8]), (0.0, 1e9, [1, 2, 3, 5, 8, 13, 21, 34, 55]), (1.0, 9.0, [1, 2, 3])],
)
def test_a_curve_ends_at_its_target_or_where_nothing_changes_or_its_seconds_end(
    least: float, cpu: float, iterations: list[int]
) -> None:
    def one_fit(k: int) -> dict[str, Any]:
        return {"setting": k, "objective": max(1.0 + 2.0**-k, 1.0 + 2.0**-21), "cpu_seconds": float(k)}

    assert [point["setting"] for point in curve(one_fit, least, 2.0**-8, cpu)] == iterations


def test_the_objective_is_the_references(tmp_path: Path) -> None:
    source = Source("generated", 50, 20)
    data, rng = Arrays.read(source.files(tmp_path), 20), np.random.default_rng(5)
    rows, w, b = Rows(data.x, data.y, np.ones(50)), rng.normal(size=20), 0.7
    for ratio in (0.0, 1.0, 0.3):
        how = Settings(reg_param=0.1, elastic_net_param=ratio, standardization=False)
        expected = objective(rows, how, w[None], np.array([b]))
        assert Problem(source, 0.1, ratio, intercept=True).objective(data, w, b) == pytest.approx(expected, rel=1e-12)


def test_curves_go_on_and_a_race_is_of_equals(spark: SparkSession, tmp_path: Path) -> None:
    args = saga.arguments([*SMALL, "--results", str(tmp_path / "saga.jsonl"), "--runs", "9", "--rounds", "1"])
    arena, lines = Arena(spark, tmp_path), Lines(args.results)
    assert saga.go_on(args, arena, lines) == 9
    problem = Problem(Source("generated", 400, 60), 0.025, 0.0, intercept=False)
    made = saga_report.curves_of(lines.all, problem.about())
    assert [line["run"]["entry"]["name"] for line in made] == [entry.name for entry in saga.RACERS]
    with_intercept = Problem(problem.source, 0.025, 0.0, intercept=True)
    least = saga_report.least(lines.all, with_intercept.about())
    bounds = [line["bound"] for line in saga_report.curves_of(lines.all, with_intercept.about())]
    assert least is not None and least * (1 - 1e-7) < max(bounds) < least
    for line in made:
        floor = saga_report.least(lines.all, problem.about()) or 0.0
        there = saga_report.reached(line, floor, saga_report.TARGET)
        assert there is not None, line
        assert line["run"]["entry"]["name"] in ("liblinear", "newton-cg") or line["points"][-1]["epochs"] >= 1
    lines.close()
    again = Lines(args.results)
    args.runs = 1
    assert saga.go_on(args, arena, again) == 1  # the next one, not one of those
    again.append(raced := saga.race(args, arena, again, problem))
    racers = raced["racers"]
    assert {"saga", saga.UNPROVED, "mllib", "liblinear", "newton-cg"} <= {*racers}
    assert racers["saga"]["ratio"]["seconds"][0] == 1.0
    proved, unproved = (racers[name]["turns"][-1]["epochs"] for name in ("saga", saga.UNPROVED))
    assert unproved <= proved
    assert [turn["turn"] for turn in racers["mllib"]["turns"]] == [-2, -1, 0]
    with pytest.raises(SystemExit, match="no curve of ours"):
        saga.race(args, arena, again, Problem(problem.source, 0.025, 1.0, intercept=False))
    again.close()
    saga_report.write(read(args.results), tmp_path / "saga.md")
    page = (tmp_path / "saga.md").read_text()
    assert "## 400 x 60 generated, l2 0.025, no intercept" in page and "**Race of" in page
    assert (tmp_path / "saga_generated_400_l2_intercept.svg").read_text().startswith("<?xml")


def test_a_racer_that_ends_elsewhere_is_none(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = saga.arguments([*SMALL, "--results", str(tmp_path / "saga.jsonl"), "--runs", "1"])
    arena, lines = Arena(spark, tmp_path), Lines(args.results)
    saga.go_on(args, arena, lines)
    monkeypatch.setattr(saga_report, "least", lambda *_: 0.1)  # as if another had found less
    monkeypatch.setattr(saga_report, "first_at", lambda *_: {"setting": 1, "epochs": 1.0})
    problem = Problem(Source("generated", 400, 60), 0.025, 0.0, intercept=False)
    with pytest.raises(SystemExit, match="it is no contestant"):
        saga.race(args, arena, lines, problem)
    lines.close()


def test_epochs_to_the_target_are_those_of_the_first_point_there() -> None:
    points = [{"setting": k, "objective": 1 + 10.0**-k, "epochs": 3.0 * k} for k in range(10)]
    about = Problem(Source("generated", 4, 2), 0.1, 0.0, intercept=True).about()
    line = {"run": {"what": "curve", **about, "entry": {"name": "saga", "partitions": 2, "order": "dealt"}}}
    lines = [line | {"points": points}]
    floor = saga_report.least(lines, about)
    assert floor == 1 + 1e-9
    assert saga_report.first_at(lines, about, Entry("saga", 2), 1e-6) == points[6]
    assert saga_report.first_at(lines, about, Entry("saga", 4), 1e-6) is None
    assert saga_report.reached(lines[0], 0.5, 1e-6) is None


def test_the_live_heap_sees_what_is_held_for_a_while(spark: SparkSession) -> None:
    import time

    gateway: Any = spark.sparkContext._gateway
    with LiveHeap(spark, 0.01) as heap:
        held = gateway.new_array(gateway.jvm.long, 8 << 20)
        time.sleep(0.2)
        heap.now()
        time.sleep(0.2)
        gateway.detach(held)
    rest = min(heap.before, heap.now())  # Spark lets go of what earlier tests left behind meanwhile
    assert heap.peak - rest > 62e6
    assert heap.resident_peak() > heap.peak


def test_als_ends_where_the_slow_solver_does(spark: SparkSession) -> None:
    table = als.regular(200, 10)
    for ids in (table.users, table.items):
        assert (np.bincount(ids) == 10).all()
    found = als.measure(als.Contest(spark, table, 3, 3), rounds=1)
    assert {"mllib", "slow solver"} <= set(found)
    for figures in found.values():
        assert figures["rmse"] == pytest.approx(found["slow solver"]["rmse"], abs=1e-3)
        assert figures["objective"] == pytest.approx(found["slow solver"]["objective"], rel=1e-4)
        assert figures["seconds"] > 0
    with pytest.raises(UserError, match="rings"):
        als.regular(205, 10)
