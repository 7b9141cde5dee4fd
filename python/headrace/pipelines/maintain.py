"""Care of a lake's tables: join small files, list or remove what no version in reach needs, make statistics.

Nothing is removed unless it is asked for by name: without --delete a vacuum only lists. Versions that a training run
has pinned within the retention are kept: a vacuum that would take a file of theirs is refused.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.catalog import care, checks, scratch
from headrace.catalog.care import Removable, Size
from headrace.catalog.delta import commit_metadata, exists, files_at, latest_version, pin
from headrace.catalog.log import Log
from headrace.catalog.spec import TableSpec, load, load_all
from headrace.catalog.storage import local_path
from headrace.config import suggest
from headrace.errors import UserError
from headrace.features import layout
from headrace.report import Report
from headrace.train.spool import ENTRIES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SAFE_HOURS = 168.0
WORDS = ("short-retention", "pinned-versions")
_SCRATCH_S = 24 * 3600.0


@dataclass(kw_only=True)
class Config:
    """Compact tables, vacuum them, make their statistics; without a choice, only show their sizes.

    Args:
        lake: folder of the tables.
        tables: names or patterns, separated by commas, such as bronze/*,silver/documents.
        optimize: join small files. Tables that training streams keep the layout their writer gave them, unless named
            without a pattern.
        file_mb: size of a joined file, in MB.
        rows_per_group: rows of a Parquet row group, in tables that training streams.
        vacuum: list what no version in reach needs, with bytes.
        delete: and remove it.
        retain_hours: how long files stay after they were taken out of a table.
        stats: make the quality reports of newest versions that have none.
        force: what must be said to go under a safe limit, separated by commas: short-retention (keep less than 168
            hours), pinned-versions (remove files of versions that recent runs trained on).
    """

    lake: str = "lake"
    tables: str = "*"
    optimize: bool = False
    file_mb: int = 256
    rows_per_group: int = 32_768
    vacuum: bool = False
    delete: bool = False
    retain_hours: float = 720.0
    stats: bool = False
    force: str = ""


@dataclass(frozen=True)
class Pinned:
    """A version of a table that a run trained on, and when the run last wrote anything."""

    run: str
    table: str
    version: int
    at: float

    def __str__(self) -> str:
        return f"{self.table}@{self.version} (run {self.run})"


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Do what is asked, table by table, and print a line for each.

    Raises:
        UserError: no such table, a retention that is not safe, a vacuum that would take a pinned version's files.
    """
    early(cfg)
    specs = _tables(cfg)
    lines = []
    for spec in specs:
        lines.append(_care(spark, cfg, spec, report))
        report.results[spec.name] = lines[-1]
    _say(report, lines)
    if cfg.vacuum:
        _scratch(cfg, report)
    return report


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: as `run`.
    """
    words = {word.strip() for word in cfg.force.split(",") if word.strip()}
    for word in words - set(WORDS):
        raise UserError(f"--force {word!r} is unknown", suggest(word, WORDS))
    if cfg.delete and not cfg.vacuum:
        raise UserError("--delete without --vacuum", "add --vacuum true")
    for name, least in (("file_mb", 1), ("rows_per_group", layout.MIN_GROUP_ROWS)):
        if getattr(cfg, name) < least:
            raise UserError(f"--{name} {getattr(cfg, name)} is under {least}", "leave it out")
    if cfg.retain_hours < 0 or (cfg.vacuum and cfg.retain_hours < SAFE_HOURS and "short-retention" not in words):
        raise UserError(
            f"--retain_hours {cfg.retain_hours:g} is under the safe {SAFE_HOURS:g}: a reader or writer at work now may "
            "lose files it needs",
            f"give {SAFE_HOURS:g} or more; or, with nobody at work on the lake, add --force short-retention",
        )
    _tables(cfg)


def pinned_by_runs(lake: str) -> list[Pinned]:
    """The versions that the runs of a lake have trained on, as their tracking entries say."""
    folder = local_path(lake)
    if folder is None:
        return []
    found = []
    for path in sorted(Path(folder).glob(f"runs/*/{ENTRIES}")):
        at = max(entry.stat().st_mtime for entry in path.parent.iterdir())
        tables = {(table["name"], int(table["version"])) for start in _starts(path) for table in start.values()}
        found += [Pinned(path.parent.name, name, version, at) for name, version in sorted(tables)]
    return found + [vocabulary for each in found for vocabulary in _vocabulary(lake, each)]


