"""Rows for a classifier: the lake's silver/ctr, files in LIBSVM's format, or any Delta table with vectors or arrays;
checked before anything is fitted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.baselines.inputs import Account, check_columns, check_vectors, refuse_one_class
from headrace.baselines.spec import MULTICLASS, NARROW, WEIGHTED, BaselineSpec, Columns
from headrace.baselines.vectors import plan, with_vectors
from headrace.catalog.delta import exists, latest_version, read
from headrace.catalog.pinned import PinnedTable
from headrace.catalog.spec import TableSpec
from headrace.config import suggest
from headrace.errors import UserError
from headrace.features.split import SPLITS
from headrace.pipelines.splits import pin_splits, require_table, sizes_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.report import Report

_CONSTANTS_NAMED = 10
_SIGNS = (
    "NumberFormatException",
    "one-based and in ascending order",
    "requirement failed",
    "MatchError",
    "ArrayIndexOutOfBounds",
)
"""What stands in Spark's errors of lines that are not in LIBSVM's format."""
_NO_LIBSVM = "a line is `label index:value ...`, indices from 1 and rising"


@dataclass(kw_only=True)
class InputConfig:
    """What rows: silver/ctr of the lake, unless `libsvm` or `delta` names others.

    Args:
        table_version: version of silver/ctr; default: the newest.
        encoding: of silver/ctr's categories: onehot (a feature each), hashed (to `buckets`), or auto: onehot up to
            1,048,576 features, else hashed; boosted trees get few buckets.
        buckets: of hashed; 0: 262,144, or 1,024 for boosted trees.
        libsvm: file or folder in LIBSVM's format to train on.
        libsvm_test: the same to test on.
        num_features: of LIBSVM files; 0: as the training file has.
        delta: path of a Delta table.
        delta_version: its version; default: the newest.
        features: the table's column of vectors, or of arrays of numbers.
        label: its label.
        weight: its weights, for models that take them; empty: none.
        split: its column that says train, validation or test; empty: there is none.
        holdout: share of the rows that test where nothing says which do; by the run's seed.
        negative: label that stands for 0, as -1 does in many LIBSVM files.
    """

    table_version: int | None = None
    encoding: str = "auto"
    buckets: int = 0
    libsvm: str = ""
    libsvm_test: str = ""
    num_features: int = 0
    delta: str = ""
    delta_version: int | None = None
    features: str = "features"
    label: str = "label"
    weight: str = ""
    split: str = ""
    holdout: float = 0.2
    negative: float | None = None


@dataclass(frozen=True)
class Dataset:
    """Rows by split, checked: label double and features, with key and day where the rows have them.

    Args:
        name: what it is called: table and version, or path.
        splits: frames by name; train and test, mostly validation.
        accounts: what they hold.
        columns: names of what a classifier reads.
        width: features.
        tables: pinned tables by split, for the run's record.
        keyed: rows have key and day: predictions can be kept.
        about: how features are made.
    """

    name: str
    splits: dict[str, DataFrame]
    accounts: dict[str, Account]
    columns: Columns
    width: int
    tables: dict[str, PinnedTable] = field(default_factory=dict)
    keyed: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def binary(self) -> bool:
        """The classes are 0 and 1."""
        return max(max(account.classes) for account in self.accounts.values()) == 1


def check_input(cfg: InputConfig, lake: str, spec: BaselineSpec) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: settings that do not go together, no such table.
    """
    if cfg.libsvm and cfg.delta:
        raise UserError("--input.libsvm and --input.delta", "name one of them")
    if cfg.libsvm_test and not cfg.libsvm:
        raise UserError("--input.libsvm_test without --input.libsvm", "name the file to train on")
    if not 0 < cfg.holdout < 1:
        raise UserError(f"--input.holdout {cfg.holdout} is no share", "between 0 and 1")
    if cfg.num_features < 0:
        raise UserError(f"--input.num_features {cfg.num_features} is under 0", "leave it out")
    if cfg.weight and (WEIGHTED not in spec.traits or not cfg.delta):
        raise UserError("--input.weight: weights are taken from Delta tables, by models that have a place for them",
                        "leave it out")  # fmt: skip
    if cfg.delta and not exists(cfg.delta):
        raise UserError(f"{cfg.delta}: no Delta table there", "check --input.delta")
    if not cfg.libsvm and not cfg.delta:
        plan((), {}, cfg.encoding, cfg.buckets, narrow=False)
        require_table(lake)


