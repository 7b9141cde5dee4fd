"""The account of one input file: what was read, what became of it, where it is now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.catalog import delta
from headrace.catalog.ledger import FileAccount, Ledger, LedgerBatch, LedgerFile, LedgerState
from headrace.catalog.log import exists
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.ingest.lines import LINE_BITS
from headrace.ingest.refused import Refused, by_reason, lines_of
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

POSITIONAL = ("file",)


@dataclass(kw_only=True)
class Config:
    """Print what became of one file's rows.

    Args:
        file: the input file: its path, or its name if that names one file only.
        lake: folder of the tables.
        source: the kind of input, such as criteo.
        examples: how many refused lines to show for each reason.
    """

    file: str = ""
    lake: str = "lake"
    source: str = "criteo"
    examples: int = 3


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: no file was named, or the lake has no ledger.
    """
    if not cfg.file:
        raise UserError("which file's rows?", f"headrace rows day_0.gz --lake {cfg.lake}")
    require_ledger(cfg.lake)


def require_ledger(lake: str) -> None:
    """What reads the ledger's tables must not make them.

    Raises:
        UserError: nothing was ingested into `lake`.
    """
    if not exists(load("meta/ledger").path(lake)):
        raise UserError(
            f"nothing was ingested into --lake {lake}", f"headrace ingest-criteo --lake {lake} --source ..."
        )


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Print the account from the ledger, beside it what the tables hold now.

    Raises:
        UserError: the ledger does not know the file, or knows several of that name.
    """
    state = Ledger(spark, cfg.lake, cfg.source).state()
    found = readings(cfg.file, state)
    if not found:
        raise not_known(cfg.file, [state])
    *earlier, (batch, file) = found
    account = state.accounts.get((batch.batch_id, file.path))
    for line in _facts(batch, file, account):
        report.say(line)
    if batch in state.open_batches:
        report.say("the batch is open: run the same ingest again to finish it")
    for each in (*earlier, (batch, file)):
        if gone := _forgotten(state, *each):
            report.say(gone)
    now = _rows_now(spark, cfg, file)
    refused = _refused(spark, cfg, batch, file)
    report.say(f"in bronze/{cfg.source} now {now:,} rows")
    report.say(f"in quarantine/{cfg.source} now {sum(each.rows for each in refused):,} rows")
    for line in lines_of(refused):
        report.say(line)
    report.results |= _results(batch, file, account) | {
        "forgotten": (batch.batch_id, file.path) in state.withdrawn,
        "readings": len(earlier) + 1,
        "rows_now": now,
        "reasons": {each.reason: each.rows for each in refused},
    }
    return report


def readings(name: str, state: LedgerState) -> list[tuple[LedgerBatch, LedgerFile]]:
    """Every time that one file was planned, the last one last: it may have been forgotten and read again.

    Empty where the ledger does not know the file.

    Args:
        name: its path, where it came from, or an ending of either that only one file has.
        state: the ledger.

    Raises:
        UserError: several files have that name.
    """
    every = [(batch, file) for batch in state.batches for file in batch.files]
    exact = [(batch, file) for batch, file in every if os.path.abspath(name) == file.path or name == origin(file)]
    ending = f"/{name.lstrip('/')}"
    found = exact or [each for each in every if f"/{origin(each[1])}".endswith(ending)]
    paths = {file.path for _, file in found}
    if len(paths) > 1:
        raise UserError(f"{len(paths)} files are called {name}", f"give the path, such as {origin(found[0][1])}")
    return found


def not_known(name: str, states: Sequence[LedgerState]) -> UserError:
    """No state knows a file of that name; the remedy lists some that are known."""
    names = {os.path.basename(path) for state in states for path in state.files}
    known = ", ".join(sorted(names)[:5]) or "no file yet"
    return UserError(f"the ledger does not know {name or 'a file without a name'}", f"it knows {known}")


def origin(file: LedgerFile) -> str:
    """Where a file came from, if that is not where it was read."""
    return str(file.detail.get("origin", file.path))


def _facts(batch: LedgerBatch, file: LedgerFile, account: FileAccount | None) -> list[str]:
    lines = [
        f"{origin(file)}: {file.size:,} bytes, {file.checksum}, file {file.ordinal}"
        + ("" if file.day is None else f", day {file.day}"),
        f"batch {batch.batch_id}, {len(batch.files)} files",
    ]
    if account is None:
        return lines
    header = " (and a header)" if file.detail.get("header") else ""
    if left := file.detail.get("left_out"):
        lines.append(f"{left:,} records of types that were not asked for are left out")
    lines.append(
        f"{account.read:,} rows read{header}"
        f" = {account.committed:,} committed (version {_or_none(account.table_version)})"
        f" + {account.quarantined:,} in quarantine (version {_or_none(account.quarantine_version)})"
    )
    return lines


def _forgotten(state: LedgerState, batch: LedgerBatch, file: LedgerFile) -> str:
    """What was taken out again of one reading; empty where nothing was."""
    name = batch.batch_id, file.path
    if name not in state.withdrawn:
        return ""
    gone = state.withdrawn[name]
    if gone is None:
        return f"file {file.ordinal}, batch {batch.batch_id}: is being forgotten; the next ingest or forget finishes it"
    return (
        f"file {file.ordinal}, batch {batch.batch_id}: forgotten; {gone.committed:,} rows"
        f" (version {_or_none(gone.table_version)} is without them) and {gone.quarantined:,} in quarantine (version"
        f" {_or_none(gone.quarantine_version)}) were taken out"
    )


def _or_none(version: int | None) -> str:
    return "none" if version is None else str(version)


def _rows_now(spark: SparkSession, cfg: Config, file: LedgerFile) -> int:
    from pyspark.sql import functions as F

    first, behind = file.ordinal << LINE_BITS, (file.ordinal + 1) << LINE_BITS
    spec = load(f"bronze/{cfg.source}")
    delta.ensure(spark, spec, cfg.lake)
    return delta.read(spark, spec, cfg.lake).where((F.col("key") >= first) & (F.col("key") < behind)).count()


def _refused(spark: SparkSession, cfg: Config, batch: LedgerBatch, file: LedgerFile) -> list[Refused]:
    from pyspark.sql import functions as F

    condition = (F.col("batch_id") == batch.batch_id) & (F.col("file_ordinal") == file.ordinal)
    return by_reason(spark, cfg.lake, f"quarantine/{cfg.source}", examples=cfg.examples, condition=condition)


def _results(batch: LedgerBatch, file: LedgerFile, account: FileAccount | None) -> dict[str, object]:
    return {
        "file": file.path,
        "file_ordinal": file.ordinal,
        "day": file.day,
        "size": file.size,
        "checksum": file.checksum,
        "batch_id": batch.batch_id,
        "closed": account is not None,
        "rows_read": account.read if account else None,
        "rows_committed": account.committed if account else None,
        "rows_quarantined": account.quarantined if account else None,
        "table_version": account.table_version if account else None,
        "quarantine_version": account.quarantine_version if account else None,
    }
