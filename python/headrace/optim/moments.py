"""The two moments of Adam and LAMB, in the parameters' type or in 8 bits, and torch's fused pass over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from headrace.compress.dynamic_tree import BLOCK, dequantize, quantize, scales_like
from headrace.optim import quantized_state
from headrace.optim.base import ListRule, State
from headrace.optim.cache_blocks import blocks

_QUANTIZED = ("m", "v", "m_scales", "v_scales")


def in_8_bits(param: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether the tensor's moments are quantized; 32 bits stands for the parameter's own type."""
    return options.get("state_bits", 8) == 8 and param.numel() >= max(1, options["min_8bit_numel"])


def zero_moments(param: Tensor, options: Mapping[str, Any]) -> State:
    """ "step", "m", "v" in row-major order; where quantized also their scales, which make them zero."""
    if not in_8_bits(param, options):
        m, v = (torch.zeros_like(param, memory_format=torch.contiguous_format) for _ in "mv")
        return {"step": 0, "m": m, "v": v}
    m, v = (torch.zeros(param.shape, dtype=torch.uint8, device=param.device) for _ in "mv")
    scales = {name: scales_like(param) for name in ("m_scales", "v_scales")}
    return {"step": 0, "m": m, "v": v, **scales}


class MomentRule(ListRule):
    """A rule whose state is these moments."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """See `zero_moments`."""
        return zero_moments(param, options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept what `state_dict` gave."""
        super().load_state_dict(state_dict)
        quantized_state.restore(self, state_dict, _QUANTIZED)


def moment_bytes(param: Tensor, options: Mapping[str, Any]) -> int:
    """Bytes of the moments of a tensor."""
    if in_8_bits(param, options):
        return 2 * quantized_state.state_bytes(param.numel(), param.element_size())
    return 2 * param.nbytes


def moment_blocks(state: State, dtype: torch.dtype, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(m, v) in blocks of `size` numbers; what is done to a block before the next is taken, is kept.

    In `zip` this goes first, so that the last block is kept before the others end.
    """
    if "m_scales" not in state:
        yield from blocks(size, state["m"], state["v"])  # type: ignore[misc]
        return
    scales = blocks(max(1, size // BLOCK), state["m_scales"], state["v_scales"])
    for (m_codes, v_codes), (m_scales, v_scales) in zip(blocks(size, state["m"], state["v"]), scales, strict=True):
        m = dequantize(m_codes, m_scales, dtype, signed=True)
        v = dequantize(v_codes, v_scales, dtype, signed=False)
        yield m, v
        quantize(m, m_codes, m_scales, signed=True)
        quantize(v, v_codes, v_scales, signed=False)


@lru_cache(maxsize=16)
def _as_tensor(step: float, device: torch.device) -> Tensor:
    """As the fused passes want it, which only read it; not made anew for every block."""
    return torch.tensor(step, dtype=torch.float32, device=device)


def add_adam(
    to: Sequence[Tensor],
    g: Sequence[Tensor],
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    steps: Sequence[float],
    options: Mapping[str, Any],
) -> None:
    """One pass: m, v <- moments with g;  to <- to - lr m^ / (sqrt(v^) + eps). Contiguous tensors.

    Args:
        to: what the step is taken from.
        g: gradients.
        m: first moments.
        v: second moments.
        steps: how many this makes, for every tensor; infinite: the moments' bias is not corrected.
        options: lr, betas, eps, weight_decay of `to` in the gradient or, where `decoupled`, lr weight_decay of it off.
    """
    fused = torch._fused_adamw_ if options["decoupled"] else torch._fused_adam_
    fused(
        list(to), list(g), list(m), list(v), [], [_as_tensor(float(step), to[0].device) for step in steps],
        lr=options["lr"], beta1=options["betas"][0], beta2=options["betas"][1], eps=options["eps"],
        weight_decay=options["weight_decay"], amsgrad=False, maximize=False,
    )  # fmt: skip