def open_rows(
    spark: SparkSession, lake: str, cfg: InputConfig, spec: BaselineSpec, seed: int, report: Report
) -> Dataset:
    """Open and check.

    Args:
        spark: the session.
        lake: holds silver/ctr.
        cfg: what to read.
        spec: the baseline that will read it.
        seed: of the split where nothing says which rows test.
        report: gets the stages and warnings.

    Raises:
        UserError: rows that no model should see, with column, what is wrong, how many.
    """
    if cfg.libsvm or cfg.delta:
        made = _open_vectors(spark, cfg, seed, report)
    else:
        made = _open_ctr(spark, lake, cfg, spec, report)
    _refuse_classes(made, spec)
    _warn_of_constants(made.accounts["train"], report)
    return made


def _refuse_classes(data: Dataset, spec: BaselineSpec) -> None:
    """Refuse rows of one class, classes that no training row has, and more classes than the model tells apart."""
    label, train = data.columns.label, data.accounts["train"]
    refuse_one_class(train, label, "train")
    for name, account in data.accounts.items():
        if strange := set(account.classes) - set(train.classes):
            rows = sum(account.classes[each] for each in strange)
            raise UserError(f"{label}: {rows:,} rows of {name} are of class {min(strange)}, which no training row has",
                            "split the rows otherwise")  # fmt: skip
    if not data.binary and MULTICLASS not in spec.traits:
        raise UserError(f"{label}: classes go up to {max(train.classes)}, and this model tells two apart",
                        "baseline-logistic --solver lbfgs")  # fmt: skip


def _warn_of_constants(account: Account, report: Report) -> None:
    if account.constants:
        shown = ", ".join(account.constants[:_CONSTANTS_NAMED])
        more = len(account.constants) - _CONSTANTS_NAMED
        rest = f" and {more:,} more" if more > 0 else ""
        report.warn(f"{len(account.constants):,} features have one value in all training rows: {shown}{rest}")


def _open_ctr(spark: SparkSession, lake: str, cfg: InputConfig, spec: BaselineSpec, report: Report) -> Dataset:
    from pyspark.sql import functions as F

    with report.stage("pin") as stage:
        tables = pin_splits(lake, cfg.table_version, stage)
    first = tables["train"]
    dense = next(tensor.columns for tensor in first.spec.tensors if tensor.name == "dense")
    encoding = plan(dense, sizes_of(first), cfg.encoding, cfg.buckets, narrow=NARROW in spec.traits)
    table = read(spark, first.spec, lake, first.version)
    with report.stage("check") as stage:
        accounts = check_columns(table, encoding)
        stage.rows_in = stage.rows_out = sum(account.rows for account in accounts.values())
        stage.note = f"{encoding.width:,} features ({encoding.kind})"
    if "test" not in accounts:
        raise UserError(f"{first} has no rows of test", "headrace featurize-ctr with --split.test naming a day")
    rows = table.withColumn("label", F.col("label").cast("double"))
    splits = {
        name: with_vectors(rows.where(F.col("split") == name), encoding, ("key", "day", "label"))
        for name in SPLITS
        if name in accounts
    }
    about = {"encoding": encoding.kind, "buckets": encoding.buckets}
    return Dataset(str(first), splits, accounts, Columns(), encoding.width, tables, keyed=True, about=about)


def _open_vectors(spark: SparkSession, cfg: InputConfig, seed: int, report: Report) -> Dataset:
    """Rows with vectors, from files or a table."""
    columns = Columns(cfg.features, cfg.label, cfg.weight) if cfg.delta else Columns()
    with _in_the_users_words(cfg), report.stage("open") as stage:
        tables = {}
        if cfg.delta:
            table = _pinned(cfg)
            name, tables["train"] = f"{cfg.delta}@{table.version}", table
            frames = _split(_read_delta(spark, cfg, table.version), cfg, seed)
        else:
            name, frames = cfg.libsvm, _split_libsvm(spark, cfg, seed)
        width = _width(frames["train"], columns.features)
        stage.note = f"{name}: {width:,} features"
    accounts = {}
    with _in_the_users_words(cfg), report.stage("check") as stage:
        for split, frame in frames.items():
            accounts[split] = check_vectors(frame, columns, width, split)
        stage.rows_in = stage.rows_out = sum(account.rows for account in accounts.values())
        stage.note = ", ".join(f"{split} {account.rows:,}" for split, account in accounts.items())
    frames = {split: _as_vectors(frame, columns.features) for split, frame in frames.items()}
    return Dataset(name, frames, accounts, columns, width, tables)


