"""SARAH and SARAH+: a recursive gradient.

    at an anchor w_0:  v = gradient of all rows at w_0,   w_1 = w_0 - lr v
    steps t = 1 .. m - 1:  v <- g_B(w_t) - g_B(w_{t-1}) + v,   w_{t+1} = w_t - lr v
    next anchor:  the last w (pick "last"),  or w_t, t uniform in {0, .., m} (pick "random")
    SARAH+ (gamma > 0):  the loop also ends as soon as |v|^2 <= gamma |v_0|^2

Reference: L. M. Nguyen, J. Liu, K. Scheinberg, M. Takac, "SARAH: a novel method for machine learning problems using
stochastic recursive gradient", ICML 2017, algorithms 1 and 2. Algorithm 1 draws the next anchor; the default here is
the last iterate, as in algorithm 2 and as option I of SVRG. gamma 1/8 is the paper's. Where we differ: batches instead
of single rows, in the stream's order. v is not an unbiased estimate of the gradient: its mean, given the steps before,
is grad(w_t) - grad(w_{t-1}) + v.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from headrace.errors import UserError
from headrace.optim.base import Params
from headrace.optim.context import Named, StepContext
from headrace.optim.inner_loop import InnerLoop, loop_bytes
from headrace.optim.spec import (
    DENSE_ONLY,
    NEEDS_CLOSURE,
    NEEDS_FULL_PASS,
    NEEDS_MODEL,
    OWN_GRADIENT,
    STATEFUL,
    OptimizerSpec,
)


class SARAH(InnerLoop):
    """See the module's docstring."""

    name = "sarah"

    def __init__(self, params: Params, model: nn.Module, **options: Any) -> None:
        super().__init__(params, model, **options)
        gamma = options["gamma"]
        if not 0.0 <= gamma < 1.0:
            raise UserError(f"optimizer option gamma must be in [0, 1), not {gamma}")
        if gamma and options["pick"] == "random":
            raise UserError("SARAH+ (gamma > 0) goes on from its last iterate", "pick last, or gamma 0")
        self.measured = gamma > 0.0

    def estimate(self, ctx: StepContext) -> Named:
        """See `InnerLoop.estimate`; "known" is v, "old" the parameters before the step to come."""
        made = self.corrected(ctx, self.kept["old"], self.kept["known"])
        self.kept["known"] = self.kept["known"] | made
        for name, param in (self.own | self.others).items():
            self.kept["old"][name].copy_(param)
        return made

    def ends(self, square: float, first: bool) -> bool:
        """See `InnerLoop.ends`."""
        if not self.measured:
            return False
        if first:
            self.kept["loop"]["first_square"] = square
        return square <= self.param_groups[0]["gamma"] * float(self.kept["loop"]["first_square"])


SPEC = OptimizerSpec(
    factory=SARAH,
    paper="Nguyen et al. 2017",
    rule="v <- g_B(w) - g_B(w_before) + v;  w <- w - lr v;  v = full gradient at an anchor",
    use="as svrg, where the inner loops are long: its steps die down by themselves",
    state="2 numbers a parameter, 3 with pick random; a copy of tables that others train",
    state_bytes=loop_bytes,
    cost="a second gradient of the batch, a copy of all parameters; a pass over all rows every inner_epochs",
    traits=frozenset({DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, NEEDS_FULL_PASS, NEEDS_MODEL, OWN_GRADIENT}),
    defaults={
        "lr": 0.1, "weight_decay": 0.0, "inner_epochs": 1.0, "inner_steps": 0, "pick": "last", "gamma": 0.0, "seed": 0,
    },
)  # fmt: skip
