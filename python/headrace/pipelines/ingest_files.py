"""Files of any source into its tables, each once, every row accounted for in `meta/ledger`.

First what an earlier run left is finished, exactly as recorded: files that were being forgotten, batches that are open.
Then files that the ledger does not know are scanned, put in batches, and committed one batch after the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.catalog.ledger import FileAccount, Ledger, LedgerBatch, LedgerFile, LedgerState
from headrace.errors import UserError
from headrace.ingest.claim import claim
from headrace.ingest.commit import record_quality
from headrace.ingest.lines import MAX_FILES, RANGE_BYTES
from headrace.ingest.source import Scan, Source, tables
from headrace.ingest.withdraw import finish_withdrawals
from headrace.report import Report, Stage

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

BATCH_BYTES = 1 << 30


@dataclass(frozen=True)
class Settings:
    """What is the same for every source.

    Args:
        lake: folder of the tables.
        batch_bytes: about how much input one commit takes.
        allow_duplicates: read files whose content is in the lake already under another name.
        nothing_accepted: what to try where no row of a file was accepted.
    """

    lake: str
    batch_bytes: int
    allow_duplicates: bool
    nothing_accepted: str


@dataclass(kw_only=True)
class FilesConfig:
    """What every verb is told that ingests files of lines or rows.

    Args:
        lake: folder of the tables.
        source: files, folders or quoted patterns, separated by commas.
        allow_duplicates: read files whose content is in the lake already under another name.
        batch_bytes: about how much input one commit takes.
        range_bytes: about how much of a plain file one task reads.
        max_line_bytes: longer lines go to quarantine.
        raw_bytes: how much of a refused line is kept there.
    """

    lake: str = "lake"
    source: str = ""
    allow_duplicates: bool = False
    batch_bytes: int = BATCH_BYTES
    range_bytes: int = RANGE_BYTES
    max_line_bytes: int = 1 << 20
    raw_bytes: int = 1 << 16

    def check_sizes(self) -> None:
        """Refuse sizes of nothing.

        Raises:
            UserError: the setting is named.
        """
        for name in ("batch_bytes", "range_bytes", "max_line_bytes", "raw_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1", f"leave --{name} out")

    def settings(self, nothing_accepted: str) -> Settings:
        """Those of `ingest`, with what to try where no row of a file was accepted."""
        return Settings(self.lake, self.batch_bytes, self.allow_duplicates, nothing_accepted)


@dataclass
class _Ingest:
    """One run: its settings, and what it has found out about files so far."""

    spark: SparkSession
    settings: Settings
    source: Source
    report: Report
    ledger: Ledger
    scans: dict[str, Scan] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    accounts: dict[str, FileAccount] = field(default_factory=dict)


def ingest(
    spark: SparkSession, settings: Settings, source: Source, files: Mapping[str, int | None], report: Report
) -> Report:
    """Finish open batches, then ingest what is new.

    Args:
        spark: the session.
        settings: where to, and how much at a time.
        source: how files are read.
        files: absolute paths, each with the day of its rows (None where rows have none); batches go by day, then path.
        report: gets a stage for each scan and batch, and the results.

    Raises:
        UserError: a file is not usable (truncated gzip, changed since, content twice); what was committed before
            stays, and the same command goes on from there once it is mended.
    """
    run = _Ingest(spark, settings, source, report, Ledger(spark, settings.lake, source.name))
    with claim(settings.lake, report.say):
        finish_withdrawals(spark, settings.lake, source.name, report.say)
        _finish_open(run)
        with report.stage("scan") as stage:
            _scan_new(run, files, stage)
        while batch := _open_next(run, files):
            _finish(run, batch)
        _record_quality(run)
    _warn_of_refused(run)
    _conclude(run)
    return report


def forget_command(path: str, lake: str) -> str:
    """What to type so that a file is new again."""
    return f"headrace forget {shlex.quote(path)} --lake {shlex.quote(lake)}"


def give_up_command(batch_id: str, lake: str) -> str:
    """What to type so that an open batch is given up."""
    return f"headrace forget --batch {batch_id} --lake {shlex.quote(lake)}"


def _finish_open(run: _Ingest) -> None:
    for batch in run.ledger.state().open_batches:
        run.report.say(f"finishing batch {batch.batch_id}, which an earlier run left open")
        paths, give_up = [file.path for file in batch.files], give_up_command(batch.batch_id, run.settings.lake)
        _scan(run, paths, f"an earlier run began to ingest it; put it back as it was, or give its batch up: {give_up}")
        _finish(run, batch)


def _scan_new(run: _Ingest, files: Mapping[str, int | None], stage: Stage) -> None:
    """Read every file that is new, or looks changed, once; refuse the run before anything of it is committed."""
    known = run.ledger.state().files
    suspects = [path for path in sorted(files) if path not in known or _touched(path, known[path])]
    run.skipped = set(files) - set(suspects)
    _scan(run, suspects, "leave it out of --source, or replace it by a whole file; nothing of it was committed")
    for path in suspects:
        if path in known and _checksum(run.scans[path]) != known[path].checksum:
            raise UserError(
                f"{path} was changed after it was ingested (batch and rows: headrace rows {path})",
                f"put back the old content, give the new one a new name, or {forget_command(path, run.settings.lake)}"
                " to have the new one in place of the old",
            )
    run.skipped |= set(suspects) & set(known)
    new = [path for path in suspects if path not in known]
    _refuse_duplicates(run, new, known)
    run.source.check([run.scans[path] for path in new])
    stage.rows_in = sum(getattr(run.scans[path], "lines", 0) for path in new)
    stage.bytes_in = sum(run.scans[path].size for path in suspects)
    stage.note = f"{len(new)} new files, {len(run.skipped)} known"


def _scan(run: _Ingest, paths: Sequence[str], remedy: str) -> None:
    missing = [path for path in paths if path not in run.scans]
    found = run.source.scan(run.spark, missing) if missing else {}
    errors = [result for result in found.values() if isinstance(result, str)]
    if errors:
        raise UserError("\n".join(errors), remedy)
    run.scans |= {path: result for path, result in found.items() if not isinstance(result, str)}


def _touched(path: str, known: LedgerFile) -> bool:
    stat = os.stat(path)
    return (stat.st_size, stat.st_mtime_ns) != (known.size, known.modified_ns)


def _checksum(scan: Scan) -> str:
    return f"sha256:{scan.sha256}"


def _refuse_duplicates(run: _Ingest, new: Sequence[str], known: dict[str, LedgerFile]) -> None:
    """The same content under two names would be trained on twice; files without a row cannot be."""
    names = {file.checksum: path for path, file in known.items() if file.size}
    for path in new:
        scan = run.scans[path]
        other = names.setdefault(_checksum(scan), path)
        if other == path or scan.empty:
            continue
        if not run.settings.allow_duplicates:
            raise UserError(
                f"{path} has the same content as {other}", "leave one out, or --allow_duplicates true to have it twice"
            )
        run.report.warn(f"{path} has the same content as {other}: its rows will be there twice")


def _open_next(run: _Ingest, files: Mapping[str, int | None]) -> LedgerBatch | None:
    """Record the intent of the next batch of files that the ledger does not know yet; None where none is left."""
    while True:
        state = run.ledger.state()
        for batch in state.open_batches:  # another run's, which went on while this one was scanning
            if all(file.path in run.scans for file in batch.files):
                return batch
        new = [path for path in run.scans if path in files and path not in state.files]
        if not new:
            return None
        batch = _plan(run, sorted(new, key=lambda path: (files[path] or 0, path)), files, state)
        if run.ledger.open(batch, state):
            return batch


def _plan(run: _Ingest, paths: list[str], days: Mapping[str, int | None], state: LedgerState) -> LedgerBatch:
    """The first files, up to `batch_bytes`, at least one."""
    files: list[LedgerFile] = []
    size = 0
    for path in paths:
        scan = run.scans[path]
        if files and size + scan.size > run.settings.batch_bytes:
            break
        size += scan.size
        ordinal = state.next_ordinal + len(files)
        if ordinal >= MAX_FILES:
            raise UserError(f"the lake holds {MAX_FILES} files, the most that fit", "start another lake")
        detail = run.source.detail(scan)
        files.append(LedgerFile(path, ordinal, scan.size, scan.mtime_ns, _checksum(scan), days[path], detail))
    identity = json.dumps([(file.path, file.ordinal, file.checksum, file.detail) for file in files], sort_keys=True)
    return LedgerBatch(hashlib.sha256(identity.encode()).hexdigest()[:20], tuple(files))


def _finish(run: _Ingest, batch: LedgerBatch) -> None:
    """Data, account, close: whatever of it is still to do."""
    for file in batch.files:
        if _checksum(run.scans[file.path]) != file.checksum:
            raise UserError(
                f"{file.path} was changed after batch {batch.batch_id} was begun with it",
                f"put back the file with {file.checksum}, and run the same command again; or give the batch up:"
                f" {give_up_command(batch.batch_id, run.settings.lake)}",
            )
    with run.report.stage("ingest") as stage:
        accounts = run.source.commit(run.spark, run.settings.lake, batch, run.scans)
        run.ledger.close(batch, accounts)
        stage.rows_in = sum(account.read for account in accounts.values())
        stage.rows_out = sum(account.committed for account in accounts.values())
        stage.quarantined = sum(account.quarantined for account in accounts.values())
        stage.bytes_in = sum(file.size for file in batch.files)
        stage.note = f"batch {batch.batch_id}, {len(batch.files)} files"
    run.accounts |= accounts
    for file in batch.files:
        run.report.say(f"  {run.source.describe(file, accounts[file.path])}")


def _warn_of_refused(run: _Ingest) -> None:
    """Files of which nothing was accepted, now or by an earlier run: wrong settings, as a rule, and the way back."""
    state = run.ledger.state()
    asked = run.skipped | set(run.accounts)
    names = [(batch.batch_id, file.path) for batch, file in state.planned if file.path in asked]
    accounts = {path: state.accounts[batch_id, path] for batch_id, path in names if (batch_id, path) in state.accounts}
    refused = [path for path, account in accounts.items() if account.read and not account.committed]
    if refused:
        more = f" and {len(refused) - 3:,} more" if len(refused) > 3 else ""
        pattern = " (or a quoted pattern of paths)" if len(refused) > 1 else ""
        run.report.warn(
            f"nothing of {', '.join(refused[:3])}{more} was accepted: {run.settings.nothing_accepted}. To read it"
            f" again with other settings, first: {forget_command(refused[0], run.settings.lake)}{pattern}"
        )


def _record_quality(run: _Ingest) -> None:
    """The rows are committed and closed by now, so its failure must not look like theirs."""
    try:
        with run.report.stage("quality"):
            state = run.ledger.state()
            accounts = [account for name, account in state.accounts.items() if name not in state.withdrawn]
            record_quality(run.spark, run.settings.lake, run.source.name, accounts)
    except Exception as error:
        cause = str(error).splitlines()[:1]
        run.report.warn(f"all rows are in, but quality reports are missing; the next run makes them up: {cause}")


def _conclude(run: _Ingest) -> None:
    accounts = run.accounts.values()
    run.report.results |= {
        "files": len(accounts),
        "files_known": len(run.skipped),
        "rows_read": sum(account.read for account in accounts),
        "rows_committed": sum(account.committed for account in accounts),
        "rows_quarantined": sum(account.quarantined for account in accounts),
    }
    lake = run.settings.lake.rstrip("/")
    run.report.paths |= {name: f"{lake}/{name}" for name in (*tables(run.source), "meta/ledger")}
