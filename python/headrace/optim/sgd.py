"""Stochastic gradient descent.

    w <- w - lr (g + weight_decay w)

Reference: H. Robbins and S. Monro, "A stochastic approximation method", 1951. Row-sparse gradients: only rows with a
gradient move, so weight decay is refused there (it would move all rows).
"""

from __future__ import annotations

import torch

from headrace.optim.spec import ACCEPTS_SPARSE, OptimizerSpec, numbers
from headrace.optim.torch_rule import torch_factory

SPEC = OptimizerSpec(
    factory=torch_factory("sgd", torch.optim.SGD, fused=True, sparse=True),
    paper="Robbins and Monro 1951",
    rule="w <- w - lr g",
    use="the yardstick; embedding tables in bounded memory",
    state="nothing",
    state_bytes=numbers(0),
    cost="3 numbers moved a parameter",
    traits=frozenset({ACCEPTS_SPARSE}),
    defaults={"lr": 0.1, "weight_decay": 0.0, "decoupled": False},
)
