"""One batch into its two tables, exactly once, however often and by however many it is tried.

The content of a batch is fixed by its intent: ranges are read only if they are what was scanned. So each table takes a
batch in one Delta commit under the batch's own transaction identifier; a commit that is there is never made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.catalog import checks, delta
from headrace.catalog.ledger import FileAccount
from headrace.catalog.log import Log
from headrace.catalog.spec import TableSpec, load
from headrace.errors import UserError
from headrace.ingest.lines import LINE_BITS, InputFile, Part, with_ranges
from headrace.ingest.textfiles import ChangedFileError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


class Rows(Protocol):
    """What is read of a batch's files: rows of `bronze/NAME` with their `key`, refused ones with ordinal and line."""

    @property
    def name(self) -> str: ...

    def read(self, spark: SparkSession, files: Sequence[InputFile], part: Part) -> DataFrame:
        """The rows of all ranges of the files, without `batch_id`."""
        ...


def commit_batch(
    spark: SparkSession, lake: str, batch_id: str, files: Sequence[InputFile], rows: Rows
) -> dict[str, FileAccount]:
    """Write what is missing of a batch, and give the account of every file, counted in the tables.

    Args:
        spark: the session.
        lake: folder of the tables.
        batch_id: written with every row.
        files: the batch's files with all their ranges.
        rows: how they are read.

    Raises:
        UserError: a file is no longer what was scanned.
        RuntimeError: the account does not close; nothing more is written.
    """
    bronze, quarantine = load(f"bronze/{rows.name}"), load(f"quarantine/{rows.name}")
    batch = _Batch(spark, lake, batch_id, rows)
    accepted = _write(batch, bronze, files, "accepted")
    committed = _count(batch, bronze, ("key",), files, accepted)
    refused: dict[int, int] = {}
    versions: tuple[int, int | None] = (accepted.version, None)
    if dirty := _dirty(files, committed):
        rejected = _write(batch, quarantine, dirty, "rejected")
        refused = _count(batch, quarantine, ("file_ordinal", "line"), files, rejected)
        versions = (accepted.version, rejected.version)
    return {file.scan.path: _account(file, committed, refused, versions) for file in files}


def record_quality(spark: SparkSession, lake: str, name: str, accounts: Iterable[FileAccount]) -> None:
    """The quality reports of these accounts' table versions, as far as they are missing, by one commit.

    Not batch by batch: a commit costs seconds. Whatever a run that was killed did not get to, the next one does.
    """
    accounts = list(accounts)
    found = {(f"bronze/{name}", account.table_version) for account in accounts}
    found |= {(f"quarantine/{name}", account.quarantine_version) for account in accounts}
    versions = sorted((table, version) for table, version in found if version is not None)
    checks.record_all(spark, [(load(table), version) for table, version in versions], lake)


@dataclass(frozen=True)
class _Batch:
    spark: SparkSession
    lake: str
    batch_id: str
    rows: Rows


def _write(batch: _Batch, spec: TableSpec, files: Sequence[InputFile], part: Part) -> delta.Commit:
    """Commit the batch's lines unless that was done before."""
    from pyspark.sql import functions as F

    read = batch.rows.read(batch.spark, files, part).withColumn("batch_id", F.lit(batch.batch_id))
    rows = read.select(*[column.name for column in spec.columns])
    options = delta.WriteOptions(txn=(f"headrace-batch-{batch.batch_id}", 1), quality=False)
    try:
        return delta.write(rows, spec, batch.lake, batch_id=batch.batch_id, options=options)
    except Exception as error:
        if ChangedFileError.__name__ in str(error):
            names = [file.scan.path for file in files if file.scan.path in str(error)]
            raise _changed(", ".join(names) or "an input file") from error
        raise


def _changed(name: str) -> UserError:
    return UserError(
        f"{name} was changed while it was ingested; nothing of it was committed",
        "put back the file as it was, or wait until it is complete, and run the same command again",
    )


def _starts(files: Sequence[InputFile]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Keys of the first lines of all ranges, ascending."""
    firsts = [(file.ordinal << LINE_BITS) + piece.first_line for file in files for piece in file.scan.ranges]
    return np.array(sorted(firsts), np.int64)


def _count(
    batch: _Batch, spec: TableSpec, names: Sequence[str], files: Sequence[InputFile], commit: delta.Commit
) -> dict[int, int]:
    """Rows of the batch in a table, by the key of the range's first line: counted there, not taken from a report.

    In the files that the commit has just put there; those of an older commit may have been rewritten since, so that
    batch is counted by its name in the whole table.
    """
    starts = _starts(files)

    def by_range(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        counts = np.zeros(len(starts), np.int64)
        for each in batches:
            places = np.searchsorted(starts, _keys(each), side="right") - 1
            counts += np.bincount(places, minlength=len(starts))
        (found,) = np.nonzero(counts)
        yield pa.RecordBatch.from_arrays([pa.array(starts[found]), pa.array(counts[found])], ["start", "rows"])

    totals: dict[int, int] = dict.fromkeys(starts.tolist(), 0)
    if commit.skipped:
        rows = delta.read(batch.spark, spec, batch.lake).where(f"batch_id = '{batch.batch_id}'").select(*names)
        counted = rows.mapInArrow(by_range, "start bigint, rows bigint").toArrow().to_pylist()
    else:
        counted = [row for part in by_range(new_rows(commit, names)) for row in part.to_pylist()]
    for row in counted:
        totals[row["start"]] += row["rows"]
    return totals


def _keys(rows: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Of bronze as they are, of quarantine from ordinal and line."""
    if rows.num_columns == 1:
        return rows.column(0).to_numpy()
    return (rows.column(0).to_numpy().astype(np.int64) << LINE_BITS) + rows.column(1).to_numpy()


def new_rows(commit: delta.Commit, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of the files that a commit added, a bounded piece at a time."""
    log = Log(commit.path)
    for file in log.added_at(commit.version):
        with log.store.open(file.path) as stream:
            yield from pq.ParquetFile(stream).iter_batches(1 << 16, columns=list(columns))


def _dirty(files: Sequence[InputFile], committed: dict[int, int]) -> list[InputFile]:
    """Files with only those ranges that hold lines which are not in bronze."""
    dirty = []
    for file in files:
        first_lines = {
            piece.first_line
            for piece in file.scan.ranges
            if committed[(file.ordinal << LINE_BITS) + piece.first_line]
            != piece.lines - (file.header if piece.first_line == 0 else 0)
        }
        if first_lines:
            dirty.append(with_ranges(file, first_lines))
    return dirty


def _account(
    file: InputFile, committed: dict[int, int], refused: dict[int, int], versions: tuple[int | None, int | None]
) -> FileAccount:
    keys = [(file.ordinal << LINE_BITS) + piece.first_line for piece in file.scan.ranges]
    rows, bad = sum(committed[key] for key in keys), sum(refused.get(key, 0) for key in keys)
    if rows + bad != file.rows:
        raise RuntimeError(
            f"the account of {file.scan.path} does not close: {file.rows} rows read, {rows} committed, {bad} in"
            " quarantine; its batch stays open"
        )
    return FileAccount(file.rows, rows, bad, versions[0] if rows else None, versions[1] if bad else None)
