"""The first ten minutes: generated logs through the whole main job, three models beside the best possible one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.errors import UserError
from headrace.pipelines import featurize_ctr, generate_criteo, ingest_criteo, train_ctr
from headrace.pipelines.train_config import DenseRuleConfig, LoopSettings, ModelConfig, OptimizerConfig, RuleConfig
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class Contender(NamedTuple):
    """A model of the demo and what the planted model lets us expect of its distance to the best AUC."""

    label: str
    model: ModelConfig
    expected: str


# Settings found for the planted model at 1M rows (docs/decisions/0004-planted-model.md).
_DEEPFM = ModelConfig(name="deepfm", embedding_dim=8, hidden=[64, 32], embedding_std=0.03)
CONTENDERS = (
    Contender("deepfm", _DEEPFM, "within 0.01 at 10M rows"),
    Contender("logistic", ModelConfig(name="logistic"), "at least 0.02 below"),
    Contender("no categories", dataclasses.replace(_DEEPFM, categories=False), "at least 0.05 below"),
)
_DENSE = DenseRuleConfig(name="adam", options={"lr": 1e-3})
_SPARSE = RuleConfig(name="rowwise_adagrad", options={"lr": 0.02, "eps": 1e-8, "initial_accumulator": 0.0})


@dataclass(kw_only=True)
class Config:
    """The main job on generated data.

    Args:
        lake: folder for the data, the tables and the runs; a second demo there goes on where the first ended.
        rows: good rows to generate over all days.
        days: day files; the last is the test day, the one before validates.
        bad_rows: damaged lines to plant: they must all end in quarantine.
        seed: of the data and of training.
        ranks: ranks that train.
        launcher: who starts them: horovod, torch or local.
        batch_size: rows of a global batch.
        epochs: passes over the training days; at 10M rows one is enough.
        min_count: a category enters the vocabulary when it stands so often in the training days.
    """

    lake: str = "demo"
    rows: int = 1_000_000
    days: int = 7
    bad_rows: int = 70
    seed: int = 1
    ranks: int = 2
    launcher: str = "horovod"
    batch_size: int = 2048
    epochs: int = 3
    min_count: int = 100


def slots(cfg: Config) -> int:
    """Spark tasks that must run at once."""
    return cfg.ranks


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Generate, ingest, featurize, train three models; print the account and the table."""
    data, lake = str(Path(cfg.lake) / "data"), str(Path(cfg.lake) / "lake")
    best = _prepare(spark, cfg, data, lake, report)
    trained = {c.label: _train(spark, cfg, c, lake, report) for c in CONTENDERS}
    results = {label: sub.results for label, sub in trained.items()}
    report.say(table(best, results))
    report.results |= {"best": best} | {label: _figures(best, r) for label, r in results.items()}
    report.say(_account(report, list(trained.values())))
    report.say(f"\nheadrace rows {data}/day_0.gz --lake {lake}\nheadrace compare --lake {lake}")
    last = next(iter(trained.values()))
    report.paths |= {"data": data, "lake": lake, "run": last.paths["run"]}
    if line := last.results.get("mlflow_ui"):
        report.say(str(line))
        report.results["mlflow_ui"] = line
    return report


def _account(report: Report, trained: list[Report]) -> str:
    """The rows of ingest and of training, as they were counted."""
    ingest = [stage for stage in report.stages if stage.name == "ingest"]
    read, out = sum(stage.rows_in or 0 for stage in ingest), sum(stage.rows_out or 0 for stage in ingest)
    refused = sum(stage.quarantined or 0 for stage in ingest)
    epochs = [audit for part in trained for audit in part.results["audits"]]
    seen, dropped = sum(audit["rows"] for audit in epochs), sum(audit["dropped"] for audit in epochs)
    return (
        f"{read:,} rows read = {out:,} committed + {refused:,} in quarantine;"
        f" {len(epochs)} epochs = {seen:,} rows, each once, proved by their keys ({dropped:,} dropped at epochs' ends)"
    )


def table(best: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """Test AUC and logloss of each model beside the best that any model could reach."""
    lines = [
        "",
        f"{'test day':<16}{'AUC':>9}{'below best':>12}{'logloss':>10}{'above best':>12}   the planted model says",
        f"{'best possible':<16}{best['best_auc']:>9.4f}{'':>12}{best['best_logloss']:>10.4f}",
    ]
    for contender in CONTENDERS:
        figures = _figures(best, results[contender.label])
        lines.append(
            f"{contender.label:<16}{figures['auc']:>9.4f}{figures['auc_below_best']:>12.4f}"
            f"{figures['logloss']:>10.4f}{figures['logloss_above_best']:>12.4f}   {contender.expected}"
        )
    return "\n".join([*lines, ""])


def _prepare(spark: SparkSession, cfg: Config, data: str, lake: str, report: Report) -> dict[str, Any]:
    """Data and tables; returns what the best possible model scores on the test day."""
    generate = generate_criteo.Config(
        dest=data, rows=cfg.rows, days=cfg.days, seed=cfg.seed, bad_rows=cfg.bad_rows, overwrite=False
    )
    made = generate_criteo.run(spark, generate, report.part("generate-criteo"))
    ingest = ingest_criteo.Config(lake=lake, source=f"{data}/day_*")
    ingest_criteo.run(spark, ingest, report.part("ingest-criteo"))
    features = featurize_ctr.Config(lake=lake, min_count=cfg.min_count, categories="vocabulary")
    featurize_ctr.run(spark, features, report.part("featurize-ctr"))
    if "test" not in made.results:
        raise UserError(f"--days {cfg.days}: the demo needs a day each to train, validate and test", "--days 7")
    return dict(made.results["test"])


def _train(spark: SparkSession, cfg: Config, contender: Contender, lake: str, report: Report) -> Report:
    part = report.part("train-ctr")
    part.say(f"\n{contender.label}: {cfg.ranks} ranks by {cfg.launcher}")
    settings = train_ctr.Config(
        lake=lake,
        ranks=cfg.ranks,
        launcher=cfg.launcher,
        seed=cfg.seed,
        model=contender.model,
        optimizer=OptimizerConfig(dense=_DENSE, sparse=_SPARSE),
        train=LoopSettings(batch_size=cfg.batch_size, epochs=cfg.epochs),
    )
    return train_ctr.run(spark, settings, part)


def _figures(best: dict[str, Any], results: dict[str, Any]) -> dict[str, float]:
    return {
        "auc": results["test_auc"],
        "auc_below_best": best["best_auc"] - results["test_auc"],
        "logloss": results["test_logloss"],
        "logloss_above_best": results["test_logloss"] - best["best_logloss"],
    }
