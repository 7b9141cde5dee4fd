"""Natural compression: every number becomes one of the two powers of two about it, by chance; a byte each.

    C(x)_i = sign(x_i) 2^e or sign(x_i) 2^(e + 1) with probability |x_i| / 2^e - 1,  2^e <= |x_i| < 2^(e + 1)
    E |C(x) - x|^2 <= (1/8 + n 2^-252) |x|^2   for a bucket of n

A byte is the sign and 7 bits of the exponent, counted from that of the bucket's largest number, rounded up: 2^top. What
is below 2^(top - 126) becomes that or 0, by chance as well. The variance at x in [t, 2 t] is (x - t) (2 t - x), at most
x^2 / 8, where x = 4 t / 3; below t = 2^(top - 126) it is x (t - x), at most t^2 / 4, with t <= 2^-125 max |x|.

All of it is one addition: of a float's bits, with 2^top made 1, those of the mantissa are the probability, and a random
number added to them carries into the exponent as often as it says; numbers below the smallest normal one are the same
with 0. 16 bits are drawn: the bias is 2^-16 of 2^e at most.

Reference: S. Horvath, C.-Y. Ho, L. Horvath, A. N. Sahu, M. Canini, P. Richtarik, "Natural compression for distributed
deep learning", 2019 (arXiv 1905.10988). Differs: 7 bits of the exponent by buckets where the paper has all 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.compress import kernels
from headrace.compress.buckets import MOST, Bits, DrawnBuckets, Scratch
from headrace.compress.levels import largest
from headrace.compress.spec import RANDOM, UNBIASED, CodecSpec

_MANTISSA = 23  # bits of a float32


class Natural(DrawnBuckets):
    """See the module's docstring.

    Args:
        bucket: numbers that share a largest exponent, 8 to 65536.
    """

    def __init__(self, bucket: int) -> None:
        super().__init__(bucket, Bits(8))

    def sizes(self, rows: Tensor, room: Tensor) -> Tensor:
        """See `Buckets.sizes`."""
        return largest(rows, room)

    def scales(self, sizes: Tensor) -> Tensor:
        """See `Buckets.scales`: 2^top, by carrying whatever the mantissa holds into the exponent."""
        kept = super().scales(sizes)
        whole, fraction = (torch.int32, _MANTISSA) if kept.dtype == torch.float32 else (torch.int64, 52)
        rest = (1 << fraction) - 1
        kept.view(whole).add_(rest).bitwise_and_(~rest)
        return kept.clamp_(max=torch.finfo(kept.dtype).max * MOST)

    def codes(self, rows: Tensor, scales: Tensor, out: Tensor, scratch: Scratch) -> None:
        """See `Buckets.codes`."""
        factors = scales.reciprocal()
        if kernels.serve(rows, factors):
            n, words = rows.numel(), scratch.words(rows.numel(), self.piece)
            kernels.run("natural_codes", rows, n, rows.shape[1], self.piece, factors, words, out)
            return
        ones = torch.mul(rows, factors, out=scratch.numbers(rows.shape))
        bits = ones.float().view(torch.int32)
        draws = scratch.draws(rows.shape, torch.int32)
        # 1 is exponent 127: its eighth bit is always 0, and the sign takes its place. Shifted signs are -1.
        bits.bitwise_right_shift_(_MANTISSA - 16)
        draws.add_(bits)
        draws.sub_(bits.bitwise_right_shift_(24), alpha=1 << _MANTISSA)
        out.copy_(draws.bitwise_right_shift_(16))

    def values(self, codes: Tensor, out: Tensor) -> None:
        """See `Buckets.values`."""
        numbers = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
        bits = numbers.view(torch.int32).copy_(codes.view(torch.int8))
        bits.bitwise_left_shift_(_MANTISSA).bitwise_and_(~(1 << 30))
        if numbers is not out:
            out.copy_(numbers)

    def restore(self, codes: Tensor, steps: Tensor, out: Tensor) -> None:
        """See `Buckets.restore`."""
        if kernels.serve(steps, out) and kernels.serve(codes, dtype=torch.uint8):
            kernels.run("natural_values", codes, len(codes), self.bucket, steps, out)
        else:
            super().restore(codes, steps, out)


def _omega(n: int, options: Mapping[str, Any]) -> float:
    return 1 / 8 + min(n, options["bucket"]) * 2.0**-252


SPEC = CodecSpec(
    factory=Natural,
    paper="Horvath et al. 2019",
    rule="sign(x) times one of the two powers of two about |x|, by chance",
    use="A quarter of the bytes without bias, where a few numbers are many times as large as the others.",
    bits="8, and 32 a bucket of 512",
    traits=frozenset({UNBIASED, RANDOM}),
    defaults={"bucket": 512},
    omega=_omega,
)
