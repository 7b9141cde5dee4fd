"""The quality report of a version: what it brought, column by column, beside what the version before brought.

It looks at the files the version added (all of them after an overwrite), so its cost follows the new rows, not the
table's size. Every file is summarized where a task runs, in bounded memory, and the summaries are merged; see `summary`
for the estimates and `docs/catalog.md` for the measures of drift.
"""

from __future__ import annotations

import datetime as dt
import html
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.catalog import differences, storage
from headrace.catalog.log import DataFile, Log, Snapshot, exists
from headrace.catalog.spec import Column, TableSpec, arrow_type, load
from headrace.catalog.summary import ColumnSummary, psi
from headrace.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

_HERE_CELLS = 20_000_000  # up to so many cells a Spark job costs more than it saves
_BATCH_ROWS = 1 << 16
_MAX_TASKS = 256
_SHOWN = ("column", "type", "rows", "nulls", "approx_distinct", "min", "max", "mean", "null_share_change", "mean_shift")


@dataclass(frozen=True)
class QualityReport:
    """The rows of meta/quality about one version, in the order of the table's columns."""

    table: str
    version: int
    rows: tuple[dict[str, Any], ...]

    def text(self) -> str:
        """An aligned table for people."""
        lines = [[*_SHOWN, "psi"]] + [[_cell(row.get(name)) for name in (*_SHOWN, "psi")] for row in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in (*_SHOWN, "psi"))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_cell(row.get(n)))}</td>" for n in (*_SHOWN, "psi")) + "</tr>"
            for row in self.rows
        )
        return f"<h4>{html.escape(self.table)}@{self.version}</h4><table><tr>{head}</tr>{body}</table>"


def record(spark: SparkSession, spec: TableSpec, lake: str | Path, version: int) -> QualityReport:
    """Make the report of a version and keep it in meta/quality; one that is there already is returned."""
    return record_all(spark, [(spec, version)], lake)[0]


def record_all(spark: SparkSession, versions: Sequence[tuple[TableSpec, int]], lake: str | Path) -> list[QualityReport]:
    """The reports of several versions: those that are missing are made, and kept by one commit for all.

    Args:
        spark: the session.
        versions: tables and their versions, those of one table ascending.
        lake: where the tables are.
    """
    from headrace.catalog import delta

    kept = {spec.name: _by_version(spec, lake) for spec in {spec.name: spec for spec, _ in versions}.values()}
    reports: list[QualityReport] = []
    rows: list[dict[str, Any]] = []
    for spec, version in versions:
        report = kept[spec.name].get(version)
        if report is None:
            before = max((v for v in kept[spec.name] if v < version), default=-1)
            report = make(spec, lake, version, spark, kept[spec.name].get(before))
            rows += report.rows
            kept[spec.name][version] = report
        reports.append(report)
    if rows:
        quality = load("meta/quality")
        named = [{column.name: row[column.name] for column in quality.columns} for row in rows]
        delta.write(delta.small_frame(spark, quality, named), quality, lake)
    return reports


def make(
    spec: TableSpec,
    lake: str | Path,
    version: int,
    spark: SparkSession | None = None,
    before: QualityReport | None = None,
) -> QualityReport:
    """Compute the report of a version, with drift against the newest version before it that has one.

    Args:
        spec: the table.
        lake: where the tables are.
        version: of the table.
        spark: None reads everything in this process.
        before: the report to compare with, where it is not kept yet.
    """
    log = Log(spec.path(lake))
    snapshot = log.snapshot(version)
    files = log.added_at(version)
    columns = _columns(snapshot)
    summaries = _merged(_summaries(spark, files, columns), columns)
    previous = {row["column"]: row for row in before.rows} if before else _previous(spec, lake, snapshot)
    facts = {
        "table": spec.name,
        "table_id": snapshot.table_id,
        "version": version,
        "table_rows": snapshot.rows,
        "at": dt.datetime.now(dt.UTC),
    }
    rows = [
        facts
        | {"position": i}
        | _row(column, summaries[column.name], previous.get(column.name), column.name in spec.keys)
        for i, column in enumerate(columns)
    ]
    return QualityReport(spec.name, version, tuple(rows))


def find(spec: TableSpec, lake: str | Path, version: int) -> QualityReport | None:
    """The kept report of a version, if there is one."""
    table_id = Log(spec.path(lake)).snapshot(version).table_id
    for rows in _kept(spec, lake):
        if rows and rows[0]["version"] == version and rows[0]["table_id"] == table_id:
            return _report(spec, rows)
    return None


def _by_version(spec: TableSpec, lake: str | Path) -> dict[int, QualityReport]:
    """All kept reports of the table that is there now."""
    table_id = Log(spec.path(lake)).snapshot().table_id
    return {
        int(rows[0]["version"]): _report(spec, rows) for rows in _kept(spec, lake) if rows[0]["table_id"] == table_id
    }


def _report(spec: TableSpec, rows: list[dict[str, Any]]) -> QualityReport:
    return QualityReport(spec.name, rows[0]["version"], tuple(sorted(rows, key=lambda row: int(row["position"]))))


