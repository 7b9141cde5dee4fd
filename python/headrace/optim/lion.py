"""Lion: the sign of an interpolated momentum.

    c = b1 m + (1 - b1) g,     w <- w - lr sign(c),     m <- b2 m + (1 - b2) g

Reference: X. Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023, algorithm 2. As in the paper,
whose weight decay is decoupled; L2 by option. Every number of w moves by lr, or not at all where c is 0: lr is to be
three to ten times smaller than Adam's, weight_decay as much larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import State
from headrace.optim.elementwise import Elementwise
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers


class Lion(Elementwise):
    """See the module's docstring."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """m = 0."""
        return {"m": torch.zeros_like(param)}

    def rule(self, params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """See `Elementwise.rule`."""
        m = [state["m"] for state in states]
        steps = torch._foreach_lerp(m, grads, 1.0 - options["betas"][0])
        torch._foreach_sign_(steps)
        torch._foreach_add_(params, steps, alpha=-options["lr"])
        torch._foreach_lerp_(m, grads, 1.0 - options["betas"][1])


SPEC = OptimizerSpec(
    factory=Lion,
    paper="Chen et al. 2023",
    rule="w <- w - lr sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g",
    use="large models and batches where Adam's second number a parameter is too much",
    state="1 number a parameter",
    state_bytes=numbers(1),
    cost="5 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "decoupled": True},
)
