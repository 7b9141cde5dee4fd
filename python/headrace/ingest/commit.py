"""One batch into its two tables, exactly once, however often and by however many it is tried.

The content of a batch is fixed by its intent: ranges are read only if they are what was scanned. So each table takes a
batch in one Delta commit under the batch's own transaction identifier; a commit that is there is never made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headrace.catalog import checks, delta
from headrace.catalog.ledger import FileAccount
from headrace.catalog.spec import TableSpec, load
from headrace.errors import UserError
from headrace.ingest.criteo import LINE_BITS, InputFile, Part, read_lines, with_ranges
from headrace.ingest.criteo_parse import Format
from headrace.ingest.textfiles import ChangedFileError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

BRONZE, QUARANTINE = "bronze/criteo", "quarantine/criteo"


def commit_batch(
    spark: SparkSession, lake: str, batch_id: str, files: Sequence[InputFile], fmt: Format
) -> dict[str, FileAccount]:
    """Write what is missing of a batch, and give the account of every file, counted in the tables.

    Args:
        spark: the session.
        lake: folder of the tables.
        batch_id: written with every row.
        files: the batch's files with all their ranges.
        fmt: what a line must be.

    Raises:
        UserError: a file is no longer what was scanned.
        RuntimeError: the account does not close; nothing more is written.
    """
    bronze, quarantine = load(BRONZE), load(QUARANTINE)
    batch = _Batch(spark, lake, batch_id, fmt)
    bronze_version = _write(batch, bronze, files, "accepted")
    committed = _count(batch, bronze, files)
    refused: dict[int, int] = {}
    quarantine_version = None
    if dirty := _dirty(files, committed):
        quarantine_version = _write(batch, quarantine, dirty, "rejected")
        refused = _count(batch, quarantine, files)
    versions = (bronze_version, quarantine_version)
    return {file.scan.path: _account(file, committed, refused, versions) for file in files}


@dataclass(frozen=True)
class _Batch:
    spark: SparkSession
    lake: str
    batch_id: str
    fmt: Format


def _write(batch: _Batch, spec: TableSpec, files: Sequence[InputFile], part: Part) -> int:
    """Commit the batch's lines unless that was done before; the version that has them."""
    from pyspark.sql import functions as F

    lines = read_lines(batch.spark, files, batch.fmt, part).withColumn("batch_id", F.lit(batch.batch_id))
    rows = lines.select(*[column.name for column in spec.columns])
    options = delta.WriteOptions(txn=(f"headrace-batch-{batch.batch_id}", 1))
    try:
        commit = delta.write(rows, spec, batch.lake, batch_id=batch.batch_id, options=options)
    except Exception as error:
        if ChangedFileError.__name__ in str(error):
            names = [file.scan.path for file in files if file.scan.path in str(error)]
            raise _changed(", ".join(names) or "an input file") from error
        raise
    if commit.skipped:  # whoever committed it may have been killed before the report
        checks.record(batch.spark, spec, batch.lake, commit.version)
    return commit.version


def _changed(name: str) -> UserError:
    return UserError(
        f"{name} was changed while it was ingested; nothing of it was committed",
        "put back the file as it was, or wait until it is complete, and run the same command again",
    )


def _starts(files: Sequence[InputFile]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Keys of the first lines of all ranges, ascending."""
    firsts = [(file.ordinal << LINE_BITS) + piece.first_line for file in files for piece in file.scan.ranges]
    return np.array(sorted(firsts), np.int64)


def _count(batch: _Batch, spec: TableSpec, files: Sequence[InputFile]) -> dict[int, int]:
    """Rows of the batch in a table, by the key of the range's first line: counted there, not taken from a report."""
    from pyspark.sql import functions as F

    key = "key" if spec.name == BRONZE else f"shiftleft(cast(file_ordinal as bigint), {LINE_BITS}) + line as key"
    starts = _starts(files)
    keys = delta.read(batch.spark, spec, batch.lake).where(F.col("batch_id") == batch.batch_id).selectExpr(key)

    def by_range(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        counts = np.zeros(len(starts), np.int64)
        for each in batches:
            places = np.searchsorted(starts, each.column(0).to_numpy(), side="right") - 1
            counts += np.bincount(places, minlength=len(starts))
        (found,) = np.nonzero(counts)
        yield pa.RecordBatch.from_arrays([pa.array(starts[found]), pa.array(counts[found])], ["start", "rows"])

    totals: dict[int, int] = dict.fromkeys(starts.tolist(), 0)
    for row in keys.mapInArrow(by_range, "start bigint, rows bigint").collect():
        totals[row.start] += row.rows
    return totals


def _dirty(files: Sequence[InputFile], committed: dict[int, int]) -> list[InputFile]:
    """Files with only those ranges that hold lines which are not in bronze."""
    dirty = []
    for file in files:
        first_lines = {
            piece.first_line
            for piece in file.scan.ranges
            if committed[(file.ordinal << LINE_BITS) + piece.first_line]
            != piece.lines - int(file.header and piece.first_line == 0)
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


def describe(file: InputFile, account: FileAccount) -> str:
    """One line on a file for people."""
    return (
        f"{file.scan.path}: day {file.day}, {account.read:,} rows = {account.committed:,} committed"
        f" + {account.quarantined:,} in quarantine"
    )
