"""Row g's page and figures, made of nothing but its lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.linear_contestants import SOLVERS, Entry
from bench.studies.figures import figure_of, save
from bench.studies.lines import Line, identity, read

TARGET = 1e-6
FLOOR = 1e-9  # gaps under it are the least objective's own digits
ABOUT = ("source", "reg", "l1_ratio", "intercept")
HEADER = """# Logistic regression to the minimum
Written by `bench/saga.py --report` from `saga.jsonl`, `saga_memory.jsonl` and `als.jsonl`: no figure here comes from
elsewhere, and what has not been run is missing.

A gap is (objective - least) / least; **least** is the least objective of any contestant on the same problem, and every
objective is computed from coefficients by the same lines (of ours, rounds on the way say their own). **epochs** are
component gradients by rows until the gap is 1e-6: what does not depend on how busy the machine was. **CPU s** are of a
fit with the fewest iterations (of the numbers tried) that has the gap, of ours of the whole fit to a gap of 1e-8;
**seconds** are by the clock, with the load. **MB** of ours are numbers sent to partitions and back until then, as its
summary counts them. **best** is the least gap that the contestant reached. Empty cells: not there within its seconds,
or not counted (epochs of liblinear and newton-cg).
"""
HEAD = "| who | partitions | order | epochs | CPU s | seconds | MB | best | ended | load |"


def about(line: Line) -> dict[str, Any]:
    """The problem."""
    return {name: line["run"][name] for name in ABOUT}


def curves_of(lines: Sequence[Line], problem: Mapping[str, Any]) -> list[Line]:
    """Of a problem."""
    return [line for line in lines if line["run"]["what"] == "curve" and about(line) == problem]


def least(lines: Sequence[Line], problem: Mapping[str, Any]) -> float | None:
    """The least objective known of a problem."""
    return min((p["objective"] for line in curves_of(lines, problem) for p in line["points"]), default=None)


def reached(line: Line, floor: float, target: float) -> dict[str, Any] | None:
    """The first point within `target` of `floor`."""
    return next((p for p in line["points"] if p["objective"] - floor <= target * floor), None)


def first_at(lines: Sequence[Line], problem: Mapping[str, Any], entry: Entry, target: float) -> dict[str, Any] | None:
    """A contestant's first point at the target."""
    floor = least(lines, problem)
    mine = [line for line in curves_of(lines, problem) if line["run"]["entry"] == asdict(entry)]
    return reached(mine[0], floor, target) if mine and floor is not None else None


def name_of(line: Line) -> str:
    """As in `saga, 16 by_label`."""
    entry = line["run"]["entry"]
    return f"{entry['name']}, {entry['partitions']} {entry['order']}" if entry["partitions"] else entry["name"]


def title_of(problem: Mapping[str, Any]) -> str:
    """As in `a9a, l2 0.0001, intercept`."""
    source, share = problem["source"], problem["l1_ratio"]
    data = source["name"] if source["name"] == "a9a" else f"{source['rows']:,} x {source['features']:,} generated"
    kind = {0: "l2", 1: "l1"}.get(share, "elastic net")
    return f"{data}, {kind} {problem['reg']:g}, {'with' if problem['intercept'] else 'no'} intercept"


def told(line: Line, floor: float) -> str:
    """A curve as it ends."""
    point = reached(line, floor, TARGET)
    epochs = point.get("epochs") if point else None
    what = f"{epochs:7.1f} epochs" if epochs else "       -      "
    gap = min(p["objective"] for p in line["points"]) / floor - 1
    return (
        f"{title_of(about(line)):<48} {name_of(line):<20} {what} to 1e-6, best gap {gap:9.2g}, "
        f"{line['cpu_seconds']:7.1f} CPU s, {line['seconds']:7.1f} s, load {line['load'][0]:.1f}"
    )


def told_race(line: Line) -> str:
    """A race as it ends."""
    each = [f"{name} {found['ratio']['seconds'][0]:.2f}" for name, found in line["racers"].items() if name != "saga"]
    return f"{title_of(about(line))}: seconds over ours: {', '.join(each)}; left out: {line['left_out']}"


