"""bronze/criteo -> silver/ctr_vocabulary and silver/ctr: learn on training days, encode all, one commit each.

The vocabulary is committed first, the rows after it: shuffled in one overwrite, or day by day. A run killed on the way
finds, when started again, nothing to add to the vocabulary and goes on with the next day; a run with the same input and
settings does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import (
    WriteOptions,
    commit_metadata,
    ensure,
    exists,
    files_at,
    latest_version,
    read,
    write,
)
from headrace.catalog.spec import TableSpec, load
from headrace.errors import UserError
from headrace.features import ctr, layout, order, vocabulary
from headrace.features.row_transform import Vocabulary
from headrace.features.split import SPLITS, DaySplit, format_days, split_days
from headrace.features.transform import CATEGORIES, INTS, KINDS, CategoryRule, Transform
from headrace.pipelines.featurize_rows import Source, commit_rows, lay_out

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.report import Report

_NOT_ASKED_OF_ROWS = {"lake", "split", "vocabulary", "warn_unknown", "broadcast_entries"}


@dataclass(kw_only=True)
class SplitConfig:
    """Days of each split, as 0-5 or 0,2,4-5.

    Args:
        train: days that train; default: all that are left.
        validation: days that validate; default: the last but one.
        test: days that test; default: the last.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None


@dataclass(kw_only=True)
class Config:
    """Settings of featurize-ctr.

    Args:
        lake: directory of the tables.
        split: days of each split.
        ints: log (sign(x) log(1 + |x|), missing -1) or quantile (rank of the bin in (0, 1], missing 0).
        num_bins: bins of a column, for quantile.
        categories: vocabulary, hash, modulo (the value itself, not its hash, modulo hash_size), or auto (hash the
            columns with more values than hash_above).
        min_count: a value enters the vocabulary when it stands so often in the training days.
        min_count_by_column: the same by column, as c3=20,c4=5.
        hash_size: buckets of a column that is hashed or taken modulo.
        hash_size_by_column: the same by column, as c3=1000000.
        hash_above: auto hashes a column with more values that reach min_count.
        max_vocabulary: entries allowed over all columns.
        broadcast_entries: entries that every worker holds, 15 bytes each; of a larger vocabulary the rarest go by a
            join.
        vocabulary: grow (ids never change) or rebuild (start again from id 3; old versions stay readable).
        bronze_version: version of bronze/criteo to read; default: the newest.
        order: shuffled (over all days of a split, one commit), day (day by day, shuffled within; a commit a day) or
            file (day by day, as the input files have the rows; a commit a day).
        seed: of the hash that orders the rows.
        rows_per_file: about so many rows in a file.
        rows_per_group: rows of a Parquet row group.
        warn_unknown: warn of a day whose share of out-of-vocabulary cells is above.
    """

    lake: str
    split: SplitConfig = field(default_factory=SplitConfig)
    ints: str = "log"
    num_bins: int = 64
    categories: str = "auto"
    min_count: int = 10
    min_count_by_column: dict[str, int] | str = ""
    hash_size: int = 262_144
    hash_size_by_column: dict[str, int] | str = ""
    hash_above: int = 1_000_000
    max_vocabulary: int = 30_000_000
    broadcast_entries: int = ctr.BROADCAST_ENTRIES
    vocabulary: str = "grow"
    bronze_version: int | None = None
    order: str = "shuffled"
    seed: int = 0
    rows_per_file: int = 524_288
    rows_per_group: int = 32_768
    warn_unknown: float = 0.3


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: there is nothing to featurize.
    """
    if not exists(load("bronze/criteo").path(cfg.lake)):
        raise UserError(
            f"there is no bronze/criteo in --lake {cfg.lake}", f"headrace ingest-criteo --lake {cfg.lake} ..."
        )


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Featurize; see the module's docstring.

    Raises:
        UserError: a setting out of range, no bronze table, days that cannot be split, a vocabulary that has seen days
            which are now to be judged on, or one too large.
    """
    limits, sizes = _check(cfg)
    silver = load("silver/ctr")
    report.paths["silver"] = silver.path(cfg.lake)
    source = _open(spark, cfg, limits, sizes, report)
    if cfg.vocabulary == "grow" and _done(silver, cfg, source, report):
        return report
    rules, version = _learn(spark, cfg, source, limits, sizes, report)
    boundaries = _boundaries(cfg, source, report)
    transform = Transform(cfg.ints, boundaries, rules, version)
    transform.check()
    laid = lay_out(cfg.order, source, _order(cfg, source), cfg.rows_per_group, cfg.broadcast_entries)
    commit = commit_rows(cfg.lake, source, transform, laid, report)
    _report_unknown(cfg, commit.metadata["unknown"], report)
    report.results |= {"table": silver.name, "version": commit.version, "rows": commit.rows}
    report.results |= {"fingerprint": str(commit.fingerprint), "cardinalities": transform.cardinalities()}
    return report


