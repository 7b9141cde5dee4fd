"""SCSG: stochastically controlled stochastic gradient. SVRG without passes over all rows.

    anchor:  g = mean gradient at w~ of the next A = anchor_batches batches of the stream (w~ rests meanwhile)
    N ~ geometric, P(N = k) = (1 / (A + 1)) (A / (A + 1))^k, mean A
    N inner steps:  w <- w - lr (g_B(w) - g_B(w~) + g);   the next anchor is the last w

Reference: L. Lei and M. I. Jordan, "Less than a single pass: stochastically controlled stochastic gradient method",
AISTATS 2017, whose anchor batch of B rows and N ~ Geom(B / (B + 1)) are, with b rows a step, B = A b and
N ~ Geom(B / (B + b)): L. Lei, C. Ju, J. Chen, M. I. Jordan, "Non-convex finite-sum optimization via SCSG methods",
NIPS 2017, algorithm 1. Where we differ: rows come in the stream's order, every one once an epoch, instead of drawn.

The anchor batch is gathered from the stream rather than from a part of a pass over the data: its gradients are those
that training makes anyway, so that an anchor costs A gradients and no reading, on any number of ranks, and the paper's
cost, independent of the number of rows, is kept. The first inner step needs no batch (at w~ the estimate is g) and is
taken together with the last of the anchor's. A loop keeps the noise of its g, so at a constant lr the loss falls
linearly to a floor and stays there, as the paper's theorems say of anchors of fewer than all rows: of the order of
SGD's, with rows drawn independently, for short loops, and that of a minimum found from A batches alone for long ones
(lr x curvature x A > 1). Where that is not enough, svrg.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from headrace.errors import UserError
from headrace.optim.base import Params
from headrace.optim.context import Named, StepContext
from headrace.optim.spec import DENSE_ONLY, NEEDS_CLOSURE, NEEDS_MODEL, OWN_GRADIENT, STATEFUL, OptimizerSpec, numbers
from headrace.optim.variance_reduced import VarianceReduced, number_drawn


class SCSG(VarianceReduced):
    """See the module's docstring."""

    name = "scsg"

    def __init__(self, params: Params, model: nn.Module, **options: Any) -> None:
        super().__init__(params, model, **options)
        if options["anchor_batches"] < 1:
            raise UserError(f"optimizer option anchor_batches must be 1 or more, not {options['anchor_batches']}")

    def advance(self, ctx: StepContext) -> None:
        """See `VarianceReduced.advance`."""
        kept = self.kept
        loop = kept.setdefault("loop", {"anchors": 0, "batches": 0, "rows": 0, "left": 0})
        if loop["left"]:
            self.move(self.corrected(ctx, kept["old"], kept["known"]))
            loop["left"] -= 1
            return
        self._gather(ctx, loop)
        options = self.param_groups[0]
        if loop["batches"] < options["anchor_batches"]:
            return
        torch._foreach_div_(list(kept["known"].values()), max(1, loop["rows"]))
        left = geometric(number_drawn(options["seed"], loop["anchors"]), options["anchor_batches"])
        if left:
            self.move(kept["known"])
        loop |= {"anchors": loop["anchors"] + 1, "batches": 0, "rows": 0, "left": max(0, left - 1)}

    def _gather(self, ctx: StepContext, loop: dict[str, int]) -> None:
        """Add a batch's gradient at the anchor, times its rows, to what is known."""
        kept = self.kept
        old = kept["old"] if loop["batches"] else self.everything()
        # Own parameters rest, so their gradients are those at the anchor, unless others move the rest of the model.
        grads: Named = {name: p.grad for name, p in self.own.items() if p.grad is not None}
        if self.others:
            grads = self.gradient_at(ctx, old)
        if not loop["batches"]:
            kept["old"], kept["known"] = old, {name: torch.zeros_like(p) for name, p in self.own.items()}
        torch._foreach_add_([kept["known"][name] for name in grads], list(grads.values()), alpha=ctx.rows)
        loop["batches"] += 1
        loop["rows"] += ctx.rows


def geometric(uniform: float, mean: int) -> int:
    """The geometric number, from 0, that a uniform one in [0, 1) stands for: P(N >= k) = (mean / (mean + 1))^k."""
    return int(math.log(1.0 - uniform) / math.log(mean / (mean + 1)))


SPEC = OptimizerSpec(
    factory=SCSG,
    paper="Lei and Jordan 2017",
    rule="w <- w - lr (g_B(w) - g_B(w~) + g),  g = gradient of an anchor batch, geometric inner length",
    use="variance reduction where a pass over all rows is too dear",
    state="2 numbers a parameter; a copy of tables that others train",
    state_bytes=numbers(2),
    cost="a second gradient of the batch in half of the steps, no update in most of the other half",
    traits=frozenset({DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, NEEDS_MODEL, OWN_GRADIENT}),
    defaults={"lr": 0.1, "weight_decay": 0.0, "anchor_batches": 10, "seed": 0},
)
