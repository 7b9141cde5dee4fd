"""Numbers as they are: what all others are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.comm.base import as_bytes
from headrace.comm.fresh import fresh
from headrace.compress.base import Codec, State, taken
from headrace.compress.spec import EXACT, SUMMABLE, CodecSpec


class Uncompressed(Codec):
    """C(x) = x."""

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        own = as_bytes(x)
        return fresh(own.numel(), torch.uint8, x.device).copy_(own), state

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        return taken(data, 0, n, dtype)

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """See `Codec.nbytes`."""
        return n * dtype.itemsize


SPEC = CodecSpec(
    factory=Uncompressed,
    paper="-",
    rule="x",
    use="The link is faster than encoding; the dense run to compare with.",
    bits="as in memory: 32",
    traits=frozenset({EXACT, SUMMABLE}),
)
