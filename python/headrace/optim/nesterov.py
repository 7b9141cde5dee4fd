"""Nesterov's accelerated gradient.

    d = g + weight_decay w,     m <- momentum m + d,     w <- w - lr (d + momentum m)

References: Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983; I.
Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013. Differs from the
papers: the parameters kept are the looked-ahead ones, so the gradient is taken where the model is (the form of Bengio
et al. 2013).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headrace.optim.momentum import Momentum
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, State


class Nesterov(Momentum):
    """See the module's docstring."""

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        direction = grad + options["weight_decay"] * param
        state["m"].mul_(options["momentum"]).add_(direction)
        param.sub_(options["lr"] * (direction + options["momentum"] * state["m"]))


SPEC = OptimizerSpec(
    Nesterov,
    "Nesterov 1983; Sutskever et al. 2013",
    frozenset({DENSE_ONLY, STATEFUL}),
    {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0},
)