def by_column(value: Mapping[str, int] | str, setting: str) -> dict[str, int]:
    """Read `c3=20,c4=5`, or a mapping, as numbers by categorical column.

    Raises:
        UserError: not of that form, no such column, or a number under 1.
    """
    items = (
        value.items() if isinstance(value, Mapping) else [part.partition("=")[::2] for part in value.split(",") if part]
    )
    found = {}
    for name, number in items:
        if name.strip() not in CATEGORIES:
            raise UserError(f"--{setting}: {name!r} is no categorical column", "columns are c1 .. c26: c3=20,c4=5")
        if not (str(number).isascii() and str(number).strip().isdecimal()) or int(number) < 1:
            raise UserError(f"--{setting}: {name}={number!r} is no positive number", "write it as c3=20,c4=5")
        found[name.strip()] = int(number)
    return found


def _check(cfg: Config) -> tuple[dict[str, int], dict[str, int]]:
    choices = {
        "ints": ("log", "quantile"),
        "categories": (*KINDS, "auto"),
        "vocabulary": ("grow", "rebuild"),
        "order": order.ORDERS,
    }
    for name, allowed in choices.items():
        if getattr(cfg, name) not in allowed:
            raise UserError(f"--{name} {getattr(cfg, name)!r} is not one of {', '.join(allowed)}")
    floors = dict.fromkeys(("min_count", "hash_size", "hash_above", "max_vocabulary", "rows_per_file"), 1)
    floors |= {"broadcast_entries": 0, "num_bins": 2, "rows_per_group": layout.MIN_GROUP_ROWS}
    for name, floor in floors.items():
        if getattr(cfg, name) < floor:
            raise UserError(f"--{name} {getattr(cfg, name)} is under {floor}", f"give {floor} or more")
    limits = by_column(cfg.min_count_by_column, "min_count_by_column")
    sizes = by_column(cfg.hash_size_by_column, "hash_size_by_column")
    if max([cfg.hash_size, *sizes.values()]) > 2**31 - 4:
        raise UserError("a hashed column has over 2^31 - 4 buckets", "ids are 32-bit: lower --hash_size")
    return limits, sizes


def _open(
    spark: SparkSession, cfg: Config, limits: Mapping[str, int], sizes: Mapping[str, int], report: Report
) -> Source:
    """Pin bronze and assign its labelled days."""
    from pyspark.sql import functions as F

    bronze = load("bronze/criteo")
    early(cfg)
    version = latest_version(bronze.path(cfg.lake)) if cfg.bronze_version is None else cfg.bronze_version
    with report.stage("days") as stage:
        rows = read(spark, bronze, cfg.lake, version)
        counted = rows.groupBy("day").agg(F.count("label").alias("labelled"), F.count(F.lit(1)).alias("rows")).collect()
        labelled = {row["day"]: row["labelled"] for row in counted if row["labelled"]}
        days = split_days(sorted(labelled), cfg.split.train, cfg.split.validation, cfg.split.test)
        stage.rows_in = sum(row["rows"] for row in counted)
        stage.rows_out = sum(labelled[day] for day in order.days_in_order(days))
        stage.note = ", ".join(f"{name} {format_days(getattr(days, name))}" for name in SPLITS)
        unlabelled = stage.rows_in - sum(labelled.values())
        stage.note += f"; without label {unlabelled:,}, of other days {stage.rows_in - unlabelled - stage.rows_out:,}"
    settings = {k: v for k, v in asdict(cfg).items() if k not in _NOT_ASKED_OF_ROWS}
    settings |= {
        "min_count_by_column": dict(sorted(limits.items())),
        "hash_size_by_column": dict(sorted(sizes.items())),
    }
    request = settings | {"bronze_version": version, "split": days.to_json()}
    return Source(rows, version, days, labelled, request)


