"""Numbers in 16 bits: fp16 (11 bits of precision, up to 65504) and bf16 (8 bits, the range of float32).

Rounded to nearest, ties to even. fp16 keeps what is too large at 65504 and -65504, and rounds what is under 3e-8 to 0:
error feedback sends the rest later. Reference: P. Micikevicius et al., "Mixed precision training", ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headrace.comm.base import as_bytes
from headrace.comm.sums import saturated
from headrace.compress.base import Codec, State, taken
from headrace.compress.spec import SUMMABLE, CodecSpec


class Cast(Codec):
    """C(x) = x rounded to another type.

    Args:
        number: that type.
    """

    def __init__(self, number: torch.dtype) -> None:
        self.number = self._number = number

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        return as_bytes(saturated(x, self._number)), state

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        return saturated(taken(data, 0, n, self._number), dtype)

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """See `Codec.nbytes`."""
        return 2 * n


def _spec(number: torch.dtype, use: str, **defaults: Mapping[str, Any]) -> CodecSpec:
    return CodecSpec(
        factory=partial(Cast, number),
        paper="Micikevicius et al. 2018",
        rule="x rounded to nearest",
        use=use,
        bits="16",
        traits=frozenset({SUMMABLE}),
        defaults=defaults,
    )


FP16 = _spec(torch.float16, "Half the bytes at hardly any loss, where gradients lie between 1e-7 and 6e4.")
BF16 = _spec(torch.bfloat16, "Half the bytes whatever the size of gradients, with three digits of decimal precision.")
