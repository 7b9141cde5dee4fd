"""Criteo files into `bronze/criteo` and `quarantine/criteo`, every line accounted for in `meta/ledger`.

First the batches that an earlier run left open are finished, exactly as recorded; then files that the ledger does not
know are scanned, put in batches, and committed one batch after the other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.catalog.ledger import FileAccount, Ledger, LedgerBatch, LedgerFile, LedgerState
from headrace.errors import UserError
from headrace.ingest.claim import claim
from headrace.ingest.commit import BRONZE, QUARANTINE, commit_batch, describe, record_quality
from headrace.ingest.criteo import MAX_FILES, MAX_LINES, RANGE_BYTES, InputFile, scan_files
from headrace.ingest.criteo_parse import Format, looks_like_header
from headrace.ingest.days import day_range, days_of, find_files
from headrace.ingest.textfiles import FileScan
from headrace.report import Report, Stage

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SOURCE = "criteo"
HEADERS = ("auto", "yes", "no")


@dataclass(kw_only=True)
class Config:
    """Read Criteo files (Kaggle or Terabyte, gz or plain) into the lake, each once.

    Args:
        lake: folder of the tables.
        source: files, folders or quoted patterns, separated by commas.
        days: only files of these days, such as 3-7 (both included) or 3.
        days_from: where a file's day comes from: auto (day_N in its name, else train 0, dev or valid 1, test 2), name
            (day_N only) or order (its place among the files found).
        days_by_name: days of single files, such as train.tsv=0,dev.tsv=1; wins over days_from.
        labelled: 40 columns with the label first; false for test files with 39 columns.
        header: is the first line of each file a header: auto, yes or no.
        allow_duplicates: read files whose content is in the lake already under another name.
        batch_bytes: about how much input one commit takes.
        range_bytes: about how much of a plain file one task reads.
        max_line_bytes: longer lines go to quarantine.
        raw_bytes: how much of a refused line is kept there.
    """

    lake: str = "lake"
    source: str = ""
    days: str | None = None
    days_from: str = "auto"
    days_by_name: str = ""
    labelled: bool = True
    header: str = "auto"
    allow_duplicates: bool = False
    batch_bytes: int = 1 << 30
    range_bytes: int = RANGE_BYTES
    max_line_bytes: int = 1 << 20
    raw_bytes: int = 1 << 16


@dataclass
class _Ingest:
    """One run: its settings, and what it has found out about files so far."""

    spark: SparkSession
    cfg: Config
    report: Report
    ledger: Ledger
    scans: dict[str, FileScan] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    accounts: dict[str, FileAccount] = field(default_factory=dict)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Finish open batches, then ingest what is new; see the module.

    Raises:
        UserError: a setting or a file is not usable (truncated gzip, changed since, content twice); what was committed
            before stays, and the same command goes on from there once it is mended.
    """
    _check(cfg)
    paths = find_files(cfg.source)
    ingest = _Ingest(spark, cfg, report, Ledger(spark, cfg.lake, SOURCE))
    with claim(cfg.lake, report.say):
        _finish_open(ingest)
        days = days_of(paths, cfg.days_from, cfg.days_by_name)
        wanted = day_range(cfg.days)
        days = {path: day for path, day in days.items() if wanted is None or day in wanted}
        with report.stage("scan") as stage:
            _scan_new(ingest, days, stage)
        while batch := _open_next(ingest, days):
            _finish(ingest, batch)
        _record_quality(ingest)
    _conclude(ingest, days)
    return report


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no input file.
    """
    _check(cfg)
    find_files(cfg.source)


def _check(cfg: Config) -> None:
    if cfg.header not in HEADERS:
        raise UserError(f"--header {cfg.header} is unknown", f"one of {', '.join(HEADERS)}")
    for name in ("batch_bytes", "range_bytes", "max_line_bytes", "raw_bytes"):
        if getattr(cfg, name) < 1:
            raise UserError(f"--{name} must be at least 1", f"leave --{name} out")


def _format(cfg: Config) -> Format:
    return Format(cfg.labelled, cfg.max_line_bytes, cfg.raw_bytes)


def _finish_open(ingest: _Ingest) -> None:
    for batch in ingest.ledger.state().open_batches:
        ingest.report.say(f"finishing batch {batch.batch_id}, which an earlier run left open")
        _scan(ingest, [file.path for file in batch.files], "an earlier run began to ingest it; put it back as it was")
        _finish(ingest, batch)


def _scan_new(ingest: _Ingest, days: dict[str, int], stage: Stage) -> None:
    """Read every file that is new, or looks changed, once; refuse the run before anything of it is committed."""
    known = ingest.ledger.state().files
    suspects = [path for path in sorted(days) if path not in known or _touched(path, known[path])]
    ingest.skipped = set(days) - set(suspects)
    _scan(ingest, suspects, "leave it out of --source, or replace it by a whole file; nothing of it was committed")
    for path in suspects:
        if path in known and _checksum(ingest.scans[path]) != known[path].checksum:
            raise UserError(
                f"{path} was changed after it was ingested (batch and rows: headrace rows {path})",
                "give the new content a new name, or put back the old one",
            )
    ingest.skipped |= set(suspects) & set(known)
    new = [path for path in suspects if path not in known]
    _refuse_duplicates(ingest, new, known)
    _refuse_drift(ingest, new)
    stage.rows_in = sum(ingest.scans[path].lines for path in new)
    stage.bytes_in = sum(ingest.scans[path].size for path in suspects)
    stage.note = f"{len(new)} new files, {len(ingest.skipped)} known"


def _scan(ingest: _Ingest, paths: Sequence[str], remedy: str) -> None:
    missing = [path for path in paths if path not in ingest.scans]
    found = scan_files(ingest.spark, missing, ingest.cfg.range_bytes) if missing else {}
    errors = [result for result in found.values() if isinstance(result, str)]
    if errors:
        raise UserError("\n".join(errors), remedy)
    ingest.scans |= {path: result for path, result in found.items() if isinstance(result, FileScan)}


def _touched(path: str, known: LedgerFile) -> bool:
    stat = os.stat(path)
    return (stat.st_size, stat.st_mtime_ns) != (known.size, known.modified_ns)


def _checksum(scan: FileScan) -> str:
    return f"sha256:{scan.sha256}"


def _refuse_duplicates(ingest: _Ingest, new: Sequence[str], known: dict[str, LedgerFile]) -> None:
    """The same content under two names would be trained on twice; files without a line cannot be."""
    names = {file.checksum: path for path, file in known.items() if file.size}
    for path in new:
        scan = ingest.scans[path]
        other = names.setdefault(_checksum(scan), path)
        if other == path or not scan.lines:
            continue
        if not ingest.cfg.allow_duplicates:
            raise UserError(
                f"{path} has the same content as {other}", "leave one out, or --allow_duplicates true to have it twice"
            )
        ingest.report.warn(f"{path} has the same content as {other}: its rows will be there twice")


def _refuse_drift(ingest: _Ingest, new: Sequence[str]) -> None:
    """A header that does not name this format's columns is another schema: show the difference."""
    fields = _format(ingest.cfg).fields
    for path in new:
        head = ingest.scans[path].head
        if ingest.scans[path].lines >= MAX_LINES:
            raise UserError(f"{path} has {MAX_LINES} lines or more", "split it")
        names = head.rstrip(b"\r").split(b"\t")
        if looks_like_header(head) and len(names) != fields:
            extra = b", ".join(names[fields:]).decode("utf-8", "replace")[:200] or "none"
            raise UserError(
                f"{path}: its header names {len(names)} columns, expected are {fields}; beyond them: {extra}",
                "bring the file into the format (docs/ingest.md), or say --labelled false for files without labels",
            )


