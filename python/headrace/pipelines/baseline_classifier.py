"""A classifier of MLlib on the rows, and by the metrics, of the deep click models: linear SVM, factorization machine,
boosted trees; logistic regression has a verb of its own, which is this one with a choice of solvers.

silver/ctr's test days go to gold/ctr_predictions, as score-ctr's do. LIBSVM files and other Delta tables are read as
well; more than two classes where the model tells them apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.baselines import BASELINES, CLASSIFIER, LOGISTIC, create, having, options_of
from headrace.baselines.scores import Scorer, evaluate, evaluate_classes
from headrace.baselines.spec import MARGIN
from headrace.catalog.delta import WriteOptions, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.options import known
from headrace.pipelines.baseline_data import Dataset, InputConfig, check_input, open_rows
from headrace.pipelines.baseline_fit import Fitted, Tuning, fit
from headrace.pipelines.baseline_run import BaselineRun, Costs
from headrace.pipelines.baseline_settings import ModelOptions, TuningConfig, check_model, search_of
from headrace.train.tracking import TrackingConfig

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.report import Report, Stage

MEASURED = True
GOLD = "gold/ctr_predictions"
NAMES = tuple(name for name in having(CLASSIFIER) if name not in having(LOGISTIC))
_RESULTS = {
    "auc": "test_auc",
    "logloss": "test_logloss",
    "normalized_entropy": "test_ne",
    "calibration": "test_calibration",
    "accuracy": "test_accuracy",
    "f1": "test_f1",
}


@dataclass(kw_only=True)
class ClassifierConfig:
    """What all classifiers are told.

    Args:
        lake: directory of the tables; runs go to LAKE/runs.
        input: the rows.
        model: the model's options.
        tune: none, cross_validation or train_validation: try the values of --tuning.grid.
        tuning: how.
        tracking: where the run is recorded.
        seed: of whatever is drawn.
    """

    lake: str
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelOptions = field(default_factory=ModelOptions)
    tune: str = "none"
    tuning: TuningConfig = field(default_factory=TuningConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0


@dataclass(kw_only=True)
class Config(ClassifierConfig):
    """Fit a classifier of MLlib.

    Args:
        name: linear_svc, fm (factorization machine) or gbt (boosted trees).
    """

    name: str = "gbt"


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting, no table.
    """
    known("name", cfg.name, NAMES)
    check(cfg, cfg.name)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Fit, judge, keep.

    Raises:
        UserError: a setting or rows that the user can mend.
    """
    early(cfg)
    return run_classifier(spark, cfg, cfg.name, cfg.name, report)


def check(cfg: ClassifierConfig, name: str) -> None:
    """Refuse settings that cannot be, for a baseline."""
    check_model(name, cfg.model, cfg.tune, cfg.tuning)
    check_input(cfg.input, cfg.lake, BASELINES[name])


def run_classifier(spark: SparkSession, cfg: ClassifierConfig, name: str, shown: str, report: Report) -> Report:
    """Fit, judge and keep the baseline `name`, which the table of runs calls `shown`."""
    spec = BASELINES[name]
    report.results |= {"model": shown, "optimizer": name if name != shown else None}
    create(name, seed=cfg.seed, **cfg.model.options)  # a jar that lacks it is refused before rows are looked at
    with Costs(spark) as costs:
        data = open_rows(spark, cfg.lake, cfg.input, spec, cfg.seed, report)
        report.results |= {"table": data.name, "features": data.width} | data.about
        kept = BaselineRun(cfg, shown, report, costs, spark.sparkContext.defaultParallelism)
        _run(kept, cfg, name, data)
    kept.close()
    return report


def _run(kept: BaselineRun, cfg: ClassifierConfig, name: str, data: Dataset) -> None:
    report, shown = kept.report, kept.report.results["model"]
    with kept:
        kept.start({"model": shown, "solver": name, "launcher": "spark", "input": data.name}, data.tables)
        with report.stage("train") as stage:
            fitted = _fit(kept, cfg, name, data)
            stage.rows_in = stage.rows_out = data.accounts["train"].rows
        with report.stage("evaluate") as stage:
            _evaluate(kept, cfg, name, data, fitted, stage)
        with report.stage("record"):
            kept.save(fitted.model)
            kept.finish(data.about)


def _fit(kept: BaselineRun, cfg: ClassifierConfig, name: str, data: Dataset) -> Fitted:
    options = options_of(name, cfg.model.options)
    if options.get("family") == "binomial" and not data.binary:
        raise UserError(f"--model.family binomial: {data.columns.label} has more than two classes", "leave it out")
    estimator = create(name, data.columns, cfg.seed, **cfg.model.options)
    tuning = None
    if cfg.tune != "none":
        tuning = Tuning(cfg.tuning.grid, _evaluator(data), search_of(cfg.tune, cfg.tuning, cfg.seed))
    return fit(kept, name, estimator, data.splits["train"], options, tuning)


def _evaluator(data: Dataset) -> Any:
    from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator

    read: dict[str, Any] = {"labelCol": data.columns.label}
    read |= {"weightCol": data.columns.weight} if data.columns.weight else {}
    if data.binary:
        return BinaryClassificationEvaluator(numBins=0, **read)  # 0: of all scores, not of bins
    return MulticlassClassificationEvaluator(**read | {"metricName": "logLoss"})


def _evaluate(kept: BaselineRun, cfg: ClassifierConfig, name: str, data: Dataset, fitted: Fitted, stage: Stage) -> None:
    """Validation and test, each with one event; the test's figures are the run's."""
    judged = {split: frame for split, frame in data.splits.items() if split != "train"}
    stage.rows_in = stage.rows_out = sum(data.accounts[split].rows for split in judged)
    scorer = _scorer(name, data, fitted, kept.report) if data.binary else None
    for split, frame in judged.items():
        figures, curves = _figures(scorer, fitted.model, data, frame, split, kept, cfg)
        event = {"type": "eval", "split": split, "step": kept.report.results.get("iterations") or 0}
        kept.event({**event, "metrics": figures, "curves": curves})
        if split == "test":
            kept.report.results |= {ours: figures[theirs] for theirs, ours in _RESULTS.items() if theirs in figures}
        else:
            kept.report.results[split] = figures


def _figures(
    scorer: Scorer | None, model: Any, data: Dataset, frame: DataFrame, split: str, kept: BaselineRun,
    cfg: ClassifierConfig,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Figures and curves of a split; scores of the test rows are kept where rows have keys."""
    from pyspark import StorageLevel

    if scorer is None:
        return dict(evaluate_classes(model, frame, data.columns)), {}
    names = ("key", "day") if data.keyed else ()
    scored = scorer.logits(frame, (*names, data.columns.label)).persist(StorageLevel.DISK_ONLY)
    try:
        found = evaluate(scored, data.columns.label)
        if data.keyed and split == "test":
            _keep_predictions(scored, data, kept, cfg.lake)
        return found.metrics.to_dict(), found.curves
    finally:
        scored.unpersist()


