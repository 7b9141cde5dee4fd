"""The report of the study of staleness: tables and a figure of nothing but its lines; what is missing is blank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.studies.figures import against_time
from bench.studies.lines import Line
from bench.studies.staleness import CLUSTERS, LOCKSTEP, SEEDS, WAYS, Task, rates_of, score

SHOWN = (LOCKSTEP, "bound 0", "bound 4", "bound 16", "tuned", "no bound", "compensation adaptive")
HEADER = f"""# Staleness against time, one worker in four slow
Written by `python -m bench.studies.staleness --report` from `study_staleness.jsonl`: no figure here comes from
elsewhere, and what has not been run is blank.

{Task().workers} workers of a simulated cluster, {Task().batch} rows a gradient, a gradient a virtual second, runs of
{Task().seconds:g} virtual seconds. Every row has the best of three learning rates by seed 0 (of fewer where they have
not been run); losses are of held rows, with the deviation over the seeds: "mean" over the run, "end" over its last
eighth. "reached": virtual seconds until the loss that {LOCKSTEP} ends with; "waited": share of the time that workers
waited for the server or each other.
"""

HEAD = "| way | lr | seeds | mean | end | reached | updates | waited | staleness, mean | largest |"
Found = dict[str, list[Line]]  # by way, the lines of the rate that was chosen


def chosen(lines: Sequence[Line], cluster: str) -> Found:
    """Of every way its best rate's lines, by seed."""
    found: Found = {}
    for way in WAYS:
        own = [line for line in lines if (line["run"]["cluster"], line["run"]["way"]) == (cluster, way)]
        tried = [line for line in own if line["run"]["seed"] == SEEDS[0] and line["run"]["lr"] in rates_of(way)]
        if tried:
            lr = min(tried, key=score)["run"]["lr"]
            found[way] = sorted((line for line in own if line["run"]["lr"] == lr), key=lambda line: line["run"]["seed"])
    return found


def write(lines: Sequence[Line], path: Path) -> None:
    """The report at `path`, and its figure beside it."""
    figure = path.with_suffix(".svg")
    parts, panels = [HEADER], {}
    for cluster in CLUSTERS:
        found = chosen(lines, cluster)
        panels[cluster] = {way: _mean_curve(found[way]) for way in SHOWN if way in found}
        target = fmean(_end(line) for line in found[LOCKSTEP]) if LOCKSTEP in found else None
        parts += [f"## {cluster}", HEAD, "| --- " * 10 + "|", *(_row(way, own, target) for way, own in found.items())]
        parts += ["", *_decided(found), ""]
    against_time(panels, figure)
    path.write_text("\n".join([*parts, f"![held loss against virtual time]({figure.name})", ""]))


def _row(way: str, lines: Sequence[Line], target: float | None) -> str:
    ends = [_end(line) for line in lines]
    reached = [_reached(line, target) for line in lines]
    cells = [
        way, f"{lines[0]['run']['lr']:g}", str(len(lines)), _spread([score(line) for line in lines]), _spread(ends),
        f"{fmean(r for r in reached if r is not None):.0f}" if None not in reached else "not by all",
        f"{fmean(line['updates'] for line in lines):.0f}",
        "" if way == LOCKSTEP else f"{fmean(line['waited'] for line in lines):.0%}",
        f"{fmean(line['staleness_mean'] for line in lines):.1f}", f"{max(line['staleness_max'] for line in lines):.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _end(line: Line) -> float:
    return fmean(point["loss"] for point in line["curve"][-5:])


def _reached(line: Line, target: float | None) -> float | None:
    return next((p["time"] for p in line["curve"] if target is not None and p["loss"] <= target), None)


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _mean_curve(lines: Sequence[Line]) -> tuple[list[float], list[float]]:
    """Over seeds, point by point."""
    points: list[tuple[Any, ...]] = list(zip(*(line["curve"] for line in lines), strict=False))
    return [fmean(p["time"] for p in some) for some in points], [fmean(p["loss"] for p in some) for some in points]


def _decided(found: Found) -> list[str]:
    """What the tuned bound did, with the first seed."""
    if "tuned" not in found:
        return []
    moves = found["tuned"][0]["decisions"]
    said = ", ".join(f"{d['bound']} ({d['why']})" for d in moves) or "none"
    return [f"The tuned bound began at {WAYS['tuned'][1]['bound']}; its moves with seed 0: {said}."]
