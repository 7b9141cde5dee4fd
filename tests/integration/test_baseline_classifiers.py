"""Classifiers, MLlib's and ours: a small silver/ctr with a planted model, vectors, arrays, LIBSVM files; refusals."""

from __future__ import annotations

import html
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from distributed.ctr_lake import SIZES, make_ctr_lake

from headrace.baselines import BASELINES, CLASSIFIER, Columns, having
from headrace.baselines.inputs import check_vectors
from headrace.baselines.spec import CERTIFIED, LOGISTIC
from headrace.baselines.vectors import encode_rows, plan
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.pipelines import baseline_classifier, baseline_logistic, compare
from headrace.pipelines.baseline_data import InputConfig, open_rows
from headrace.pipelines.baseline_settings import ModelOptions, TuningConfig
from headrace.report import Report
from headrace.train import metrics
from headrace.train.spool import ENTRIES
from headrace.train.tracking import TrackingConfig

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
OFF = TrackingConfig(enabled=False)
QUICK = {"max_iter": 15, "reg_param": 0.01, "factor_size": 2, "max_depth": 3}
"""Options for few rows, of the baselines that have them."""


def fit(spark: SparkSession, lake: Path, name: str, **settings: Any) -> Report:
    """Run the verb that offers a baseline."""
    report = Report("baseline", out=io.StringIO())
    free = set(BASELINES[name].defaults) - set(settings.get("tuning", TuningConfig()).grid)
    quick = {option: value for option, value in QUICK.items() if option in free}
    options = ModelOptions(options=quick | settings.pop("options", {}))
    shared = {"lake": str(lake), "model": options, "tracking": OFF} | settings
    if LOGISTIC in BASELINES[name].traits:
        return baseline_logistic.run(spark, baseline_logistic.Config(solver=name, **shared), report)
    return baseline_classifier.run(spark, baseline_classifier.Config(name=name, **shared), report)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with silver/ctr alone: 4,000 rows train, 500 validate, 1,000 test."""
    return make_ctr_lake(tmp_path_factory.mktemp("clicks"), {"train": 4000, "validation": 500, "test": 1000})


def planted(lake: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, planted logits and labels of the test rows: ctr_lake draws the effects first."""
    rng = np.random.default_rng(5)
    effects = {name: rng.normal(scale=0.5, size=size) for name, size in SIZES.items()}
    rows = pl.read_delta(load("silver/ctr").path(str(lake))).filter(pl.col("split") == "test").sort("key")
    logits = rows["i1"].to_numpy() - 0.5 + sum(effects[name][rows[name].to_numpy()] for name in SIZES)
    return rows["key"].to_numpy(), logits, rows["label"].to_numpy()


@pytest.mark.parametrize("name", having(CLASSIFIER))
def test_every_classifier_learns_and_its_predictions_give_its_figures(
    spark: SparkSession, clicks: Path, name: str
) -> None:
    report = fit(spark, clicks, name)
    results, run = report.results, Path(report.paths["run"])
    keys, logits, labels = planted(clicks)
    assert 0.6 < results["test_auc"] <= metrics.auc(logits, labels) + 0.01
    kept = pl.read_delta(report.paths["predictions"]).filter(pl.col("run_id") == run.name).sort("key")
    np.testing.assert_array_equal(kept["key"], keys)
    np.testing.assert_array_equal(kept["label"], labels)
    probability = kept["probability"].to_numpy()
    found = metrics.compute(np.log(probability / (1 - probability)), labels)
    assert found.auc == pytest.approx(results["test_auc"], abs=1e-6)
    assert found.logloss == pytest.approx(results["test_logloss"], abs=1e-5)
    assert results["test_calibration"] == pytest.approx(1.0, abs=0.15)
    assert found.normalized_entropy == pytest.approx(results["test_ne"], abs=1e-5)
    assert [stage.name for stage in report.stages] == ["pin", "check", "train", "evaluate", "record"]
    assert [(s.rows_in, s.rows_out) for s in report.stages[:4]] == [(5500, 5500)] * 2 + [(4000, 4000), (1500, 1500)]
    saved = json.loads((run / "report.json").read_text())
    assert saved["results"]["run_id"] == run.name and len(saved["stages"]) == 5
    assert results["peak_memory_mb"] > 100 and results["shuffled_mb"] is None  # the tests' session keeps no event log
    assert {"model", "baseline.yaml", "events.jsonl", "report.html", "report.json"} <= {p.name for p in run.iterdir()}
    assert not (run / "config.yaml").exists()  # or train-ctr --resume auto would take it for one of its own
    if CERTIFIED in BASELINES[name].traits:
        check_a_fit_that_was_cut_short(report)


