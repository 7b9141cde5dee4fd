"""One step of a rank that steps on its own, and what all ranks are told when they meet.

    rates -> forward, backward -> gradient of the mean over this rank's rows -> clipped -> optimizer
    -> strategy.on_parameters; where all meet, a control word after that: loss, rows, bad steps since they met, stop?

A rank with a bad number leaves its own update out; the others hear of it when they meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from headrace.data.batch import Batch
from headrace.optim.clipping import Clipped, clip
from headrace.train.step import Outcome, Stepper


class LocalStepper(Stepper):
    """Makes steps of ranks that meet in some of them only; see Stepper for its arguments."""

    _since = (0.0, 0.0, 0.0)  # loss, rows and bad steps of this rank since all met

    def __call__(self, batch: Batch, step: int, steps_per_epoch: int) -> Outcome:
        """Step number `step` of the run (from 0) on this rank's part of a global batch."""
        replica = self.replica
        meets = replica.strategy.meets(step, (step + 1) % steps_per_epoch == 0)
        loss, outputs = self._backward(batch, step, steps_per_epoch)
        good, clipped, context = math.isfinite(loss) and not replica.bad_gradient(), Clipped(), None
        if good:
            replica.exchange(step, batch.rows)
            clipped = clip(replica.params, self.cfg.clipping)
            context = self._context(batch, batch.rows, outputs)
        good = replica.update(context, step, meets)
        self._note(loss if good else 0.0, batch.rows, good)
        if meets:
            return self._told(batch.rows, clipped)
        size = self.collective.size
        return Outcome(loss * size, batch.rows * size, False, clipped=clipped, met=False)

    def _note(self, loss: float, rows: int, good: bool) -> None:
        before = self._since
        self._since = (before[0] + loss, before[1] + rows * good, before[2] + (not good))

    def _told(self, rows: int, clipped: Clipped) -> Outcome:
        """What all ranks know now: the loss is the mean over the rows since they met, times the rows of this step."""
        words = self._gather(*self._since, float(self.should_stop()), rows)
        self._since = (0.0, 0.0, 0.0)
        loss, seen, lost, asked, now = (sum(word[k] for word in words) for k in range(5))
        bad = [rank for rank, word in enumerate(words) if word[2]]
        mean = loss / max(1.0, seen)
        return Outcome(mean * now, int(now), asked > 0, bad, clipped=clipped, lost=int(lost))

    def state_dict(self) -> dict[str, Any]:
        """See `Stepper.state_dict`; and what every rank has to tell the others. All ranks call it together."""
        return super().state_dict() | {"since": self.collective.allgather_object(self._since)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave; of another number of ranks, the first one tells for all."""
        super().load_state_dict(state)
        words = state.get("since", [self._since])
        if len(words) != self.collective.size:
            words = [[sum(word[k] for word in words) for k in range(3)]]
        loss, rows, bad = (words[self.collective.rank :] or [(0.0, 0.0, 0.0)])[0]
        self._since = (loss, rows, bad)
