"""Exponential moving average of the weights; evaluation and export use it, training goes on from the weights.

    a_1 = w_1,     a_t = d a_{t-1} + (1 - d) w_t,     d = decay, or min(decay, (1 + t) / (10 + t)) with warmup, t from 0

References: B. Polyak and A. Juditsky, "Acceleration of stochastic approximation by averaging", 1992; the exponential
form with this warm-up is tf.train.ExponentialMovingAverage(num_updates). Statistics of batch normalization are those
of training: see optim.swa.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Optimizer
from headrace.optim.context import StepContext
from headrace.optim.wrapper import AVERAGES, Wrapper, WrapperSpec


class Ema(Wrapper):
    """See the module's docstring.

    Args:
        inner: makes the updates.
        decay: d, in [0, 1).
        warmup: a shorter memory at the start.

    Raises:
        UserError: the decay is out of range.
    """

    def __init__(self, inner: Optimizer, decay: float, warmup: bool) -> None:
        super().__init__(inner)
        if not 0.0 <= decay < 1.0:
            raise UserError(f"ema: decay must be in [0, 1), not {decay}")
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        self.inner.step(ctx)
        params = self.params
        if not self.kept:
            self.kept = [p.detach().clone() for p in params]
        else:
            d = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warmup else self.decay
            torch._foreach_lerp_(self.kept, params, 1.0 - d)
        self.steps += 1

    def averages(self) -> list[tuple[Tensor, Tensor]]:
        """See `Optimizer.averages`."""
        return list(zip(self.params, self.kept, strict=True)) if self.kept else []


SPEC = WrapperSpec(
    factory=Ema,
    paper="Polyak and Juditsky 1992",
    rule="a <- d a + (1 - d) w; evaluated and exported: a",
    use="long noisy runs: nearly always a little better than the last weights",
    state="1 number a parameter",
    cost="3 numbers moved a parameter",
    traits=frozenset({AVERAGES}),
    defaults={"decay": 0.999, "warmup": False},
)
