"""Stochastic gradient descent.

    w <- w - lr (g + weight_decay w)

Reference: H. Robbins and S. Monro, "A stochastic approximation method", 1951. Row-sparse gradients: only rows with a
gradient move, so weight decay is refused there (it would move all rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headrace.errors import UserError
from headrace.optim.spec import ACCEPTS_SPARSE, OptimizerSpec, Params, RuleOptimizer, State


class SGD(RuleOptimizer):
    """See the module's docstring."""

    sparse = True

    def __init__(self, params: Params, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def init_state(self, param: Tensor) -> State:
        """Nothing is kept."""
        return {}

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        if options["weight_decay"] != 0.0:
            grad = grad + options["weight_decay"] * param
        param.sub_(options["lr"] * grad)

    def _update_rows(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        if options["weight_decay"] != 0.0:
            raise UserError("weight decay would move rows that have no gradient", "--optimizer.sparse.weight_decay 0")
        super()._update_rows(param, grad, state, options)


SPEC = OptimizerSpec(SGD, "Robbins and Monro 1951", frozenset({ACCEPTS_SPARSE}), {"lr": 0.1, "weight_decay": 0.0})
