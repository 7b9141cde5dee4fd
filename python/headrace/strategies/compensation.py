"""Delay compensation: what a gradient would be at the parameters that it is applied to, to first order.

    g' = g + lambda g * g * (w - v)                         constant
    s <- m s + (1 - m) g * g,  lambda = strength / sqrt(s + eps)   adaptive, number by number; m = 0.95, eps = 1e-7

w are the parameters now, v those that the worker had pulled and computed g at; g * g stands for the diagonal of the
Hessian. Reference: S. Zheng, Q. Meng, T. Wang, W. Chen, N. Yu, Z.-M. Ma, T.-Y. Liu, "Asynchronous stochastic gradient
descent with delay compensation", ICML 2017 (DC-ASGD-c and DC-ASGD-a). Two differences: any rule may take g', not plain
SGD alone; and of an embedding table s moves in the rows that a gradient touches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NONE, CONSTANT, ADAPTIVE = "none", "constant", "adaptive"
KINDS = (NONE, CONSTANT, ADAPTIVE)
STRENGTHS = {CONSTANT: 0.04, ADAPTIVE: 2.0}  # the paper's, for CIFAR-10
MEMORY, EPS = 0.95, 1e-7


class Compensation:
    """See the module's docstring.

    Args:
        kind: of KINDS.
        strength: lambda, or its numerator; 0: the paper's.
    """

    def __init__(self, kind: str, strength: float = 0.0) -> None:
        self.kind, self.strength = kind, strength or STRENGTHS.get(kind, 0.0)
        self._squares: dict[str, Tensor] = {}  # s

    @property
    def active(self) -> bool:
        """Whether it wants what workers had pulled."""
        return self.kind != NONE

    def corrected(self, name: str, grad: Tensor, param: Tensor, pulled: Tensor, rows: Tensor | None = None) -> Tensor:
        """g'.

        Args:
            name: of the parameter.
            grad: g: of the parameter's shape, or [n, ...] of some of its rows.
            param: the parameter as it is now.
            pulled: v, as `grad`.
            rows: distinct numbers of those rows [n]; None: all.
        """
        where: Any = ... if rows is None else rows
        square = grad * grad
        factor = self._adapted(name, square, param, where) if self.kind == ADAPTIVE else self.strength
        return grad + factor * square * (param[where] - pulled)

    def _adapted(self, name: str, square: Tensor, param: Tensor, where: Any) -> Tensor:
        if name not in self._squares:
            self._squares[name] = square.new_zeros(param.shape)
        moved = self._squares[name][where] * MEMORY + (1.0 - MEMORY) * square
        self._squares[name][where] = moved
        return self.strength / torch.sqrt(moved + EPS)

    def state_dict(self) -> dict[str, Tensor]:
        """s by name."""
        return dict(self._squares)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Accept what `state_dict` gave."""
        self._squares = dict(state)
