"""The figure of the study of exchange: what a codec's bytes cost in loss, and loss while bytes are sent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.studies.exchange_cells import EF, EF21, FIRST, NONE, STEPS
from bench.studies.exchange_found import WITHIN, Result
from bench.studies.figures import figure_of, save

_CLIP = 12.0  # per cent above dense: what is worse is drawn at the border


def against_bytes(found: Sequence[Result], path: Path) -> bool:
    """Two panels; whether there was anything to draw."""
    shown = [result for result in found if result.against_dense]
    if not shown:
        return False
    figure = figure_of(13.0, 6.2)
    left, right = figure.subplots(1, 2)
    _scatter(left, shown)
    _curves(right, [r for r in shown if r.cell.part in (FIRST, STEPS)])
    save(figure, path)
    return True


def _scatter(axis: Any, shown: Sequence[Result]) -> None:
    """Mean difference to dense against bytes of dense gradients; with feedback filled, a line to the same without."""
    axis.axhspan(-WITHIN, WITHIN, color="0.93", zorder=0)
    axis.axhline(0.0, color="0.5", linewidth=0.8)
    labels = list(dict.fromkeys(r.cell.label for r in shown))
    colors = {label: _color(number, len(labels)) for number, label in enumerate(labels)}
    for label in labels:
        for ranks in sorted({r.ranks for r in shown}):
            some = [r for r in shown if r.cell.label == label and r.ranks == ranks]
            points = [
                (r.bytes_a_step("dense") or r.bytes_a_step("all"), min(_CLIP, statistics.fmean(r.against_dense)), r)
                for r in some
            ]
            points.sort(key=lambda point: point[2].cell.feedback == NONE)
            axis.plot(*zip(*(p[:2] for p in points), strict=True), color=colors[label], linewidth=0.6, alpha=0.6)
            for x, y, result in points:
                _point(axis, x, y, result, colors[label])
            if points and ranks == min(r.ranks for r in shown if r.cell.label == label):
                x, y, _ = points[0]
                axis.annotate(label, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=6.5)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=WITHIN)
    ticks = [-5.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0, _CLIP]
    axis.set_yticks(ticks, [f"{t:+g} %" if t < _CLIP else "worse" for t in ticks])
    axis.set_xlabel("bytes of dense gradients that a rank sends a step (of gossip and servers: all bytes)")
    axis.set_ylabel("test loss against dense, same seed")
    axis.set_title("filled: with feedback; hollow: without; squares: 4 ranks", fontsize=9)
    axis.grid(alpha=0.3)


def _point(axis: Any, x: float | None, y: float, result: Result, color: Any) -> None:
    filled = result.cell.feedback in (EF, EF21, "own")
    values = result.against_dense
    half = statistics.stdev(values) if len(values) > 1 and y < _CLIP else 0.0
    axis.errorbar(
        [x], [y], [half], marker="o" if result.ranks == 2 else "s", markersize=5.5, color=color, elinewidth=0.7,
        markerfacecolor=color if filled else "white", capsize=2,
    )  # fmt: skip


def _curves(axis: Any, shown: Sequence[Result]) -> None:
    """Validation loss against all bytes that rank 0 had sent: of each cell with feedback, or of a strategy."""
    chosen = [r for r in shown if r.cell.feedback in ("", EF, "own")]
    for number, result in enumerate(chosen):
        runs = [line["curve"] for line in result.lines if line["curve"]]
        points = [some for some in zip(*runs, strict=False) if all(p["validation_loss"] is not None for p in some)]
        x = [statistics.fmean(p["sent_bytes"] for p in some) for some in points]
        y = [statistics.fmean(p["validation_loss"] for p in some) for some in points]
        name = f"{result.cell.label}, {result.ranks}"
        style = "-" if result.cell.part == FIRST else "--"
        axis.plot(x, y, style, label=name, color=_color(number, len(chosen)), linewidth=1.2, marker=".", markersize=3)
    ends = [line["curve"][-1]["validation_loss"] for r in chosen for line in r.lines if line["curve"]]
    known = sorted(loss for loss in ends if loss is not None)
    if known:
        low, middle = known[0], known[len(known) // 2]
        axis.set_ylim(low - 0.1 * (middle - low) - 0.002 * low, middle + 0.12 * middle)
    axis.set_xscale("log")
    axis.set_xlabel("bytes that a rank has sent, rows of tables included")
    axis.set_ylabel("validation loss")
    axis.set_title("curves: codecs with feedback, strategies dashed; ranks behind the comma", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6, ncols=2)


def _color(number: int, count: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["turbo"](0.05 + 0.9 * number / max(1, count - 1))
