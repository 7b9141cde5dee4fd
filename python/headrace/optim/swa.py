"""Stochastic weight averaging: the mean of the weights along the last part of a run, evaluated and exported.

    from step `start` on, every `every` steps:  a <- a + (w - a) / (n + 1),     n = weights averaged before

Reference: P. Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018, algorithm
1, with the rate of the run's own schedule (the paper's: constant or cyclical and high). Its last line, a pass over the
data for new statistics of batch normalization, is not made: running means and variances belong to the weights of
training, not to their average, and a model with such layers has to make that pass before its average is used. The click
models have none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Optimizer
from headrace.optim.context import StepContext
from headrace.optim.wrapper import AVERAGES, Wrapper, WrapperSpec


class Swa(Wrapper):
    """See the module's docstring.

    Args:
        inner: makes the updates.
        start: the first step whose result is averaged, from 1; until then evaluation uses the weights themselves.
        every: steps between two averaged weights.

    Raises:
        UserError: start or every below 1.
    """

    def __init__(self, inner: Optimizer, start: int, every: int) -> None:
        super().__init__(inner)
        if start < 1 or every < 1:
            raise UserError(f"swa: start and every must be at least 1, not {start} and {every}")
        self.start, self.every = start, every

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        self.inner.step(ctx)
        self.steps += 1
        n, rest = divmod(self.steps - self.start, self.every)
        if n < 0 or rest:
            return
        params = self.params
        if not self.kept:
            self.kept = [p.detach().clone() for p in params]
        else:
            torch._foreach_lerp_(self.kept, params, 1.0 / (n + 1))

    def averages(self) -> list[tuple[Tensor, Tensor]]:
        """See `Optimizer.averages`."""
        return list(zip(self.params, self.kept, strict=True)) if self.kept else []


SPEC = WrapperSpec(
    factory=Swa,
    paper="Izmailov et al. 2018",
    rule="a <- a + (w - a) / (n + 1) every c steps; evaluated and exported: a",
    use="the end of a run at a constant or cyclical rate",
    state="1 number a parameter",
    cost="3 numbers moved a parameter every c steps",
    traits=frozenset({AVERAGES}),
    defaults={"start": 1, "every": 1},
)