def _pinned(cfg: InputConfig) -> PinnedTable:
    """A table of others as the run's record has it: no specification, no fingerprint."""
    version = latest_version(cfg.delta) if cfg.delta_version is None else cfg.delta_version
    spec = TableSpec(cfg.delta, ())
    return PinnedTable(spec, cfg.delta, version, (), 0, 0)


def _read_delta(spark: SparkSession, cfg: InputConfig, version: int) -> DataFrame:
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql import types as t

    frame = spark.read.format("delta").option("versionAsOf", version).load(cfg.delta)
    wanted = [name for name in (cfg.features, cfg.label, cfg.weight, cfg.split) if name]
    for name in wanted:
        if name not in frame.columns:
            raise UserError(f"{cfg.delta} has no column {name!r}", suggest(name, frame.columns))
    kind = frame.schema[cfg.features].dataType
    listed = isinstance(kind, t.ArrayType) and isinstance(kind.elementType, t.NumericType)
    if not listed and not isinstance(kind, VectorUDT):
        raise UserError(f"{cfg.features}: of type {kind.simpleString()}, no vector and no array of numbers",
                        "--input.features names the column")  # fmt: skip
    for name in filter(None, (cfg.label, cfg.weight)):
        held = frame.schema[name].dataType
        if not isinstance(held, t.NumericType | t.BooleanType):
            raise UserError(f"{name}: of type {held.simpleString()}, no number", "name another column")
    return _numbered(frame.select(*wanted), cfg)


def _numbered(frame: DataFrame, cfg: InputConfig) -> DataFrame:
    """Label and weight as double; what stands for 0 as 0."""
    from pyspark.sql import functions as F

    for name in (cfg.label, cfg.weight):
        if name:
            frame = frame.withColumn(name, F.col(name).cast("double"))
    if cfg.negative is not None:
        zero = F.when(F.col(cfg.label) == cfg.negative, 0.0).otherwise(F.col(cfg.label))
        frame = frame.withColumn(cfg.label, zero)
    return frame


def _split(frame: DataFrame, cfg: InputConfig, seed: int) -> dict[str, DataFrame]:
    from pyspark.sql import functions as F

    if not cfg.split:
        train, test = frame.randomSplit([1 - cfg.holdout, cfg.holdout], seed)
        return {"train": train, "test": test}
    found = sorted(str(row[0]) for row in frame.select(cfg.split).distinct().limit(20).collect())
    if not {"train", "test"} <= set(found) or not set(found) <= set(SPLITS):
        raise UserError(f"{cfg.split}: holds {', '.join(found) or 'nothing'}", "train, test, and maybe validation")
    return {name: frame.where(F.col(cfg.split) == name).drop(cfg.split) for name in SPLITS if name in found}


def _split_libsvm(spark: SparkSession, cfg: InputConfig, seed: int) -> dict[str, DataFrame]:
    named = {"numFeatures": str(cfg.num_features)} if cfg.num_features else {}
    first = spark.read.format("libsvm").options(**named).load(cfg.libsvm)
    if not cfg.libsvm_test:
        return _split(_numbered(first, cfg), cfg, seed)
    width = first.schema["features"].metadata["numFeatures"]
    second = spark.read.format("libsvm").option("numFeatures", str(width)).load(cfg.libsvm_test)
    return {"train": _numbered(first, cfg), "test": _numbered(second, cfg)}


def _width(frame: DataFrame, features: str) -> int:
    """Features of the first row that has any; every other row is held against it."""
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql import functions as F

    row = frame.where(F.col(features).isNotNull()).select(features).first()
    if row is None:
        return 0
    return int(row[0].size if isinstance(frame.schema[features].dataType, VectorUDT) else len(row[0]))


def _as_vectors(frame: DataFrame, features: str) -> DataFrame:
    from pyspark.ml.functions import array_to_vector
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql import functions as F

    if isinstance(frame.schema[features].dataType, VectorUDT):
        return frame
    return frame.withColumn(features, array_to_vector(F.col(features).cast("array<double>")))


@contextlib.contextmanager
def _in_the_users_words(cfg: InputConfig) -> Iterator[None]:
    """What Spark says of LIBSVM files that it cannot read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text, files = str(error), ", ".join(filter(None, (cfg.libsvm, cfg.libsvm_test)))
        if not files:
            raise
        if "PATH_NOT_FOUND" in text:
            raise UserError(f"{files}: there is no such file", "check --input.libsvm and --input.libsvm_test") from None
        if sign := next((sign for sign in _SIGNS if sign in text), ""):
            line = next(line for line in text.splitlines() if sign in line)
            raise UserError(f"{files}: not in LIBSVM's format: {line.strip()[:200]}", _NO_LIBSVM) from None
        raise
