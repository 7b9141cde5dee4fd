"""Muon: momentum of a weight matrix, orthogonalized; AdamW for all other tensors.

    m <- momentum m + (1 - momentum) g,     d = momentum m + (1 - momentum) g with nesterov, else m
    X_0 = d / (|d| + eps) in Frobenius' norm;  ns_steps times X <- 3.4445 X - 4.7750 (X X^T) X + 2.0315 (X X^T)^2 X
    w <- w - lr scale X,     scale = sqrt(max(1, rows / columns)), with match_rms 0.2 sqrt(max(rows, columns))

The polynomial moves the singular values of X into about [0.7, 1.2]: X is near U V^T of d = U S V^T. Tensors of more
than two dimensions (convolutions) are matrices [shape[0], the rest]. Vectors, numbers, matrices with a side of 1 and
tensors that `adam_names` matches (Jordan: embeddings and the last layer) take AdamW with lr adam_scale, adam_betas,
adam_eps for its lr, betas, eps. adam_names: patterns of the shell of a whole name ("top.4.*") or of one of its parts
between dots ("head"). With decoupled false both kinds take L2 decay.

References: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; match_rms, by which
AdamW's lr and weight decay fit: J. Liu et al., "Muon is scalable for LLM training", arXiv:2502.16982, 2025. Differs
from Jordan: the iteration runs in the parameter's own type, in bfloat16 by option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from headrace.optim.base import RuleOptimizer, State
from headrace.optim.decay import decayed
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(RuleOptimizer):
    """See the module's docstring."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """m = 0 of a matrix; AdamW's state of another."""
        if _is_hidden_matrix(param, options):
            return {"m": torch.zeros_like(param)}
        step = torch.zeros((), dtype=torch.float32, device=param.device)
        return {"step": step, "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule for a matrix."""
        [grad] = decayed([param], [grad], options)
        m = state["m"].lerp_(grad, 1.0 - options["momentum"])
        d = grad.lerp(m, options["momentum"]) if options["nesterov"] else m
        d = d.reshape(d.shape[0], -1)
        x = orthogonalized(d.bfloat16() if options["bfloat16"] else d, steps=options["ns_steps"], eps=options["eps"])
        rows, columns = d.shape
        scale = 0.2 * max(rows, columns) ** 0.5 if options["match_rms"] else max(1.0, rows / columns) ** 0.5
        param.add_(x.view(param.shape), alpha=-options["lr"] * scale)

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """Matrices one by one, all others together."""
        others = []
        for param, grad, state in zip(params, grads, states, strict=True):
            if "m" in state:
                self.update(param, grad, state, options)
            else:
                others.append((param, grad, state["exp_avg"], state["exp_avg_sq"], state["step"]))
        if others:
            _adamw(*(list(column) for column in zip(*others, strict=True)), options=options)


def orthogonalized(x: Tensor, *, steps: int, eps: float) -> Tensor:
    """Near U V^T of x = U S V^T, [rows, columns], by Newton and Schulz's iteration of degree 5."""
    a, b, c = COEFFICIENTS
    wide = x.mT if x.shape[0] > x.shape[1] else x
    norm = torch.linalg.vector_norm(wide, dtype=torch.float64)  # float32 sums of many squares are off by a percent
    wide = wide / (norm.to(wide.dtype) + eps)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if x.shape[0] > x.shape[1] else wide


def _is_hidden_matrix(param: Tensor, options: Mapping[str, Any]) -> bool:
    if param.dim() < 2 or min(param.shape[0], param[0].numel()) == 1:
        return False
    names = dict(zip(map(id, options["params"]), options.get("param_names", ()), strict=False))
    name = names.get(id(param), "")
    parts = (name, *name.split("."))
    return not any(fnmatchcase(part, pattern) for part in parts for pattern in options["adam_names"])


def _adamw(
    params: list[Tensor], grads: list[Tensor], m: list[Tensor], v: list[Tensor], steps: list[Tensor],
    *, options: Mapping[str, Any],
) -> None:  # fmt: skip
    adam(
        params, grads, m, v, [], steps, fused=True, amsgrad=False, maximize=False,
        lr=options["lr"] * options["adam_scale"], beta1=options["adam_betas"][0], beta2=options["adam_betas"][1],
        eps=options["adam_eps"], weight_decay=options["weight_decay"], decoupled_weight_decay=options["decoupled"],
    )  # fmt: skip


SPEC = OptimizerSpec(
    factory=Muon,
    paper="Jordan 2024",
    rule="m <- mean of g;  w <- w - lr scale (about U V^T of m = U S V^T);  AdamW where w is no hidden matrix",
    use="hidden layers of transformers and convolutional nets",
    state="1 number a parameter of a hidden matrix, 2 of others",
    state_bytes=numbers(2, fixed=4),
    cost="5 numbers moved a parameter, 15 products of matrices",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={
        "lr": 0.02, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "eps": 1e-7, "bfloat16": False,
        "match_rms": False, "weight_decay": 0.0, "decoupled": True, "adam_names": ("*embed*", "head", "lm_head"),
        "adam_scale": 0.015, "adam_betas": (0.9, 0.95), "adam_eps": 1e-10,
    },
)  # fmt: skip
