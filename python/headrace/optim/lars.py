"""LARS: layer-wise adaptive rate scaling.

    s = lr trust_coefficient |w| / (|g| + weight_decay |w|)      of every layer,
    v <- momentum v + s (g + weight_decay w),
    w <- w - v

Reference: Y. You, I. Gitman, B. Ginsburg, "Large batch training of convolutional networks", arXiv:1708.03888, 2017,
algorithm 1 and the ratio of section 4. With `clip` the ratio is an upper bound on the rate instead, s = min(lr,
trust_coefficient |w| / (|g| + weight_decay |w|)): LARC, as in NVIDIA's apex.

As in the paper the rate is inside the momentum. Biases and norms (tensors of one dimension, or by name) go without
ratio and decay, s = lr; a layer whose norm or gradient is zero has ratio lr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import RuleOptimizer, State
from headrace.optim.blocks import block_size, blocks, contiguous, copy_back, packs
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers
from headrace.optim.trust_ratio import excluded, norms, part_norms, ratio, whole_norms


class Lars(RuleOptimizer):
    """See the module's docstring."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """v = 0, in row-major order."""
        return {"v": torch.zeros_like(param, memory_format=torch.contiguous_format)}

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        self.update_many([param], [grad], [state], options)

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """The rule: tensors below a block together, others block by block."""
        bare = excluded(params, options)
        ws, gs, vs = contiguous(params), contiguous(grads), [s["v"] for s in states]
        size = block_size(params[0].device)
        for pack in packs(ws, size):
            w, g, v = ([many[i] for i in pack] for many in (ws, gs, vs))
            if w[0].numel() > size:
                _large(w[0], g[0], v[0], size, bare[pack[0]], options)
            else:
                _small(w, g, v, [bare[i] for i in pack], options)
        copy_back(params, ws)


def rate(w_norm: float, g_norm: float, bare: bool, options: Mapping[str, Any]) -> float:
    """s of a layer."""
    lr, decay = float(options["lr"]), float(options["weight_decay"])
    if bare or w_norm == 0.0 or g_norm == 0.0:
        return lr
    trusted = ratio(options["trust_coefficient"] * w_norm, g_norm + decay * w_norm)
    return min(lr, trusted) if options["clip"] else lr * trusted


def _small(w: list[Tensor], g: list[Tensor], v: list[Tensor], bare: list[bool], options: Mapping[str, Any]) -> None:
    found = norms([*w, *g])
    s = [rate(a, b, alone, options) for a, b, alone in zip(found, found[len(w) :], bare, strict=False)]
    step = torch._foreach_mul(g, s)
    if options["weight_decay"]:
        decay = [0.0 if alone else x * options["weight_decay"] for x, alone in zip(s, bare, strict=True)]
        torch._foreach_add_(step, torch._foreach_mul(w, decay))
    _heavy_ball(w, list(step), v, options["momentum"], 0.0)


def _large(w: Tensor, g: Tensor, v: Tensor, size: int, bare: bool, options: Mapping[str, Any]) -> None:
    parts = [norm for pair in blocks(size, w, g) for norm in part_norms(pair)]
    w_norm, g_norm = whole_norms(parts, [w, g])
    s = rate(w_norm, g_norm, bare, options)
    decay = 0.0 if bare else s * options["weight_decay"]
    work = torch.empty(min(size, w.numel()), dtype=w.dtype, device=w.device)
    for w_part, g_part, v_part in blocks(size, w, g, v):
        step = torch.mul(g_part, s, out=work[: g_part.numel()])
        _heavy_ball([w_part], [step], [v_part], options["momentum"], decay)


def _heavy_ball(w: list[Tensor], step: list[Tensor], v: list[Tensor], momentum: float, decay: float) -> None:
    """v <- momentum v + step + decay w,  w <- w - v: in one pass over memory."""
    torch._fused_sgd_(
        w, step, v if momentum else [], lr=1.0, momentum=momentum, weight_decay=decay,
        dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


SPEC = OptimizerSpec(
    factory=Lars,
    paper="You, Gitman and Ginsburg 2017",
    rule="v <- momentum v + lr c |w| / (|g| + d |w|) (g + d w);  w <- w - v,  norms by layer",
    use="convolutional nets with batches of 8 Ki and more, after a warm-up",
    state="1 number a parameter",
    state_bytes=numbers(1),
    cost="7 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={
        "lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "trust_coefficient": 1e-3, "clip": False,
        "exclude_1d": True, "exclude": (),
    },
)  # fmt: skip
