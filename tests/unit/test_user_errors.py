"""What a user may get wrong, or rightly type in another way than the tests of one module do."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace import java, session
from headrace.catalog.spec import load
from headrace.pipelines import cli
from headrace.report import Report
from headrace.train.spool import Spool


def test_a_table_has_an_absolute_place_whatever_way_the_lake_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load("silver/ctr")
    absolute = f"{tmp_path}/silver/ctr"
    assert spec.path(".") == spec.path("./") == spec.path("../" + tmp_path.name) == spec.path(tmp_path) == absolute
    assert spec.path("s3://bucket/lake/") == "s3://bucket/lake/silver/ctr"
    assert spec.path("file:/lake") == "file:/lake/silver/ctr"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["train-ctr", "--lake", "LAKE"], ["no silver/ctr in --lake LAKE", "headrace featurize-ctr --lake LAKE"]),
        (["train-ctr", "--lake", "LAKE", "--model.name", "deepf"], ["--model.name 'deepf'", "logistic, fm, deepfm"]),
        (["train-ctr", "--lake", "LAKE", "--resume", "x"], ["no run x in LAKE/runs", "none"]),
        (["featurize-ctr", "--lake", "LAKE"], ["no bronze/criteo in --lake LAKE", "headrace ingest-criteo"]),
        (["rows", "--lake", "LAKE"], ["which file's rows?"]),
        (["rows", "day_0.gz", "--lake", "LAKE"], ["nothing was ingested into --lake LAKE", "headrace ingest-criteo"]),
        (["quarantine", "--lake", "LAKE"], ["nothing was ingested into --lake LAKE", "headrace ingest-criteo"]),
        (["quarantine", "--source", "x", "--lake", "LAKE"], ["no quarantine for x", "--source commoncrawl or criteo"]),
        (["catalog", "validate", "--lake", "LAKE"], ["no table is in --lake LAKE"]),
    ],
)
def test_a_mistake_is_told_before_spark_starts_and_makes_no_lake(
    command: list[str],
    told: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def starts(*args: object, **options: object) -> None:
        raise AssertionError("Spark was started")

    monkeypatch.setattr(session, "build_session", starts)
    lake = str(tmp_path / "nowhere")
    assert cli.main([word.replace("LAKE", lake) for word in command]) == 2
    shown = capsys.readouterr().err
    assert all(text.replace("LAKE", lake) in shown for text in told), shown
    assert not os.path.exists(lake)


def test_a_list_of_an_empty_lake_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["catalog", "list", "--lake", str(tmp_path)]) == 0
    assert f"no table is in --lake {tmp_path}" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "report.json").write_text(json.dumps({"results": {"test_auc": 0.5, "train_seconds": 1.0}}))
    picture = tmp_path / "a_folder.png"
    picture.mkdir()
    assert cli.main(["compare", str(tmp_path), "--picture", str(picture)]) == 2
    assert capsys.readouterr().err.splitlines()[-2] == f"error: {picture}: Is a directory"


def test_a_damaged_report_is_left_out_of_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("a", "{"), ("b", '{"results": {"test_auc": 0.5}}'), ("c", "[]")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "report.json").write_text(text)
    assert cli.main(["compare", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    last = json.loads(shown.out.splitlines()[-1])
    assert [run["run_id"] for run in last["results"]["runs"]] == ["b"]
    assert [name in " ".join(last["warnings"]) for name in ("a/report.json", "b/report", "c/report.json")] == [
        True, False, True
    ]  # fmt: skip


def test_a_java_home_that_will_not_do_gives_way_to_a_java_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nonexistent")
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_LOCAL_IP"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(java, "find", lambda: java.Java("/good", 17, ""))
    session._prepare_environment("yarn")
    assert os.environ["JAVA_HOME"] == "/good"


def test_a_new_store_says_nothing_on_the_screen(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    entry = {"op": "start", "uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": None, "experiment": "e"}
    Spool(run).append(
        entry | {"run_name": "r", "params": {}, "tags": {"headrace.run_id": "r"}, "tables": {}, "time": 1}
    )
    command = [sys.executable, "-m", "headrace.pipelines.cli", "sync-runs", "--lake", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert json.loads(done.stdout)["results"] == {"runs": 1, "sent": 1, "failed": 0}
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_the_time_left_counts_neither_the_start_nor_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, screen = [0.0], io.StringIO()
    monkeypatch.setattr("headrace.report.time.monotonic", lambda: clock[0])
    bar = Report("train-ctr", progress="log", out=screen).bar(1000, "training")
    clock[0] = 300.0  # ranks start
    bar.begin(500)
    clock[0] = 320.0
    bar.update(100)
    assert screen.getvalue() == "training: 600 of 1,000 rows, 5/s, 80 s left\n"


def test_a_line_beside_a_bar_has_a_line_of_its_own() -> None:
    screen = io.StringIO()
    report = Report("train-ctr", progress="bar", out=screen)
    with report.bar(100, "training") as bar:
        bar.update(40)
        report.say("validation after step 4")
        report.warn("slow")
    lines = screen.getvalue().replace("\r", "\n").splitlines()
    assert "validation after step 4" in lines
    assert "warning: slow" in lines
