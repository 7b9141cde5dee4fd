"""8 bits a number, as optimizers' state in 8 bits has them: finer the smaller a number is, over seven powers of ten.

    C(x)_i = m times the nearest of 256 values to x_i / m,  m = max |x| of the block of 2048

`headrace.compress.dynamic_tree` says which values, and has the references.

The values are symmetric but for 1, which has no negative: a largest number below zero is e = 0.007 off. A number midway
between two values a < b has the largest error for its size, (b - a) / 2. With N others so, all alike, errors have the
share (e^2 + N (b - a)^2 / 4) / (1 + N (a + b)^2 / 4); delta is by the pair where that is greatest.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.comm.fresh import fresh
from headrace.compress.base import Codec, State, taken
from headrace.compress.buckets import MOST
from headrace.compress.dynamic_tree import BLOCK, dequantize, quantize, scales_like, tree_values
from headrace.compress.spec import CONTRACTION, CodecSpec

_PIECE = 64 * BLOCK  # numbers that stay in the cache


class Int8Dynamic(Codec):
    """See the module's docstring."""

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        n = x.numel()
        wide = torch.promote_types(x.dtype, torch.float32)
        data = fresh(self.nbytes(n, x.dtype), torch.uint8, x.device)
        head = data.numel() - n
        scales, codes = data[:head].view(wide), data[head:]
        for start in range(0, n, _PIECE):
            own = scales[start // BLOCK : (start + _PIECE) // BLOCK]
            quantize(x[start : start + _PIECE], codes[start : start + _PIECE], own, signed=True)
        _mark(x, scales)
        return data, state

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        wide = torch.promote_types(dtype, torch.float32)
        blocks = -(-n // BLOCK)
        scales, codes = taken(data, 0, blocks, wide), data[blocks * wide.itemsize :]
        found = fresh(n, dtype, data.device)
        for start in range(0, n, _PIECE):
            own = scales[start // BLOCK : (start + _PIECE) // BLOCK]
            out = found[start : start + _PIECE]
            dequantize(codes[start : start + _PIECE], own, dtype, signed=True, out=out)
        return found

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """See `Codec.nbytes`."""
        return n + scales_like(torch.empty(n, dtype=dtype, device="meta")).nbytes


def _mark(x: Tensor, scales: Tensor) -> None:
    """Infinite numbers were made the type's largest, for optimizers: here their block must not be finite."""
    top = torch.finfo(scales.dtype).max * MOST
    for block in (scales > top).nonzero().view(-1).tolist():
        if x[block * BLOCK : (block + 1) * BLOCK].isinf().any():
            scales[block] = torch.inf


@cache
def _share(others: int) -> float:
    values = tree_values(signed=True)
    halves, middles = np.diff(values) / 2, (values[:-1] + values[1:]) / 2
    return float((((1 + values[0]) ** 2 + others * halves**2) / (1 + others * middles**2)).max())


def _delta(n: int, options: Mapping[str, Any]) -> float:
    return 1 - _share(min(n, BLOCK) - 1)


SPEC = CodecSpec(
    factory=Int8Dynamic,
    paper="Dettmers 2016; Dettmers et al. 2022",
    rule="m times the nearest to x / m of 256 values, finer towards zero; m = max |x| of the block",
    use="As int8_nearest where numbers in a block differ by powers of ten; slower.",
    bits="8, and 32 a block of 2048",
    traits=frozenset({CONTRACTION}),
    delta=_delta,
)
