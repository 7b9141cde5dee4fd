"""The figure of the study of exchange: what a codec's bytes cost in loss, and loss while bytes are sent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.studies.exchange_cells import EF, EF21, FIRST, LARGE, LONGER, NONE, OWN, RATES, STEPS
from bench.studies.exchange_found import WITHIN, Result
from bench.studies.figures import figure_of, save

_CLIP = 15.0  # per cent above dense: what is worse is drawn at the border
_BARS_UP_TO = 3.0
_TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0, _CLIP)


def against_bytes(found: Sequence[Result], path: Path) -> bool:
    """By number of ranks, a column each: differences to dense above, curves below. Whether there was any to draw."""
    shown = [result for result in found if result.against_dense and result.cell.part != RATES]
    columns = [[r for r in shown if r.ranks == ranks] for ranks in sorted({r.ranks for r in shown})]
    if not columns:
        return False
    figure = figure_of(7.5 * len(columns), 11.0)
    axes = figure.subplots(2, len(columns), squeeze=False)
    for (above, below), some in zip(axes.T, columns, strict=True):
        _scatter(above, some)
        _curves(below, [r for r in some if r.cell.part in (FIRST, STEPS, LONGER, LARGE)])
    save(figure, path)
    return True


def _scatter(axis: Any, shown: Sequence[Result]) -> None:
    """Mean difference to dense against bytes of dense gradients; with feedback filled, a line to the same without."""
    axis.axhspan(-WITHIN, WITHIN, color="0.93", zorder=0)
    axis.axhline(0.0, color="0.5", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=WITHIN)
    axis.set_yticks(_TICKS, [f"{t:+g} %" if t < _CLIP else "worse" for t in _TICKS])
    axis.margins(x=0.2)
    labels = list(dict.fromkeys(r.cell.label for r in shown))
    places = []
    for number, label in enumerate(labels):
        color = _color(number, len(labels))
        points = [(_bytes(r), _height(r), r) for r in shown if r.cell.label == label]
        points.sort(key=lambda point: point[2].cell.feedback == NONE)
        axis.plot(*zip(*(p[:2] for p in points), strict=True), color=color, linewidth=0.6, alpha=0.6)
        for x, y, result in points:
            _point(axis, x, y, result, color)
        places.append((*points[0][:2], label, color))
    _named(axis, places)
    axis.set_xlabel("bytes of dense gradients that a rank sends a step (of gossip and servers: all bytes)")
    axis.set_ylabel("test loss against dense, same seed")
    axis.set_title(f"{shown[0].ranks} ranks. Filled: with feedback; hollow: without", fontsize=10)
    axis.grid(alpha=0.3)


def _bytes(result: Result) -> float:
    return result.bytes_a_step("dense") or result.bytes_a_step("all") or 1.0


def _height(result: Result) -> float:
    return max(_TICKS[0], min(_CLIP, statistics.fmean(result.against_dense)))


def _point(axis: Any, x: float, y: float, result: Result, color: Any) -> None:
    filled = result.cell.feedback in (EF, EF21, "own")
    values = result.against_dense
    half = statistics.stdev(values) if len(values) > 1 and y < _BARS_UP_TO else 0.0
    axis.errorbar(
        [x], [y], [half], marker="o", markersize=5.5, color=color, elinewidth=0.7,
        markerfacecolor=color if filled else "white", capsize=2,
    )  # fmt: skip


def _named(axis: Any, places: Sequence[tuple[float, float, str, Any]]) -> None:
    """Names beside their points, moved up where one would lie on another."""
    axis.set_ylim(1.2 * _TICKS[0], 1.3 * _CLIP)
    taken: list[tuple[float, float]] = []
    for x, y, label, color in sorted(places, key=lambda place: place[1]):
        across, up = axis.transData.transform((x, y))
        at = up
        while any(abs(across - other) < 130 and abs(at - height) < 9 for other, height in taken):
            at += 3
        taken.append((across, at))
        offset = (5, 3 + (at - up) * 72 / 100)
        axis.annotate(label, (x, y), xytext=offset, textcoords="offset points", fontsize=7, color=color)


def _curves(axis: Any, shown: Sequence[Result]) -> None:
    """Validation loss against all bytes that rank 0 had sent: of each cell with feedback, or of a strategy."""
    chosen = [r for r in shown if r.cell.feedback in ("", EF, OWN) or r.cell.part == STEPS]
    for number, result in enumerate(chosen):
        runs = [line["curve"] for line in result.lines if line["curve"]]
        points = [some for some in zip(*runs, strict=False) if all(p["validation_loss"] is not None for p in some)]
        x = [statistics.fmean(p["sent_bytes"] for p in some) for some in points]
        y = [statistics.fmean(p["validation_loss"] for p in some) for some in points]
        style = "--" if result.cell.part == STEPS else "-"
        color = _color(number, len(chosen))
        axis.plot(x, y, style, label=result.cell.label, color=color, linewidth=1.2, marker=".", markersize=4)
    ends = [line["curve"][-1]["validation_loss"] for r in chosen for line in r.lines if line["curve"]]
    known = sorted(loss for loss in ends if loss is not None)
    if known:
        low, middle = known[0], known[len(known) // 2]
        axis.set_ylim(low - 0.1 * (middle - low) - 0.002 * low, 1.12 * middle)
    axis.set_xscale("log")
    axis.set_xlabel("bytes that a rank has sent, rows of tables included")
    axis.set_ylabel("validation loss")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)


def _color(number: int, count: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["turbo"](0.05 + 0.9 * number / max(1, count - 1))
