"""Settings of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.errors import UserError
from headrace.optim.clipping import ClippingConfig
from headrace.optim.schedules import ScheduleConfig
from headrace.train.precision import PrecisionConfig

NONFINITE = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of the loop.

    Args:
        epochs: passes over the data.
        max_steps: end an epoch after so many steps (0: whole epochs; the audit needs whole ones).
        eval_every: steps between evaluations; 0 evaluates at the end of every epoch only.
        checkpoint_every: steps between checkpoints; 0 saves at the end of every epoch only.
        checkpoint_minutes: save as well when so many minutes have passed (rank 0's clock); 0 never.
        log_every: steps between `step` events.
        on_nonfinite: "stop" (checkpoint of the state before the step, then an error) or "skip" (the step is left out
            and counted).
        accumulate: parts that a rank's rows of a batch are cut into; their gradients are added up before the step, so
            memory is that of a part and the step that of the whole batch.
        patience: stop after so many evaluations in a row without a better validation logloss; 0 never.
        schedule: of the learning rates.
        clipping: of the gradients.
        precision: types of numbers.
        seed: of dropout.
    """

    epochs: int = 1
    max_steps: int = 0
    eval_every: int = 0
    checkpoint_every: int = 0
    checkpoint_minutes: float = 10.0
    log_every: int = 20
    on_nonfinite: str = "stop"
    accumulate: int = 1
    patience: int = 0
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.on_nonfinite not in NONFINITE:
            raise UserError(f"train.on_nonfinite is {self.on_nonfinite!r}", f"one of {', '.join(NONFINITE)}")
        if self.epochs < 1:
            raise UserError(f"{self.epochs} epochs asked for", "--train.epochs 1 or more")
        if self.accumulate < 1:
            raise UserError(f"--train.accumulate {self.accumulate}", "1 (the batch in one piece) or more")
        if self.log_every < 1:
            raise UserError(f"--train.log_every {self.log_every}", "1 (figures of every step) or more")
        for name in ("max_steps", "eval_every", "checkpoint_every", "checkpoint_minutes", "patience"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--train.{name} {getattr(self, name)}", "0 or more")
