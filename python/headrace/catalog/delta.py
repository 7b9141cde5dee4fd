"""Create, read and write the tables of the catalog with Spark and Delta; reading without Spark is in pinned.

from headrace.catalog import delta, spec
commit = delta.write(df, spec.load("bronze/criteo"), "lake", mode="append")
"""

from __future__ import annotations

import html
import json
import logging
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.catalog import differences, violations
from headrace.catalog.log import DataFile, Log, exists, headrace_metadata, latest_version
from headrace.catalog.pinned import PinnedTable, commit_metadata, files_at, parts_of, pin
from headrace.catalog.spec import TableSpec
from headrace.errors import UserError
from headrace.session import configured

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = [
    "Commit",
    "DataFile",
    "PinnedTable",
    "WriteOptions",
    "commit_metadata",
    "ensure",
    "exists",
    "files_at",
    "latest_version",
    "materialize",
    "metadata_of_txn",
    "pin",
    "read",
    "small_frame",
    "write",
]

T = TypeVar("T")

# Deletion vectors would leave deleted rows in the files training reads; the log is the provenance of models: keep it.
PROPERTIES = {
    "delta.enableDeletionVectors": "false",
    "delta.checkpointInterval": "10",
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.deletedFileRetentionDuration": "interval 30 days",
    "delta.dataSkippingNumIndexedCols": "4",  # statistics of 40 feature columns skip nothing, and cost a tenth
}
_CREATOR_PATIENCE_S = 10.0
_NOT_EMPTY = re.compile("DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION|DELTA_MISSING_DELTA_TABLE")
_CONFLICT = re.compile(
    r"(ProtocolChanged|MetadataChanged|Concurrent(Append|DeleteRead|DeleteDelete|Write|Transaction|Modification))\w*"
    r"|DELTA_(CONCURRENT|PROTOCOL_CHANGED|METADATA_CHANGED|TABLE_ALREADY_EXISTS)|TABLE_OR_VIEW_ALREADY_EXISTS"
)
# Of a table that another has just created: what this JVM holds of its log is from before the first commit.
_UNSEEN = re.compile("DELTA_TABLE_NOT_FOUND")


@dataclass(frozen=True)
class Commit:
    """What a write has committed.

    `rows` and `fingerprint` are those of the whole table at `version`, `rows_added` what this commit brought;
    `skipped` where the transaction identifier had been committed before, and nothing was written.
    """

    table: str
    path: str
    version: int
    rows: int
    fingerprint: int
    metadata: dict[str, Any] = field(default_factory=dict)
    rows_added: int = 0
    skipped: bool = False

    def _repr_html_(self) -> str:
        rows = {"table": f"{self.table}@{self.version}", "path": self.path, "rows": f"{self.rows:,}"}
        rows |= {"fingerprint": str(self.fingerprint)} | {key: str(value) for key, value in self.metadata.items()}
        cells = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v[:500])}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"


@dataclass(frozen=True)
class WriteOptions:
    """What a write may be told besides.

    Args:
        merge_schema: let columns that the table does not have be added.
        replace_where: with mode overwrite, the SQL predicate of the rows that are replaced.
        txn: Delta's (txnAppId, txnVersion): a version that was committed is not committed again.
        quality: keep a report of this version in meta/quality.
        attempts: tries when other writers come between.
    """

    merge_schema: bool = False
    replace_where: str | None = None
    txn: tuple[str, int] | None = None
    quality: bool = True
    attempts: int = 10


def read(spark: SparkSession, spec: TableSpec, lake: str | Path, version: int | None = None) -> DataFrame:
    """The table at a version (None: the newest) as a DataFrame.

    Raises:
        UserError: no such table or version.
    """
    path = spec.path(lake)
    if not exists(path):
        raise UserError(f"{path}: no Delta table there", f"write {spec.name} first, or check --lake")
    latest = latest_version(path)
    if version is not None and not 0 <= version <= latest:
        raise UserError(f"{spec.name} has no version {version}", f"versions go from 0 to {latest}")
    reader = spark.read.format("delta")
    return (reader if version is None else reader.option("versionAsOf", version)).load(path)


