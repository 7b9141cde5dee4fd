"""Adafactor: Adam's second moment of a matrix from its row and column means, in sublinear memory.

    G: the gradient, [n, m]; tensors of more dimensions are flattened to [shape[0], the rest]; b2_t = 1 - t^-beta2_decay
    R <- b2_t R + (1 - b2_t) mean over columns of (G^2 + eps),     C <- the same over rows
    V = R C^T / mean(R),     U = G / sqrt(V),     U <- U / max(1, RMS(U) / clip_threshold)
    w <- w - step U,     or with momentum M <- momentum M + (1 - momentum) step U,  w <- w - M
    relative_step:  step = max(eps_scale, RMS(w)) min(lr, 1 / sqrt(t));     otherwise step = lr

A tensor of one dimension keeps V itself. Reference: N. Shazeer and M. Stern, "Adafactor: adaptive learning rates with
sublinear memory cost", ICML 2018, algorithms 4 to 6 (the defaults are algorithm 6's). Means for the paper's sums give
the same V. Differs from the paper: momentum, which it drops, is as in its authors' tensor2tensor, over the steps;
decay is added, and decoupled it is w <- (1 - rate weight_decay) w with rate = min(lr, 1 / sqrt(t)), or lr, without the
scale of w; a mean beyond the type's largest number stays there, so huge gradients make small steps and not NaN.
torch.optim.Adafactor has eps only as a floor of V, factors the last two dimensions, and has neither momentum nor an
absolute step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import RuleOptimizer, State
from headrace.optim.decay import decayed
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec


class Adafactor(RuleOptimizer):
    """See the module's docstring."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """t = 0; r [n] and c [m], or v [n]; with momentum m."""
        if param.dim() > 1:
            rows = param.shape[0]
            state: State = {"r": param.new_zeros(rows), "c": param.new_zeros(param.numel() // max(1, rows))}
        else:
            state = {"v": torch.zeros_like(param)}
        return state | {"t": 0} | ({"m": torch.zeros_like(param)} if options["momentum"] else {})

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        state["t"] += 1
        rate = min(options["lr"], state["t"] ** -0.5) if options["relative_step"] else options["lr"]
        [grad] = decayed([param], [grad], {**options, "lr": rate})
        if options["relative_step"]:
            rate = rate * _rms(param).clamp(min=options["eps_scale"])
        weight = state["t"] ** -options["beta2_decay"]
        update = (_factored if "r" in state else _plain)(grad, state, weight, options["eps"])
        step = rate / (_rms(update) / options["clip_threshold"]).clamp(min=1.0)
        if "m" not in state:
            param.addcmul_(update, step, value=-1.0)
            return
        state["m"].mul_(options["momentum"]).addcmul_(update, step, value=1.0 - options["momentum"])
        param.sub_(state["m"])


def _factored(grad: Tensor, state: State, weight: float, eps: float) -> Tensor:
    """U of a matrix, after r and c moved towards the gradient's means by `weight`."""
    g = grad.reshape(grad.shape[0], -1)
    squares = g * g
    for name, dim in (("r", 1), ("c", 0)):
        _towards(state[name], squares.mean(dim), weight, eps)
    r = state["r"].double()
    # Two factors, each of its own size: their product would leave float32's range where gradients are tiny or huge.
    by_row = (r / r.mean()).rsqrt_().to(g.dtype)
    return torch.mul(g, by_row[:, None], out=squares).mul_(state["c"].rsqrt()).view(grad.shape)


def _plain(grad: Tensor, state: State, weight: float, eps: float) -> Tensor:
    """U of a vector or a number."""
    _towards(state["v"], grad * grad, weight, eps)
    return grad * state["v"].rsqrt()


def _towards(kept: Tensor, mean: Tensor, weight: float, eps: float) -> None:
    kept.mul_(1.0 - weight).add_(mean.add_(eps), alpha=weight).clamp_(max=torch.finfo(mean.dtype).max)


def _rms(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dtype=torch.float64)  # float32 sums of many squares are off by a percent
    return (norm / x.numel() ** 0.5).to(x.dtype)


def _state_bytes(param: Tensor, options: Mapping[str, Any]) -> int:
    moments = sum((param.shape[0], param.numel() // max(1, param.shape[0]))) if param.dim() > 1 else param.numel()
    return (moments + (param.numel() if options["momentum"] else 0)) * param.element_size()


SPEC = OptimizerSpec(
    factory=Adafactor,
    paper="Shazeer and Stern 2018",
    rule="V = R C^T / mean(R) of the means of g^2;  U = g / sqrt(V), clipped;  w <- w - step U",
    use="large matrices in little memory; with relative_step no learning rate to tune",
    state="1 number a row and a column; with momentum 1 number a parameter more",
    state_bytes=_state_bytes,
    cost="18 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={
        "lr": 1e-2, "relative_step": True, "beta2_decay": 0.8, "eps": 1e-30, "eps_scale": 1e-3, "clip_threshold": 1.0,
        "momentum": 0.0, "weight_decay": 0.0, "decoupled": True,
    },
)  # fmt: skip
