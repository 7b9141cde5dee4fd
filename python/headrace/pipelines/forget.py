"""Files out of the lake again, with all their rows, as if they had never been read: the next ingest reads them anew.

For what was read with the wrong settings, for content that was replaced, and for a batch that cannot be finished
because its files are gone. The ledger keeps what was read and what was taken out; older versions of the tables keep the
rows.
"""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headrace.catalog.ledger import FileAccount, Ledger, LedgerBatch, LedgerFile, LedgerState
from headrace.catalog.spec import load_all
from headrace.errors import UserError
from headrace.ingest.claim import claim
from headrace.ingest.withdraw import finish_withdrawals
from headrace.pipelines.ingest_files import give_up_command
from headrace.pipelines.rows import not_known, origin, readings, require_ledger
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

POSITIONAL = ("file",)
_AGAIN = {
    "criteo": "featurize-ctr --vocabulary rebuild",
    "ratings": "featurize-ratings --ids rebuild",
    "commoncrawl": "featurize-text",
}
_AGAIN_GRAPH = "featurize-graph --nodes rebuild"


@dataclass(kw_only=True)
class Config:
    """Take files out of the lake, or give up a batch that cannot be finished, so that they can be read anew.

    Args:
        file: the input file: its path, its name if that names one file only, a folder (the files in it), or a quoted
            pattern of paths (* ends at a folder, ** does not).
        batch: instead of a file: an open batch, which is given up with all its files.
        lake: folder of the tables.
        source: the kind of input, such as criteo; default: whichever knows the file.
        plan: only say what would be taken out.
    """

    file: str = ""
    batch: str = ""
    lake: str = "lake"
    source: str = ""
    plan: bool = False


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: neither file nor batch, or both; no such source; a lake into which nothing was ingested.
    """
    if bool(cfg.file) == bool(cfg.batch):
        raise UserError("forget which file?", f"headrace forget FILE --lake {cfg.lake}, or --batch BATCH")
    if cfg.source and cfg.source not in _sources():
        raise UserError(f"no such source: {cfg.source}", f"--source {' or '.join(_sources())}")
    require_ledger(cfg.lake)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Finish what an earlier run began to forget, then forget; with `plan` nothing is written.

    Raises:
        UserError: the ledger does not know what is meant, or it is part of an open batch.
    """
    early(cfg)
    if cfg.plan:
        _plan(spark, cfg, *_meant(spark, cfg, report), report)
        return report
    removed: list[FileAccount] = []
    with claim(cfg.lake, report.say):
        for source in [cfg.source] if cfg.source else _sources():
            removed += finish_withdrawals(spark, cfg.lake, source, report.say).values()
        source, meant = _meant(spark, cfg, report)
        with report.stage("forget") as stage:
            for batch in meant:
                removed += _forget(spark, cfg, source, batch, report).values()
            stage.note = f"{len(removed)} files of {source}"
    _conclude(cfg, source, removed, report)
    return report


def _sources() -> list[str]:
    return sorted(name.partition("/")[2] for name in load_all() if name.startswith("quarantine/"))


def _meant(spark: SparkSession, cfg: Config, report: Report) -> tuple[str, list[LedgerBatch]]:
    """The source, and its batches with only the files that are meant; none where they were forgotten before."""
    sources = [cfg.source] if cfg.source else _sources()
    states = {source: Ledger(spark, cfg.lake, source).state() for source in sources}
    asked = {source: _open_batch(cfg, state) if cfg.batch else _files(cfg, state) for source, state in states.items()}
    known = {source: batches for source, batches in asked.items() if batches is not None}
    there = {source: batches for source, batches in known.items() if batches}
    if len(there) > 1:
        raise UserError(f"{' and '.join(there)} know {cfg.file}", f"--source {' or --source '.join(there)}")
    if not known and cfg.batch:
        names = ", ".join(batch.batch_id for state in states.values() for batch in state.open_batches)
        raise UserError(f"there is no batch {cfg.batch}", f"open are: {names or 'none'}")
    if not known:
        raise not_known(cfg.file, list(states.values()))
    if not there:
        report.say(f"{cfg.file or f'batch {cfg.batch}'} is forgotten: the next ingest reads it anew")
    return (there or known).popitem()


def _open_batch(cfg: Config, state: LedgerState) -> list[LedgerBatch] | None:
    """None where this source has no such batch."""
    if meant := [batch for batch in state.open_batches if batch.batch_id == cfg.batch]:
        return meant
    if cfg.batch in {batch_id for batch_id, _ in state.accounts}:
        raise UserError(f"batch {cfg.batch} is closed", "headrace forget FILE takes out a file of it")
    return [] if cfg.batch in {batch_id for batch_id, _ in state.withdrawn} else None


