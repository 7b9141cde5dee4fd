"""AdamW: Adam with weight decay beside the gradient instead of in it.

    w <- (1 - lr weight_decay) w,     then Adam's step with g alone

Reference: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019. Differs from the paper:
decay is scaled by lr (the schedule's factor and the base rate), as in torch.
"""

from __future__ import annotations

import torch

from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers
from headrace.optim.torch_rule import torch_factory

SPEC = OptimizerSpec(
    factory=torch_factory("adamw", torch.optim.AdamW, fused=True),
    paper="Loshchilov and Hutter 2019",
    rule="w <- (1 - lr weight_decay) w;  then as adam",
    use="transformers, and wherever decay is to be tuned apart from lr",
    state="2 numbers a parameter",
    state_bytes=numbers(2, fixed=4),
    cost="7 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
)
