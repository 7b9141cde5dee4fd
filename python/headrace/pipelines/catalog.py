"""Look at the catalog: its tables and data sets, live tables against it, a version's quality, its page in the docs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.catalog import checks, datasets, differences
from headrace.catalog.log import Log, exists
from headrace.catalog.spec import TableSpec, describe, load, load_all
from headrace.config import suggest
from headrace.errors import UserError
from headrace.pipelines import catalog_page
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

POSITIONAL = ("action", "table")


@dataclass(kw_only=True)
class Config:
    """Look at the catalog and the tables it describes.

    Args:
        action: list, show, validate or report; datasets (all that are known) or dataset (one by name); docs (write
            the page of all tables).
        table: a table by name, such as silver/ctr; for report, with a version if wanted, such as silver/ctr@3; for
            dataset the data set's name.
        lake: folder of the tables.
        html: file to which report also writes its page.
        page: file that docs writes.
        check: with docs, write nothing, and fail where the page is not what would be written.
    """

    action: str = "list"
    table: str = ""
    lake: str = "lake"
    html: str = ""
    page: str = "docs/tables.md"
    check: bool = False


def run(spark: SparkSession | None, cfg: Config, report: Report) -> Report:
    """Do the action; nothing is written but the page of `report`. Spark is used where it is there, and not needed.

    Raises:
        UserError: unknown action or table; validate found differences; report was asked of a version that is not there.
    """
    actions: dict[str, Callable[[], None]] = {
        "list": lambda: _list(cfg, report),
        "show": lambda: _show(cfg, report),
        "validate": lambda: _validate(cfg, report),
        "report": lambda: _report(spark, cfg, report),
        "datasets": lambda: _datasets(report),
        "dataset": lambda: _dataset(cfg, report),
        "docs": lambda: _docs(cfg, report),
    }
    if cfg.action not in actions:
        raise UserError(f"catalog {cfg.action}: no such action", suggest(cfg.action, list(actions)))
    actions[cfg.action]()
    return report


def _list(cfg: Config, report: Report) -> None:
    lines = [("table", "layer", "version", "rows", "what it holds")]
    for name, spec in load_all().items():
        version, rows = "-", "-"
        if exists(spec.path(cfg.lake)):
            snapshot = Log(spec.path(cfg.lake)).snapshot()
            version, rows = str(snapshot.version), f"{snapshot.rows:,}"
            report.results[name] = {"version": snapshot.version, "rows": snapshot.rows}
        lines.append((name, spec.layer, version, rows, spec.doc))
    _say_aligned(report, lines)
    if not report.results:
        report.say(f"no table is in --lake {cfg.lake}")


def _show(cfg: Config, report: Report) -> None:
    spec, _ = _table(cfg)
    report.say(f"{spec.name}: {spec.doc}")
    facts = {
        "keys": ", ".join(spec.keys),
        "partitioned by": ", ".join(spec.partition_by),
        "source": spec.source,
        "licence": spec.licence,
        "written by": ", ".join(spec.written_by),
        "read by": ", ".join(spec.read_by),
    }
    _say_aligned(report, [(name, value) for name, value in facts.items() if value])
    _say_aligned(report, [("column", "type", "", "meaning"), *describe(spec.columns)])
    _say_aligned(report, [("check", "SQL"), *spec.checks.items()])
    _say_aligned(
        report, [("tensor", "columns"), *((t.name, f"{t.dtype}: {', '.join(t.columns)}") for t in spec.tensors)]
    )
    report.results["table"] = spec.name


def _validate(cfg: Config, report: Report) -> None:
    specs = [_table(cfg)[0]] if cfg.table else list(load_all().values())
    if not any(exists(spec.path(cfg.lake)) for spec in specs) and not cfg.table:
        raise UserError(f"no table is in --lake {cfg.lake}", "check --lake")
    wrong = []
    for spec in specs:
        if not exists(spec.path(cfg.lake)):
            if cfg.table:
                raise UserError(f"{spec.path(cfg.lake)}: no Delta table there", "check --lake")
            continue
        found = live_differences(spec, cfg.lake)
        report.results[spec.name] = [vars(difference) for difference in found]
        report.say(f"{spec.name}: {'as described' if not found else 'differs'}")
        if found:
            wrong.append(f"{spec.name}:\n{differences.table(found)}")
    if wrong:
        remedy = "change data_catalog/, or the table (merge the schema, ALTER TABLE), so that they agree"
        raise UserError("tables are not as data_catalog describes them\n" + "\n".join(wrong), remedy)


def live_differences(spec: TableSpec, lake: str | Path) -> list[differences.Difference]:
    """What differs between the newest version of a table and its description: columns, partitions, checks."""
    snapshot = Log(spec.path(lake)).snapshot()
    found = differences.compare(
        differences.of_spec(spec, nulls=True), differences.of_schema(snapshot.schema, nulls=True)
    )
    live_checks = {
        f"check {key.removeprefix('delta.constraints.')}": value
        for key, value in snapshot.properties.items()
        if key.startswith("delta.constraints.")
    }
    found += differences.compare({f"check {name}": sql for name, sql in spec.checks.items()}, live_checks)
    if snapshot.partition_columns != spec.partition_by:
        expected, live = (", ".join(names) or "-" for names in (spec.partition_by, snapshot.partition_columns))
        found.append(differences.Difference("changed", "(partitions)", expected, live))
    return found


def _report(spark: SparkSession | None, cfg: Config, report: Report) -> None:
    spec, version = _table(cfg)
    log = Log(spec.path(cfg.lake))
    version = log.latest if version is None else version
    made = checks.find(spec, cfg.lake, version) or checks.make(spec, cfg.lake, version, spark)
    report.say(f"{spec.name}@{version}: the rows this version added")
    for line in made.text().splitlines():
        report.say(line)
    if cfg.html:
        Path(cfg.html).write_text(f"<!doctype html><meta charset='utf-8'>{made._repr_html_()}", encoding="utf-8")
        report.paths["html"] = cfg.html
    report.results |= {"table": spec.name, "version": version, "columns": [_public(row) for row in made.rows]}


def _datasets(report: Report) -> None:
    known = [datasets.load(name) for name in datasets.names()]
    lines = [(d.name, d.ingested_by, _cut(d.size, 40), _cut(d.licence, 64)) for d in known]
    _say_aligned(report, [("data set", "ingested by", "size", "licence"), *lines])
    report.say("headrace catalog dataset NAME shows one in full")
    report.results |= {
        d.name: {"table": d.table, "ingested_by": d.ingested_by, "size": d.size, "licence": d.licence} for d in known
    }


def _cut(text: str, width: int) -> str:
    """Whole words, up to so many characters."""
    return textwrap.shorten(text, width, placeholder=" ...", break_on_hyphens=False)


def _dataset(cfg: Config, report: Report) -> None:
    found = datasets.load(cfg.table)
    _say_aligned(report, list(found.texts().items()))
    report.results |= found.texts()


def _docs(cfg: Config, report: Report) -> None:
    page, text = Path(cfg.page), catalog_page.render()
    if cfg.check:
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            raise UserError(f"{page} is not what data_catalog/ says", "headrace catalog docs, and commit it")
    else:
        page.write_text(text, encoding="utf-8")
    report.paths["page"] = str(page)


def _public(row: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if key not in ("bins", "table", "table_id", "version", "at")}


def _table(cfg: Config) -> tuple[TableSpec, int | None]:
    match = re.fullmatch(r"([^@]+)(?:@(\d+))?", cfg.table)
    if not match:
        raise UserError(
            f"catalog {cfg.action} wants a table, not {cfg.table!r}", "for example silver/ctr or silver/ctr@3"
        )
    return load(match.group(1)), int(match.group(2)) if match.group(2) else None


def _say_aligned(report: Report, rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows if len(rows) > 1 or (rows and rows[0][0] not in ("check", "tensor")) else []:
        report.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
