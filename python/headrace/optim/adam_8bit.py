"""Adam with its two moments in 8 bits.

    m <- b1 m + (1 - b1) g,
    v <- b2 v + (1 - b2) g^2,
    w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps);    then m and v are rounded to 8 bits

g including weight_decay w, or with `decoupled` weight_decay taken from w as in AdamW.

Reference: T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer, "8-bit optimizers via block-wise quantization", ICLR
2022; `quantized_state` has the rounding, and how it differs. As there the step itself uses the moments before they
are rounded. Tensors of fewer than `min_8bit_numel` numbers keep 32 bits, as in the authors' bitsandbytes; so should
embedding tables (their section 2.3), which have an optimizer of their own here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from headrace.optim.base import State
from headrace.optim.cache_blocks import block_size, blocks, contiguous, copy_back
from headrace.optim.moments import MomentRule, add_adam, moment_blocks, moment_bytes
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec


class Adam8bit(MomentRule):
    """See the module's docstring."""

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """The rule: tensors with 32 bits together, others block by block."""
        ws, gs = contiguous(params), contiguous(grads)
        size = block_size(params[0].device)
        for state in states:
            state["step"] += 1
        plain = [i for i, state in enumerate(states) if "m_scales" not in state]
        if plain:
            w, g = [ws[i] for i in plain], [gs[i] for i in plain]
            m, v, steps = ([states[i][name] for i in plain] for name in ("m", "v", "step"))
            add_adam(w, g, m, v, steps, options)
        for w_all, g_all, state in zip(ws, gs, states, strict=True):
            if "m_scales" in state:
                for (m1, v1), (w1, g1) in zip(
                    moment_blocks(state, w_all.dtype, size), blocks(size, w_all, g_all), strict=True
                ):
                    add_adam([w1], [g1], [m1], [v1], [state["step"]], options)
        copy_back(params, ws)


SPEC = OptimizerSpec(
    factory=Adam8bit,
    paper="Dettmers et al. 2022",
    rule="Adam; m, v rounded to 256 values of a block of 2048 numbers",
    use="Adam where its state does not fit beside the model",
    state="2 bytes a parameter, and 2 numbers for 2048 of them",
    state_bytes=moment_bytes,
    cost="3 numbers and 4 bytes moved a parameter, with several times Adam's arithmetic",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "decoupled": False,
        "min_8bit_numel": 4096,
    },
)  # fmt: skip
