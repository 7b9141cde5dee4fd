"""bronze/ratings -> silver/rating_ids and silver/ratings: clean, number, split; one commit each.

The numbers are committed first, the rows after them in one overwrite. A run killed between the two finds, when started
again, nothing to add to the numbers and goes on to the rows; a run with the same input and settings does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import WriteOptions, commit_metadata, ensure, exists, latest_version, read, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import layout, ratings
from headrace.features.ratings import DUPLICATES, IMPLICIT, KINDS, SPLIT_BY, Shares
from headrace.features.split import SPLITS
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BRONZE, IDS, SILVER = "bronze/ratings", "silver/rating_ids", "silver/ratings"


@dataclass(kw_only=True)
class SplitConfig:
    """Which rows train, validate, test.

    Args:
        by: time (before a moment, after it), leave_last (each user's last rows judge), user (all rows of a user, by a
            hash) or random (each row, by a hash of its key).
        validation: share that validates (time, user, random).
        test: share that tests.
        validation_rows: rows of each user that validate (leave_last).
        test_rows: rows of each user that test.
        seed: of the hashes.
    """

    by: str = "time"
    validation: float = 0.1
    test: float = 0.1
    validation_rows: int = 1
    test_rows: int = 1
    seed: int = 0


@dataclass(kw_only=True)
class Config:
    """Settings of featurize-ratings.

    Args:
        lake: directory of the tables.
        dataset: which data set of bronze/ratings; may be left out where there is one.
        split: which rows train, validate, test.
        duplicates: what a pair's several rows become: its last rating, their mean, sum or count; or keep them all.
        implicit: none (ratings stay), binary (1 for each pair that is left, weight 1), linear (weight 1 + alpha rating)
            or log (weight 1 + alpha ln(1 + rating)).
        alpha: of the weights.
        threshold: lower ratings are left out, after duplicates are merged.
        min_user: users with fewer ratings are left out, and
        min_item: items with fewer, until all have enough.
        cold_start: what becomes of rows that judge a user or item which no training row has: keep or drop.
        folds: number of random folds, in the column fold.
        ids: grow (numbers never change) or rebuild (start again from 0; old versions stay readable).
        bronze_version: version of bronze/ratings to read; default: the newest.
        seed: of the hash that orders the rows.
        rows_per_file: about so many rows in a file.
        rows_per_group: rows of a Parquet row group.
    """

    lake: str
    dataset: str = ""
    split: SplitConfig = field(default_factory=SplitConfig)
    duplicates: str = "last"
    implicit: str = "none"
    alpha: float = 40.0
    threshold: float | None = None
    min_user: int = 1
    min_item: int = 1
    cold_start: str = "keep"
    folds: int = 5
    ids: str = "grow"
    bronze_version: int | None = None
    seed: int = 0
    rows_per_file: int = 2_097_152
    rows_per_group: int = 65_536


@dataclass(frozen=True)
class _Source:
    """What this run reads, and the request that names the result."""

    rows: DataFrame
    dataset: str
    version: int
    request: Mapping[str, Any]


@dataclass
class _Account:
    """Rows of the data set in bronze, and what became of them."""

    read: int = 0
    duplicates: int = 0
    below_threshold: int = 0
    outside_core: int = 0
    core_rounds: int = 0
    cold_dropped: int = 0

    @property
    def kept(self) -> int:
        """Rows that must be in silver."""
        return self.read - self.duplicates - self.below_threshold - self.outside_core - self.cold_dropped


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, nothing to featurize.
    """
    choices: dict[str, tuple[str, ...]] = {"duplicates": DUPLICATES, "implicit": IMPLICIT}
    choices |= {"cold_start": ("keep", "drop"), "ids": ("grow", "rebuild")}
    for name, allowed in choices.items():
        if getattr(cfg, name) not in allowed:
            raise UserError(f"--{name} {getattr(cfg, name)!r} is unknown", f"one of {', '.join(allowed)}")
    split = cfg.split
    if split.by not in SPLIT_BY:
        raise UserError(f"--split.by {split.by!r} is unknown", f"one of {', '.join(SPLIT_BY)}")
    if min(split.validation, split.test) < 0 or split.validation + split.test >= 1:
        raise UserError("--split.validation and --split.test are shares, together under 1", "0.1 and 0.1")
    if min(split.validation_rows, split.test_rows) < 0:
        raise UserError("--split.validation_rows and --split.test_rows are 0 or more", "1 and 1")
    if not 1 <= cfg.folds <= 10_000 or cfg.alpha < 0:
        raise UserError("--folds goes from 1 to 10,000, --alpha is 0 or more", "leave them out")
    if cfg.rows_per_file < 1 or cfg.rows_per_group < layout.MIN_GROUP_ROWS:
        raise UserError(f"--rows_per_file is at least 1, --rows_per_group {layout.MIN_GROUP_ROWS}", "leave them out")
    if not exists(load(BRONZE).path(cfg.lake)):
        raise UserError(f"there is no {BRONZE} in --lake {cfg.lake}", f"headrace ingest-ratings --lake {cfg.lake} ...")


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Featurize; see the module's docstring.

    Raises:
        UserError: a setting out of range, no ratings, no timestamps where the split wants them.
    """
    from pyspark import StorageLevel

    early(cfg)
    silver = load(SILVER)
    report.paths |= {"silver": silver.path(cfg.lake), "ids": load(IDS).path(cfg.lake)}
    source = _open(spark, cfg)
    if cfg.ids == "grow" and _done(cfg, source, report):
        return report
    held: list[DataFrame] = []

    def keep(frame: DataFrame) -> DataFrame:
        held.append(frame.persist(StorageLevel.DISK_ONLY))
        return held[-1]

    account = _Account()
    try:
        rows = _clean(cfg, source, account, keep, report)
        version = _number(spark, cfg, source, rows, report)
        _featurize(spark, cfg, source, rows, version, account, keep, report)
    finally:
        for frame in held:
            frame.unpersist()
    return report


def _open(spark: SparkSession, cfg: Config) -> _Source:
    from pyspark.sql import functions as F

    bronze = load(BRONZE)
    version = latest_version(bronze.path(cfg.lake)) if cfg.bronze_version is None else cfg.bronze_version
    table = read(spark, bronze, cfg.lake, version)
    found = sorted(row["dataset"] for row in table.select("dataset").distinct().collect())
    if not found:
        raise UserError(f"{BRONZE} version {version} holds no rating", "headrace quarantine --source ratings says why")
    if cfg.dataset not in found and (cfg.dataset or len(found) > 1):
        problem = (
            f"no data set {cfg.dataset!r} in {BRONZE}" if cfg.dataset else f"{BRONZE} holds {len(found)} data sets"
        )
        raise UserError(problem, f"--dataset, one of {', '.join(found)}")
    dataset = cfg.dataset or found[0]
    settings = {name: value for name, value in asdict(cfg).items() if name not in ("lake", "ids")}
    rows = table.where(F.col("dataset") == dataset).select("key", "user", "item", "rating", "timestamp")
    return _Source(rows, dataset, version, settings | {"dataset": dataset, "bronze_version": version})


def _done(cfg: Config, source: _Source, report: Report) -> bool:
    """Is the newest version what this run would make?"""
    path = load(SILVER).path(cfg.lake)
    if not exists(path):
        return False
    made = commit_metadata(path, latest_version(path))
    if made.get("request") != source.request:
        return False
    report.say(f"nothing to do: {SILVER} was made from the same input with the same settings")
    report.results |= {"nothing_to_do": True, **{name: made.get(name) for name in ("rows", "cardinalities", "account")}}
    return True


def _clean(cfg: Config, source: _Source, account: _Account, keep: Any, report: Report) -> DataFrame:
    """Without duplicates, low ratings, and what is outside the core; each counted."""
    from pyspark.sql import functions as F

    with report.stage("clean") as stage:
        counted = source.rows.agg(F.count(F.lit(1)).alias("rows"), F.count("timestamp").alias("timed")).first()
        assert counted is not None
        account.read = counted["rows"]
        if cfg.split.by in ("time", "leave_last") and counted["timed"] < account.read:
            raise UserError(
                f"{account.read - counted['timed']:,} of {account.read:,} ratings have no timestamp, and the split "
                f"goes by {cfg.split.by}",
                "--split.by random, or --split.by user",
            )
        rows = keep(ratings.merge_duplicates(source.rows, cfg.duplicates))
        merged = rows.count()
        account.duplicates = account.read - merged
        if cfg.threshold is not None:
            rows = keep(rows.where(F.col("rating") >= cfg.threshold))
            account.below_threshold = merged - rows.count()
        rows, removed = ratings.k_core(rows, {"user": cfg.min_user, "item": cfg.min_item}, keep)
        account.outside_core, account.core_rounds = sum(removed), len(removed)
        stage.rows_in, stage.rows_out = account.read, account.kept
        stage.note = (
            f"duplicates {account.duplicates:,}, below the threshold {account.below_threshold:,}, outside the core "
            f"{account.outside_core:,} ({account.core_rounds} rounds)"
        )
    if not account.kept:
        raise UserError("no rating is left", "lower --threshold, --min_user, --min_item")
    return rows


def _number(spark: SparkSession, cfg: Config, source: _Source, rows: DataFrame, report: Report) -> int:
    """Give numbers to users and items that have none; the version of silver/rating_ids that knows all."""
    from pyspark.sql import functions as F

    spec = load(IDS)
    ensure(spark, spec, cfg.lake)
    with report.stage("ids") as stage:
        version = latest_version(spec.path(cfg.lake))
        known = read(spark, spec, cfg.lake, version).where(F.col("dataset") == source.dataset)
        fresh = cfg.ids == "rebuild"
        known = known.limit(0) if fresh else known
        last = known.agg(F.max("generation")).first()
        generation = 0 if last is None or last[0] is None else last[0] + 1
        new = ratings.grow_ids(rows, known, generation).withColumn("dataset", F.lit(source.dataset)).coalesce(1)
        new = new.sortWithinPartitions("kind", "id").persist()
        try:
            stage.rows_out = new.count()
            if stage.rows_out or fresh:
                version = _commit_ids(new, cfg, source, version, fresh)
        finally:
            new.unpersist()
        stage.note = (
            f"version {version}, generation {generation}" if stage.rows_out else f"version {version}: all known"
        )
    return version


def _commit_ids(new: DataFrame, cfg: Config, source: _Source, version: int, fresh: bool) -> int:
    # Two appends do not conflict by themselves, and would give one user two numbers: this lets one of them in.
    name = source.dataset.replace("'", "''")
    options = WriteOptions(
        txn=("featurize-ratings ids", version + 1), replace_where=f"dataset = '{name}'" if fresh else None
    )
    mode = "overwrite" if fresh else "append"
    metadata = {"dataset": source.dataset, "bronze_version": source.version}
    commit = write(new, load(IDS), cfg.lake, mode=mode, metadata=metadata, options=options)
    if commit.skipped:
        raise UserError(f"another featurize-ratings added to {IDS} at the same time", "run it again")
    return commit.version


def _featurize(
    spark: SparkSession,
    cfg: Config,
    source: _Source,
    rows: DataFrame,
    ids_version: int,
    account: _Account,
    keep: Any,
    report: Report,
) -> None:
    from pyspark.sql import functions as F

    with report.stage("featurize") as stage:
        ids = read(spark, load(IDS), cfg.lake, ids_version).where(F.col("dataset") == source.dataset)
        split, moments = _split(cfg.split, rows)
        made = ratings.add_fold(ratings.prefer(ratings.mark_cold(split), cfg.implicit, cfg.alpha), cfg.folds)
        made = keep(ratings.number_ids(made, ids))
        counts = _counts(made)
        if cfg.cold_start == "drop":
            account.cold_dropped = sum(each["cold"] for each in counts.values())
            made = made.where(~F.col("cold_user") & ~F.col("cold_item"))
        files = layout.files_for({name: each["rows"] for name, each in counts.items()}, cfg.rows_per_file)
        spec = load(SILVER)
        laid = ratings.lay_out(made.select(*[column.name for column in spec.columns]), files, cfg.seed)
        cardinalities = {row["kind"]: row["n"] for row in ids.groupBy("kind").agg(F.count("*").alias("n")).collect()}
        figures = {"cardinalities": cardinalities, "splits": counts, "account": asdict(account)}
        metadata = {"request": dict(source.request), "bronze_version": source.version, "ids_version": ids_version}
        with layout.row_groups(spark, cfg.rows_per_group):
            commit = write(laid, spec, cfg.lake, mode="overwrite", metadata=metadata | figures | {"moments": moments})
        if commit.rows != account.kept:
            raise RuntimeError(
                f"the account does not close: {account.kept} rows were to be in {SILVER} version {commit.version}, "
                f"{commit.rows} are; do not train on it"
            )
        stage.rows_in, stage.rows_out = account.kept + account.cold_dropped, commit.rows
        stage.note = ", ".join(f"{name} {each['rows']:,}" for name, each in counts.items())
    report.results |= {"table": SILVER, "version": commit.version, "rows": commit.rows} | figures
    _remark(counts, account, report)


def _split(cfg: SplitConfig, rows: DataFrame) -> tuple[DataFrame, dict[str, int]]:
    shares = Shares(cfg.validation, cfg.test)
    if cfg.by == "time":
        return ratings.split_by_time(rows, shares)
    if cfg.by == "leave_last":
        return ratings.split_leave_last(rows, cfg.validation_rows, cfg.test_rows), {}
    return ratings.split_by_hash(rows, "user" if cfg.by == "user" else "key", shares, cfg.seed), {}


def _counts(rows: DataFrame) -> dict[str, dict[str, Any]]:
    """By split: rows, users, items, mean rating, and rows whose user, item, or either no training row has."""
    from pyspark.sql import functions as F

    cold = {"cold_users": F.col("cold_user"), "cold_items": F.col("cold_item")}
    cold |= {"cold": F.col("cold_user") | F.col("cold_item")}
    sums = [F.count_if(condition).alias(name) for name, condition in cold.items()]
    distinct = [F.count_distinct(kind).alias(f"{kind}s") for kind in KINDS]
    mean = F.avg(F.col("rating").cast("decimal(20,6)")).cast("double").alias("mean_rating")
    counted = rows.groupBy("split").agg(F.count(F.lit(1)).alias("rows"), *distinct, mean, *sums).collect()
    found = {row["split"]: {name: value for name, value in row.asDict().items() if name != "split"} for row in counted}
    none = {"rows": 0, "users": 0, "items": 0, "mean_rating": None, "cold_users": 0, "cold_items": 0, "cold": 0}
    return {name: found.get(name, none) for name in SPLITS}


def _remark(counts: Mapping[str, Mapping[str, Any]], account: _Account, report: Report) -> None:
    for name in ("validation", "test"):
        each = counts[name]
        if each["cold"]:
            done = "dropped" if account.cold_dropped else "kept"
            report.say(
                f"  {name}: {each['cold']:,} of {each['rows']:,} rows are of a user ({each['cold_users']:,} rows) or "
                f"an item ({each['cold_items']:,} rows) that no training row has: {done}"
            )
    if not counts["train"]["rows"]:
        report.warn("no row trains: change --split")
