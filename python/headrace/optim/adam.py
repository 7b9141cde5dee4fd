"""Adam.

    m <- b1 m + (1 - b1) g,
    v <- b2 v + (1 - b2) g^2,
    w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps),
    g including weight_decay w

Reference: D. P. Kingma and J. Ba, "Adam: A method for stochastic optimization", ICLR 2015. As in the paper but for the
optional L2 term.
"""

from __future__ import annotations

import torch

from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers
from headrace.optim.torch_rule import torch_factory

SPEC = OptimizerSpec(
    factory=torch_factory("adam", torch.optim.Adam, fused=True),
    paper="Kingma and Ba 2015",
    rule="m, v <- means of g, g^2;  w <- w - lr m^ / (sqrt(v^) + eps)",
    use="the first to try on anything",
    state="2 numbers a parameter",
    state_bytes=numbers(2, fixed=4),
    cost="7 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
)
