"""Nesterov's accelerated gradient.

    d = g + weight_decay w,     m <- momentum m + d,     w <- w - lr (d + momentum m)

References: Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983; I.
Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013. Differs from the
papers: the parameters kept are the looked-ahead ones, so the gradient is taken where the model is (the form of Bengio
et al. 2013).
"""

from __future__ import annotations

from functools import partial

import torch

from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers
from headrace.optim.torch_rule import torch_factory

SPEC = OptimizerSpec(
    factory=torch_factory("nesterov", partial(torch.optim.SGD, nesterov=True), fused=True),
    paper="Nesterov 1983; Sutskever et al. 2013",
    rule="m <- momentum m + g;  w <- w - lr (g + momentum m)",
    use="as momentum, a little more stable at high momentum",
    state="1 number a parameter",
    state_bytes=numbers(1),
    cost="5 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "decoupled": False},
)
