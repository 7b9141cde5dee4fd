"""What a study trains: a task, the setting of one run on it, and what is watched meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

DONE, DIVERGED, REFUSED, TIME = "done", "diverged", "refused", "time"
OUTCOMES = (DONE, DIVERGED, REFUSED, TIME)
DENSE, TABLES = "dense", "tables"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that one run on a task depends on: two runs of one setting on one machine differ in their seconds only.

    Args:
        rule: a key of OPTIMIZERS.
        part: the parameters it trains: "dense" (all where a task has no embedding tables) or "tables".
        options: of the rule.
        beside: name and options of the other part's optimizer; {} is the task's own choice.
        batch: rows of a step.
        epochs: passes over the training rows.
        schedule: fields of ScheduleConfig.
        seed: of the first weights and of the order of rows.
    """

    rule: str
    part: str = DENSE
    options: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)
    batch: int
    epochs: int
    schedule: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def told(self) -> str:
        """In a line."""
        options = " ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.rule + ('' if self.part == DENSE else ' on ' + self.part):<20} {options:<36}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of a run.

    Args:
        outcome: of OUTCOMES.
        why: of a refusal, a divergence or a run that its limit ended.
        state_bytes: that the rule holds at the end; None where it never began.
        more: JSON for the run's line.
    """

    outcome: str
    why: str = ""
    state_bytes: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


class Watch:
    """A run's curve and its time in training; evaluations are not counted.

    Args:
        limit_s: CPU seconds of training after which `over` says so: other work on the machine does not count.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.seconds, self.cpu_seconds, self.steps = limit_s, 0.0, 0.0, 0
        self.curve: list[dict[str, Any]] = []
        self._loss, self._rows = 0.0, 0
        self.resume()

    def resume(self) -> None:
        """Time counts from now on."""
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def step(self, mean_loss: float, rows: int) -> None:
        """A step over `rows` rows is done."""
        self.seconds += time.perf_counter() - self._clock
        self.cpu_seconds += time.process_time() - self._cpu
        self.steps += 1
        self._loss, self._rows = self._loss + mean_loss * rows, self._rows + rows
        self.resume()

    @property
    def over(self) -> bool:
        """Whether the run has had its time."""
        return self.cpu_seconds >= self.limit_s

    def point(self, epoch: float, **scores: float | int | None) -> None:
        """Add to the curve; `train_loss` is the mean over the rows of the steps since the last point. Whole numbers
        stay as they are."""
        train = self._loss / self._rows if self._rows else None
        found = {"train_loss": train, **scores}
        self.curve.append(
            {"epoch": round(epoch, 4), "step": self.steps}
            | {name: finite(value) for name, value in found.items()}
            | {"seconds": round(self.seconds, 3), "cpu_seconds": round(self.cpu_seconds, 3)}
        )
        self._loss, self._rows = 0.0, 0
        self.resume()


class Task(Protocol):
    """Something to learn, with rows for training, for choosing settings (validation) and for judging (test).

    Args:
        name: of the task.
        metric: what `test` and `validation` in the points of a curve are.
        batch: rows of a step where a study has no other wish.
        epochs: of a run.
        limit_s: CPU seconds of training that a run may take.
        parts: parts that have an optimizer of their own.
    """

    name: str
    metric: str
    batch: int
    epochs: int
    limit_s: float
    parts: tuple[str, ...]

    def about(self) -> dict[str, Any]:
        """JSON: all that runs depend on beside their setting."""

    def train(self, setting: Setting, watch: Watch) -> Trained:
        """Make a run; its points go to `watch`. Nothing that a rule does is an error: see OUTCOMES."""


def finite(value: float | int | None) -> float | int | None:
    """Six digits, of a whole number all; JSON has no NaN and no infinity: None."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
