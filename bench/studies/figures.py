"""The studies' figures as SVG, the same bytes for the same lines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.studies.found import Entry
from bench.studies.lines import Line

PANELS = 4
REFERENCE = "adam"


def curves(entries: Sequence[Entry], metric: str, path: Path) -> None:
    """Metric of the test rows against epochs (above) and CPU seconds (below), some rules a panel, Adam in each.

    A line is the mean over the seeds, dotted where there is but tuning's best run.
    """
    entries = [entry for entry in entries if entry.shown]
    if not entries:
        return
    size = -(-len(entries) // PANELS)
    groups = [entries[at : at + size] for at in range(0, len(entries), size)]
    reference = next((entry for entry in entries if entry.name == REFERENCE), None)
    figure = canvas(4.2 * len(groups), 6.4)
    axes = figure.subplots(2, len(groups), sharey=True, squeeze=False)
    for column, group in enumerate(groups):
        for row, what in enumerate(("epoch", "cpu_seconds")):
            axis = axes[row][column]
            for entry in [reference, *group] if reference and reference not in group else group:
                x, y = _mean(entry.shown, what)
                grey: dict[str, Any] = {"color": "0.6"} if entry is reference and reference not in group else {}
                axis.plot(x, y, ":" if not entry.runs else "-", label=entry.name, linewidth=1.2, **grey)
            axis.set_xlabel("epochs" if row == 0 else "CPU seconds of training")
            axis.set_xscale("linear" if row == 0 else "log")
            axis.grid(alpha=0.3)
        axes[0][column].legend(fontsize=7, loc="lower right")
    scores = [p["test"] for e in entries for line in e.shown for p in line["curve"] if p.get("test") is not None]
    axes[0][0].set_ylim(bottom=max(0.0, statistics.median(scores) - 0.1 * (1 if metric == "AUC" else 2)))
    for row in axes:
        row[0].set_ylabel(f"test {metric}")
    save(figure, path)


def _mean(lines: Sequence[Line], what: str) -> tuple[list[float], list[float]]:
    """Means over runs, point by point, as far as all of them go."""
    points = list(zip(*(line["curve"] for line in lines), strict=False))
    points = [some for some in points if all(p.get("test") is not None for p in some)]
    return (
        [statistics.fmean(p[what] for p in some) for some in points],
        [statistics.fmean(p["test"] for p in some) for some in points],
    )


def against_batch(series: Mapping[str, Mapping[int, Sequence[float]]], metric: str, path: Path) -> None:
    """Means and standard deviations of `series[rule][batch]` against the batch."""
    figure = canvas(6.0, 4.2)
    axis = figure.subplots()
    for rule, by_batch in series.items():
        known = {batch: values for batch, values in by_batch.items() if values}
        if not known:
            continue
        means = [statistics.fmean(values) for values in known.values()]
        deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in known.values()]
        axis.errorbar(list(known), means, deviations, marker="o", markersize=4, capsize=3, label=rule)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("batch")
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend()
    save(figure, path)


def against_time(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], path: Path) -> None:
    """`panels[title][name]` are times and losses; the scale of losses is logarithmic."""
    figure = canvas(5.2 * len(panels), 4.2)
    for axis, (title, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, (x, y) in series.items():
            axis.plot(x, y, label=name, linewidth=1.2)
        axis.set_title(title)
        axis.set_xlabel("virtual seconds")
        axis.set_ylabel("held loss")
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
    save(figure, path)


def canvas(width: float, height: float) -> Any:
    """An empty figure; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """As SVG, the same bytes for the same figure."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "headrace", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
