"""Heavy-ball momentum.

    m <- momentum m + g + weight_decay w,     w <- w - lr m

Reference: B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. Differs from the
paper as all of deep learning does: lr stands outside of m, so a changed lr acts at once.
"""

from __future__ import annotations

import torch

from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers
from headrace.optim.torch_rule import torch_factory

SPEC = OptimizerSpec(
    factory=torch_factory("momentum", torch.optim.SGD, fused=True),
    paper="Polyak 1964",
    rule="m <- momentum m + g;  w <- w - lr m",
    use="convolutional nets with a tuned learning rate",
    state="1 number a parameter",
    state_bytes=numbers(1),
    cost="5 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "decoupled": False},
)
