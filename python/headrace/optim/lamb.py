"""LAMB: Adam's step scaled for every layer to the length of its weights.

    m <- b1 m + (1 - b1) g,
    v <- b2 v + (1 - b2) g^2,
    u <- m^ / (sqrt(v^) + eps) + weight_decay w,      m^ = m / (1 - b1^t), v^ = v / (1 - b2^t),
    w <- w - lr phi(|w|) / |u| u,                     phi(z) = min(max(z, phi_bounds[0]), phi_bounds[1])

Reference: Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020,
algorithm 2 and section 3; phi is the identity by default. `debias=False` takes m and v for m^ and v^, as the authors do
where there is a warm-up. `trust_ratio=False` leaves phi / |u| out: AdamW. `state_bits=8` keeps m and v as `adam_8bit`
does (T. Dettmers et al. 2022).

Biases and norms (tensors of one dimension, or by name) go without ratio and decay, and where phi(|w|) or |u| is zero
the ratio is 1. Beside its state the optimizer keeps one tensor of the size of the largest parameter as working memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Params, State
from headrace.optim.cache_blocks import block_size, blocks, contiguous, copy_back, packs
from headrace.optim.moments import MomentRule, add_adam, moment_blocks, moment_bytes
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec
from headrace.optim.trust_ratio import excluded, norms, part_norms, ratio, whole_norms


class Lamb(MomentRule):
    """See the module's docstring."""

    def __init__(self, params: Params, **options: Any) -> None:
        if options["state_bits"] not in (8, 32):
            raise UserError(f"optimizer option state_bits must be 32 or 8, not {options['state_bits']}")
        low, high = options["phi_bounds"]
        if not 0.0 <= low <= high:
            raise UserError(f"optimizer option phi_bounds must be two numbers, 0 <= low <= high, not {low}, {high}")
        super().__init__(params, **options)

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """The rule: tensors below a block together, others and those in 8 bits block by block."""
        bare = excluded(params, options)
        ws, gs = contiguous(params), contiguous(grads)
        size = block_size(params[0].device)
        for state in states:
            state["step"] += 1
        small = [i for i, state in enumerate(states) if "m_scales" not in state and ws[i].numel() <= size]
        for pack in packs([ws[i] for i in small], size):
            chosen = [small[i] for i in pack]
            w, g = [ws[i] for i in chosen], [gs[i] for i in chosen]
            _small(w, g, [states[i] for i in chosen], [bare[i] for i in chosen], options)
        for i in sorted(set(range(len(ws))) - set(small)):
            self._large(ws[i], gs[i], states[i], bare[i], options)
        copy_back(params, ws)

    def _large(self, w: Tensor, g: Tensor, state: State, bare: bool, options: Mapping[str, Any]) -> None:
        size, t = block_size(w.device), _steps(state, options)
        u = self._working_memory(w)
        parts = []
        moments, unit = moment_blocks(state, w.dtype, size), _unit(options)
        decay = 0.0 if bare else options["weight_decay"]
        for (m1, v1), (w1, g1, u1) in zip(moments, blocks(size, w, g, u), strict=True):
            torch.mul(w1, decay, out=u1)
            add_adam([u1], [g1], [m1], [v1], [t], unit)
            parts += part_norms([w1, u1])
        w_norm, u_norm = whole_norms(parts, [w, u])
        w.view(-1).add_(u, alpha=-rate(w_norm, u_norm, bare, options))

    def _working_memory(self, like: Tensor) -> Tensor:
        """[like.numel()], kept between steps: fresh memory costs as much as a pass over it."""
        kept: dict[Any, Tensor] = self.__dict__.setdefault("_kept", {})
        kind = (like.dtype, like.device)
        if kind not in kept or kept[kind].numel() < like.numel():
            kept[kind] = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
        return kept[kind][: like.numel()]


def rate(w_norm: float, u_norm: float, bare: bool, options: Mapping[str, Any]) -> float:
    """What a layer's u is multiplied with."""
    low, high = options["phi_bounds"]
    alone = bare or not options["trust_ratio"]
    return float(options["lr"]) * (1.0 if alone else ratio(min(max(w_norm, low), high), u_norm))


def _unit(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a step that is added as it is."""
    return {"lr": -1.0, "betas": options["betas"], "eps": options["eps"], "weight_decay": 0.0, "decoupled": False}


def _steps(state: State, options: Mapping[str, Any]) -> float:
    return float(state["step"]) if options["debias"] else math.inf


def _small(w: list[Tensor], g: list[Tensor], states: list[State], bare: list[bool], options: Mapping[str, Any]) -> None:
    m, v = ([state[name] for state in states] for name in ("m", "v"))
    u = list(torch._foreach_mul(w, [0.0 if alone else float(options["weight_decay"]) for alone in bare]))
    add_adam(u, g, m, v, [_steps(state, options) for state in states], _unit(options))
    found = norms([*w, *u], block_size(w[0].device))
    rates = [rate(a, b, alone, options) for a, b, alone in zip(found, found[len(w) :], bare, strict=False)]
    torch._foreach_mul_(u, rates)
    torch._foreach_sub_(w, u)


SPEC = OptimizerSpec(
    factory=Lamb,
    paper="You et al. 2020",
    rule="u <- m^ / (sqrt(v^) + eps) + d w;  w <- w - lr phi(|w|) / |u| u,  norms by layer",
    use="transformers and sparse models with batches of 8 Ki and more, after a warm-up",
    state="2 numbers a parameter, or 2 bytes",
    state_bytes=moment_bytes,
    cost="10 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={
        "lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "debias": True, "trust_ratio": True,
        "phi_bounds": (0.0, math.inf), "exclude_1d": True, "exclude": (), "state_bits": 32, "min_8bit_numel": 4096,
    },
)  # fmt: skip
