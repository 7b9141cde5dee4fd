"""AdamW: Adam with weight decay beside the gradient instead of in it.

    w <- (1 - lr weight_decay) w,     then Adam's step with g alone

Reference: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019. Differs from the paper:
decay is scaled by lr (the schedule's factor and the base rate), as in torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headrace.optim.adam import Adam, adam_update
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, State


class AdamW(Adam):
    """See the module's docstring."""

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        param.mul_(1.0 - options["lr"] * options["weight_decay"])
        adam_update(param, grad, state, options)


SPEC = OptimizerSpec(
    AdamW,
    "Loshchilov and Hutter 2019",
    frozenset({DENSE_ONLY, STATEFUL}),
    {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
)