def _files(cfg: Config, state: LedgerState) -> list[LedgerBatch] | None:
    """None where this source knows no such file."""
    found = readings(cfg.file, state)[-1:] or _fitting(cfg.file, state)
    still_open = {batch.batch_id for batch in state.open_batches}
    by_batch: dict[str, list[LedgerFile]] = {}
    for batch, file in found:
        if batch.batch_id in still_open:
            raise UserError(
                f"{origin(file)} is part of batch {batch.batch_id}, which is open ({len(batch.files)} files)",
                f"run the same ingest again to finish it, or {give_up_command(batch.batch_id, cfg.lake)}",
            )
        if (batch.batch_id, file.path) not in state.withdrawn:
            by_batch.setdefault(batch.batch_id, []).append(file)
    return [LedgerBatch(batch_id, tuple(files)) for batch_id, files in by_batch.items()] if found else None


def _fitting(pattern: str, state: LedgerState) -> list[tuple[LedgerBatch, LedgerFile]]:
    """Files whose path, or where they came from, fits a pattern; of a folder, as ingest takes it, those in it."""
    if not set(pattern) & set("*?["):
        pattern = f"{pattern.rstrip('/')}/*"
    every = [(batch, file) for batch in state.batches for file in batch.files]
    return [each for each in every if _fits(each[1], pattern, os.path.abspath(pattern))]


def _fits(file: LedgerFile, *patterns: str) -> bool:
    names = [name.split("/") for name in (file.path, origin(file))]
    return any(_match(name, pattern.split("/")) for name in names for pattern in patterns)


def _match(name: list[str], pattern: list[str]) -> bool:
    """As `--source` has it: `*` ends at a folder, or what lies below it would be forgotten too; `**` does not."""
    if not pattern:
        return not name
    first, *rest = pattern
    if first == "**":
        return any(_match(name[at:], rest) for at in range(len(name) + 1))
    return bool(name) and fnmatch.fnmatchcase(name[0], first) and _match(name[1:], rest)


def _plan(spark: SparkSession, cfg: Config, source: str, meant: list[LedgerBatch], report: Report) -> None:
    accounts = Ledger(spark, cfg.lake, source).state().accounts
    for batch in meant:
        for file in batch.files:
            account = accounts.get((batch.batch_id, file.path))
            rows = f"{account.committed:,} rows and {account.quarantined:,} in quarantine" if account else "open batch"
            report.say(f"would forget {origin(file)} (file {file.ordinal}, batch {batch.batch_id}): {rows}")
    report.results |= {"source": source, "files": sum(len(batch.files) for batch in meant), "planned": True}


def _forget(
    spark: SparkSession, cfg: Config, source: str, batch: LedgerBatch, report: Report
) -> dict[str, FileAccount]:
    """Record the intent, unless another was faster, and do it."""
    ledger = Ledger(spark, cfg.lake, source)
    while True:
        state = ledger.state()
        if state.withdrawals:  # another's, where there are no locks
            finish_withdrawals(spark, cfg.lake, source, report.say)
            continue
        planned = {(found.batch_id, file.path) for found, file in state.planned}
        left = replace(batch, files=tuple(file for file in batch.files if (batch.batch_id, file.path) in planned))
        if not left.files:
            return {}
        if cfg.batch and left not in state.open_batches:
            raise UserError(f"batch {batch.batch_id} was finished meanwhile", "run the same ingest again")
        if ledger.withdraw(left, state):
            return finish_withdrawals(spark, cfg.lake, source, report.say)


def _conclude(cfg: Config, source: str, removed: list[FileAccount], report: Report) -> None:
    rows = sum(each.committed for each in removed)
    report.results |= {
        "source": source,
        "files": len(removed),
        "rows_removed": rows,
        "rows_removed_from_quarantine": sum(each.quarantined for each in removed),
    }
    if rows:
        report.say(
            f"tables that were made of bronze/{source} still hold what they made of these rows: featurize again, with"
            f" headrace {_AGAIN.get(source, _AGAIN_GRAPH)} where ids or documents of them are to go too"
        )
    lake = cfg.lake.rstrip("/")
    report.paths |= {name: f"{lake}/{name}" for name in (f"bronze/{source}", f"quarantine/{source}", "meta/ledger")}