def _starts(path: Path) -> Iterator[dict[str, Any]]:
    """`tables` of every beginning of the run; a line cut by a crash is left out."""
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("op") == "start":
            yield entry.get("tables") or {}


def _vocabulary(lake: str, pinned: Pinned) -> list[Pinned]:
    """The vocabulary a pinned table was encoded with: a resumed run reads it again."""
    spec = load(pinned.table)
    if not exists(spec.path(lake)) or latest_version(spec.path(lake)) < pinned.version:
        return []
    version = commit_metadata(spec.path(lake), pinned.version).get("vocabulary_version")
    return [] if version is None else [Pinned(pinned.run, "silver/ctr_vocabulary", int(version), pinned.at)]


def _tables(cfg: Config) -> list[TableSpec]:
    """The tables that are there and asked for.

    Raises:
        UserError: a name without a table.
    """
    there = {name: spec for name, spec in load_all().items() if exists(spec.path(cfg.lake))}
    if not there:
        raise UserError(f"no table is in --lake {cfg.lake}", "check --lake")
    chosen: dict[str, TableSpec] = {}
    for pattern in _patterns(cfg):
        matching = fnmatch.filter(there, pattern)
        if not matching:
            raise UserError(f"--tables {pattern}: no such table in {cfg.lake}", suggest(pattern, list(there)))
        chosen |= {name: there[name] for name in matching}
    return [chosen[name] for name in sorted(chosen)]


def _patterns(cfg: Config) -> list[str]:
    return [pattern.strip() for pattern in cfg.tables.split(",") if pattern.strip()]


def _care(spark: SparkSession, cfg: Config, spec: TableSpec, report: Report) -> dict[str, Any]:
    path = spec.path(cfg.lake)
    before = care.size_of(path)
    line: dict[str, Any] = {"table": spec.name, "version": before.version, "files": before.files, "bytes": before.bytes}
    if cfg.optimize:
        after = _optimize(spark, cfg, spec, before, report)
        line |= {"version": after.version, "files_after": after.files, "bytes_after": after.bytes}
    if cfg.vacuum:
        files = _vacuum(spark, cfg, spec, report)
        line |= {
            "removed" if cfg.delete else "removable": len(files),
            "vacuum_bytes": sum(file.bytes for file in files),
        }
    if cfg.stats and spec.layer != "meta" and latest_version(path) > 0:
        with report.stage("statistics") as stage:
            made = checks.record_all(spark, [(spec, latest_version(path))], cfg.lake)[0]
            stage.note = f"{made.table}@{made.version}, {len(made.rows)} columns"
        line["statistics"] = made.version
    return line


def _optimize(spark: SparkSession, cfg: Config, spec: TableSpec, before: Size, report: Report) -> Size:
    if spec.tensors and spec.name not in _patterns(cfg):
        report.say(f"{spec.name}: laid out for training by its writer, left so (name it in --tables to join its files)")
        return before
    path = spec.path(cfg.lake)
    with report.stage("optimize") as stage:
        pinned = pin(spec, cfg.lake, before.version)
        groups = layout.row_groups(spark, cfg.rows_per_group) if spec.tensors else contextlib.nullcontext()
        with groups:
            care.compact(spark, path, cfg.file_mb * 1_000_000, spec.parquet)
        after = care.size_of(path)
        _same_rows(spec, cfg.lake, (pinned.rows, pinned.fingerprint), before.version, after.version)
        stage.rows_in = stage.rows_out = pinned.rows
        stage.bytes_in = before.bytes
        stage.note = (
            f"{spec.name}: {before.files:,} files -> {after.files:,}, version {before.version} -> {after.version}"
        )
    if spec.tensors and after.version > before.version:
        report.warn(
            f"{spec.name}@{after.version} has other files and row groups: training on it meets the rows in another "
            f"order. Runs that pin @{before.version} read on as before, until its files are vacuumed"
        )
    return after