def _scorer(name: str, data: Dataset, fitted: Fitted, report: Report) -> Scorer:
    """The model as logits; where its score is a margin, fitted to validation rows, or to training rows without any."""
    scorer = Scorer(fitted.model, BASELINES[name], data.columns)
    if MARGIN not in scorer.spec.traits:
        return scorer
    usable = len(data.accounts.get("validation", data.accounts["train"]).classes) == 2
    split = "validation" if "validation" in data.splits and usable else "train"
    scorer = scorer.calibrated(data.splits[split])
    report.results["calibration"] = asdict(scorer.calibration) | {"fitted_to": split}
    return scorer


def _keep_predictions(scored: DataFrame, data: Dataset, kept: BaselineRun, lake: str) -> None:
    """Append the test rows' probabilities to gold/ctr_predictions as one batch of the run."""
    from pyspark.sql import functions as F

    version = data.tables["test"].version
    run_id, batch = kept.directory.name, f"{kept.directory.name}:{data.name}:test"
    rows = scored.select(
        "key",
        "day",
        F.col("label").cast("float").alias("label"),
        (1 / (1 + F.exp(-F.col("logit").cast("double")))).alias("probability"),
        F.lit(run_id).alias("run_id"),
        F.lit(version).cast("bigint").alias("table_version"),
        F.lit(batch).alias("batch"),
    )
    options = WriteOptions(txn=(f"baseline {batch}", 1))
    metadata = {"batch": batch, "run_id": run_id, "silver_version": version}
    commit = write(rows, load(GOLD), lake, metadata=metadata, batch_id=batch, options=options)
    kept.report.paths["predictions"] = commit.path
    kept.report.results |= {"predictions_version": commit.version, "predictions": commit.rows_added, "batch": batch}
