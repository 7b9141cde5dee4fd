"""Lookahead: k steps of any rule with fast weights, then one step of slow ones towards them.

    every k steps:  phi <- phi + alpha (theta - phi),     theta <- phi;     phi_0 = theta_0

Reference: M. Zhang, J. Lucas, G. Hinton, J. Ba, "Lookahead optimizer: k steps forward, 1 step back", NeurIPS 2019,
algorithm 1. The inner state is kept when the weights are set back, as in the paper's experiments.
"""

from __future__ import annotations

import torch

from headrace.errors import UserError
from headrace.optim.base import Optimizer
from headrace.optim.context import StepContext
from headrace.optim.wrapper import Wrapper, WrapperSpec


class Lookahead(Wrapper):
    """See the module's docstring.

    Args:
        inner: makes the fast steps.
        k: fast steps a slow one.
        alpha: length of the slow step.

    Raises:
        UserError: k below 1, or alpha not in [0, 1].
    """

    def __init__(self, inner: Optimizer, k: int, alpha: float) -> None:
        super().__init__(inner)
        if k < 1 or not 0.0 <= alpha <= 1.0:
            raise UserError(f"lookahead: k must be at least 1 and alpha in [0, 1], not {k} and {alpha}")
        self.k, self.alpha = k, alpha

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        params = self.params
        if not self.kept:
            self.kept = [p.detach().clone() for p in params]
        self.inner.step(ctx)
        self.steps += 1
        if self.steps % self.k == 0:
            torch._foreach_lerp_(self.kept, params, self.alpha)
            torch._foreach_copy_(params, self.kept)


SPEC = WrapperSpec(
    factory=Lookahead,
    paper="Zhang et al. 2019",
    rule="every k steps: phi <- phi + alpha (w - phi), w <- phi",
    use="a rule that swings: less variance for one copy of the weights",
    state="1 number a parameter",
    cost="5 numbers moved a parameter every k steps",
    defaults={"k": 5, "alpha": 0.5},
)