def _open_next(ingest: _Ingest, days: dict[str, int]) -> LedgerBatch | None:
    """Record the intent of the next batch of files that the ledger does not know yet; None where none is left."""
    while True:
        state = ingest.ledger.state()
        for batch in state.open_batches:  # another run's, which went on while this one was scanning
            if all(file.path in ingest.scans for file in batch.files):
                return batch
        new = [path for path in ingest.scans if path in days and path not in state.files]
        if not new:
            return None
        batch = _plan(ingest, sorted(new, key=lambda path: (days[path], path)), days, state)
        if ingest.ledger.open(batch, state):
            return batch


def _plan(ingest: _Ingest, paths: list[str], days: dict[str, int], state: LedgerState) -> LedgerBatch:
    """The first files, up to `batch_bytes`, at least one."""
    files: list[LedgerFile] = []
    size = 0
    for path in paths:
        scan = ingest.scans[path]
        if files and size + scan.size > ingest.cfg.batch_bytes:
            break
        size += scan.size
        detail = {
            "lines": scan.lines,
            "header": _has_header(ingest.cfg, scan),
            "byte_order_mark": scan.bom,
            "labelled": ingest.cfg.labelled,
            "max_line_bytes": ingest.cfg.max_line_bytes,
            "raw_bytes": ingest.cfg.raw_bytes,
        }
        ordinal = state.next_ordinal + len(files)
        if ordinal >= MAX_FILES:
            raise UserError(f"the lake holds {MAX_FILES} files, the most that fit", "start another lake")
        files.append(LedgerFile(path, ordinal, scan.size, scan.mtime_ns, _checksum(scan), days[path], detail))
    identity = json.dumps([(file.path, file.ordinal, file.checksum, file.detail) for file in files], sort_keys=True)
    return LedgerBatch(hashlib.sha256(identity.encode()).hexdigest()[:20], tuple(files))


