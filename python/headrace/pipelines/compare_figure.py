"""The picture of `compare`: quality against seconds and bytes, one row a figure of quality that runs have, and below
them what each run cost by stage and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
_QUALITIES = (("test_auc", "test AUC"), ("test_rmse", "test RMSE"), ("test_ndcg_at_k", "test NDCG at k"))


def draw(rows: list[Row], path: Path) -> None:
    """Draw the runs, in the order of the table, to a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    qualities = [(key, label) for key, label in _QUALITIES if any(row.get(key) is not None for row in rows)]
    height = 4.0 * len(qualities) + 1.2 + 0.3 * len(rows)
    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [4.0] * len(qualities) + [1.2 + 0.3 * len(rows)]
    axes = figure.subplots(len(ratios), 2, squeeze=False, height_ratios=ratios)
    for (left, right), (key, label) in zip(axes, qualities, strict=False):
        _scatter(left, rows, key, "train_seconds", "seconds of training")
        _scatter(right, rows, key, "_moved", "MB sent by a rank, or shuffled by Spark")
        left.set_ylabel(label)
    _stages(axes[-1][0], rows)
    _memory(axes[-1][1], rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def name_of(row: Row) -> str:
    """A run in a few words: model and optimizer, and ranks of those that have some."""
    parts = [str(row.get("model") or row["run_id"])]
    parts += [str(row["optimizer"])] if row.get("optimizer") else []
    return " ".join(parts) + (f" x{row['ranks']}" if row.get("ranks") else "")


def _scatter(axis: Axes, rows: list[Row], quality: str, cost: str, label: str) -> None:
    for row in rows:
        moved = row.get("megabytes_sent") if row.get("shuffled_mb") is None else row["shuffled_mb"]
        x = moved if cost == "_moved" else row.get(cost)
        if x is None or row.get(quality) is None:
            continue
        axis.plot(x, row[quality], "o")
        axis.annotate(name_of(row), (x, row[quality]), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axis.set_xlabel(label)
    axis.margins(x=0.25, y=0.1)  # room for the names
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)


def _stages(axis: Axes, rows: list[Row]) -> None:
    """Seconds by stage, one bar a run, the first at the top."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("stages") or {}))
    places = range(len(rows))
    start = [0.0] * len(rows)
    for name in names:
        seconds = [(row.get("stages") or {}).get(name, 0.0) for row in rows]
        axis.barh(places, seconds, left=start, label=name)
        start = [before + more for before, more in zip(start, seconds, strict=True)]
    _name_bars(axis, rows, "seconds by stage")
    if names:
        axis.legend(fontsize=8)


def _memory(axis: Axes, rows: list[Row]) -> None:
    axis.barh(range(len(rows)), [row.get("peak_memory_mb") or 0.0 for row in rows], color="gray")
    _name_bars(axis, rows, "peak memory, MB")


def _name_bars(axis: Axes, rows: list[Row], label: str) -> None:
    axis.set_yticks(range(len(rows)), [name_of(row) for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.grid(alpha=0.3, axis="x")
