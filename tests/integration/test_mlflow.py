"""A run in MLflow: all of it, the model on raw rows, and nothing stopped by a store that is down."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from headrace.catalog.pinned import PinnedTable
from headrace.catalog.spec import load
from headrace.features.transform import CATEGORIES, INTS, CategoryRule, Transform
from headrace.models import create
from headrace.pipelines import sync_runs
from headrace.report import Report
from headrace.train.export import save_model
from headrace.train.pyfunc import ClickScorer
from headrace.train.report_html import figures, write_report
from headrace.train.spool import ENTRIES, Spool
from headrace.train.tracking import Tracker, TrackingConfig

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TRANSFORM = Transform("log", {}, {name: CategoryRule("hash", 50) for name in CATEGORIES}, None)


def pinned(split: str) -> PinnedTable:
    return PinnedTable(load("silver/ctr"), "/lakes/one/silver/ctr", 3, (), 10, 5, {"split": split})


def evaluation(split: str, step: int, auc: float = 0.75) -> dict[str, Any]:
    metrics = {"rows": 40, "clicks": 10, "auc": auc, "logloss": 0.5, "normalized_entropy": 0.9, "calibration": None}
    curves = {"roc": [[0.0, 0.0], [0.2, 0.6], [1.0, 1.0]], "calibration": [[0.1, 0.12, 20.0], [0.4, 0.38, 20.0]]}
    return {"type": "eval", "split": split, "step": step, "metrics": metrics | {"nonfinite": 0}, "curves": curves}


EVENTS = [
    *({"type": "step", "step": step, "loss": 0.7 - step / 1000, "rows": 64, "rank": 0} for step in range(1, 31)),
    evaluation("validation", 15),
    evaluation("validation", 30),
    {"type": "epoch", "epoch": 0, "rows": 100, "dropped": 4},
    evaluation("test", 30),
    {"type": "exchange", "step": 30, "megabytes_sent": 1.5, "compression_ratio": 4.0},
]


def make_model(folder: Path) -> Path:
    model = create("fm", TRANSFORM.cardinalities(), 13, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    settings = {"name": "fm", "cardinalities": TRANSFORM.cardinalities(), "num_dense": 13, "seed": 3}
    return save_model(model, folder, settings, {"transform": TRANSFORM.to_json(), "vocabulary_version": 7})


def raw_rows(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    ints = {name: [None if rng.random() < 0.2 else int(rng.integers(-2, 900)) for _ in range(n)] for name in INTS}
    texts = {
        name: [None if rng.random() < 0.2 else f"{rng.integers(0, 2**32):08x}" for _ in range(n)] for name in CATEGORIES
    }
    return pd.DataFrame({**ints, **texts})


def tracker(lake: Path, name: str, **settings: Any) -> Tracker:
    directory = lake / "runs" / name
    directory.mkdir(parents=True)
    return Tracker(TrackingConfig(**settings), lake, directory, pytest.fail)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def finished(lake: Path) -> dict[str, Any]:
    """One whole run, as a pipeline tells it."""
    run = tracker(lake, "run-one", registered_model="clicks", flush_s=240)
    tables = {part: pinned(part) for part in ("train", "test")}
    run.start({"train": {"batch_size": 64}, "seed": 1}, {"headrace.launcher": "local"}, tables, "first run")
    for event in EVENTS:
        run.event(event)
    for name, figure in figures(EVENTS).items():
        run.figure(name, figure)
    report = run.directory / "report.html"
    write_report(report, "first run", {"train": {"batch_size": 64}}, EVENTS)
    run.artifact(report)
    run.model(make_model(run.directory))
    return run.finish() | {"uri": run.uri, "directory": run.directory}


def test_everything_of_a_run_arrives(finished: dict[str, Any]) -> None:
    assert (finished["pending"], finished["error"], finished["later"]) == (0, "", "")
    assert finished["ui"] == f"mlflow ui --backend-store-uri {finished['uri']}"
    client = MlflowClient(finished["uri"])
    run = client.get_run(finished["mlflow_run_id"])
    assert run.info.status == "FINISHED" and run.info.run_name == "first run"
    assert run.data.params == {"train.batch_size": "64", "seed": "1"}
    assert run.data.tags["headrace.run_id"] == "run-one" and run.data.tags["table.train"] == "silver/ctr@3"
    assert run.data.tags["version.petastorm"] == "0.13.1" and run.data.tags["headrace.launcher"] == "local"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "validation/auc")] == [
        (15, 0.75),
        (30, 0.75),
    ]
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in losses) == [(e["step"], e["loss"]) for e in EVENTS if e["type"] == "step"]
    assert run.data.metrics["test/logloss"] == 0.5 and run.data.metrics["epoch/dropped"] == 4
    assert "test/calibration" not in run.data.metrics
    assert run.data.metrics["exchange/megabytes_sent"] == 1.5 and run.data.metrics["exchange/compression_ratio"] == 4.0
    read = {i.tags[0].value: json.loads(i.dataset.source) for i in run.inputs.dataset_inputs}
    assert read == {part: {"path": "/lakes/one/silver/ctr", "delta_table_version": 3} for part in ("train", "test")}
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"figures", "report.html"} <= names
    pictures = {item.path for item in client.list_artifacts(run.info.run_id, "figures")}
    drawn = ("loss", "validation_auc", "validation_logloss", "roc", "calibration")
    assert pictures == {f"figures/{name}.png" for name in drawn}


def model_uri(finished: dict[str, Any]) -> str:
    client = MlflowClient(finished["uri"])
    found = client.search_logged_models([client.get_run(finished["mlflow_run_id"]).info.experiment_id])
    return str(found[0].artifact_location)


def test_the_model_takes_raw_rows(finished: dict[str, Any]) -> None:
    """Against the model itself on inputs that the transform made; missing cells and texts as they are in the log."""
    model = mlflow.pyfunc.load_model(model_uri(finished))
    rows = raw_rows(200)
    scorer = ClickScorer(finished["directory"] / "model")
    dense, sparse = scorer.transform(rows)
    with torch.no_grad():
        expected = torch.sigmoid(scorer.model(torch.from_numpy(dense), torch.from_numpy(sparse)).double()).numpy()
    np.testing.assert_allclose(model.predict(rows), expected, rtol=1e-12, atol=1e-15)
    assert len(np.unique(expected)) > 150
    assert model.predict(rows.iloc[:0]).shape == (0,)
    assert model.metadata.signature.inputs.input_names() == [*INTS, *CATEGORIES]
    assert model.metadata.metadata["vocabulary_version"] == 7
    assert MlflowClient(finished["uri"]).get_model_version("clicks", "1").run_id == finished["mlflow_run_id"]


def test_nothing_of_the_model_is_a_pickle(finished: dict[str, Any]) -> None:
    place = Path(model_uri(finished).removeprefix("file://"))
    files = [path for path in place.rglob("*") if path.is_file()]
    assert {"model.safetensors", "model.json", "MLmodel"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt") or path.read_bytes()[:1] == b"\x80"]


def test_the_model_as_a_spark_udf(finished: dict[str, Any], spark: SparkSession) -> None:
    from pyspark.sql import functions as F

    rows = raw_rows(40)
    types = ", ".join([f"{name} bigint" for name in INTS] + [f"{name} string" for name in CATEGORIES])
    cells = [[None if pd.isna(cell) else cell for cell in row] for row in rows.astype(object).to_numpy().tolist()]
    cells = [[int(c) if isinstance(c, float) else c for c in row] for row in cells]
    frame = spark.createDataFrame(cells, types).coalesce(1)
    udf = mlflow.pyfunc.spark_udf(spark, model_uri(finished), result_type="double", env_manager="local")
    scored = [row.p for row in frame.select(udf(F.struct(*frame.columns)).alias("p")).collect()]
    np.testing.assert_array_equal(scored, ClickScorer(finished["directory"] / "model").predict(rows))


def test_sending_twice_changes_nothing(finished: dict[str, Any], lake: Path) -> None:
    """The mark is lost: everything is sent again, to the same run."""
    client = MlflowClient(finished["uri"])
    spool = Spool(finished["directory"])
    spool.set_mark(0, None)
    (finished["directory"] / "model").rename(finished["directory"] / "kept")  # sent models are versions: not again
    before = client.get_run(finished["mlflow_run_id"]).data.to_dictionary()
    report = sync_runs.run(None, sync_runs.Config(lake=str(lake)), Report("sync-runs", "none"))
    (finished["directory"] / "kept").rename(finished["directory"] / "model")
    assert report.results["failed"] == 0 and report.results["sent"] > 30
    assert spool.mark()["run"] == finished["mlflow_run_id"]
    assert client.get_run(finished["mlflow_run_id"]).data.to_dictionary() == before
    assert len(client.get_metric_history(finished["mlflow_run_id"], "train/loss")) == 30


def test_a_dead_server_stops_nothing(tmp_path: Path) -> None:
    run = tracker(tmp_path, "r", uri="http://127.0.0.1:9", flush_s=60)
    run.start({}, {}, {"train": pinned("train")})
    for event in EVENTS:
        run.event(event)
    end = run.finish()
    assert end["mlflow_run_id"] is None and end["pending"] == 2 + len(EVENTS) and end["error"]
    assert end["later"] == f"headrace sync-runs --lake {tmp_path}"
    report = sync_runs.run(None, sync_runs.Config(lake=str(tmp_path)), Report("sync-runs", "none"))
    assert report.results == {"runs": 1, "sent": 0, "failed": 1}
    assert "r was not sent" in report.warnings[0]


def test_a_locked_store_gets_everything_later(finished: dict[str, Any], lake: Path) -> None:
    other = sqlite3.connect(finished["uri"].removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        run = tracker(lake, "run-two", flush_s=1)
        run.start({"a": 1}, {}, {"train": pinned("train")})
        for event in EVENTS:
            run.event(event)
        end = run.finish()
        assert end["pending"] == 2 + len(EVENTS) and end["later"]
    finally:
        other.execute("ROLLBACK")
        other.close()
    deadline = time.monotonic() + 120  # the thread of this process may still hold the spool, waiting for the lock
    while list(Spool(run.directory).pending()) and time.monotonic() < deadline:
        sync_runs.run(None, sync_runs.Config(lake=str(lake)), Report("sync-runs", "none"))
        time.sleep(0.5)
    sent = MlflowClient(finished["uri"]).get_run(str(Spool(run.directory).mark()["run"]))
    assert sent.info.status == "FINISHED" and sent.data.metrics["test/auc"] == 0.75
    assert sent.data.params == {"a": "1"}


def test_switched_off(tmp_path: Path) -> None:
    run = tracker(tmp_path, "r", enabled=False)
    run.start({}, {}, {})
    assert run.finish()["mlflow_run_id"] is None
    assert not (tmp_path / "mlflow").exists()


def test_a_secret_uri_is_looked_up_when_records_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'with-password.db'}"
    monkeypatch.setenv("HEADRACE_SECRET__ML__URI", uri)
    run = tracker(tmp_path, "r", uri="secret:ml/uri", flush_s=300)
    run.start({"a": 1}, {}, {})
    end = run.finish()
    assert (end["pending"], end["error"]) == (0, "")
    assert MlflowClient(uri).get_run(end["mlflow_run_id"]).data.params == {"a": "1"}
    kept = (run.directory / ENTRIES).read_text() + str(end)
    assert "secret:ml/uri" in kept and "with-password" not in kept