def ensure(spark: SparkSession, spec: TableSpec, lake: str | Path) -> None:
    """Create the table empty, as version 0, with its constraints, comments and properties, unless it is there.

    Two who create at the same time both succeed; one of them has made the table.
    """
    path = spec.path(lake)
    if not exists(path):
        _retry(lambda: _create_or_wait(spark, spec, path), 10)


def _create_or_wait(spark: SparkSession, spec: TableSpec, path: str) -> None:
    """Create the table; a folder that is not empty may be another creator's who has not committed yet: wait for it.

    Raises:
        UserError: the folder holds something else.
    """
    if exists(path):
        return
    try:
        _create(spark, spec, path)
    except Exception as error:
        if not _NOT_EMPTY.search(str(error)):
            raise
        deadline = time.monotonic() + _CREATOR_PATIENCE_S
        while not exists(path):
            if time.monotonic() > deadline:
                remedy = "name another --lake, or empty that folder"
                raise UserError(f"{path} holds files, but no Delta table", remedy) from error
            time.sleep(0.1)


def _create(spark: SparkSession, spec: TableSpec, path: str) -> None:
    from delta.tables import DeltaTable

    builder = DeltaTable.createIfNotExists(spark).location(path).comment(spec.doc).addColumns(spec.to_spark())
    if spec.partition_by:
        builder = builder.partitionedBy(*spec.partition_by)
    checks = {f"delta.constraints.{name}": sql for name, sql in spec.checks.items()}
    for key, value in (PROPERTIES | checks).items():
        builder = builder.property(key, value)
    builder.execute()


def write(
    df: DataFrame,
    spec: TableSpec,
    lake: str | Path,
    *,
    mode: str = "append",
    metadata: dict[str, Any] | None = None,
    batch_id: str | None = None,
    options: WriteOptions | None = None,
) -> Commit:
    """Commit the rows of `df` as one version of the table, which is created where it is not there.

    Args:
        df: columns in any order, by name and type those of the spec.
        spec: the table.
        lake: where the tables are.
        mode: append or overwrite.
        metadata: kept with the commit (its `headrace` object).
        batch_id: kept with the commit.
        options: see WriteOptions.

    Returns:
        The version, and the rows and fingerprint of the whole table at it.

    Raises:
        UserError: columns differ (shown), rows break a constraint (counted), too many conflicts with other writers.
    """
    if mode not in ("append", "overwrite"):
        raise UserError(f"mode {mode!r} is not known", "append or overwrite")
    options = options or WriteOptions()
    spark, path = df.sparkSession, spec.path(lake)
    ensure(spark, spec, lake)
    differences.refuse(df.schema, spec, Log(path).snapshot().schema, merge=options.merge_schema)
    ordered = df.select(*_in_order(df.columns, spec))
    write_id = uuid.uuid4().hex
    mine = {
        "table": spec.name,
        **({"batch_id": batch_id} if batch_id else {}),
        **(metadata or {}),
        "write_id": write_id,
    }
    before = latest_version(path)
    try:
        with configured(spark, spec.parquet):
            _retry(lambda: _save(ordered, path, mode, mine, options), options.attempts)
    except Exception as error:
        violations.explain(error, ordered, spec)
        raise
    commit = _committed(spec, path, write_id, before, options)
    if options.quality and spec.layer != "meta" and not commit.skipped:
        _report(spark, spec, lake, commit.version)
    return commit


def _report(spark: SparkSession, spec: TableSpec, lake: str | Path, version: int) -> None:
    """Keep the quality report; the rows are committed by now, so its failure must not look like theirs."""
    from headrace.catalog.checks import record

    try:
        record(spark, spec, lake, version)
    except Exception:
        hint = f"headrace catalog report {spec.name}@{version}"
        logging.getLogger(__name__).exception("no quality report of %s@%d; later: %s", spec.name, version, hint)


def _save(df: DataFrame, path: str, mode: str, mine: dict[str, Any], options: WriteOptions) -> None:
    writer = df.write.format("delta").mode(mode).option("userMetadata", json.dumps({"headrace": mine}))
    if options.merge_schema:
        writer = writer.option("mergeSchema", "true")
    if options.replace_where:
        writer = writer.option("replaceWhere", options.replace_where)
    if options.txn:
        writer = writer.option("txnAppId", options.txn[0]).option("txnVersion", options.txn[1])
    writer.save(path)


