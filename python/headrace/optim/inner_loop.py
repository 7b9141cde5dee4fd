"""Rules that return to all training rows: a full gradient at an anchor, then a loop of cheap steps.

    anchor w~: gradient of all rows, one pass over the ranks' streams -> inner steps t = 1, 2, ..., m -> next anchor

The first inner step needs no batch: at the anchor the estimate is the full gradient itself. m is `inner_steps`, or,
where that is 0, as many steps as make `inner_epochs` times the training rows. The next anchor is the last iterate
(`pick` "last") or one of the loop's iterates drawn at random ("random"), to which the parameters are set back.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from headrace.errors import UserError
from headrace.optim.base import Params
from headrace.optim.context import Named, StepContext
from headrace.optim.spec import numbers
from headrace.optim.variance_reduced import VarianceReduced, number_drawn

PICKS = ("last", "random")


def loop_bytes(param: Tensor, options: Mapping[str, Any]) -> int:
    """For OptimizerSpec.state_bytes: anchor and gradient; a random pick keeps one iterate more."""
    return numbers(3 if options["pick"] == "random" else 2)(param, options)


class InnerLoop(VarianceReduced):
    """See the module's docstring. What is kept: "old" (parameters), "known" (a gradient), the loop's numbers."""

    drawn_from = 1  # the anchor is drawn from w_0 .. w_{m - 1 + drawn_from}

    def __init__(self, params: Params, model: nn.Module, **options: Any) -> None:
        super().__init__(params, model, **options)
        if options["pick"] not in PICKS:
            raise UserError(f"optimizer option pick must be one of {', '.join(PICKS)}, not {options['pick']!r}")
        if options["inner_steps"] < 0 or not 0.0 < options["inner_epochs"] < math.inf:
            raise UserError("an inner loop needs a length", "inner_epochs more than 0, or inner_steps 1 or more")

    @abstractmethod
    def estimate(self, ctx: StepContext) -> Named:
        """The estimate of an inner step that is not the first; may change "old" and "known"."""

    def ends(self, square: float, first: bool) -> bool:
        """Whether the loop ends early; `square` is the squared norm of the step's direction (see `measured`)."""
        return False

    def advance(self, ctx: StepContext) -> None:
        """See `VarianceReduced.advance`."""
        kept = self.kept
        loop = dict(kept.get("loop", {"anchors": 0, "step": 0, "length": 0, "batch": 1}))
        loop["batch"] = max(loop["batch"], ctx.rows)  # the last batch of an epoch may be smaller
        first = loop["step"] == loop["length"]
        if first:
            self._anchor(ctx, loop)
        estimate = kept["known"] if first else self.estimate(ctx)
        kept["loop"] = loop  # not before: a step that is refused changes nothing
        if loop["step"] == loop["picked"]:
            kept["iterate"] = {name: p.detach().clone() for name, p in self.own.items()}
        square = self.move(estimate)
        loop["step"] += 1
        if self.ends(square, first):
            loop["length"] = loop["step"]
        if loop["step"] == loop["length"] and "iterate" in kept:
            for name, value in kept.pop("iterate").items():
                self.own[name].copy_(value)

    def _anchor(self, ctx: StepContext, loop: dict[str, int]) -> None:
        rows, self.kept["known"] = self.full_gradient(ctx)
        self.kept["old"] = self.everything()
        options = self.param_groups[0]
        length = options["inner_steps"] or math.ceil(options["inner_epochs"] * rows / loop["batch"])
        loop |= {"step": 0, "length": length, "picked": -1}
        if options["pick"] == "random":
            chances = length + self.drawn_from
            loop["picked"] = int(number_drawn(options["seed"], loop["anchors"]) * chances)
        loop["anchors"] += 1
