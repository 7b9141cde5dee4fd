"""The update of one stage: gradients summed over its replicas, divided by rows, agreed on, clipped, applied.

flush:   g <- sum over replicas g / rows;  all ranks gather (loss, rows, bad?, |g|): all update or none, and clip by
         the norm over all stages
stale:   g <- the same over a group of micro-batches; a stage with a bad gradient leaves its own update out
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headrace import optim
from headrace.comm import Collective
from headrace.errors import UserError
from headrace.optim.clipping import Clipped, ClippingConfig, Shards, clip_gradients
from headrace.parallel.gathering import summed_gradients
from headrace.parallel.part_optimizer import check_part
from headrace.parallel.stages import Stage


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Args:
        loss: mean over the rows since the pipeline was last empty, the same on all ranks; None where it is not empty.
        rows: over all replicas.
        updates: that were made by this stage.
        left_out: because of numbers that are not finite; with trait flushes by all stages alike.
        clipped: what clipping did in the last update.
    """

    loss: float | None
    rows: int = 0
    updates: int = 0
    left_out: int = 0
    clipped: Clipped = field(default_factory=Clipped)


def optimizer_of(stage: Stage, chosen: Mapping[str, Any]) -> optim.Optimizer | None:
    """The optimizer of a stage's parameters; None where there is nothing to train.

    Args:
        chosen: `name`, and what else `headrace.optim.create` takes.

    Raises:
        UserError: see `create`; or a rule that needs more than the gradients of a stage, or row-sparse tables.
    """
    options = dict(chosen)
    name = options.pop("name", "")
    check_part(name, options)
    sparse = [key for key, layer in stage.named_modules() if getattr(layer, "sparse", False) is True]
    if sparse:
        raise UserError(f"layer {sparse[0]} has row-sparse gradients, which pipelines do not sum", "sparse=False")
    return optim.create(name, stage.trained.items(), **options) if stage.trained else None


class StageUpdate:
    """See the module's docstring.

    Args:
        stage: whose parameters.
        optimizer: theirs.
        clipping: how gradients are clipped.
        collective: of all ranks.
        pipeline: of the ranks of this pipeline.
        replicas: of the ranks that hold this stage; a `Subgroup` where all ranks update at once.
    """

    def __init__(
        self, stage: Stage, optimizer: optim.Optimizer | None, clipping: ClippingConfig, collective: Collective,
        pipeline: Collective, replicas: Collective,
    ) -> None:  # fmt: skip
        self.params = stage.trained
        self.optimizer, self.clipping, self.collective = optimizer, clipping, collective
        self.pipeline, self.replicas = pipeline, replicas
        # Sums over replicas are operations of all stages at once: each takes part for every dtype that one has.
        own = sorted({str(p.dtype).removeprefix("torch.") for p in self.params.values()})
        found = sorted({name for each in collective.allgather_object(own) for name in each})
        self.dtypes: list[torch.dtype] = [getattr(torch, name) for name in found]
        self.last = pipeline.rank == pipeline.size - 1
        self.loss, self.rows, self.group_rows = 0.0, 0, 0
        self.updates = self.left_out = 0
        self.clipped = Clipped()
        self._words: list[list[float]] = []

    def note(self, loss: float, rows: int) -> None:
        """A micro-batch went backward."""
        self.loss += loss
        self.rows += rows
        self.group_rows += rows

    def together(self) -> None:
        """All ranks make the update of a step, or none does."""
        grads = self._mean_gradients()
        bad = not _all_finite(grads)
        words = self._words = self._gather(float(bad))
        if any(bad or not math.isfinite(loss) for loss, _, bad in words):
            self.left_out += 1
        else:
            self._apply(grads, Shards(frozenset(self.params), self.pipeline))
        self._clear()

    def alone(self) -> None:
        """This stage's update, of a group of micro-batches."""
        grads = self._mean_gradients()
        if _all_finite(grads):
            self._apply(grads, None)
        else:
            self.left_out += 1
        self._clear()

    def outcome(self, empty: bool) -> Outcome:
        """What happened since the last one; where the pipeline is empty all ranks call it, and counting begins anew."""
        loss, rows = None, 0
        if empty:
            words = self._words or self._gather()
            rows = int(sum(word[1] for word in words))
            loss = sum(word[0] for word in words) / max(1, rows)
            self.loss, self.rows, self._words = 0.0, 0, []
        done = Outcome(loss, rows, self.updates, self.left_out, self.clipped)
        self.updates, self.left_out, self.clipped = 0, 0, Clipped()
        return done

    def _mean_gradients(self) -> dict[str, Tensor]:
        """Sums over replicas, divided by the rows of all."""
        grads = {name: p.grad for name, p in self.params.items() if p.grad is not None}
        rows = self.group_rows
        if self.replicas.size > 1:
            grads, rows = summed_gradients(self.params, self.dtypes, self.replicas, self.group_rows)
        for name, grad in grads.items():
            self.params[name].grad = grad.div_(max(1, rows))
        return grads

    def _apply(self, grads: Mapping[str, Tensor], stages: Shards | None) -> None:
        self.clipped = clip_gradients(self.params, grads, self.clipping, stages)
        if self.optimizer is not None:
            self.optimizer.step()
        self.updates += 1

    def _clear(self) -> None:
        self.group_rows = 0
        for param in self.params.values():
            param.grad = None

    def _gather(self, *word: float) -> list[list[float]]:
        """Every rank's loss and rows (each counted in the last stage) and word, in rank order."""
        own = torch.tensor([(self.loss, self.rows if self.last else 0.0, *word)], dtype=torch.float64)
        words: list[list[float]] = torch.cat(self.collective.allgather(own, rows=[1] * self.collective.size)).tolist()
        return words


def _all_finite(grads: Mapping[str, Tensor]) -> bool:
    """Every number is looked at only where the sum is bad."""
    return all(bool(g.sum().isfinite()) or bool(g.isfinite().all()) for g in grads.values())