def _committed(spec: TableSpec, path: str, write_id: str, before: int, options: WriteOptions) -> Commit:
    log = Log(path)
    for version in (v for v in log.commits if v > before):
        mine = headrace_metadata(log.actions(version))
        if mine is not None and mine.get("write_id") == write_id:
            return _commit(spec, log, version, mine)
    if options.txn is None and options.replace_where and log.latest == before:
        # No rows replaced by no rows: Delta makes no version of it.
        return replace(_commit(spec, log, before, {}), rows_added=0)
    if options.txn is None:
        raise UserError(
            f"{path}: Delta reported success, but no commit has our mark", "is another program deleting its log?"
        )
    # Delta skipped it; a commit without rows may have left no entry, or its entry may be gone.
    version = next((v for v, _ in _commits_of(log, *options.txn)), log.latest)
    return _commit(spec, log, version, headrace_metadata(log.actions(version)) or {}, skipped=True)


def metadata_of_txn(path: str, app: str, number: int) -> dict[str, Any] | None:
    """The `headrace` object of the commit that has this transaction identifier; None where there is no such commit."""
    log = Log(path)
    return next((headrace_metadata(actions) or {} for _, actions in _commits_of(log, app, number)), None)


def _commits_of(log: Log, app: str, number: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Version and actions of the commits of this transaction identifier that cover `number`."""
    for version in log.commits:
        actions = log.actions(version)
        txns = [action["txn"] for action in actions if action.get("txn")]
        if any(txn.get("appId") == app and int(txn["version"]) >= number for txn in txns):
            yield version, actions


def _commit(spec: TableSpec, log: Log, version: int, mine: dict[str, Any], skipped: bool = False) -> Commit:
    snapshot = log.snapshot(version)
    parts = parts_of(snapshot, spec.fingerprint_key)
    rows = sum(part.rows for part in parts)
    added = sum(file.rows for file in log.added_at(version))
    total = sum(part.fingerprint for part in parts) % (1 << 64)
    return Commit(spec.name, log.table, version, rows, total, mine, added, skipped)


def _in_order(columns: list[str], spec: TableSpec) -> list[Any]:
    """The spec's columns first, in its order, then those to be merged."""
    from pyspark.sql import functions as F

    known = [c.name for c in spec.columns if c.name in columns]
    return [F.col(f"`{name}`") for name in known + [name for name in columns if name not in known]]


def small_frame(spark: SparkSession, spec: TableSpec, rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Rows of this process as one partition, handed over by Arrow: no Python worker has to start for them."""
    import pyarrow as pa

    table = pa.Table.from_pylist([dict(row) for row in rows], spec.to_arrow())
    return spark.createDataFrame(table, spec.to_spark()).coalesce(1)


def materialize(
    spark: SparkSession, spec: TableSpec, lake: str | Path, version: int | None, dest: str | Path
) -> PinnedTable:
    """Copy a version, read by Spark, into a plain table of ours at DEST/layer/table and pin that.

    For tables whose files may not be read by path, or not as they lie (deletion vectors, mapped columns).

    Raises:
        UserError: the destination holds a table.
    """
    target = spec.path(dest)
    if exists(target):
        raise UserError(f"{target}: there is a table", "name an empty folder, or delete that table")
    source = read(spark, spec, lake, version)
    write(source, spec, dest, metadata={"copied_from": spec.path(lake), "copied_version": version})
    return pin(spec, dest)


def _retry(act: Callable[[], T], attempts: int) -> T:
    """Try again when another writer, or creator, came between; waits grow to two seconds, with chance in them."""
    for attempt in range(1, attempts + 1):
        try:
            return act()
        except Exception as error:
            if not is_conflict(error) and not _UNSEEN.search(str(error)):
                raise
            if attempt == attempts:
                remedy = "run it again when fewer programs write to this table"
                raise UserError(f"{attempts} tries to commit, each time another writer came between", remedy) from error
            time.sleep(min(2.0, 0.05 * 2**attempt) * (0.5 + random.random() / 2))
    raise AssertionError("attempts is at least 1")


def is_conflict(error: Exception) -> bool:
    """Whether this is Delta saying that another writer was faster."""
    lines = str(error).splitlines()
    return bool(_CONFLICT.search(type(error).__name__) or _CONFLICT.search("\n".join(lines[:2])))
