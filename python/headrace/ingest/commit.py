"""One batch into its two tables, exactly once, however often and by however many it is tried.

The content of a batch is fixed by its intent: ranges are read only if they are what was scanned. So each table takes a
batch in one Delta commit under the batch's own transaction identifier; a commit that is there is never made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from headrace.catalog import checks, delta
from headrace.catalog.ledger import FileAccount
from headrace.catalog.spec import TableSpec, load
from headrace.errors import UserError
from headrace.ingest.batch import Batch, Tally
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
    batch = Batch(spark, lake, batch_id)
    starts = [key for file in files for key in _starts(file)]
    accepted = _write(batch, bronze, rows, files, "accepted")
    committed = batch.tally(accepted, bronze, starts)
    refused: dict[int, Tally] = {}
    versions: tuple[int, int | None] = (accepted.version, None)
    if dirty := _dirty(files, committed):
        rejected = _write(batch, quarantine, rows, dirty, "rejected")
        refused = batch.tally(rejected, quarantine, starts)
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


def _write(batch: Batch, spec: TableSpec, rows: Rows, files: Sequence[InputFile], part: Part) -> delta.Commit:
    """Commit the batch's lines unless that was done before."""
    try:
        return batch.write(spec, rows.read(batch.spark, files, part))
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


def _starts(file: InputFile) -> list[int]:
    """Keys of the first lines of its ranges."""
    return [(file.ordinal << LINE_BITS) + piece.first_line for piece in file.scan.ranges]


def _dirty(files: Sequence[InputFile], committed: dict[int, Tally]) -> list[InputFile]:
    """Files with only those ranges that hold lines which are not in bronze."""
    dirty = []
    for file in files:
        first_lines = {
            piece.first_line
            for start, piece in zip(_starts(file), file.scan.ranges, strict=True)
            if committed[start].rows != piece.lines - (file.header if piece.first_line == 0 else 0)
        }
        if first_lines:
            dirty.append(with_ranges(file, first_lines))
    return dirty


def _account(
    file: InputFile, committed: dict[int, Tally], refused: dict[int, Tally], versions: tuple[int | None, int | None]
) -> FileAccount:
    rows = sum(committed[start].rows for start in _starts(file))
    bad = sum(refused[start].rows for start in _starts(file)) if refused else 0
    if rows + bad != file.rows:
        raise RuntimeError(
            f"the account of {file.scan.path} does not close: {file.rows} rows read, {rows} committed, {bad} in"
            " quarantine; its batch stays open"
        )
    return FileAccount(file.rows, rows, bad, versions[0] if rows else None, versions[1] if bad else None)
