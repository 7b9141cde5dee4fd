"""Adam.

    m <- b1 m + (1 - b1) g,
    v <- b2 v + (1 - b2) g^2,
    w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps),
    g including weight_decay w

Reference: D. P. Kingma and J. Ba, "Adam: A method for stochastic optimization", ICLR 2015. As in the paper but for the
optional L2 term.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, Params, RuleOptimizer, State


class Adam(RuleOptimizer):
    """See the module's docstring."""

    def __init__(
        self,
        params: Params,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def init_state(self, param: Tensor) -> State:
        """m = v = 0, t = 0."""
        return {"step": 0, "m": torch.zeros_like(param), "v": torch.zeros_like(param)}

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        if options["weight_decay"] != 0.0:
            grad = grad + options["weight_decay"] * param
        adam_update(param, grad, state, options)


def adam_update(param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
    """Adam's step with a gradient that is final; shared with AdamW."""
    beta1, beta2 = options["betas"]
    state["step"] += 1
    state["m"].mul_(beta1).add_(grad, alpha=1.0 - beta1)
    state["v"].mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
    lr = options["lr"] / (1.0 - beta1 ** state["step"])
    root = (state["v"] / (1.0 - beta2 ** state["step"])).sqrt_().add_(options["eps"])
    param.addcdiv_(state["m"], root, value=-lr)


SPEC = OptimizerSpec(
    Adam,
    "Kingma and Ba 2015",
    frozenset({DENSE_ONLY, STATEFUL}),
    {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
)
