"""Studies of codecs chosen by tensor, against fixed codecs that send as much: which runs there are, in which order.

First a learning rate for each rule, of the run without compression, by validation loss with seed 0; all runs of the
rule have it. Then, seed by seed: each rule without compression, each fixed codec, and beside it the cells whose budget
is the share of bytes that the fixed one took in its run with the first seed. A run is a line of the study's file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.studies.exchange import setting_of
from bench.studies.exchange_cells import DENSE_RUN, Cell, key_of
from bench.studies.exchange_found import Result
from bench.studies.found import TUNING_SEED, final_loss
from bench.studies.lines import Line, Lines
from bench.studies.optimizers import SEEDS
from bench.studies.ranks import Exchange, Ranked
from bench.studies.task import Setting, Task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study.

    Args:
        path: of its lines.
        header: of its report.
        ranks: of all runs.
        rates: that are tried, by rule.
        fixed: codecs, each with a rule.
        beside: `beside(cell, share)`: cells that send as much as the fixed one.
        slack: of the share, a factor.
    """

    path: Path
    header: str
    ranks: int
    rates: Mapping[str, Sequence[float]]
    fixed: Sequence[Cell]
    beside: Callable[[Cell, float], Sequence[Cell]]
    slack: float = 1.0

    def dense(self, rule: str) -> Cell:
        """The cell of a rule without compression."""
        return replace(DENSE_RUN, rule=rule, label=f"{rule} alone", ranks=(self.ranks,))

    def groups(self, lines: Sequence[Line]) -> Iterator[list[Cell]]:
        """Cells that are compared with each other, as far as the lines of a task tell: the fixed one comes first."""
        for rule in self.rates:
            yield [self.dense(rule)]
        for cell in self.fixed:
            share = share_of(lines, cell, self.slack)
            yield [cell, *(self.beside(cell, share) if share is not None else ())]


def share_of(lines: Sequence[Line], cell: Cell, slack: float) -> float | None:
    """Bytes after encoding over bytes before, of the rank with the least, in a cell's run with the first seed; times
    the slack."""
    for line in lines:
        if key_of(line["run"]) == cell.key and line["run"]["seed"] == SEEDS[0] and line["exchange"][0]:
            shares = [rank["bytes_after"] / rank["bytes_before"] for rank in line["exchange"]]
            return math.floor(1e6 * slack * min(shares)) / 1e6
    return None


def of_task(lines: Sequence[Line], about: Mapping[str, Any]) -> list[Line]:
    """Lines of a task."""
    return [line for line in lines if line["run"]["task"] == about]


def rate_of(lines: Sequence[Line], plan: Plan, rule: str) -> float | None:
    """The rate of the least validation loss; None until all were tried."""
    key = plan.dense(rule).key
    tried = [x for x in lines if key_of(x["run"]) == key and x["run"]["seed"] == TUNING_SEED]
    losses = [(loss, x["run"]["options"]["lr"]) for x in tried if (loss := final_loss(x)) is not None]
    return min(losses)[1] if losses and len(tried) >= len(plan.rates[rule]) else None


def due(plan: Plan, tasks: Sequence[Ranked], lines: Lines) -> Iterator[tuple[Task, Setting]]:
    """What is left to run, in order; what follows may change with every new line."""
    settings = ((task, setting) for task in tasks for setting in _tuning(plan, task))
    yield from ((task, setting) for task, setting in settings if lines.get(task, setting) is None)
    for seed in SEEDS:
        for task in tasks:
            own = of_task(lines.all, task.about())
            for cell in (cell for group in plan.groups(own) for cell in group):
                lr = rate_of(own, plan, cell.rule)
                setting = setting_of(task, cell, plan.ranks, lr, seed) if lr is not None else None
                if setting is not None and lines.get(task, setting) is None:
                    yield task, setting


def _tuning(plan: Plan, task: Ranked) -> list[Exchange]:
    return [
        setting_of(task, plan.dense(rule), plan.ranks, lr, TUNING_SEED)
        for rule, rates in plan.rates.items()
        for lr in rates
    ]


def results(plan: Plan, lines: Sequence[Line]) -> list[list[Result]]:
    """Of one task, by group; a cell without runs has a result without runs."""
    seeded: dict[tuple[str, float], dict[int, Line]] = {}
    for line in sorted(lines, key=lambda line: line["run"]["seed"]):
        if line["run"]["seed"] != TUNING_SEED:
            key = key_of(line["run"]), line["run"]["options"]["lr"]
            seeded.setdefault(key, {})[line["run"]["seed"]] = line

    def runs(cell: Cell) -> dict[int, Line]:
        return seeded.get((cell.key, rate_of(lines, plan, cell.rule) or 0.0), {})

    return [
        [Result(cell, plan.ranks, runs(cell), runs(plan.dense(cell.rule))) for cell in group]
        for group in plan.groups(lines)
    ]