def _order(cfg: Config, source: Source) -> order.Order:
    if cfg.order == "file":
        return order.by_file(source.days, _last_lines(source.rows), cfg.rows_per_file)
    build = order.shuffled if cfg.order == "shuffled" else order.by_day
    return build(source.days, source.rows_by_day, cfg.rows_per_file, cfg.seed)


def _last_lines(rows: DataFrame) -> dict[tuple[int, int], int]:
    """The last labelled line, by (day, ordinal of the input file)."""
    from pyspark.sql import functions as F

    ordinal = F.shiftright("key", order.LINE_BITS).cast("int").alias("ordinal")
    found = rows.where("label IS NOT NULL").groupBy("day", ordinal).agg(F.max("key").alias("last")).collect()
    return {(row["day"], row["ordinal"]): row["last"] & ((1 << order.LINE_BITS) - 1) for row in found}


def _done(silver: TableSpec, cfg: Config, source: Source, report: Report) -> bool:
    """Is the newest version what this run would make?"""
    if not exists(silver.path(cfg.lake)):
        return False
    version = latest_version(silver.path(cfg.lake))
    made = commit_metadata(silver.path(cfg.lake), version)
    if made.get("request") != source.request or made.get("unfinished"):
        return False
    report.say(f"nothing to do: silver/ctr version {version} was made from the same input with the same settings")
    report.results |= {"table": silver.name, "version": version, "nothing_to_do": True}
    report.results |= {name: made.get(name) for name in ("rows", "fingerprint", "cardinalities", "unknown")}
    return True


def _learn(
    spark: SparkSession,
    cfg: Config,
    source: Source,
    limits: Mapping[str, int],
    sizes: Mapping[str, int],
    report: Report,
) -> tuple[dict[str, CategoryRule], int | None]:
    """Count the training days, grow the vocabulary; the rule of each column and the vocabulary's version."""
    if cfg.categories in ("hash", "modulo"):  # learn nothing
        return vocabulary.rules(dict.fromkeys(CATEGORIES, cfg.categories), {}, cfg.hash_size, sizes), None
    from pyspark import StorageLevel

    spec = load("silver/ctr_vocabulary")
    report.paths["vocabulary"] = spec.path(cfg.lake)
    ensure(spark, spec, cfg.lake)
    before = latest_version(spec.path(cfg.lake))
    made = commit_metadata(spec.path(cfg.lake), before) if cfg.vocabulary == "grow" else {}
    _check_seen(made, source.days)
    with report.stage("vocabulary") as stage:
        counts = vocabulary.value_counts(_training(source), CATEGORIES)
        counts = vocabulary.frequent(counts, cfg.min_count, limits).persist(StorageLevel.DISK_ONLY)
        try:
            kinds = vocabulary.choose_kinds(cfg.categories, _sizes(counts), cfg.hash_above, made.get("kinds", {}))
            known, version = _grow(spark, cfg, source, counts, kinds, spec)
        finally:
            counts.unpersist()
        stage.rows_in, stage.rows_out = source.count(source.days.train), None
        stage.note = f"version {version}, {sum(known.values()):,} entries, {len(known)} columns"
    return vocabulary.rules(kinds, known, cfg.hash_size, sizes), version


def _check_seen(made: Mapping[str, Any], days: DaySplit) -> None:
    """A vocabulary that was counted on days which now validate or test would leak them."""
    leaked = sorted(set(made.get("days", ())) - set(days.train))
    if leaked:
        raise UserError(
            f"silver/ctr_vocabulary was counted on day {format_days(leaked)}, which no longer trains",
            "keep those days in --split.train, or start a new vocabulary: --vocabulary rebuild",
        )


def _grow(
    spark: SparkSession, cfg: Config, source: Source, counts: DataFrame, kinds: Mapping[str, str], spec: TableSpec
) -> tuple[dict[str, int], int]:
    """Append a generation where there is anything to append; entries by column and the version to use."""
    from pyspark import StorageLevel

    version = latest_version(spec.path(cfg.lake))
    made = commit_metadata(spec.path(cfg.lake), version)
    fresh = cfg.vocabulary == "rebuild" or "generation" not in made
    existing = read(spark, spec, cfg.lake, version)
    existing = existing.limit(0) if fresh else existing
    generation = 0 if fresh else int(made["generation"]) + 1
    columns = [name for name in CATEGORIES if kinds[name] == "vocabulary"]
    wanted = counts.where(counts["column"].isin(columns)) if columns else counts.limit(0)
    entries = vocabulary.grow(wanted, existing, generation).persist(StorageLevel.DISK_ONLY)
    try:
        added, old = _sizes(entries), {} if fresh else _sizes(existing)
        known = {name: old.get(name, 0) + added.get(name, 0) for name in columns}
        vocabulary.check_size(known, cfg.max_vocabulary)
        if not added and not fresh:
            return known, version
        days = sorted({*source.days.train, *(() if fresh else made["days"])})
        metadata = {"generation": generation, "days": days, "kinds": dict(kinds), "min_count": cfg.min_count}
        metadata |= {"bronze_version": source.version, "entries": known}
        laid = vocabulary.lay_out(entries, sum(added.values()))
        mode = "overwrite" if cfg.vocabulary == "rebuild" else "append"
        # Two appends do not conflict by themselves, and would give one value two ids: this lets one of them in.
        options = WriteOptions(txn=("featurize-ctr vocabulary", version + 1))
        commit = write(laid, spec, cfg.lake, mode=mode, metadata=metadata, options=options)
        if commit.skipped:
            raise UserError("another featurize-ctr added to silver/ctr_vocabulary at the same time", "run it again")
        return known, commit.version
    finally:
        entries.unpersist()


def _boundaries(cfg: Config, source: Source, report: Report) -> dict[str, tuple[float, ...]]:
    if cfg.ints != "quantile":
        return {}
    with report.stage("boundaries") as stage:
        stage.rows_in = source.count(source.days.train)
        return ctr.quantile_boundaries(vocabulary.value_counts(_training(source), INTS), cfg.num_bins)


def load_vocabulary(lake: str, version: int | None) -> Vocabulary:
    """The vocabulary of a version of silver/ctr_vocabulary (read without Spark)."""
    return vocabulary.load(files_at(load("silver/ctr_vocabulary"), lake, version))


def _report_unknown(cfg: Config, unknown: Mapping[str, Mapping[str, Any]], report: Report) -> None:
    report.results["unknown"] = unknown
    for day, counts in unknown.items():
        if counts["share"] > cfg.warn_unknown:
            worst = max(counts["columns"], key=lambda name: counts["columns"][name])
            report.warn(
                f"day {day} ({counts['split']}): {counts['share']:.1%} of the cells are out of vocabulary, most in "
                f"{worst} ({counts['columns'][worst]:.1%}); lower --min_count (now {cfg.min_count}) or hash: "
                "--categories hash"
            )


def _training(source: Source) -> DataFrame:
    from pyspark.sql import functions as F

    return source.rows.where(F.col("day").isin(list(source.days.train))).where("label IS NOT NULL")


def _sizes(entries: DataFrame) -> dict[str, int]:
    return {row["column"]: row["count"] for row in entries.groupBy("column").count().collect()}