def check_a_fit_that_was_cut_short(report: Report) -> None:
    """So few epochs as in QUICK are no fit to the tolerance: it is said, here and in red on the page."""
    results, run = report.results, Path(report.paths["run"])
    assert results["ended"] == "epochs" and results["epochs"] >= QUICK["max_iter"]
    (warned,) = report.warnings
    assert "ended by epochs, not by --model.tol" in warned and "raise --model.max_iter" in warned
    assert warned in html.unescape((run / "report.html").read_text())
    steps = of_type(run, "step")
    whole = [event for event in steps if "loss" in event]
    assert len(steps) - len(whole) == (2 if results["optimizer"] == "scsg" else 0)  # batches of 256 and 1,024 rows
    assert steps[-1]["loss"] == results["objective"] and steps[-1]["gradients"] == results["gradients"]


def of_type(run: Path, kind: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["type"] == kind]


def test_logistic_regression_finds_the_planted_model(spark: SparkSession, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    truth = np.array([1.5, -1.0, 0.5, 0.0])
    x = rng.normal(size=(6000, 4))
    y = (rng.random(6000) < 1 / (1 + np.exp(-(x @ truth - 0.7)))).astype(float)
    rows = [
        (label, row, "test" if at >= 5000 else "train")
        for at, (label, row) in enumerate(zip(y.tolist(), x.tolist(), strict=True))
    ]
    table = str(tmp_path / "table")
    spark.createDataFrame(rows, "label double, features array<float>, part string").write.format("delta").save(table)
    given = InputConfig(delta=table, split="part")
    report = fit(spark, tmp_path, "lbfgs", input=given, options={"reg_param": 0.0, "tol": 1e-9, "max_iter": 100})
    model = saved_model(report)
    # Fisher's information bounds what 5,000 rows can tell: four standard errors.
    chance = 1 / (1 + np.exp(-(x[:5000] @ truth - 0.7)))
    design = np.column_stack([x[:5000], np.ones(5000)])
    errors = np.sqrt(np.diag(np.linalg.inv(design.T * (chance * (1 - chance)) @ design)))
    found = np.append(model.coefficients.toArray(), model.intercept)
    assert (np.abs(found - np.append(truth, -0.7)) < 4 * errors).all()
    best = metrics.auc((x @ truth)[5000:], y[5000:])
    assert best is not None and report.results["test_auc"] == pytest.approx(best, abs=0.005)
    assert report.results["iterations"] > 3 and "predictions" not in report.paths


def saved_model(report: Report) -> Any:
    from pyspark.ml.classification import LogisticRegressionModel

    return LogisticRegressionModel.load(report.paths["model"])


@pytest.mark.parametrize("given", [InputConfig(), InputConfig(buckets=50)])
def test_sparks_vectors_are_those_of_numpy(spark: SparkSession, clicks: Path, given: InputConfig) -> None:
    data = open_rows(spark, str(clicks), given, BASELINES["lbfgs"], 0, Report("baseline", out=io.StringIO()))
    rows = pl.read_delta(load("silver/ctr").path(str(clicks))).filter(pl.col("split") == "validation").sort("key")
    dense = tuple(f"i{n}" for n in range(1, 14))
    encoding = plan(dense, SIZES, "auto", given.buckets, narrow=False)
    csr = encode_rows(rows.select(dense).to_numpy(), rows.select(list(SIZES)).to_numpy(), encoding)
    found = data.splits["validation"].orderBy("key").collect()
    assert data.width == encoding.width == found[0]["features"].size
    assert [row["key"] for row in found] == rows["key"].to_list()
    np.testing.assert_array_equal(np.concatenate([row["features"].indices for row in found]), csr.indices)
    np.testing.assert_array_equal(np.concatenate([row["features"].values for row in found]), csr.values)


def libsvm(path: Path, rows: int, seed: int, negative: str = "-1") -> Path:
    """A file of rows with six features, of which the first decides and the last is always 1."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=(rows, 5)), 3)
    y = np.where(rng.random(rows) < 1 / (1 + np.exp(-3 * x[:, 0])), "+1", negative)
    cells = [" ".join(f"{at + 1}:{value}" for at, value in enumerate(row) if value) for row in x]
    path.write_text("".join(f"{label} {row} 6:1\n" for label, row in zip(y, cells, strict=True)))
    return path


def test_libsvm_files_and_a_grid(spark: SparkSession, tmp_path: Path) -> None:
    given = InputConfig(
        libsvm=str(libsvm(tmp_path / "a", 400, 1)), libsvm_test=str(libsvm(tmp_path / "b", 100, 2)), negative=-1
    )
    tuning = TuningConfig(share=0.3, grid={"reg_param": [1e-3, 10.0], "elastic_net_param": [1.0]})
    report = fit(spark, tmp_path, "lbfgs", input=given, tune="train_validation", tuning=tuning, seed=4)
    told = report.results["tuning"]
    assert told["metric"] == "areaUnderROC" and told["points"][0]["value"] > 0.85
    assert told["points"][1]["value"] == 0.5  # so large a penalty leaves no weight
    assert told["best"] == {"reg_param": 1e-3, "elastic_net_param": 1.0}
    assert report.results["options"]["reg_param"] == 1e-3 and report.results["test_auc"] > 0.85
    assert "1 features have one value in all training rows: features[5]" in report.warnings[0]
    kept = [json.loads(line) for line in (Path(report.paths["run"]) / ENTRIES).read_text().splitlines()]
    metrics_of = [entry["values"] for entry in kept if entry["op"] == "metrics"]
    assert [values["tune/areaUnderROC"] for values in metrics_of if "tune/areaUnderROC" in values] == [
        point["value"] for point in told["points"]
    ]
    assert {"test/auc", "costs/peak_memory_mb", "train/loss"} <= {name for values in metrics_of for name in values}
    assert kept[0]["experiment"] == "headrace-ctr" and kept[-1]["status"] == "FINISHED"


def test_saga_ends_where_lbfgs_does_and_both_stand_in_one_table(spark: SparkSession, tmp_path: Path) -> None:
    given = InputConfig(
        libsvm=str(libsvm(tmp_path / "a", 400, 1)), libsvm_test=str(libsvm(tmp_path / "b", 100, 2)), negative=-1
    )
    shared = {"reg_param": 1e-3, "elastic_net_param": 0.5}
    exact = fit(spark, tmp_path, "lbfgs", input=given, options=shared | {"tol": 1e-10, "max_iter": 200})
    options = shared | {"tol": 1e-7, "max_iter": 500, "num_partitions": 2}
    report = fit(spark, tmp_path, "saga", input=given, options=options)
    least, found = exact.results["objective"], report.results
    assert found["objective"] == pytest.approx(least, rel=1e-6)
    assert found["ended"] == "gap" and found["relative_gap"] <= 1e-7 and not report.warnings[1:]  # [0]: a constant
    run = Path(report.paths["run"])
    steps = of_type(run, "step")
    # What is said of the distance from the minimum holds at every round, and it falls from first to last.
    assert all(least <= event["loss"] <= least + (event["gap"] + 1e-9) * event["loss"] for event in steps)
    assert steps[-1]["gap"] < 1e-5 * steps[0]["gap"]
    page = html.unescape((run / "report.html").read_text())
    assert 'alt="gap"' in page and found["certificate"] in page
    kept = [json.loads(line) for line in (run / ENTRIES).read_text().splitlines()]
    names = {name for entry in kept if entry["op"] == "metrics" for name in entry["values"]}
    assert {"train/loss", "train/gap", "train/epochs", "train/gradients", "train/aggregated_mb"} <= names
    out = io.StringIO()
    compare.run(None, compare.Config(lake=str(tmp_path)), Report("compare", out=out))
    table = [line.split() for line in out.getvalue().splitlines()]
    assert {tuple(line[1:3]) for line in table[1:3]} == {("logistic", "lbfgs"), ("logistic", "saga")}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"libsvm": "a"}, r"label: \d+ of \d+ rows of train .*: -1\n.*--input.negative -1"),
        ({"libsvm": "nowhere"}, "there is no such file"),
        ({"libsvm": "broken"}, "broken: not in LIBSVM's format"),
        ({"libsvm": "short", "libsvm_test": "a"}, "short, .*: not in LIBSVM's format"),
    ],
)
def test_libsvm_files_that_cannot_be_read(
    spark: SparkSession, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    libsvm(tmp_path / "a", 20, 1)
    (tmp_path / "broken").write_text("1 1:0.5\n0 2:1 1:3\n")
    (tmp_path / "short").write_text("1 1:0.5\n0 2:1\n" * 10)
    given = InputConfig(**{name: str(tmp_path / file) for name, file in settings.items()})
    with pytest.raises(UserError, match=f"(?s){said}"):
        open_rows(spark, str(tmp_path), given, BASELINES["lbfgs"], 0, Report("baseline", out=io.StringIO()))


def test_tables_of_vectors_of_three_classes_and_what_is_refused_of_them(spark: SparkSession, tmp_path: Path) -> None:
    from pyspark.ml.linalg import Vectors
    from pyspark.sql import functions as F

    rows = []
    for at in range(90):
        x = [float(at % 3 == each) + (at % 7) / 10 for each in range(3)]
        vector = Vectors.dense(x) if at % 2 else Vectors.sparse(3, [0, 1, 2], x)
        rows.append((at % 3, vector, 1.0 + at % 2, "test" if at > 60 else "train"))
    frame = spark.createDataFrame(rows, ["y", "x", "w", "part"]).coalesce(1)
    table = str(tmp_path / "table")
    frame.write.format("delta").save(table)
    shared = {"features": "x", "label": "y", "split": "part", "delta": table}
    weighted = InputConfig(weight="w", **shared)
    for name in ("lbfgs", "saga"):
        report = fit(spark, tmp_path, name, input=weighted)
        assert report.results["test_accuracy"] == 1.0 and "test_auc" not in report.results
        assert report.results["table"] == f"{table}@0"
    with pytest.raises(UserError, match="--model.family binomial: y has more than two classes"):
        fit(spark, tmp_path, "saga", input=weighted, options={"family": "binomial"})

    def refused(name: str = "lbfgs", **changes: Any) -> str:
        given = InputConfig(**shared | changes)
        with pytest.raises(UserError) as error:
            open_rows(spark, str(tmp_path), given, BASELINES[name], 0, Report("baseline", out=io.StringIO()))
        return str(error.value)

    assert "classes go up to 2, and this model tells two apart" in refused("gbt")
    assert "has no column 'z'" in refused(label="z")
    assert "w: of type double, no vector" in refused(features="w")
    assert "x: of type vector, no number" in refused(label="x")
    assert "w: holds 1.0, 2.0" in refused(split="w")
    only = str(tmp_path / "only")
    frame.where(F.col("y") == 1).write.format("delta").save(only)
    assert "rows of train are of class 1" in refused(delta=only)
    new = str(tmp_path / "new")
    frame.where((F.col("part") == "test") | (F.col("y") < 2)).write.format("delta").save(new)
    assert "rows of test are of class 2, which no training row has" in refused(delta=new)


def test_partitions_without_rows_are_nothing_special(spark: SparkSession) -> None:
    rows = spark.createDataFrame([(0.0, [1.0, 2.0]), (1.0, [3.0, 2.0])], "label double, features array<double>")
    found = check_vectors(rows.repartition(6), Columns(), 2, "train")
    assert (found.rows, found.classes, found.constants) == (2, {0: 1, 1: 1}, ("features[1]",))
    with pytest.raises(UserError, match="there are no rows of train"):
        check_vectors(rows.limit(0), Columns(), 2, "train")


def test_an_option_out_of_range_is_said_as_it_was_typed(spark: SparkSession, tmp_path: Path) -> None:
    given = InputConfig(libsvm=str(libsvm(tmp_path / "a", 50, 1, "0")))
    with pytest.raises(UserError, match=r"--model\.reg_param -1\.0 is out of range"):
        fit(spark, tmp_path, "lbfgs", input=given, options={"reg_param": -1.0})
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / ENTRIES).read_text().splitlines()[-1])["status"] == "FAILED"


@pytest.mark.timeout(600)
def test_in_a_process_of_its_own_bytes_shuffled_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 2))
    part = np.where(np.arange(200) < 150, "train", "test")
    label = (x[:, 0] + rng.normal(size=200) > 0).astype(float)
    write_deltalake(str(tmp_path / "rows"), pa.table({"label": label, "features": x.tolist(), "part": part}))
    command = [sys.executable, "-m", "headrace.pipelines.cli", "baseline-logistic", "--lake", str(tmp_path / "lake")]
    command += ["--input.delta", str(tmp_path / "rows"), "--input.split", "part", "--tracking.enabled", "false"]
    command += ["--session.master", "local[2]", "--session.driver_memory", "1g"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    assert results["shuffled_mb"] > 0  # to find the splits takes one, whatever the rest does
    assert 0.5 < results["test_auc"] < 1 and results["table"] == f"{tmp_path / 'rows'}@0"
