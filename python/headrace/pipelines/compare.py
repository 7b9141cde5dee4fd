"""Runs beside each other, deep models and baselines: quality against seconds, memory and bytes, as a table and a
picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import UserError
from headrace.pipelines.compare_figure import draw
from headrace.report import Report

POSITIONAL = ("lake",)


class _Column(NamedTuple):
    title: str
    key: str
    format: str


_COLUMNS = (
    _Column("run", "run_id", "{}"),
    _Column("model", "model", "{}"),
    _Column("optimizer", "optimizer", "{}"),
    _Column("strategy", "strategy", "{}"),
    _Column("compression", "compression", "{}"),
    _Column("of tables", "compression_sparse", "{}"),
    _Column("launcher", "launcher", "{}"),
    _Column("ranks", "ranks", "{}"),
    _Column("test AUC", "test_auc", "{:.4f}"),
    _Column("RMSE", "test_rmse", "{:.4f}"),
    _Column("NDCG@k", "test_ndcg_at_k", "{:.4f}"),
    _Column("logloss", "test_logloss", "{:.4f}"),
    _Column("NE", "test_ne", "{:.4f}"),
    _Column("seconds", "train_seconds", "{:.1f}"),
    _Column("rows/s", "rows_per_s", "{:,.0f}"),
    _Column("peak MB", "peak_memory_mb", "{:,.0f}"),
    _Column("sent MB a rank", "megabytes_sent", "{:,.1f}"),
    _Column("shuffled MB", "shuffled_mb", "{:,.1f}"),
    _Column("seconds by stage", "stages", "{}"),
)
_MORE_IS_BETTER = ("test_auc", "test_ndcg_at_k", "rows_per_s")


@dataclass(kw_only=True)
class Config:
    """Compare the runs of a lake, of train-ctr and of baselines.

    Args:
        lake: the lake's folder.
        runs: runs to compare, separated by commas; all that ended by default.
        sort: the column to sort by, best first: test_auc, test_rmse, test_logloss, train_seconds, peak_memory_mb,
            megabytes_sent, shuffled_mb or another one.
        picture: where to write the picture; <lake>/runs/compare.png by default.
    """

    lake: str
    runs: str | None = None
    sort: str = "test_auc"
    picture: str | None = None


def run(spark: None, cfg: Config, report: Report) -> Report:
    """Print the table, draw the picture, return both."""
    keys = [column.key for column in _COLUMNS]
    if cfg.sort not in keys:
        raise UserError(f"--sort {cfg.sort}: no such column", f"one of {', '.join(keys)}")
    rows = _load(Path(cfg.lake), cfg.runs.split(",") if cfg.runs else None, report)
    rows.sort(key=lambda row: _order(row, cfg.sort))
    report.say(table(rows))
    picture = Path(cfg.picture or Path(cfg.lake) / "runs" / "compare.png")
    draw(rows, picture)
    report.results["runs"] = rows
    report.paths["picture"] = str(picture)
    return report


def table(rows: list[dict[str, Any]]) -> str:
    """The runs as lines of text; a figure that a run has not is a dash, one that no run has is left out."""
    shown = [c for c in _COLUMNS if c.key == "run_id" or any(row.get(c.key) is not None for row in rows)]
    cells = [[column.title for column in shown]]
    for row in rows:
        cells.append([c.format.format(_told(row[c.key])) if row.get(c.key) is not None else "-" for c in shown])
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _told(value: Any) -> Any:
    """Seconds by stage in a line."""
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in value.items()) if isinstance(value, dict) else value


def _load(lake: Path, wanted: list[str] | None, report: Report) -> list[dict[str, Any]]:
    found = {path.parent.name: path for path in sorted(lake.glob("runs/*/report.json"))}
    missing = [run for run in wanted or [] if run not in found]
    if missing:
        there = ", ".join(found) or "none"
        raise UserError(f"no finished run {', '.join(missing)} in {lake}/runs", f"there are: {there}")
    rows = []
    for run in wanted or found:
        try:
            rows.append(_row(json.loads(found[run].read_text(encoding="utf-8")), run))
        except (OSError, ValueError, KeyError, TypeError) as error:
            report.warn(f"{found[run]} is no report of a run and is left out: {type(error).__name__}: {error}")
    if not rows:
        raise UserError(f"no finished training run in {lake}/runs", f"headrace train-ctr --lake {lake}")
    return rows


def _row(report: dict[str, Any], run: str) -> dict[str, Any]:
    """A run's results, with its seconds by stage in the order they went."""
    results, seconds = report["results"], dict[str, float]()  # what is no report has no results: before all else
    for stage in report.get("stages", []):
        seconds[stage["name"]] = seconds.get(stage["name"], 0.0) + float(stage["seconds"])
    return results | {"run_id": run, "stages": seconds or None}


def _order(row: dict[str, Any], key: str) -> tuple[bool, Any]:
    """Runs without the figure come last; of some figures more is better, of the rest, and of names, less."""
    value = row.get(key)
    if value is None:
        return True, 0
    if key in _MORE_IS_BETTER:
        return False, -value
    return False, sum(value.values()) if isinstance(value, dict) else value
