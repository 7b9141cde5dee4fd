"""LARS: layer-wise adaptive rate scaling.

    s = lr trust_coefficient |w| / (|g| + weight_decay |w|)      of every layer,
    v <- momentum v + s (g + weight_decay w),
    w <- w - v

Reference: Y. You, I. Gitman, B. Ginsburg, "Large batch training of convolutional networks", arXiv:1708.03888, 2017,
algorithm 1 and the ratio of section 4. With `clip` the ratio is an upper bound on the rate instead, s = min(lr,
trust_coefficient |w| / (|g| + weight_decay |w|)): LARC, as in NVIDIA's apex.

As in the paper the rate is inside the momentum, though what is kept is v / s, and s: then one pass over memory, SGD's
with momentum s_before / s and rate s, does it all (where s leaves the range of float32, v is kept, and s = 1). Biases
and norms (tensors of one dimension, or by name) go without ratio and decay, s = lr; so does the rate of a layer whose
weights or gradient are zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import ListRule, State
from headrace.optim.cache_blocks import block_size, contiguous, copy_back, packs
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers
from headrace.optim.trust_ratio import excluded, norms, ratio

_LEAST = 1e-12  # v over a smaller s, or s over 1e12, would near the ends of float32


class Lars(ListRule):
    """See the module's docstring."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """v = 0, in row-major order, over s = 1."""
        return {"v": torch.zeros_like(param, memory_format=torch.contiguous_format), "s": 1.0}

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """The rule: norms of a pack of layers, then the step of each while it is in cache."""
        bare = excluded(params, options)
        ws, gs = contiguous(params), contiguous(grads)
        size = block_size(params[0].device)
        for pack in packs(ws, size):
            w, g = [ws[i] for i in pack], [gs[i] for i in pack]
            found = norms([*w, *g], size)
            pairs = zip(found[: len(w)], found[len(w) :], pack, strict=True)
            s = [rate(w_norm, g_norm, bare[i], options) for w_norm, g_norm, i in pairs]
            _step(w, g, [states[i] for i in pack], s, [bare[i] for i in pack], options)
        copy_back(params, ws)


def rate(w_norm: float, g_norm: float, bare: bool, options: Mapping[str, Any]) -> float:
    """s of a layer."""
    lr, decay = float(options["lr"]), float(options["weight_decay"])
    if bare or w_norm == 0.0 or g_norm == 0.0:
        return lr
    trusted = ratio(options["trust_coefficient"] * w_norm, g_norm + decay * w_norm)
    return min(lr, trusted) if options["clip"] else lr * trusted


def _step(
    w: list[Tensor], g: list[Tensor], states: list[State], s: list[float], bare: list[bool], options: Mapping[str, Any]
) -> None:
    """Tensors that have momentum, rate and decay in common go together: those without ratio, as a rule."""
    alike: dict[tuple[float, float, float], list[int]] = {}
    for i, state in enumerate(states):
        momentum, decay = options["momentum"] * state["s"], 0.0 if bare[i] else float(options["weight_decay"])
        if _LEAST < s[i] < 1 / _LEAST and w[i].dtype != torch.float16:
            alike.setdefault((momentum / s[i], s[i], decay), []).append(i)
            state["s"] = s[i]
        else:
            w[i].sub_(state["v"].mul_(momentum).add_(g[i], alpha=s[i]).add_(w[i], alpha=s[i] * decay))
            state["s"] = 1.0
    for (momentum, lr, decay), chosen in alike.items():
        torch._fused_sgd_(
            [w[i] for i in chosen], [g[i] for i in chosen], [states[i]["v"] for i in chosen] if momentum else [],
            lr=lr, momentum=momentum, weight_decay=decay,
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
