"""AdaGrad.

    v <- v + g^2,     w <- w - lr g / (sqrt(v) + eps)

Reference: J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic
optimization", JMLR 2011. The diagonal form; v starts at initial_accumulator. A zero gradient changes nothing, so
row-sparse gradients give the same as dense ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.optim.spec import ACCEPTS_SPARSE, STATEFUL, OptimizerSpec, Params, RuleOptimizer, State


class Adagrad(RuleOptimizer):
    """See the module's docstring."""

    sparse = True

    def __init__(self, params: Params, lr: float, eps: float = 1e-10, initial_accumulator: float = 0.0) -> None:
        super().__init__(params, lr=lr, eps=eps, initial_accumulator=initial_accumulator)

    def init_state(self, param: Tensor) -> State:
        """v = initial_accumulator."""
        return {"v": torch.full_like(param, self.defaults["initial_accumulator"])}

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        state["v"].addcmul_(grad, grad)
        param.addcdiv_(grad, state["v"].sqrt().add_(options["eps"]), value=-options["lr"])


SPEC = OptimizerSpec(
    Adagrad,
    "Duchi, Hazan, Singer 2011",
    frozenset({ACCEPTS_SPARSE, STATEFUL}),
    {"lr": 0.02, "eps": 1e-10, "initial_accumulator": 0.0},
)
