"""The training loop: one for one rank and many.

    every step: forward, backward of the SUM of losses over this rank's rows -> control word (loss, rows, bad?, stop?)
    gathered from all ranks -> strategy.on_gradients (sums over ranks) -> divided by the global number of rows ->
    optimizers -> strategy.on_parameters

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
from headrace.models.layers import reseed_dropout
from headrace.optim import Optimizer, StepContext
from headrace.optim.schedules import factor
from headrace.strategies import Strategy
from headrace.train.checkpoint import CheckpointStore
from headrace.train.cursor import Cursor, EpochAudit, close_epoch, total
from headrace.train.evaluate import Evaluation, evaluate
from headrace.train.events import Event
from headrace.train.replica import Replica, weights_sha256

NONFINITE = ("stop", "skip")
_SHOWN_BATCHES = 3


class NonFiniteError(UserError):
    """The loss or a gradient is not a number, and the run was configured to stop."""


class Batches(Protocol):
    """Where batches come from (data.Stream)."""

    def steps(self, epoch: int) -> int: ...
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]: ...
    def audit(self, epoch: int) -> Any: ...


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
        schedule: of the learning rates, see optim.schedules.
        warmup: steps.
        patience: stop after so many evaluations in a row without a better validation logloss; 0 never.
        bf16: forward and backward under bfloat16 autocast; parameters and updates stay float32.
        seed: of dropout.
    """

    epochs: int = 1
    max_steps: int = 0
    eval_every: int = 0
    checkpoint_every: int = 0
    checkpoint_minutes: float = 10.0
    log_every: int = 20
    on_nonfinite: str = "stop"
    schedule: str = "constant"
    warmup: int = 0
    patience: int = 0
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.on_nonfinite not in NONFINITE:
            raise UserError(f"train.on_nonfinite is {self.on_nonfinite!r}", f"one of {', '.join(NONFINITE)}")
        if self.epochs < 1:
            raise UserError(f"{self.epochs} epochs asked for", "--train.epochs 1 or more")
        factor(self.schedule, 0, 1)


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
        rows_per_second: rows of all ranks a second of training, without evaluation and checkpoints, in this process's
            part of the run.
        weights_sha256: of parameters and buffers, equal on all ranks.
    """

    cursor: Cursor
    stopped: str
    evaluation: Evaluation | None
    audits: list[EpochAudit]
    seconds: float
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
        UserError: a checkpoint cannot be written.
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
        self.device = next(replica.model.parameters()).device
        self.cursor = Cursor()
        self.evaluation: Evaluation | None = None
        self.audits: list[EpochAudit] = []
        self.stopped = ""
        self.rows, self.seconds, self.saved_at = 0, 0.0, time.monotonic()
        self.last_saved: tuple[int, bool] | None = None

    def run(self) -> FitResult:
        """See `fit`."""
        self._resume()
        self.replica.model.train()
        while self.cursor.epoch < self.cfg.epochs and not self.stopped:
            self._epoch()
        self._save()
        digest = weights_sha256(self.replica.model, self.collective)
        rate = self.rows / self.seconds if self.seconds > 0 else 0.0
        return FitResult(self.cursor, self.stopped, self.evaluation, self.audits, self.seconds, rate, digest)

    def _resume(self) -> None:
        if self.hooks.store is None:
            return
        saved = self.replica.restore(self.hooks.store, self.on_event)
        if saved is None:
            return
        self.cursor = Cursor.from_dict(saved["cursor"])
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
            asked = self._timed_step(batch)
            last = self.cursor.step == steps
            if not last:
                self._after_step(asked)
            elif asked:
                self.stopped = "asked"
            if self.stopped or last:
                break
        if self.cursor.step == steps:
            self._end_epoch(stream, steps)

    def _after_step(self, asked: bool) -> None:
        step = self.cursor.global_step
        due = self.hooks.validation is not None and self.cfg.eval_every > 0 and step % self.cfg.eval_every == 0
        if asked:
            self.stopped, self.cursor.evaluation_due = "asked", due
            return
        if due:
            self._evaluate()
        if not self.stopped and self._checkpoint_due(step):
            self._save()

    def _checkpoint_due(self, step: int) -> bool:
        if self.hooks.store is None:
            return False
        if self.cfg.checkpoint_every and step % self.cfg.checkpoint_every == 0:
            return True
        if not self.cfg.checkpoint_minutes or step % 10:
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

    def _timed_step(self, batch: Batch) -> bool:
        start = time.perf_counter()
        loss, rows, asked = self._step(batch.to(self.device))
        self.seconds += time.perf_counter() - start
        self.rows += rows
        if self.cursor.global_step < _SHOWN_BATCHES:
            self._show(batch)
        self.cursor.advance(batch)
        if self.cursor.global_step % self.cfg.log_every == 0:
            self.on_event(
                {
                    "type": "step",
                    "step": self.cursor.global_step,
                    "epoch": self.cursor.epoch,
                    "loss": loss / max(1, rows),
                    "rows_per_second": self.rows / self.seconds,
                    "rows": self.cfg.log_every * rows,
                }
            )
        return asked

    def _show(self, batch: Batch) -> None:
        """The global batch's fingerprint, equal at any number of ranks."""
        summed = total(self.collective, batch.fingerprint)[0] % MODULUS
        self.on_event({"type": "batches", "step": self.cursor.global_step, "fingerprint": f"{summed:016x}"})

    def _step(self, batch: Batch) -> tuple[float, int, bool]:
        """One update; global loss sum, global rows, whether any rank asks to stop."""
        replica, step = self.replica, self.cursor.global_step
        reseed_dropout(replica.model, self.cfg.seed, step, self.collective.rank)
        replica.set_lr(factor(self.cfg.schedule, step, self.cfg.epochs * self._steps(), self.cfg.warmup))
        loss, outputs = replica.backward(batch, self.cfg.bf16)
        loss, rows, bad, asked = self._agree(loss, batch.rows, replica.bad_gradient())
        if not bad:
            replica.exchange(step, rows)
            bad = [self.collective.rank] if replica.bad_gradient() else []
            if not bad:
                full_pass = self._full_pass if self.hooks.training is not None else None
                replica.update(replica.context(batch, rows, outputs, full_pass=full_pass), step)
        if bad:
            self._refuse(bad)
            return 0.0, rows, asked
        return loss, rows, asked

    def _full_pass(self) -> Iterator[StepContext]:
        assert self.hooks.training is not None
        for batch in self.hooks.training():
            yield self.replica.context(batch.to(self.device), batch.rows)

    def _agree(self, loss: float, rows: int, bad: bool) -> tuple[float, int, list[int], bool]:
        """Sum of losses and of rows in rank order, ranks with bad numbers, whether anyone wants to stop."""
        own = torch.tensor(
            [[loss, rows, float(bad or not math.isfinite(loss)), float(self.hooks.should_stop())]], dtype=torch.float64
        )
        everyone = (
            own
            if self.collective.size == 1
            else torch.cat(self.collective.allgather(own, rows=[1] * self.collective.size))
        )
        words = everyone.tolist()
        bad_ranks = [rank for rank, word in enumerate(words) if word[2]]
        return sum(w[0] for w in words), int(sum(w[1] for w in words)), bad_ranks, any(w[3] for w in words)

    def _refuse(self, ranks: list[int]) -> None:
        self.on_event(
            {"type": "nonfinite", "step": self.cursor.global_step, "ranks": ranks, "action": self.cfg.on_nonfinite}
        )
        self.replica.clear()
        self.cursor.skipped += 1
        if self.cfg.on_nonfinite == "skip":
            return
        self.cursor.skipped -= 1
        self._save()
        raise NonFiniteError(
            f"the loss or a gradient is not a finite number in step {self.cursor.global_step} "
            f"on rank {', '.join(map(str, ranks))}",
            "lower --optimizer.dense.lr and --optimizer.sparse.lr, or leave such steps out: --train.on_nonfinite skip",
        )

    def _evaluate(self) -> None:
        if self.hooks.validation is None:
            return
        self.cursor.evaluation_due = True
        result = evaluate(
            self.replica.model,
            self.hooks.validation(),
            self.collective,
            bf16=self.cfg.bf16,
            should_stop=self.hooks.should_stop,
        )
        if result is None:
            self.stopped = "asked"
            return
        self.cursor.evaluation_due = False
        self.evaluation = result
        self.on_event({"type": "eval", "split": "validation", "step": self.cursor.global_step, **result.to_dict()})
        self.cursor.judge(result.metrics.logloss)
        if self.cursor.stale >= self.cfg.patience > 0:
            self.stopped = "early"

    def _save(self) -> None:
        mark = (self.cursor.global_step, self.cursor.evaluation_due)
        if self.hooks.store is None or self.last_saved == mark:
            return
        start = time.monotonic()
        state = {
            "cursor": self.cursor.to_dict(self.collective),
            "audits": [a.to_dict() for a in self.audits],
            "about": self.hooks.about,
        }
        path = self.hooks.store.save(self.replica.checkpoint(state), self.cursor.global_step, self.collective)
        self.last_saved, self.saved_at = mark, time.monotonic()
        self.on_event({"type": "checkpoint", "step": mark[0], "path": str(path), "seconds": self.saved_at - start})


def _ignore(event: Event) -> None:
    """Only rank 0 reports."""


__all__ = ["Batches", "FitConfig", "FitResult", "Hooks", "NonFiniteError", "fit"]
