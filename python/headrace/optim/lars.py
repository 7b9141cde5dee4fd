"""LARS: layer-wise adaptive rate scaling.

    s = lr trust_coefficient |w| / (|g| + weight_decay |w|)      of every layer,
    v <- momentum v + s (g + weight_decay w),
    w <- w - v

Reference: Y. You, I. Gitman, B. Ginsburg, "Large batch training of convolutional networks", arXiv:1708.03888, 2017,
algorithm 1 and the ratio of section 4. With `clip` the ratio is an upper bound on the rate instead, s = min(lr,
trust_coefficient |w| / (|g| + weight_decay |w|)): LARC, as in NVIDIA's apex.

As in the paper the rate is inside the momentum, though of a large layer v / s is kept, and s: then one pass over
memory, momentum's own with momentum s_before / s and rate s, does it all. Biases and norms (tensors of one dimension,
or by name) go without ratio and decay, s = lr; so does the rate of a layer whose weights or gradient are zero.
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

_LEAST = 1e-12  # v over a smaller s, or s over 1e12, would near the ends of float32


class Lars(RuleOptimizer):
    """See the module's docstring."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """v = 0, in row-major order, over s = 1."""
        return {"v": torch.zeros_like(param, memory_format=torch.contiguous_format), "s": 1.0}

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""
        self.update_many([param], [grad], [state], options)

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """The rule: tensors below a block together, others block by block."""
        bare = excluded(params, options)
        ws, gs = contiguous(params), contiguous(grads)
        size = block_size(params[0].device)
        for pack in packs(ws, size):
            first = pack[0]
            if ws[first].numel() > size:
                _large(ws[first], gs[first], states[first], size, bare[first], options)
                continue
            w, g = [ws[i] for i in pack], [gs[i] for i in pack]
            _small(w, g, [states[i] for i in pack], [bare[i] for i in pack], options)
        copy_back(params, ws)


def rate(w_norm: float, g_norm: float, bare: bool, options: Mapping[str, Any]) -> float:
    """s of a layer."""
    lr, decay = float(options["lr"]), float(options["weight_decay"])
    if bare or w_norm == 0.0 or g_norm == 0.0:
        return lr
    trusted = ratio(options["trust_coefficient"] * w_norm, g_norm + decay * w_norm)
    return min(lr, trusted) if options["clip"] else lr * trusted


def _small(w: list[Tensor], g: list[Tensor], states: list[State], bare: list[bool], options: Mapping[str, Any]) -> None:
    for state in states:
        if state["s"] != 1.0:  # blocks were smaller in the run before
            state["v"].mul_(state["s"])
            state["s"] = 1.0
    found = norms([*w, *g])
    s = [rate(a, b, alone, options) for a, b, alone in zip(found, found[len(w) :], bare, strict=False)]
    step = torch._foreach_mul(g, s)
    if options["weight_decay"]:
        decay = [0.0 if alone else x * options["weight_decay"] for x, alone in zip(s, bare, strict=True)]
        torch._foreach_add_(step, torch._foreach_mul(w, decay))
    _heavy_ball(w, list(step), [state["v"] for state in states], options["momentum"], 1.0, 0.0)


def _large(w: Tensor, g: Tensor, state: State, size: int, bare: bool, options: Mapping[str, Any]) -> None:
    parts = part_norms([part for pair in blocks(size, w, g) for part in pair])
    w_norm, g_norm = whole_norms(parts, [w, g])
    s, momentum, v = rate(w_norm, g_norm, bare, options), options["momentum"], state["v"]
    decay = 0.0 if bare else options["weight_decay"]
    if _LEAST < s < 1 / _LEAST and w.dtype != torch.float16:
        _heavy_ball([w], [g], [v], momentum * state["s"] / s, s, decay)
        state["s"] = s
        return
    v.mul_(momentum * state["s"]).add_(g, alpha=s).add_(w, alpha=s * decay)
    w.sub_(v)
    state["s"] = 1.0


def _heavy_ball(w: list[Tensor], g: list[Tensor], v: list[Tensor], momentum: float, lr: float, decay: float) -> None:
    """v <- momentum v + g + decay w,  w <- w - lr v: in one pass over memory."""
    torch._fused_sgd_(
        w, g, v if momentum else [], lr=lr, momentum=momentum, weight_decay=decay,
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
