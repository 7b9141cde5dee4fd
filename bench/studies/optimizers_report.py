"""The report of the study of optimizers: tables and figures of nothing but its lines; what is missing is blank."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.studies.figures import curves
from bench.studies.found import COMPARED, TARGETS, Entry, entries_of, final, final_loss, mean_to, spread
from bench.studies.lines import Line, identity
from bench.studies.optimizers import MOST_BEYOND
from bench.studies.space import BUDGET, space_of
from bench.studies.task import DIVERGED, REFUSED, TIME

HEADER = f"""# Optimizers on the same tasks
Written by `python -m bench.studies.optimizers --report` from `study_optimizers.jsonl` (`make study-optimizers` goes
on with it): no figure here comes from elsewhere, and what has not been run is blank.

Every rule is tried with up to {BUDGET} settings (`bench/studies/space.py`: for most learning rates in steps of
sqrt(10) around the default, for the rest the middle of a grid) with seed 0, and beyond the ends of its learning rates
where the best is there (up to {MOST_BEYOND} more); that of the least validation loss at the end is run with other
seeds, and the test rows are looked at for these tables alone. Rates fall linearly to 0 but for
L-BFGS, Hessian-free and the variance-reduced rules, which keep theirs. Seconds are of training, without evaluation.
"""


TUNED_FOR = {"runs": "loss at the end", "quickest": "the target"}


@dataclass(frozen=True)
class Section:
    """One task at one size.

    Args:
        task: what it is, and epochs.
        entries: the rules.
    """

    task: dict[str, Any]
    epochs: int
    entries: list[Entry]

    @property
    def name(self) -> str:
        """Of the task."""
        return str(self.task["name"])

    @property
    def metric(self) -> str:
        """What test and validation are."""
        return str(self.task["metric"])

    @property
    def lines(self) -> list[Line]:
        """All runs that tables are made of."""
        return [line for entry in self.entries for line in (*entry.tuning, *entry.runs)]


def sections(lines: Sequence[Line]) -> list[Section]:
    """By task, its size and the epochs of a run."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(identity({"task": line["run"]["task"], "epochs": line["run"]["epochs"]}), []).append(line)
    return [Section(s[0]["run"]["task"], s[0]["run"]["epochs"], entries_of(s)) for s in groups.values()]


def write(lines: Sequence[Line], path: Path) -> None:
    """The report at `path`, and a figure a section beside it."""
    parts, names = [HEADER], Counter[str]()
    for section in sections(lines):
        names[section.name] += 1
        number = f"_{names[section.name]}" if names[section.name] > 1 else ""
        figure = path.with_name(f"{path.stem}_{section.name}{number}.svg")
        curves(section.entries, section.metric, figure)
        parts.append(text_of(section, figure.name))
    path.write_text("\n".join(parts))


def text_of(section: Section, figure: str) -> str:
    """A section as markdown."""
    about = ", ".join(f"{key} {value}" for key, value in section.task.items() if key not in ("name", "metric"))
    return "\n".join(
        [
            f"## {section.name}, {section.epochs} epoch{'s' if section.epochs > 1 else ''}",
            f"{about}. {_circumstances(section.lines)}",
            "",
            *_table(section),
            "",
            "† the best learning rate is at an end of those tried: a better one may lie beyond. * some runs ended by "
            "their limit of time.",
            "",
            *_compared(section),
            f"![{section.metric} on the test rows against epochs and CPU seconds]({figure})",
            *_not_run(section),
            "",
        ]
    )


def _circumstances(lines: Sequence[Line]) -> str:
    noisy = sum(line["noisy"] for line in lines)
    threads = sorted({line["threads"] for line in lines})
    busy = f"{noisy} of the {len(lines)} runs began on a busy machine: their seconds are upper bounds" if noisy else ""
    return f"{len(lines)} runs, threads {', '.join(map(str, threads))}. {busy}{'.' if busy else ''}".strip()


def _table(section: Section) -> list[str]:
    target = TARGETS.get(section.name, (0.0,))[-1]
    metric = section.metric
    head = (
        f"| rule | tried | setting | validation loss | test {metric} | seeds | epochs to {target:g} "
        f"| seconds to {target:g} | CPU s an epoch | state bytes |"
    )
    ranked = sorted(section.entries, key=lambda entry: -(_score(entry) or -1.0))
    return [head, "| --- " * 10 + "|", *(_row(entry, target) for entry in ranked if entry.best is not None)]


