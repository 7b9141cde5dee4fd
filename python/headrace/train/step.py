"""One update over all ranks, and what is kept from step to step beside model and optimizer.

    rates of the schedule -> forward, backward of the scaled SUM of losses, part by part -> control word (loss, rows,
    bad gradient?, stop?) of all ranks -> strategy.on_gradients -> divided by scale and global rows -> clipped ->
    optimizer -> strategy.on_parameters

Every decision is taken from numbers that all ranks hold: all make the step, or none does. A rule that goes through all
rows may take long: meanwhile a wish to stop is looked for as well, and the step is then not made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from headrace.data.batch import Batch
from headrace.models.layers import reseed_dropout
from headrace.optim import NonFiniteStepError, StepContext
from headrace.optim.clipping import Clipped, clip
from headrace.optim.schedules import Schedule
from headrace.train.cursor import total
from headrace.train.evaluate import ASK_EVERY, agreed
from headrace.train.fit_config import FitConfig
from headrace.train.precision import LossScaler
from headrace.train.replica import Replica


@dataclass(frozen=True)
class Outcome:
    """What became of a step; the same on every rank.

    Args:
        loss: sum over the global batch's rows; 0 where the step was not made.
        rows: of the global batch.
        asked: whether any rank asks to stop.
        bad: ranks with bad numbers; the step was not made.
        overflow: it was not made because fp16 overflowed, and the scale is lower now.
        unfinished: it was not made because a stop was asked for meanwhile: the resumed run makes it.
        clipped: what clipping did.
        met: whether ranks met: where they do not, loss and rows are this rank's times the number of ranks.
        lost: steps that bad numbers cost, over all ranks where each steps on its own.
    """

    loss: float
    rows: int
    asked: bool
    bad: list[int] = field(default_factory=list)
    overflow: bool = False
    unfinished: bool = False
    clipped: Clipped = field(default_factory=Clipped)
    met: bool = True
    lost: int = 1

    @property
    def made(self) -> bool:
        """Whether the parameters were updated."""
        return not (self.bad or self.overflow or self.unfinished)


class _StopAskedError(Exception):
    """A stop was asked for during a pass over all rows, on all ranks alike."""


class Stepper:
    """Makes steps.

    Args:
        replica: what is trained.
        cfg: of the loop.
        should_stop: whether a stop was asked for on this rank.
        training: makes batches of all training rows once, or None.
    """

    def __init__(
        self, replica: Replica, cfg: FitConfig, should_stop: Callable[[], bool],
        training: Callable[[], Iterable[Batch]] | None,
    ) -> None:  # fmt: skip
        self.replica, self.cfg, self.should_stop, self.training = replica, cfg, should_stop, training
        self.collective = replica.collective
        self.schedule, self.scaler = Schedule(cfg.schedule), LossScaler(cfg.precision)

    def __call__(self, batch: Batch, step: int, steps_per_epoch: int) -> Outcome:
        """Step number `step` of the run (from 0) on this rank's part of a global batch."""
        if not self.scaler.begun:
            self.scaler.begin(total(self.collective, batch.rows)[0])
        scale = self.scaler.scale
        done = self._tried(batch, step, steps_per_epoch)
        self.replica.strategy.settle(done.made, self.scaler.scale / scale)
        return done

    def _tried(self, batch: Batch, step: int, steps_per_epoch: int) -> Outcome:
        replica, scaler = self.replica, self.scaler
        loss, outputs = self._backward(batch, step, steps_per_epoch)
        # Of each rank: loss, rows, bad gradient, stop.
        words = self._gather(loss, batch.rows, float(replica.bad_gradient()), float(self.should_stop()))
        rows, asked = int(sum(w[1] for w in words)), any(w[3] for w in words)
        lost = [rank for rank, w in enumerate(words) if not math.isfinite(w[0])]
        bad = [rank for rank, w in enumerate(words) if w[2]]
        if not lost and not bad:
            replica.exchange(step, rows, scaler.scale)
            bad = self._bad_sums()
        if lost or bad:
            overflow = not lost and scaler.overflow()
            return Outcome(0.0, rows, asked, [] if overflow else sorted({*lost, *bad}), overflow)
        clipped = clip(replica.params, self.cfg.clipping, replica.shards)
        try:
            replica.update(self._context(batch, rows, outputs), step)
        except NonFiniteStepError:
            return Outcome(0.0, rows, asked, list(range(self.collective.size)))
        except _StopAskedError:
            return Outcome(0.0, rows, True, unfinished=True)
        scaler.passed()
        return Outcome(sum(w[0] for w in words), rows, asked, clipped=clipped)

    def _bad_sums(self) -> list[int]:
        """Ranks that see a bad number after the exchange: every one, but where each has rows of its own."""
        own = self.replica.bad_gradient()
        if self.replica.shards is None:
            return [self.collective.rank] if own else []
        return [rank for rank, (bad,) in enumerate(self._gather(float(own))) if bad]

    def _backward(self, batch: Batch, step: int, steps_per_epoch: int) -> tuple[float, torch.Tensor]:
        """At the step's rates, with dropout masks of its own for every part; see `Replica.backward`."""

        def reseed(part: int) -> None:
            reseed_dropout(
                self.replica.model, self.cfg.seed, step * self.cfg.accumulate + part, self.collective.rank
            )  # fmt: skip

        self.replica.set_rates(self.schedule.rates(step, self.cfg.epochs, steps_per_epoch))
        return self.replica.backward(
            batch, self.cfg.precision, scale=self.scaler.scale, parts=self.cfg.accumulate, before_part=reseed
        )

    def _context(self, batch: Batch, rows: int, outputs: torch.Tensor) -> StepContext:
        full_pass = self._full_pass if self.training is not None else None
        return self.replica.context(
            batch, rows, outputs=outputs, full_pass=full_pass, clipping=self.cfg.clipping, scale=self.scaler.scale
        )

    def _full_pass(self) -> Iterator[StepContext]:
        """Rules change nothing of weight before they have gone through all of it: what they kept is kept anew."""
        assert self.training is not None
        for number, batch in enumerate(self.training(), 1):
            if number % ASK_EVERY == 0 and agreed(self.should_stop(), self.collective):
                raise _StopAskedError
            yield self.replica.context(batch.to(self.replica.device), batch.rows)

    def _gather(self, *word: float) -> list[list[float]]:
        """Everyone's word, in rank order."""
        own = torch.tensor([word], dtype=torch.float64)
        size = self.collective.size
        everyone = own if size == 1 else torch.cat(self.collective.allgather(own, rows=[1] * size))
        words: list[list[float]] = everyone.tolist()
        return words

    def state_dict(self) -> dict[str, Any]:
        """JSON: what plateau has seen, the scale of the loss."""
        return {"schedule": self.schedule.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave; nothing, from a checkpoint of before there was any."""
        self.schedule.load_state_dict(state.get("schedule", {}))
        self.scaler.load_state_dict(state.get("scaler", {}))