def write(lines: Sequence[Line], path: Path) -> None:
    """The page at `path`, and its figures beside it."""
    problems = {identity(about(line)): about(line) for line in lines}
    parts = [HEADER]
    for problem in problems.values():
        curves = curves_of(lines, problem)
        if curves:
            figure = path.with_name(f"{path.stem}_{slug(problem)}.svg")
            picture(curves, least(lines, problem) or 0.0, figure)
            parts += [f"## {title_of(problem)}", table(curves, least(lines, problem) or 0.0)]
            parts += [f"![Gap against epochs and seconds]({figure.name})\n"]
        parts += [race_table(line) for line in lines if line["run"]["what"] == "race" and about(line) == problem]
    parts += memory_text(read(path.with_name(f"{path.stem}_memory.jsonl")))
    parts += als_text(read(path.with_name("als.jsonl")))
    path.write_text("\n".join(parts))


def slug(problem: Mapping[str, Any]) -> str:
    """Part of a figure's name."""
    source = problem["source"]
    data = "a9a" if source["name"] == "a9a" else f"generated_{source['rows']}"
    kind = {0: "l2", 1: "l1"}.get(problem["l1_ratio"], "elastic_net")
    return f"{data}_{kind}" + ("_intercept" if problem["intercept"] else "")


def rows_of(cells: Sequence[Sequence[str]], head: str) -> str:
    """A table."""
    lines = [head, "| --- " * (head.count("|") - 1) + "|", *(f"| {' | '.join(each)} |" for each in cells)]
    return "\n".join(lines) + "\n"


def table(curves: Sequence[Line], floor: float) -> str:
    """Of one problem; what it says of the bound is below."""
    noisy = sum(line["noisy"] for line in curves)
    said = f"{noisy} of {len(curves)} began on a busy machine: their seconds are upper bounds.\n" if noisy else ""
    if marked := {line["jvm"] for line in curves if line.get("jvm")}:
        said += f"Some JVMs ran with {' or '.join(sorted(marked))}: their CPU seconds are not a user's.\n"
    bounds = [line["bound"] for line in curves if line.get("bound") is not None]
    proof = f"Least objective {floor:.12g}; " + (
        f"no objective is below it by more than {max(0.0, (floor - max(bounds)) / floor):.1g} of it (by duality).\n"
        if bounds else "without a bound.\n"
    )  # fmt: skip
    cells = [cells_of(line, floor) for line in curves]
    return "\n".join([proof, said, rows_of(cells, HEAD)])


def cells_of(line: Line, floor: float) -> list[str]:
    """A row of the table."""
    entry, point = line["run"]["entry"], reached(line, floor, TARGET)
    mine = entry["name"] in SOLVERS
    cpu = (line["cpu_seconds"] if mine else point["cpu_seconds"]) if point else None
    best = max(0.0, min(p["objective"] for p in line["points"]) / floor - 1)
    return [
        entry["name"],
        str(entry["partitions"] or ""),
        entry["order"] if entry["partitions"] > 1 else "",
        f"{point['epochs']:.0f}" if point and point.get("epochs") else "",
        f"{cpu:.1f}" if cpu is not None else "",
        f"{point['seconds']:.1f}" if point else "",
        f"{sum(point['bytes']) / 1e6:.1f}" if point and mine else "",
        f"{best:.1g}" if best > FLOOR else "0",
        line.get("ended", ""),
        f"{line['load'][0]:.1f}",
    ]


