"""The rows of files out of their two tables again, exactly once, however often it is tried.

The intent is in the ledger first. Then the batch is sealed in both tables, so that a run still at work on it can commit
nothing behind us; then each table gives up the rows in one Delta commit, which says how many they were; then the ledger
says that they are gone. Every step finds out whether it was done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.catalog import delta
from headrace.catalog.ledger import FileAccount, Ledger, LedgerBatch
from headrace.catalog.spec import load
from headrace.ingest.batch import Batch

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def finish_withdrawals(
    spark: SparkSession, lake: str, source: str, say: Callable[[str], None]
) -> dict[str, FileAccount]:
    """Finish what `Ledger.withdraw` recorded, by this run or by one that was killed.

    Args:
        spark: the session.
        lake: folder of the tables.
        source: whose files: `bronze/SOURCE` and `quarantine/SOURCE` are the tables.
        say: told of every file.

    Returns:
        By path, the rows that were taken out.
    """
    ledger = Ledger(spark, lake, source)
    state = ledger.state()
    every: dict[str, FileAccount] = {}
    for batch in state.withdrawals:
        removed = _take_out(Batch(spark, lake, batch.batch_id), source, batch, whole=batch in state.batches)
        ledger.withdrawn(batch, removed)
        for file in batch.files:
            gone = removed[file.path]
            say(
                f"{file.path}: forgotten (file {file.ordinal}, batch {batch.batch_id}); {gone.committed:,} rows and"
                f" {gone.quarantined:,} in quarantine were taken out"
            )
        every |= removed
    return every


def _take_out(tables: Batch, source: str, batch: LedgerBatch, *, whole: bool) -> dict[str, FileAccount]:
    specs = [load(f"{layer}/{source}") for layer in ("bronze", "quarantine")]
    for spec in specs:
        tables.seal(spec)
    rows, refused = [tables.remove(spec, batch.files, whole=whole) for spec in specs]
    versions = [delta.latest_version(spec.path(tables.lake)) for spec in specs]
    return {
        file.path: _removed(rows.get(file.ordinal, 0), refused.get(file.ordinal, 0), versions) for file in batch.files
    }


def _removed(rows: int, refused: int, versions: list[int]) -> FileAccount:
    bronze, quarantine = versions
    return FileAccount(rows + refused, rows, refused, bronze if rows else None, quarantine if refused else None)
