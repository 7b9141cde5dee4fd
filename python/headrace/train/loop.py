"""The training loop: one for one rank and many.

    epochs of steps (train.step) -> evaluations, checkpoints, a wish to stop -> the audit of every epoch

All ranks see a bad number and a wish to stop in the same step. What the loop read is proved at the end of every epoch:
the sum of splitmix64 of the keys of all rows seen and dropped, over all ranks, must be the table's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from headrace.catalog.fingerprint import MODULUS
from headrace.comm.base import Collective
from headrace.data.batch import Batch
from headrace.errors import UserError
from headrace.optim import Optimizer, averaged
from headrace.optim.clipping import check_clipping
from headrace.optim.schedules import NEEDS_VALIDATION
from headrace.strategies import Strategy
from headrace.train.checkpoint import CheckpointStore
from headrace.train.cursor import Cursor, EpochAudit, close_epoch, total
from headrace.train.evaluate import Evaluation, evaluate
from headrace.train.events import Event
from headrace.train.fit_config import FitConfig
from headrace.train.local_step import LocalStepper
from headrace.train.replica import Replica
from headrace.train.step import Outcome, Stepper
from headrace.train.waiting import Waiting
from headrace.train.whole_model import weights_sha256

_SHOWN_BATCHES = 3
NONFINITE_REMEDY = (
    "lower --optimizer.dense.lr and --optimizer.sparse.lr, or leave such steps out: --train.on_nonfinite skip"
)


class NonFiniteError(UserError):
    """The loss or a gradient is not a number, and the run was configured to stop."""


class Batches(Protocol):
    """Where batches come from (data.Stream)."""

    def steps(self, epoch: int) -> int: ...
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]: ...
    def audit(self, epoch: int) -> Any: ...


@dataclass(frozen=True)
class Hooks:
    """What surrounds a loop; all of it can be left out.

    Args:
        validation: makes the validation batches of this rank (as many on every rank).
        training: makes batches of all training rows once, for rules that need full passes (as many on every rank).
        store: where checkpoints go.
        about: JSON kept in every checkpoint: versions, configuration.
        should_stop: whether a stop was asked for on this rank.
        rows: of the training data, and
        fingerprint: the sum of splitmix64(key) over them mod 2^64: what the audit must find.
    """

    validation: Callable[[], Iterable[Batch]] | None = None
    training: Callable[[], Iterable[Batch]] | None = None
    store: CheckpointStore | None = None
    about: dict[str, Any] = field(default_factory=dict)
    should_stop: Callable[[], bool] = lambda: False
    rows: int | None = None
    fingerprint: int | None = None


@dataclass
class FitResult:
    """What became of a run; the same on every rank but for the seconds.

    Args:
        cursor: where it ended.
        stopped: "" (all epochs done), "asked" (a signal), "early" (patience).
        evaluation: the last one of the validation data.
        audits: one an epoch that was gone through.
        seconds: of training, without evaluation and checkpoints, in this process's part of the run.
        waiting: seconds in operations between ranks, of this process's part of the run.
        rows_per_second: rows of all ranks a second of training, without evaluation and checkpoints, in this process's
            part of the run.
        weights_sha256: of parameters (as trained, not averaged) and buffers, equal on all ranks; of whole tables.
    """

    cursor: Cursor
    stopped: str
    evaluation: Evaluation | None
    audits: list[EpochAudit]
    seconds: float
    waiting: Waiting
    rows_per_second: float
    weights_sha256: str


def fit(
    model: nn.Module,
    batches: Batches,
    optimizer: Optimizer,
    strategy: Strategy,
    collective: Collective,
    cfg: FitConfig,
    on_event: Callable[[Event], None] = lambda event: None,
    hooks: Hooks | None = None,
) -> FitResult:
    """Train until the epochs are done, a stop is asked for, or validation gets no better.

    Resumes by itself from the newest good checkpoint in `hooks.store`. Every rank calls it with the same arguments but
    for `batches` and `collective`; only rank 0 reports events.

    Raises:
        NonFiniteError: see FitConfig.on_nonfinite.
        UserError: a checkpoint cannot be written, or settings do not go together: clipping with a rule that has
            gradients of its own, plateau without validation.
        AuditError: an epoch did not read every row once.
    """
    replica = Replica(model, optimizer, strategy, collective)
    return _Loop(replica, batches, cfg, on_event if collective.rank == 0 else _ignore, hooks or Hooks()).run()


class _Loop:
    """State of one `fit`."""

    def __init__(
        self, replica: Replica, batches: Batches, cfg: FitConfig, on_event: Callable[[Event], None], hooks: Hooks
    ) -> None:
        self.replica, self.batches, self.cfg, self.on_event, self.hooks = replica, batches, cfg, on_event, hooks
        self.collective = replica.collective
        stepper = LocalStepper if replica.strategy.local else Stepper
        self.step = stepper(replica, cfg, self.hooks.should_stop, self.hooks.training)
        self.cursor = Cursor()
        self.evaluation: Evaluation | None = None
        self.audits: list[EpochAudit] = []
        self.stopped = ""
        self.rows, self.seconds, self.saved_at = 0, 0.0, time.monotonic()
        self.waiting = Waiting(self.collective)
        self.last_saved: tuple[int, bool] | None = None

    def run(self) -> FitResult:
        """See `fit`."""
        if NEEDS_VALIDATION in self.cfg.schedule.spec.traits and self.hooks.validation is None:
            raise UserError(
                f"schedule {self.cfg.schedule.name} follows the validation loss, and there are no validation rows",
                "another --train.schedule.name, or a split with validation rows",
            )
        check_clipping(self.cfg.clipping, self.replica.optimizer)
        self._resume()
        self.replica.strategy.begin(self.replica.params)
        self.replica.model.train()
        while self.cursor.epoch < self.cfg.epochs and not self.stopped:
            self._epoch()
        if self.stopped == "asked":
            self._save()  # as every rank has it: the resumed run goes on from there, not from what all agree on below
        self.replica.strategy.finish(self.replica.values)
        self._save()
        digest = weights_sha256(self.replica.model, self.collective)
        rate = self.rows / self.seconds if self.seconds > 0 else 0.0
        return FitResult(
            self.cursor, self.stopped, self.evaluation, self.audits, self.seconds, self.waiting, rate, digest
        )

    def _resume(self) -> None:
        if self.hooks.store is None:
            return
        saved = self.replica.restore(self.hooks.store, self.on_event)
        if saved is None:
            return
        self.cursor = Cursor.from_dict(saved["cursor"])
        self.step.load_state_dict(saved.get("step", {}))
        self.audits = [EpochAudit(**entry) for entry in saved["audits"]]
        self.stopped = "early" if self.cursor.stale >= self.cfg.patience > 0 else ""
        self.on_event({"type": "resume", "epoch": self.cursor.epoch, "step": self.cursor.global_step})
        if self.cursor.evaluation_due:
            self._evaluate()

    def _steps(self) -> int:
        steps = self.batches.steps(self.cursor.epoch)
        return min(steps, self.cfg.max_steps) if self.cfg.max_steps else steps

    def _epoch(self) -> None:
        """The rest of the cursor's epoch, its audit, and what is due after it."""
        steps = self._steps()
        if steps == 0:
            raise UserError(
                f"the training data has no full batch ({self.hooks.rows} rows)",
                "--data.remainder pad, or a smaller --train.batch_size",
            )
        stream = self.batches.epoch(self.cursor.epoch, self.cursor.step)
        for batch in stream:
            if self.cursor.step >= steps:
                break
            done = self._timed_step(batch)
            last = self.cursor.step == steps
            if last or done.unfinished:
                self.stopped = "asked" if done.asked else ""
            else:
                self._after_step(done)
            if self.stopped or last:
                break
        if self.cursor.step == steps:
            self._end_epoch(stream, steps)

    def _after_step(self, done: Outcome) -> None:
        step = self.cursor.global_step
        due = self.hooks.validation is not None and self.cfg.eval_every > 0 and step % self.cfg.eval_every == 0
        if done.asked:
            self.stopped, self.cursor.evaluation_due = "asked", due
            return
        if due:
            self._evaluate()
        if not self.stopped and self._checkpoint_due(step, done.met):
            self._save()

    def _checkpoint_due(self, step: int, met: bool) -> bool:
        if self.hooks.store is None:
            return False
        if self.cfg.checkpoint_every and step % self.cfg.checkpoint_every == 0:
            return True
        if not self.cfg.checkpoint_minutes or not met or (step % 10 and not self.replica.strategy.local):
            return False
        late = time.monotonic() - self.saved_at > 60.0 * self.cfg.checkpoint_minutes
        return bool(self.collective.broadcast(torch.tensor([int(late)])).item())

    def _end_epoch(self, stream: Iterator[Batch], steps: int) -> None:
        if steps == self.batches.steps(self.cursor.epoch):
            for _ in stream:  # lets the source read the dropped rows for the audit
                raise AssertionError("the source has more batches than steps")
            self.audits.append(self._audit())
        self.cursor.next_epoch()
        if self.stopped:
            self.cursor.evaluation_due = self.hooks.validation is not None
            return
        self._evaluate()
        if self.cursor.epoch < self.cfg.epochs and not self.stopped:
            self._save()

    def _audit(self) -> EpochAudit:
        audit = close_epoch(self.cursor, self.batches.audit(self.cursor.epoch), self.collective)
        if self.hooks.fingerprint is not None and self.hooks.rows is not None:
            audit.check(self.hooks.rows, self.hooks.fingerprint)
            self.on_event({"type": "epoch", **audit.to_dict()})
        return audit

    def _timed_step(self, batch: Batch) -> Outcome:
        start = time.perf_counter()
        with self.waiting.step():
            done = self.step(batch.to(self.replica.device), self.cursor.global_step, self._steps())
        if done.unfinished:
            self.replica.clear()
            return done
        self.seconds += time.perf_counter() - start
        self.rows += done.rows
        if done.bad:
            self._refuse(done)
        elif done.overflow:
            self._overflow()
        self.cursor.clipped += done.clipped.clipped
        if self.cursor.global_step < _SHOWN_BATCHES:
            self._show(batch)
        self.cursor.advance(batch)
        if self.cursor.global_step % self.cfg.log_every == 0:
            self.on_event(self._figures(done))
        return done

    def _figures(self, done: Outcome) -> Event:
        """The `step` event; without loss and norm of the gradient where the step was not made."""
        figures = {
            "type": "step",
            "step": self.cursor.global_step,
            "epoch": self.cursor.epoch,
            "rows_per_second": self.rows / self.seconds,
            "rows": self.cfg.log_every * done.rows,
            "lr": self.replica.optimizer.param_groups[0]["lr"],
        }
        if done.made and math.isfinite(done.loss):  # where ranks step on their own, a bad number is told later
            figures["loss"] = done.loss / max(1, done.rows)
        if self.cfg.clipping.rule != "none":
            figures |= {"gradient_norm": done.clipped.norm} if done.made else {}
            figures["clipped_steps"] = self.cursor.clipped
        if self.step.scaler.active:
            figures |= {"loss_scale": self.step.scaler.scale, "overflow_steps": self.cursor.overflows}
        return figures

    def _show(self, batch: Batch) -> None:
        """The global batch's fingerprint, equal at any number of ranks."""
        summed = total(self.collective, batch.fingerprint)[0] % MODULUS
        self.on_event({"type": "batches", "step": self.cursor.global_step, "fingerprint": f"{summed:016x}"})

    def _refuse(self, done: Outcome) -> None:
        ranks, action = done.bad, self.cfg.on_nonfinite
        self.on_event({"type": "nonfinite", "step": self.cursor.global_step, "ranks": ranks, "action": action})
        self.replica.clear()
        if action == "skip":
            self.cursor.skipped += done.lost
            return
        self._save()
        raise NonFiniteError(
            f"the loss or a gradient is not a finite number in step {self.cursor.global_step} "
            f"on rank {', '.join(map(str, ranks))}",
            NONFINITE_REMEDY,
        )

    def _overflow(self) -> None:
        """The batch is passed over, with a lower scale of the loss from the next step on."""
        self.replica.clear()
        self.cursor.overflows += 1
        self.on_event({"type": "overflow", "step": self.cursor.global_step, "loss_scale": self.step.scaler.scale})

    def _evaluate(self) -> None:
        if self.hooks.validation is None:
            return
        self.cursor.evaluation_due = True
        with averaged(self.replica.optimizer), self.replica.strategy.consensus(self.replica.values):
            result = evaluate(
                self.replica.model,
                self.hooks.validation(),
                self.collective,
                precision=self.cfg.precision,
                should_stop=self.hooks.should_stop,
            )
        if result is None:
            self.stopped = "asked"
            return
        self.cursor.evaluation_due = False
        self.evaluation = result
        self.on_event({"type": "eval", "split": "validation", "step": self.cursor.global_step, **result.to_dict()})
        self.cursor.judge(result.metrics.logloss)
        self.step.schedule.judge(result.metrics.logloss)
        if self.cursor.stale >= self.cfg.patience > 0:
            self.stopped = "early"

    def _save(self) -> None:
        mark = (self.cursor.global_step, self.cursor.evaluation_due)
        if self.hooks.store is None or self.last_saved == mark:
            return
        start = time.monotonic()
        kept = self.replica.checkpoint({"about": self.hooks.about})  # first: ranks that are far apart meet in it
        kept.state |= {
            "cursor": self.cursor.to_dict(self.collective),
            "step": self.step.state_dict(),
            "audits": [a.to_dict() for a in self.audits],
        }
        path = self.hooks.store.save(kept, self.cursor.global_step, self.collective)
        self.last_saved, self.saved_at = mark, time.monotonic()
        self.on_event({"type": "checkpoint", "step": mark[0], "path": str(path), "seconds": self.saved_at - start})


def _ignore(event: Event) -> None:
    """Only rank 0 reports."""


__all__ = ["Batches", "FitConfig", "FitResult", "Hooks", "NonFiniteError", "fit"]