def _has_header(cfg: Config, scan: FileScan) -> bool:
    if cfg.header == "auto":
        return looks_like_header(scan.head)
    return cfg.header == "yes" and scan.lines > 0


def _finish(ingest: _Ingest, batch: LedgerBatch) -> None:
    """Data, account, close: whatever of it is still to do."""
    for file in batch.files:
        if _checksum(ingest.scans[file.path]) != file.checksum:
            raise UserError(
                f"{file.path} was changed after batch {batch.batch_id} was begun with it",
                f"put back the file with {file.checksum}, and run the same command again",
            )
    detail = batch.files[0].detail
    fmt = Format(detail["labelled"], detail["max_line_bytes"], detail["raw_bytes"])
    files = [_input(ingest, file) for file in batch.files]
    with ingest.report.stage("ingest") as stage:
        accounts = commit_batch(ingest.spark, ingest.cfg.lake, batch.batch_id, files, fmt)
        ingest.ledger.close(batch, accounts)
        stage.rows_in = sum(account.read for account in accounts.values())
        stage.rows_out = sum(account.committed for account in accounts.values())
        stage.quarantined = sum(account.quarantined for account in accounts.values())
        stage.bytes_in = sum(file.size for file in batch.files)
        stage.note = f"batch {batch.batch_id}, {len(files)} files"
    ingest.accounts |= accounts
    for read in files:
        _remark(ingest.report, read, accounts[read.scan.path])


def _input(ingest: _Ingest, file: LedgerFile) -> InputFile:
    assert file.day is not None
    return InputFile(ingest.scans[file.path], file.ordinal, file.day, file.detail["header"])


def _remark(report: Report, file: InputFile, account: FileAccount) -> None:
    report.say(f"  {describe(file, account)}" + (", header left out" if file.header else ""))
    if account.read and not account.committed:
        report.warn(
            f"no line of {file.scan.path} was accepted: headrace quarantine says why; "
            "files without labels need --labelled false"
        )


def _record_quality(ingest: _Ingest) -> None:
    """The rows are committed and closed by now, so its failure must not look like theirs."""
    try:
        with ingest.report.stage("quality"):
            record_quality(ingest.spark, ingest.cfg.lake, ingest.ledger.state().accounts.values())
    except Exception as error:
        cause = str(error).splitlines()[:1]
        ingest.report.warn(f"all rows are in, but quality reports are missing; the next run makes them up: {cause}")


def _conclude(ingest: _Ingest, days: dict[str, int]) -> None:
    accounts = ingest.accounts.values()
    ingest.report.results |= {
        "files": len(accounts),
        "files_known": len(ingest.skipped),
        "day_by_file": dict(sorted(days.items())),
        "rows_read": sum(account.read for account in accounts),
        "rows_committed": sum(account.committed for account in accounts),
        "rows_quarantined": sum(account.quarantined for account in accounts),
    }
    lake = ingest.cfg.lake.rstrip("/")
    ingest.report.paths |= {name: f"{lake}/{name}" for name in (BRONZE, QUARANTINE, "meta/ledger")}
