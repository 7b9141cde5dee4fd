"""The generator on Spark: same bytes however it is cut, the account in truth.json, kills, reruns, refusals."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from headrace.errors import UserError
from headrace.ingest import generated_criteo as files
from headrace.ingest.criteo_parse import Format, parse_line
from headrace.pipelines.generate_criteo import Config, run
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS, DAYS, BAD = 9_001, 3, 15


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a day without many rows: the driver cuts the blocks, tasks are given them."""
    monkeypatch.setattr(files, "BLOCK_ROWS", 1_000)


def generate(spark: SparkSession, dest: Path, **settings: Any) -> Report:
    options = {"rows": ROWS, "days": DAYS, "seed": 11, "bad_rows": BAD} | settings
    return run(spark, Config(dest=str(dest), **options), Report("generate-criteo", progress="none", out=io.StringIO()))


def contents(dest: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(dest.iterdir())}


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("generated") / "criteo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_ROWS", 1_000)
        generate(spark, dest, write_truth_rows=True)
    return dest


def lines_of(path: Path) -> list[bytes]:
    lines = gzip.decompress(path.read_bytes()).split(b"\n")
    assert lines.pop() == b""
    return lines


def test_bytes_do_not_depend_on_partitions(spark: SparkSession, made: Path, tmp_path: Path) -> None:
    generate(spark, tmp_path / "one", parts=1, write_truth_rows=True)
    assert contents(tmp_path / "one") == contents(made)


def test_plain_files_hold_the_same_text(spark: SparkSession, made: Path, tmp_path: Path) -> None:
    generate(spark, tmp_path / "plain", gzip=False, parts=2)
    for day in range(DAYS):
        assert (tmp_path / "plain" / f"day_{day}").read_bytes() == gzip.decompress(
            (made / f"day_{day}.gz").read_bytes()
        )


def test_every_line_is_accounted_for(made: Path) -> None:
    """The package's exact parser accepts the stated number of rows a day and refuses the planted ones."""
    truth = json.loads((made / "truth.json").read_bytes())
    kinds: Counter[str] = Counter()
    for day in range(DAYS):
        parsed = [parse_line(line, Format()) for line in lines_of(made / f"day_{day}.gz")]
        good = [values for values in parsed if not isinstance(values, str)]
        assert len(good) == truth["rows_a_day"][day] == ROWS // DAYS + (day < ROWS % DAYS)
        assert len(parsed) - len(good) == sum(truth["bad_rows_a_day"][day].values())
        kinds.update(truth["bad_rows_a_day"][day])
    assert dict(kinds) == truth["bad_rows"]
    assert sum(kinds.values()) == BAD
    assert set(kinds) == set(files.BAD_KINDS)


def test_truth_is_what_the_files_say(made: Path) -> None:
    """Labels read from the test day against the written probabilities, by independent implementations."""
    truth = json.loads((made / "truth.json").read_bytes())
    parsed = [parse_line(line, Format()) for line in lines_of(made / f"day_{DAYS - 1}.gz")]
    good = [values for values in parsed if not isinstance(values, str)]
    labels = np.array([values[0] for values in good])
    p = np.load(made / f"truth_day_{DAYS - 1}.npy")
    test = truth["splits"]["test"]
    assert test["rows"] == len(labels) == len(p)
    assert test["clicks"] == labels.sum()
    assert test["best_logloss"] == pytest.approx(log_loss(labels, p), abs=1e-12)
    assert test["best_auc"] == pytest.approx(roc_auc_score(labels, p), abs=test["best_auc_error_bound"] + 1e-12)
    assert truth["splits"]["train"]["rows"] + truth["splits"]["validation"]["rows"] + test["rows"] == ROWS


def test_realised_cardinalities_and_missing_cells(made: Path) -> None:
    truth = json.loads((made / "truth.json").read_bytes())
    cells = []
    for day in range(DAYS):
        parsed = [parse_line(line, Format()) for line in lines_of(made / f"day_{day}.gz")]
        cells += [values for values in parsed if not isinstance(values, str)]
    for c in range(26):
        column = [values[14 + c] for values in cells]
        assert truth["cardinalities"][f"c{c + 1}"] == len(set(column) - {None})
        assert truth["missing"][f"c{c + 1}"] == pytest.approx(column.count(None) / ROWS)


def test_a_second_run_changes_nothing(spark: SparkSession, made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    report = generate(spark, made, write_truth_rows=True)
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before
    assert report.stages == []
    assert report.results["test"]["best_auc"] > 0.7


def test_a_killed_run_goes_on_and_gives_the_same_files(
    spark: SparkSession, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies while joining the second day, with one part lost and one half written beside."""
    dest = tmp_path / "killed"
    join = files.join_day

    def dies(generation: files.Generation, day: int, folder: Path) -> dict[str, object]:
        if day == 1:
            raise KeyboardInterrupt
        return join(generation, day, folder)

    monkeypatch.setattr(files, "join_day", dies)
    with pytest.raises(KeyboardInterrupt):
        generate(spark, dest, write_truth_rows=True)
    assert not (dest / "truth.json").exists()
    (dest / ".parts" / "day_1.000000001000").unlink()
    (dest / ".parts" / "day_1.000000001000.1.tmp").write_bytes(b"half")
    monkeypatch.setattr(files, "join_day", join)
    report = generate(spark, dest, write_truth_rows=True)
    assert "were there already" in report.stages[1].note
    assert contents(dest) == contents(made)


def test_another_generation_is_not_overwritten(spark: SparkSession, tmp_path: Path) -> None:
    dest = tmp_path / "kept"
    generate(spark, dest, rows=500, bad_rows=0)
    before = contents(dest)
    with pytest.raises(UserError, match="seed 11 there, 12 asked for"):
        generate(spark, dest, rows=500, bad_rows=0, seed=12)
    assert contents(dest) == before
    generate(spark, dest, rows=500, bad_rows=0, seed=12, days=2, overwrite=True)
    assert sorted(contents(dest)) == ["day_0.gz", "day_1.gz", "generation.json", "truth.json"]
    assert contents(dest)["day_0.gz"] != before["day_0.gz"]


def test_strange_day_files_are_not_overwritten(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "day_0.gz").write_bytes(b"somebody's")
    with pytest.raises(UserError, match="day files without"):
        generate(spark, tmp_path, rows=500)
    assert (tmp_path / "day_0.gz").read_bytes() == b"somebody's"


def test_spark_reads_every_gzip_member(spark: SparkSession, made: Path) -> None:
    """A day's file is several members end to end; Hadoop's codec must not stop at the first."""
    lines = spark.read.text(str(made / "day_0.gz")).count()
    assert lines == len(lines_of(made / "day_0.gz"))