def race_table(line: Line) -> str:
    """Medians of seconds and of ratios."""
    head = "| who | iterations | epochs | median s | CPU s | CPU ns a non-zero | their s over ours | CPU s over ours |"
    cells = []
    for name, found in line["racers"].items():
        turns = sorted((t for t in found["turns"] if t["turn"] >= 0), key=lambda t: float(t["seconds"]))
        middle = turns[len(turns) // 2]
        ratio = found["ratio"]
        epochs = middle["epochs"]
        cells.append([
            name, str(middle["setting"]), f"{epochs:.0f}" if epochs else "", f"{middle['seconds']:.2f}",
            f"{middle['cpu_seconds']:.2f}",
            f"{middle['cpu_seconds'] * 1e9 / (epochs * line['nonzeros']):.1f}" if epochs else "",
            *("{:.2f} ({:.2f} to {:.2f})".format(*ratio[what]) for what in ("seconds", "cpu_seconds")),
        ])  # fmt: skip
    said = f"Race of {line['run']['at']}, {line['run']['rounds']} rounds, load {line['load'][0]:.1f}"
    said += " (noisy: seconds say little)" if line["noisy"] else ""
    out = f"; not there within their seconds: {', '.join(line['left_out'])}" if line["left_out"] else ""
    return f"**{said}{out}.**\n\n{rows_of(cells, head)}"


def picture(curves: Sequence[Line], floor: float, path: Path) -> None:
    """Gap against epochs and against seconds; a line a contestant."""
    figure = figure_of(11.0, 4.6)
    axes = figure.subplots(1, 2, sharey=True)
    for at, line in enumerate(curves):
        style = "-" if line["run"]["entry"]["name"] in SOLVERS else "--"
        gaps = [max(p["objective"] / floor - 1, FLOOR) for p in line["points"]]
        for axis, what in zip(axes, ("epochs", "seconds"), strict=True):
            if all(what in p for p in line["points"]):
                x = [max(p[what], 1e-2) for p in line["points"]]
                axis.plot(x, gaps, style, color=f"C{at % 10}", label=name_of(line), linewidth=1.2, marker=".", ms=3)
    noisy = ", busy machine" if any(line["noisy"] for line in curves) else ""
    for axis, label in zip(axes, ("epochs (component gradients / rows)", f"seconds{noisy}"), strict=True):
        axis.set(xlabel=label, xscale="log", yscale="log")
        axis.axhline(TARGET, color="0.7", linewidth=0.8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative gap")
    axes[1].legend(fontsize=6)
    figure.suptitle(title_of(about(curves[0])), fontsize=9)
    save(figure, path)


def memory_text(lines: Sequence[Line]) -> list[str]:
    """What saga_memory.py found."""
    if not lines:
        return []
    head = (
        "| rows x features | fit | partitions | live heap, start | live heap, peak | driver RSS, peak | rounds "
        "| seconds | load |"
    )
    cells = []
    for line in lines:
        run = line["run"]
        cells.append([
            f"{run['rows']:,} x {run['features']:,}", run["fit"], str(run["partitions"]),
            *(f"{line[name] / 1e6:.1f} MB" for name in ("live_before", "live_peak", "rss_peak")),
            str(line["rounds"]), f"{line['seconds']:.0f}", f"{line['load'][0]:.1f}",
        ])  # fmt: skip
    said = (
        "Driver and two executors are processes of their own (`local-cluster[2,1,2048]`). **live heap** is what is "
        "left after a full collection, which the driver is made to do again and again while the fit runs: memory that "
        "is needed, where RSS is what the JVM has once taken from the system.\n"
    )
    return ["## Memory of the driver", said, rows_of(cells, head)]


def als_text(lines: Sequence[Line]) -> list[str]:
    """What als.py found."""
    if not lines:
        return []
    head = "| data | who | iterations | RMSE | from ours | objective from ours | s an iteration | CPU s | load |"
    cells = [
        [
            line["run"]["data"], who, str(line["run"]["iterations"]), f"{found['rmse']:.5f}",
            f"{found['rmse'] - line['found']['mllib']['rmse']:+.5f}",
            f"{found['objective'] / line['found']['mllib']['objective'] - 1:+.1e}",
            f"{found['seconds']:.3f}", f"{found['cpu_seconds']:.3f}", f"{line['load'][0]:.1f}",
        ]
        for line in lines for who, found in line["found"].items()
    ]  # fmt: skip
    return ["## ALS", rows_of(cells, head)]