def _score(entry: Entry) -> float | None:
    """What rows are ordered by: runs with seeds first."""
    values = [value for line in entry.runs if (value := final(line, "test")) is not None]
    if values:
        return 1.0 + statistics.fmean(values)
    return final(entry.best, "test") if entry.best else None


def _row(entry: Entry, target: float) -> str:
    assert entry.best is not None
    losses = [loss for line in entry.runs if (loss := final_loss(line)) is not None]
    tests = [value for line in entry.runs if (value := final(line, "test")) is not None]
    cpu = [line["cpu_seconds"] / line["curve"][-1]["epoch"] for line in entry.runs if line["curve"]]
    held = {line["state_bytes"] for line in entry.runs or [entry.best]}
    cells = [
        entry.name + ("*" if entry.cut or entry.best["outcome"] == TIME else ""),
        _tried(entry),
        _setting(entry),
        spread(losses),
        spread(tests),
        str(len(entry.runs)) if entry.runs else "",
        *(_to(entry.runs, target, what) for what in ("epoch", "seconds")),
        f"{statistics.median(cpu):.2f}" if cpu else "",
        f"{max(h for h in held if h is not None):,}" if held - {None} else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _tried(entry: Entry) -> str:
    notes = [f"{n} {what}" for what, n in (("diverged", entry.count(DIVERGED)), ("cut", entry.count(TIME))) if n]
    return str(len(entry.tuning)) + (f" ({', '.join(notes)})" if notes else "")


def _setting(entry: Entry) -> str:
    assert entry.best is not None
    run = entry.best["run"]
    rates = [line["run"]["options"]["lr"] for line in entry.tuning if "lr" in space_of(run["rule"]).grid]
    at_end = len(rates) > 1 and run["options"].get("lr") in (min(rates), max(rates))
    return ", ".join(filter(None, [_options(entry.best), f"batch {run['batch']}"])) + (" †" if at_end else "")


def _options(line: Line) -> str:
    """What was tried, without what all settings of the rule share."""
    run = line["run"]
    tried = {name: value for name, value in run["options"].items() if name not in space_of(run["rule"]).fixed}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in tried.items()
    )


def _to(runs: Sequence[Line], target: float, what: str) -> str:
    found = mean_to(runs, target, what)
    if found is None:
        return "never" if runs else ""
    value = f"{found[0]:.2f}" if what == "epoch" else f"{found[0]:.1f}"
    return value if found[1] == len(runs) else f"{value} ({found[1]} of {len(runs)})"


def _compared(section: Section) -> list[str]:
    """K-FAC and Shampoo beside tuned Adam."""
    entries = {entry.name: entry for entry in section.entries if entry.name in COMPARED}
    if set(entries) != set(COMPARED):
        return []
    targets = TARGETS.get(section.name, ())
    ways = [(name, way, getattr(entries[name], way)) for way in ("runs", "quickest") for name in COMPARED]
    rows = [
        f"| {name} | {_options(runs[0]) if runs else ''} | {TUNED_FOR[way]} | {len(runs) or ''} | "
        + " | ".join(f"{_to(runs, t, 'epoch')} | {_to(runs, t, 'seconds')}" for t in targets)
        + " |"
        for name, way, runs in ways
    ]
    head = " | ".join(f"epochs to {t:g} | seconds" for t in targets)
    return [
        f"Second order beside tuned Adam on the same net, means over seeds; {_points(section)} evaluations an epoch.",
        "Of tuning's runs one setting is that of the least validation loss at the end, and one that of the first at",
        f"{targets[-1]:g} of the validation rows:",
        "",
        f"| rule | setting | tuned for | seeds | {head} |",
        "| --- " * (4 + 2 * len(targets)) + "|",
        *rows,
        "",
    ]


def _points(section: Section) -> str:
    curve = max((line["curve"] for line in section.lines), key=len)
    return f"{len(curve) / curve[-1]['epoch']:.3g}" if curve else "no"


def _not_run(section: Section) -> list[str]:
    """Rules that gave no result, and why."""
    said = []
    for entry in section.entries:
        if entry.best is None and entry.tuning:
            whys = sorted({line["why"] for line in entry.tuning if line["outcome"] in (REFUSED, DIVERGED)})
            said.append(
                f"- {entry.name}: {entry.tuning[-1]['outcome']} ({len(entry.tuning)} tried): {whys[0].splitlines()[0]}"
            )
    return ["", "Without a result:", *said] if said else []
