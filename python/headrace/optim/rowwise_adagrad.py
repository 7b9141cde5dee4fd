"""Row-wise AdaGrad: one accumulator a row of an embedding table.

    v_i <- v_i + mean_j g_ij^2,     w_i <- w_i - lr g_i / (sqrt(v_i) + eps)

References: M. Naumov et al., arXiv:1906.00091, 2019, which trains DLRM with it; D. Mudigere et al., arXiv:2104.05158,
2021. State is 4 bytes a row instead of 4 a weight. A vector is a table of one column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import RuleOptimizer, State
from headrace.optim.spec import ACCEPTS_SPARSE, STATEFUL, OptimizerSpec


class RowwiseAdagrad(RuleOptimizer):
    """See the module's docstring."""

    sparse = True

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """v = initial_accumulator, [rows]."""
        rows = param.shape[0] if param.dim() else 1
        return {"v": torch.full((rows,), options["initial_accumulator"], dtype=param.dtype, device=param.device)}

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        flat = grad.reshape(state["v"].shape[0], -1)
        state["v"] += (flat * flat).mean(1)
        scale = options["lr"] / (state["v"].sqrt() + options["eps"])
        param.sub_((flat * scale[:, None]).view_as(param))


SPEC = OptimizerSpec(
    factory=RowwiseAdagrad,
    paper="Naumov et al. 2019",
    rule="v_i <- v_i + mean g_i^2;  w_i <- w_i - lr g_i / (sqrt(v_i) + eps)",
    use="embedding tables (the default there)",
    state="1 number a row",
    state_bytes=lambda param, options: param.element_size() * (param.shape[0] if param.dim() else 1),
    cost="4 numbers moved a parameter",
    traits=frozenset({ACCEPTS_SPARSE, STATEFUL}),
    defaults={"lr": 0.02, "eps": 1e-10, "initial_accumulator": 0.0},
)