def _same_rows(spec: TableSpec, lake: str, before: tuple[int, int], old: int, new: int) -> None:
    """Rows and key sum must be those of before, where nobody else has written in between."""
    operations = [
        (action.get("commitInfo") or {}) for v in range(old + 1, new + 1) for action in Log(spec.path(lake)).actions(v)
    ]
    if any(info.get("operation") not in (None, "OPTIMIZE") for info in operations):
        return
    after = pin(spec, lake, new)
    assert (after.rows, after.fingerprint) == before, f"{spec.name}@{new} does not hold the rows of @{old}"


def _vacuum(spark: SparkSession, cfg: Config, spec: TableSpec, report: Report) -> list[Removable]:
    path = spec.path(cfg.lake)
    with report.stage("vacuum") as stage:
        files = care.removable(spark, path, cfg.retain_hours)
        if files:
            _mind_pins(cfg, spec, {file.path for file in files}, report)
        if cfg.delete and files:
            care.vacuum(spark, path, cfg.retain_hours)
        done = "removed" if cfg.delete else "could be removed (--delete true removes them)"
        stage.note = f"{spec.name}: {len(files):,} files, {sum(file.bytes for file in files):,} bytes {done}"
    return files


def _mind_pins(cfg: Config, spec: TableSpec, going: set[str], report: Report) -> None:
    """Refuse to break a version that a recent run trained on; say which older ones break."""
    broken = [
        each for each in pinned_by_runs(cfg.lake) if each.table == spec.name and _loses(spec, cfg.lake, each, going)
    ]
    since = time.time() - max(cfg.retain_hours, SAFE_HOURS) * 3600
    recent = [each for each in broken if each.at >= since]
    if recent and cfg.delete and "pinned-versions" not in cfg.force:
        raise UserError(
            f"{spec.name}: files would go that recent runs trained on: {_listed(recent)}; they could not be resumed",
            "give a longer --retain_hours, leave the table out of --tables, or add --force pinned-versions",
        )
    if broken:
        fate = "can no longer be read" if cfg.delete else "could no longer be read"
        report.warn(f"{fate}: {_listed(broken)}")


def _loses(spec: TableSpec, lake: str, pinned: Pinned, going: set[str]) -> bool:
    if pinned.version > latest_version(spec.path(lake)):
        return False  # of another table that lay here
    return any(file.path in going for file in files_at(spec, lake, pinned.version))


def _listed(pins: Sequence[Pinned]) -> str:
    names = sorted({str(each) for each in pins})
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _scratch(cfg: Config, report: Report) -> None:
    """Working folders of runs that were killed more than a day ago."""
    left = scratch.left_behind(cfg.lake, _SCRATCH_S)
    for place in left if cfg.delete else []:
        scratch.remove(place)
    if left:
        report.say(f"{len(left)} working folders of killed runs {'removed' if cfg.delete else 'could be removed'}")
    report.results["scratch"] = left


def _say(report: Report, lines: Sequence[dict[str, Any]]) -> None:
    names = [name for name in _COLUMNS if any(name in line for line in lines)]
    rows = [names] + [[_cell(line.get(name)) for name in names] for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    for row in rows:
        report.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


_COLUMNS = (
    "table", "version", "files", "bytes", "files_after", "bytes_after", "removable", "removed", "vacuum_bytes",
    "statistics",
)  # fmt: skip


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
