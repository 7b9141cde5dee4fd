"""What a study's lines say of its entries: the chosen setting, its runs, how long they took to a target."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.studies.lines import Line, identity
from bench.studies.task import DIVERGED, REFUSED, TABLES, TIME

TUNING_SEED = 0
COMPARED = ("adam", "kfac", "shampoo")  # second order beside Adam: tuned for the target, too
# Of the metric; the last is the one that rules are compared by.
TARGETS = {"mnist": (0.9, 0.95, 0.97), "criteo": (0.75, 0.76, 0.765), "cifar10": (0.35, 0.4, 0.45)}


def final_loss(line: Line) -> float | None:
    """Validation loss at the end of a run; None where there is none: it diverged, or was refused."""
    if line["outcome"] in (DIVERGED, REFUSED) or not line["curve"]:
        return None
    loss: float | None = line["curve"][-1]["validation_loss"]
    return loss


@dataclass(frozen=True)
class Entry:
    """One rule's runs on a task.

    Args:
        name: of the rule, and the part it trains where that is the tables.
        tuning: its runs with seed 0.
        best: of them the one with the least final validation loss, if any has one.
        runs: those of the best one's setting with the other seeds.
        quickest: those of the setting that was the first at the target (see `quickest`) with the other seeds.
    """

    name: str
    tuning: list[Line]
    best: Line | None
    runs: list[Line]
    quickest: list[Line]

    @classmethod
    def of(cls, lines: Sequence[Line]) -> Entry:
        """From all lines of a rule and part on a task."""
        run = lines[0]["run"]
        tuning = [line for line in lines if line["run"]["seed"] == TUNING_SEED]
        judged = [line for line in tuning if final_loss(line) is not None]
        best = min(judged, key=lambda line: final_loss(line) or 0.0, default=None)
        others = sorted((o for o in lines if o["run"]["seed"] != TUNING_SEED), key=lambda line: line["run"]["seed"])
        runs, at_target = (
            [line for line in others if one is not None and _alike(line, one)]
            for one in (best, quickest(tuning, run["task"]["name"]))
        )
        name = run["rule"] + (" on tables" if run["part"] == TABLES else "")
        return cls(name, tuning, best, runs, at_target)

    @property
    def shown(self) -> list[Line]:
        """The runs with seeds, or, before there are any, tuning's best."""
        return self.runs or ([self.best] if self.best else [])

    def count(self, outcome: str) -> int:
        """How many of tuning's runs ended so."""
        return sum(line["outcome"] == outcome for line in self.tuning)

    @property
    def cut(self) -> int:
        """How many of the runs that count were ended by their limit of time."""
        return sum(line["outcome"] == TIME for line in self.runs)


def quickest(tuning: Sequence[Line], task: str) -> Line | None:
    """The run whose validation metric was the first to reach the task's last target, by epochs; of several the one of
    the least final validation loss."""
    found = []
    for line in tuning:
        at = reached(line, TARGETS[task][-1], "validation") if task in TARGETS else None
        if at is not None and (loss := final_loss(line)) is not None:
            found.append((at["epoch"], loss, line))
    return min(found, key=lambda one: one[:2])[2] if found else None


def _alike(line: Line, other: Line) -> bool:
    """Whether two runs differ in the seed alone."""
    return identity(line["run"] | {"seed": 0}) == identity(other["run"] | {"seed": 0})


def entries_of(lines: Sequence[Line]) -> list[Entry]:
    """By rule and part, in the order in which they first come."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["run"]["rule"], line["run"]["part"]), []).append(line)
    return [Entry.of(some) for some in groups.values()]


def final(line: Line, name: str) -> float | None:
    """A figure at the end of a run that did not diverge."""
    if final_loss(line) is None:
        return None
    value: float | None = line["curve"][-1][name]
    return value


def reached(line: Line, target: float, rows: str = "test") -> dict[str, Any] | None:
    """The first point of a run's curve at which the metric of the test (or validation) rows is at least `target`."""
    return next((p for p in line["curve"] if p.get(rows) is not None and p[rows] >= target), None)


def mean_to(lines: Sequence[Line], target: float, what: str) -> tuple[float, int] | None:
    """Mean of `what` (epoch, seconds, ...) at the target over the runs that reached it, and how many did."""
    points = [point for line in lines if (point := reached(line, target)) is not None]
    return (statistics.fmean(point[what] for point in points), len(points)) if points else None


def spread(values: Sequence[float]) -> str:
    """Mean and, from two values on, sample standard deviation."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean
