"""Training runs beside each other: quality against seconds and bytes, as a table and a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import UserError
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
    _Column("launcher", "launcher", "{}"),
    _Column("ranks", "ranks", "{}"),
    _Column("test AUC", "test_auc", "{:.4f}"),
    _Column("logloss", "test_logloss", "{:.4f}"),
    _Column("NE", "test_ne", "{:.4f}"),
    _Column("seconds", "train_seconds", "{:.1f}"),
    _Column("rows/s", "rows_per_s", "{:,.0f}"),
    _Column("sent MB a rank", "megabytes_sent", "{:,.1f}"),
)


@dataclass(kw_only=True)
class Config:
    """Compare the training runs of a lake.

    Args:
        lake: the lake's folder.
        runs: runs to compare, separated by commas; all that ended by default.
        sort: the column to sort by, best first: test_auc, test_logloss, train_seconds or megabytes_sent.
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
    _draw(rows, picture)
    report.results["runs"] = rows
    report.paths["picture"] = str(picture)
    return report


def table(rows: list[dict[str, Any]]) -> str:
    """The runs as lines of text; a figure that a run has not is a dash."""
    cells = [[column.title for column in _COLUMNS]]
    for row in rows:
        cells.append([c.format.format(row[c.key]) if row.get(c.key) is not None else "-" for c in _COLUMNS])
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _load(lake: Path, wanted: list[str] | None, report: Report) -> list[dict[str, Any]]:
    found = {path.parent.name: path for path in sorted(lake.glob("runs/*/report.json"))}
    missing = [run for run in wanted or [] if run not in found]
    if missing:
        there = ", ".join(found) or "none"
        raise UserError(f"no finished run {', '.join(missing)} in {lake}/runs", f"there are: {there}")
    rows = []
    for run in wanted or found:
        try:
            rows.append(json.loads(found[run].read_text(encoding="utf-8"))["results"] | {"run_id": run})
        except (OSError, ValueError, KeyError, TypeError) as error:
            report.warn(f"{found[run]} is no report of a run and is left out: {type(error).__name__}: {error}")
    if not rows:
        raise UserError(f"no finished training run in {lake}/runs", f"headrace train-ctr --lake {lake}")
    return rows


def _order(row: dict[str, Any], key: str) -> tuple[bool, Any]:
    """Runs without the figure come last; of an AUC, a rate or a name more is better, of the rest less."""
    value = row.get(key)
    if value is None:
        return True, 0
    return False, -value if key in ("test_auc", "rows_per_s") else value


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    costs = (("train_seconds", "seconds"), ("megabytes_sent", "MB sent by a rank"))
    for axis, (key, label) in zip(axes, costs, strict=True):
        for row in rows:
            if row.get(key) is None or row.get("test_auc") is None:
                continue
            axis.plot(row[key], row["test_auc"], "o")
            name = f"{row.get('model', '')} x{row.get('ranks', 1)}"
            axis.annotate(name, (row[key], row["test_auc"]), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axis.set_xlabel(label)
        axis.margins(x=0.25, y=0.1)  # room for the names
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test AUC")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
