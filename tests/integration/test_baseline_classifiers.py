"""MLlib's classifiers on a small silver/ctr with a planted model, on vectors, arrays and LIBSVM files; bad rows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from distributed.ctr_lake import SIZES, make_ctr_lake

from headrace.baselines import BASELINES, CLASSIFIER, having
from headrace.baselines.spec import LOGISTIC
from headrace.catalog.spec import load
from headrace.pipelines import baseline_classifier, baseline_logistic
from headrace.pipelines.baseline_data import InputConfig
from headrace.pipelines.baseline_settings import ModelOptions
from headrace.report import Report
from headrace.train import metrics
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
    quick = {option: value for option, value in QUICK.items() if option in BASELINES[name].defaults}
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
    assert results["test_ne"] < 1
    assert [stage.name for stage in report.stages] == ["pin", "check", "train", "evaluate", "record"]
    assert [(s.rows_in, s.rows_out) for s in report.stages[:4]] == [(5500, 5500)] * 2 + [(4000, 4000), (1500, 1500)]
    saved = json.loads((run / "report.json").read_text())
    assert saved["results"]["run_id"] == run.name and len(saved["stages"]) == 5
    assert results["peak_memory_mb"] > 100 and results["shuffled_mb"] is None  # the tests' session keeps no event log
    assert {"model", "baseline.yaml", "events.jsonl", "report.html", "report.json"} <= {p.name for p in run.iterdir()}
    assert not (run / "config.yaml").exists()  # or train-ctr --resume auto would take it for one of its own


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


def test_one_hot_and_buckets_without_collisions_give_the_same_model(spark: SparkSession, clicks: Path) -> None:
    options = {"tol": 1e-10, "max_iter": 100}
    exact = fit(spark, clicks, "lbfgs", options=options)
    hashed = fit(spark, clicks, "lbfgs", input=InputConfig(encoding="hashed", buckets=1 << 28), options=options)
    few = fit(spark, clicks, "lbfgs", input=InputConfig(buckets=8), options=options)
    assert exact.results["features"] == 13 + sum(SIZES.values()) and few.results["features"] == 13 + 8
    assert hashed.results["objective"] == pytest.approx(exact.results["objective"], rel=1e-6)
    assert hashed.results["test_auc"] == pytest.approx(exact.results["test_auc"], abs=1e-4)
    assert few.results["objective"] > exact.results["objective"]
