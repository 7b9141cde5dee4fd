"""AdaGrad.

    v <- v + g^2,     w <- w - lr g / (sqrt(v) + eps)

Reference: J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic
optimization", JMLR 2011. The diagonal form; v starts at initial_accumulator. A zero gradient changes nothing, so
row-sparse gradients give the same as dense ones.
"""

from __future__ import annotations

from typing import Any

import torch

from headrace.optim.base import Params
from headrace.optim.spec import ACCEPTS_SPARSE, STATEFUL, OptimizerSpec, numbers
from headrace.optim.torch_rule import torch_factory


def _adagrad(params: Params, *, initial_accumulator: float, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(params, initial_accumulator_value=initial_accumulator, **options)


SPEC = OptimizerSpec(
    factory=torch_factory("adagrad", _adagrad, fused=True, sparse=True),
    paper="Duchi, Hazan, Singer 2011",
    rule="v <- v + g^2;  w <- w - lr g / (sqrt(v) + eps)",
    use="sparse features; steps shrink by themselves",
    state="1 number a parameter",
    state_bytes=numbers(1, fixed=4),
    cost="5 numbers moved a parameter",
    traits=frozenset({ACCEPTS_SPARSE, STATEFUL}),
    defaults={"lr": 0.02, "eps": 1e-10, "initial_accumulator": 0.0, "weight_decay": 0.0, "decoupled": False},
)
