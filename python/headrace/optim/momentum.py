"""Heavy-ball momentum.

    m <- momentum m + g + weight_decay w,     w <- w - lr m

Reference: B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. Differs from the
paper as all of deep learning does: lr stands outside of m, so a changed lr acts at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, Params, RuleOptimizer, State


class Momentum(RuleOptimizer):
    """See the module's docstring."""

    def __init__(self, params: Params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def init_state(self, param: Tensor) -> State:
        """m = 0."""
        return {"m": torch.zeros_like(param)}

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        state["m"].mul_(options["momentum"]).add_(grad).add_(param, alpha=options["weight_decay"])
        param.sub_(options["lr"] * state["m"])


SPEC = OptimizerSpec(
    Momentum,
    "Polyak 1964",
    frozenset({DENSE_ONLY, STATEFUL}),
    {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0},
)