def _previous(spec: TableSpec, lake: str | Path, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    best: list[dict[str, Any]] = []
    for rows in _kept(spec, lake):
        if not rows or rows[0]["table_id"] != snapshot.table_id or rows[0]["version"] >= snapshot.version:
            continue
        if not best or rows[0]["version"] > best[0]["version"]:
            best = rows
        if rows[0]["version"] == snapshot.version - 1:
            break
    return {row["column"]: row for row in best}


def _kept(spec: TableSpec, lake: str | Path) -> Iterator[list[dict[str, Any]]]:
    """Reports of a table, the last written first; each was committed as a file of its own."""
    import pyarrow.parquet as pq

    path = load("meta/quality").path(lake)
    if not exists(path):
        return
    log = Log(path)
    files = [file for file in log.snapshot().files if file.partition.get("table") == spec.name]
    for file in reversed(files):
        with log.store.open(file.path) as stream:
            rows = pq.ParquetFile(stream).read().to_pylist()
        for version in sorted({row["version"] for row in rows}, reverse=True):
            yield [row | {"table": spec.name} for row in rows if row["version"] == version]


def _row(column: Column, found: ColumnSummary, before: dict[str, Any] | None, is_key: bool) -> dict[str, Any]:
    scalar = not column.type.startswith("array")
    floating = column.type in ("float", "double")
    share = found.nulls / found.rows if found.rows else 0.0
    row: dict[str, Any] = {
        "column": column.name,
        "type": column.type,
        "rows": found.rows,
        "nulls": found.nulls,
        "nans": found.nans if floating else None,
        "approx_distinct": found.distinct if scalar else None,
        "min": None if found.least is None else str(found.least),
        "max": None if found.greatest is None else str(found.greatest),
        "mean": found.mean if found.count else None,
        "stddev": found.stddev,
        "bins": json.dumps(found.bins(), separators=(",", ":")),
        "previous_version": None,
        "null_share_change": None,
        "mean_shift": None,
        "psi": None,
    }
    if before is None or not before["rows"] or not found.rows:
        return row
    row["previous_version"] = before["version"]
    row["null_share_change"] = share - before["nulls"] / before["rows"]
    if found.count and before["mean"] is not None and before["stddev"]:
        row["mean_shift"] = (found.mean - before["mean"]) / before["stddev"]
    if not is_key:  # keys are new by nature
        row["psi"] = psi(json.loads(before["bins"]), found.bins())
    return row


def _columns(snapshot: Snapshot) -> list[Column]:
    types = differences.of_schema(snapshot.schema, nulls=False)
    return [Column(name, type_name) for name, type_name in types.items()]


def _merged(found: Iterable[dict[str, ColumnSummary]], columns: list[Column]) -> dict[str, ColumnSummary]:
    merged = {column.name: ColumnSummary() for column in columns}
    for summaries in found:
        for name, summary in summaries.items():
            merged[name].merge(summary)
    return merged


def _summaries(
    spark: SparkSession | None, files: Sequence[DataFile], columns: list[Column]
) -> Iterator[dict[str, ColumnSummary]]:
    cells = sum(file.rows for file in files) * len(columns)
    if spark is None or cells <= _HERE_CELLS:
        for file in files:
            yield summarize(file, columns)
        return
    described = [(json.dumps([file.path, file.rows, file.partition]),) for file in files]
    tasks = spark.createDataFrame(described, "file string").repartition(min(len(files), _MAX_TASKS))

    def work(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        import pyarrow

        for batch in batches:
            for text in batch.column(0).to_pylist():
                summaries = summarize(DataFile(*json.loads(text)), columns)
                answer = json.dumps({name: summary.to_json() for name, summary in summaries.items()})
                yield pyarrow.RecordBatch.from_pydict({"summary": [answer]})

    for row in tasks.mapInArrow(work, "summary string").toLocalIterator():
        yield {name: ColumnSummary.from_json(found) for name, found in json.loads(row.summary).items()}


def summarize(file: DataFile, columns: Sequence[Column]) -> dict[str, ColumnSummary]:
    """Summaries of all columns of one data file; a column the file does not have is null in every row.

    Raises:
        UserError: the file is gone, or is not the Parquet file the log describes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    summaries = {column.name: ColumnSummary() for column in columns}
    store, path = storage.locate(file.path)
    try:
        with store.open(path) as stream:
            parquet = pq.ParquetFile(stream)
            present = [c.name for c in columns if c.name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=present):
                for column in columns:
                    summaries[column.name].add(_values(batch, column, file))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise UserError(f"{file.path}: {error}", "was it vacuumed or damaged? report on a newer version") from error
    return summaries


def _values(batch: pa.RecordBatch, column: Column, file: DataFile) -> pa.Array:
    """The column's values in a batch; those of a partition column are not in the file."""
    import pyarrow as pa

    if column.name in batch.schema.names:
        return batch.column(column.name)
    kind = arrow_type(column.type)
    value = file.partition.get(column.name)
    if value is None:
        return pa.nulls(batch.num_rows, kind)
    return pa.repeat(pa.scalar(value).cast(kind), batch.num_rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
