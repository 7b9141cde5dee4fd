"""Adadelta: steps in the parameters' own unit.

    v <- rho v + (1 - rho) g^2,     d = g sqrt(u + eps) / sqrt(v + eps),     u <- rho u + (1 - rho) d^2,
    w <- w - lr d

Reference: M. D. Zeiler, "ADADELTA: an adaptive learning rate method", arXiv:1212.5701, 2012, algorithm 1. The paper has
no lr: that is lr = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import State
from headrace.optim.elementwise import Elementwise
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers


class Adadelta(Elementwise):
    """See the module's docstring."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """u = v = 0."""
        return {"u": torch.zeros_like(param), "v": torch.zeros_like(param)}

    def rule(self, params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """See `Elementwise.rule`."""
        rho, eps = options["rho"], options["eps"]
        u, v = [state["u"] for state in states], [state["v"] for state in states]
        torch._foreach_mul_(v, rho)
        torch._foreach_addcmul_(v, grads, grads, 1.0 - rho)
        steps = torch._foreach_add(u, eps)
        torch._foreach_div_(steps, torch._foreach_add(v, eps))
        torch._foreach_sqrt_(steps)
        torch._foreach_mul_(steps, grads)
        torch._foreach_mul_(u, rho)
        torch._foreach_addcmul_(u, steps, steps, 1.0 - rho)
        torch._foreach_add_(params, steps, alpha=-options["lr"])


SPEC = OptimizerSpec(
    factory=Adadelta,
    paper="Zeiler 2012",
    rule="v <- mean of g^2;  d = g sqrt((u + eps) / (v + eps));  u <- mean of d^2;  w <- w - lr d",
    use="where no learning rate is to be chosen at all",
    state="2 numbers a parameter",
    state_bytes=numbers(2),
    cost="7 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0, "decoupled": False},
)
