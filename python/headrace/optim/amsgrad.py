"""AMSGrad: Adam whose second moment never falls.

    m, v <- means of g, g^2 as Adam's,     x <- max(x, v),
    w <- w - lr (m / (1 - b1^t)) / (sqrt(x / (1 - b2^t)) + eps)

Reference: S. J. Reddi, S. Kale, S. Kumar, "On the convergence of Adam and beyond", ICLR 2018, algorithm 2. torch's own,
which differs from the paper: that corrects no bias; here m and x are corrected as Adam's, x after the maximum.
"""

from __future__ import annotations

from functools import partial

import torch

from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers
from headrace.optim.torch_rule import torch_factory

SPEC = OptimizerSpec(
    factory=torch_factory("amsgrad", partial(torch.optim.Adam, amsgrad=True), fused=True),
    paper="Reddi, Kale, Kumar 2018",
    rule="as adam, with the largest v so far",
    use="where adam does not settle: rare large gradients keep their weight",
    state="3 numbers a parameter",
    state_bytes=numbers(3, fixed=4),
    cost="9 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "decoupled": False},
)
