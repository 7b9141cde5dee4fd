"""silver/ratings -> MLlib's ALS -> gold/user_recommendations, gold/item_recommendations, and how good it is.

Explicit ratings: RMSE over the test rows. Explicit and implicit: precision, recall, NDCG and MAP at k over the test
rows that count as liked. What a user has rated in earlier splits is not recommended. Users and items that no training
row has are counted, in every figure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.baselines import RECOMMENDER, create, having, options_of
from headrace.baselines.ranking import Ranking, rank
from headrace.baselines.ratings import COLD, KINDS, RatingsAccount, check_ratings, errors, known_rmse, recommend
from headrace.catalog.delta import exists, read, write
from headrace.catalog.pinned import PinnedTable, pin
from headrace.catalog.scratch import scratch
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.split import SPLITS
from headrace.options import known
from headrace.pipelines.baseline_fit import Tuning, fit
from headrace.pipelines.baseline_run import BaselineRun, Costs
from headrace.pipelines.baseline_settings import ModelOptions, TuningConfig, check_model, search_of
from headrace.pipelines.splits import with_other_splits
from headrace.train.tracking import TrackingConfig

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.report import Report

MEASURED = True
SILVER, IDS = "silver/ratings", "silver/rating_ids"
GOLD = {"user": "gold/user_recommendations", "item": "gold/item_recommendations"}
(NAME,) = having(RECOMMENDER)
_WEIGHTED = ("linear", "log")


@dataclass(kw_only=True)
class Config:
    """Fit a recommender by alternating least squares.

    Args:
        lake: directory of the tables; runs go to LAKE/runs.
        table_version: version of silver/ratings; default: the newest.
        model: the model's options.
        k: length of the lists of recommendations, and of the lists that are judged.
        liked: ratings from here on count as liked, of explicit ratings.
        cold_start: count (a row of an unknown user or item is predicted by the mean, an unknown user's list is empty)
            or exclude (such rows and users are counted, and left out of the means).
        recommend: write recommendations; false: judge only.
        tune: none, cross_validation (by the table's column fold, where it has --tuning.folds of them) or
            train_validation: try the values of --tuning.grid.
        tuning: how.
        tracking: where the run is recorded.
        seed: of the first factors.
    """

    lake: str
    table_version: int | None = None
    model: ModelOptions = field(default_factory=ModelOptions)
    k: int = 10
    liked: float = 4.0
    cold_start: str = "count"
    recommend: bool = True
    tune: str = "none"
    tuning: TuningConfig = field(default_factory=TuningConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0


@dataclass(frozen=True)
class _Ratings:
    """silver/ratings pinned and checked; `frame` has what ALS reads: rating, and of implicit ones what it weighs by."""

    frame: DataFrame
    tables: dict[str, PinnedTable]
    accounts: dict[str, RatingsAccount]
    options: dict[str, Any]

    @property
    def folds(self) -> int:
        """How many there are in the column fold; 0 where the table does not say."""
        return int((self.tables["train"].metadata.get("request") or {}).get("folds", 0))

    @property
    def implicit(self) -> bool:
        """Preferences, not ratings, are fitted."""
        return bool(self.options["implicit_prefs"])

    def of(self, *splits: str) -> DataFrame:
        """The rows of some splits."""
        return self.frame.where(self.frame["split"].isin(*splits))


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting, no table.
    """
    known("cold_start", cfg.cold_start, COLD)
    check_model(NAME, cfg.model, cfg.tune, cfg.tuning)
    if not 1 <= cfg.k <= 10_000:
        raise UserError(f"--k {cfg.k} is out of range", "1 to 10,000")
    if cfg.tune != "none" and options_of(NAME, cfg.model.options)["implicit_prefs"]:
        raise UserError(
            "--tune judges by RMSE, which says nothing of implicit preferences", "run once a setting, then compare"
        )
    if not exists(load(SILVER).path(cfg.lake)):
        raise UserError(f"there is no {SILVER} in --lake {cfg.lake}", f"headrace featurize-ratings --lake {cfg.lake}")


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Fit, judge, recommend; see the module's docstring.

    Raises:
        UserError: a setting or rows that the user can mend.
    """
    early(cfg)
    report.results |= {"model": NAME, "optimizer": None}
    with Costs(spark) as costs:
        data = _open(spark, cfg, report)
        report.results["table"] = str(data.tables["train"])
        kept = BaselineRun(cfg, NAME, report, costs, spark.sparkContext.defaultParallelism)
        _run(spark, kept, cfg, data)
    kept.close()
    return report


def _run(spark: SparkSession, kept: BaselineRun, cfg: Config, data: _Ratings) -> None:
    report, name = kept.report, str(data.tables["train"])
    with kept:
        kept.start({"model": NAME, "launcher": "spark", "input": name}, data.tables)
        with report.stage("train") as stage, _checkpoints(spark, cfg):
            model = _fit(kept, cfg, data)
            stage.rows_in = stage.rows_out = data.accounts["train"].rows
        with report.stage("evaluate") as stage:
            judged = [split for split in SPLITS[1:] if split in data.accounts]
            for split in judged:
                _evaluate(kept, cfg, data, model, split)
            stage.rows_in = stage.rows_out = sum(data.accounts[split].rows for split in judged)
        if cfg.recommend:
            _recommend(spark, kept, cfg, data, model)
        with report.stage("record"):
            kept.finish({"table": name})


def _open(spark: SparkSession, cfg: Config, report: Report) -> _Ratings:
    spec = load(SILVER)
    with report.stage("pin") as stage:
        first = pin(spec, cfg.lake, cfg.table_version, {"split": "train"})
        tables = with_other_splits(first, cfg.lake, stage)
    options = options_of(NAME, cfg.model.options)
    made_by = dict(first.metadata.get("request") or {})
    frame = _as_read(read(spark, spec, cfg.lake, first.version), made_by, options)
    with report.stage("check") as stage:
        accounts = check_ratings(frame)
        stage.rows_in = stage.rows_out = sum(account.rows for account in accounts.values())
    train = accounts["train"]
    if not options["implicit_prefs"] and train.lowest == train.highest:
        raise UserError(f"rating: all {train.rows:,} training rows have {train.lowest:g}: nothing can be learned of it",
                        "--model.implicit_prefs true, where a row says that something was seen")  # fmt: skip
    return _Ratings(frame, tables, accounts, options)


def _as_read(frame: DataFrame, made_by: Mapping[str, Any], options: dict[str, Any]) -> DataFrame:
    """Rating as MLlib takes it: its confidence in a preference is 1 + alpha x rating.

    Where the table has confidences already (--implicit linear or log), rating is weight - 1, and alpha 1.
    """
    from pyspark.sql import functions as F

    if options["implicit_prefs"] and made_by.get("implicit") in _WEIGHTED:
        options["alpha"] = 1.0
        frame = frame.withColumn("rating", F.col("weight") - 1)
    return frame.select("user", "item", "rating", "fold", "split")


@contextlib.contextmanager
def _checkpoints(spark: SparkSession, cfg: Config) -> Iterator[None]:
    """Where factors are put down every few iterations, so that the plan does not grow without end."""
    before = spark.sparkContext.getCheckpointDir()
    with scratch(cfg.lake, "baseline-als") as place:
        spark.sparkContext.setCheckpointDir(place)
        try:
            yield
        finally:
            if before is not None:  # Spark has no way to have none again
                spark.sparkContext.setCheckpointDir(before)


def _fit(kept: BaselineRun, cfg: Config, data: _Ratings) -> Any:
    """The model as it was saved: a fitted one drags all iterations since its last checkpoint behind it, and each use of
    it would send their plan along."""
    from pyspark.ml.recommendation import ALSModel

    estimator = create(NAME, seed=cfg.seed, **data.options)
    rows, tuning = data.of("train"), None
    if cfg.tune != "none":
        judge = known_rmse()
        fold = "fold" if data.folds == cfg.tuning.folds else ""
        tuning = Tuning(cfg.tuning.grid, judge, search_of(cfg.tune, cfg.tuning, cfg.seed, fold))
    fitted = fit(kept, NAME, estimator, rows, data.options, tuning)
    if tuning is not None:
        cold = [unknown for _, unknown in judge.seen]
        kept.report.say(
            f"  rows of users or items that a fold's training rows have not: {min(cold):,} to {max(cold):,}"
        )
    return ALSModel.load(kept.save(fitted.model))


def _evaluate(kept: BaselineRun, cfg: Config, data: _Ratings, model: Any, split: str) -> None:
    """RMSE and ranking of one split, as one event; the test's figures are the run's."""
    earlier = SPLITS[: SPLITS.index(split)]
    found = errors(model, data.of(split), data.accounts["train"].mean)
    figures: dict[str, Any] = asdict(found)
    warm, everything = figures.pop("rmse_warm"), figures.pop("rmse_all")
    if not data.implicit:  # of a preference there is no error
        chosen = everything if cfg.cold_start == "count" else warm
        figures |= {"rmse": chosen, "rmse_warm": warm, "rmse_all": everything}
    kept.report.say(
        f"{split}: {found.cold:,} of {found.rows:,} rows are of a user ({found.cold_users:,}) or an item "
        f"({found.cold_items:,}) that no training row has"
    )
    ranking = _ranking(cfg, data, model, split, earlier)
    named = {"precision", "recall", "ndcg", "map"}
    figures |= {f"{name}_at_k" if name in named else name: value for name, value in asdict(ranking).items()}
    kept.event({"type": "eval", "split": split, "step": 0, "metrics": figures, "curves": {}})
    if split == "test":
        kept.report.results |= {f"test_{name}": value for name, value in figures.items()}
    else:
        kept.report.results[split] = figures


def _ranking(cfg: Config, data: _Ratings, model: Any, split: str, earlier: tuple[str, ...]) -> Ranking:
    from pyspark.sql import functions as F

    rows = data.of(split)
    relevant = rows if data.implicit else rows.where(F.col("rating") >= F.lit(cfg.liked))
    lists = recommend(model, "user", cfg.k, data.of(*earlier))
    return rank(lists, relevant.select("user", "item"), model.userFactors, cfg.k, cfg.cold_start)


def _recommend(spark: SparkSession, kept: BaselineRun, cfg: Config, data: _Ratings, model: Any) -> None:
    """Append both tables."""
    ids = _ids(spark, cfg, data)
    for kind in KINDS:
        spec = load(GOLD[kind])
        with kept.report.stage(f"recommend {kind}s") as stage:
            rows = _named(recommend(model, kind, cfg.k, data.of(*SPLITS[:2])), ids, kept, data)
            metadata = {"run_id": kept.directory.name, "ratings_version": data.tables["train"].version, "k": cfg.k}
            commit = write(rows, spec, cfg.lake, metadata=metadata, batch_id=kept.directory.name)
            known_ids = (model.userFactors if kind == "user" else model.itemFactors).count()
            stage.rows_in, stage.rows_out = known_ids, commit.rows_added
            stage.note = f"{known_ids:,} {kind}s, {spec.name}@{commit.version}"
        kept.report.paths[f"{kind}_recommendations"] = commit.path
        kept.report.results |= {f"{kind}s": known_ids, f"{kind}_recommendations": commit.rows_added}


def _ids(spark: SparkSession, cfg: Config, data: _Ratings) -> dict[str, DataFrame]:
    """By kind, numbers and what they were in bronze, of this data set."""
    from pyspark.sql import functions as F

    metadata = data.tables["train"].metadata
    dataset = (metadata.get("request") or {}).get("dataset")
    table = read(spark, load(IDS), cfg.lake, metadata.get("ids_version")).where(F.col("dataset") == F.lit(dataset))
    return {
        kind: table.where(F.col("kind") == kind).select(F.col("id").alias(kind), F.col("value").alias(f"{kind}_id"))
        for kind in KINDS
    }


def _named(lists: DataFrame, ids: Mapping[str, DataFrame], kept: BaselineRun, data: _Ratings) -> DataFrame:
    from pyspark.sql import functions as F

    for kind, numbers in ids.items():
        lists = lists.join(numbers, kind)
    version = data.tables["train"].version
    return lists.withColumn("run_id", F.lit(kept.directory.name)).withColumn(
        "table_version", F.lit(version).cast("bigint")
    )
