"""Numbers as whole multiples of their bucket's scale over s, rounded by chance or to the nearest.

    y = s x / scale,  -s <= y <= s
    drawn    code = floor(y + u), u in {0, 1, ..., 65535} / 65536:  E code = y up to 2^-16, |code - y| < 1
    nearest  code = y rounded to nearest

Codes are sent as code + s, in as few bits as hold 2 s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headrace.compress import kernels
from headrace.compress.buckets import Bits, Buckets, Scratch, Trits


class Levels(Buckets):
    """Base of codecs of this kind; without a generator they round to nearest.

    Args:
        levels: s, 1 to 127.
        bucket: see `Buckets`.
        packing: where not in bits.

    Attributes:
        clipped: y is kept within [-1, 1] before it is rounded by chance.
    """

    clipped = False

    def __init__(self, levels: int, bucket: int, packing: Trits | None = None) -> None:
        super().__init__(bucket, packing or Bits((2 * levels).bit_length()))
        self.levels = levels

    def codes(self, rows: Tensor, scales: Tensor, out: Tensor, scratch: Scratch) -> None:
        """See `Buckets.codes`."""
        s, n, factors = self.levels, rows.numel(), self.levels / scales
        if kernels.serve(rows, factors):
            if scratch.generator is None:
                kernels.run("level_codes_nearest", rows, n, rows.shape[1], factors, s, out)
            else:
                words, given = scratch.words(n, self.piece), (s, self.clipped, out)
                kernels.run("level_codes_drawn", rows, n, rows.shape[1], self.piece, factors, words, *given)
            return
        room = scratch.numbers(rows.shape)
        torch.mul(rows, factors, out=room)
        if scratch.generator is None:
            room.round_()
        else:
            if self.clipped:
                room.clamp_(-1.0, 1.0)
            room.add_(scratch.draws(rows.shape, rows.dtype), alpha=2.0**-16)
        # Conversion cuts off towards zero, and by way of 16 bits in a third of the time. y may be a rounding error over
        # s or under -s; what is not finite becomes any code, its bucket's scale says so.
        whole = scratch.others(rows.shape, torch.int16).copy_(room.add_(s))
        out.copy_(whole).clamp_(max=2 * s)

    def values(self, codes: Tensor, out: Tensor) -> None:
        """See `Buckets.values`."""
        out.copy_((codes - self.levels).view(torch.int8))

    def steps(self, scales: Tensor) -> Tensor:
        """See `Buckets.steps`."""
        return scales / self.levels

    def restore(self, codes: Tensor, steps: Tensor, out: Tensor) -> None:
        """See `Buckets.restore`."""
        if kernels.serve(steps, out) and kernels.serve(codes, dtype=torch.uint8):
            kernels.run("level_values", codes, len(codes), self.bucket, steps, self.levels, out)
        else:
            super().restore(codes, steps, out)


def largest(rows: Tensor, room: Tensor) -> Tensor:
    """max |x| of every row; NaN, always the same, where a number is none."""
    if kernels.serve(rows):
        found = rows.new_empty(len(rows))
        kernels.run("bucket_largest", rows, rows.numel(), rows.shape[1], found)
        return found
    found = torch.abs(rows, out=room).amax(1)
    return found.where(found == found, math.nan)


def norms(rows: Tensor) -> Tensor:
    """|x|_2 of every row, also where squares are beyond the type; the type's largest where that is beyond it."""
    found = torch.linalg.vector_norm(rows, dim=1)
    about = torch.finfo(rows.dtype)
    exact = 2**13 * math.sqrt(about.tiny)
    least, most = (float(end) for end in torch.aminmax(found))
    if not (least > exact and most < math.inf):
        odd = ~((found > exact) & (found < math.inf))
        some = rows[odd].double()
        top = some.abs().amax(1, keepdim=True)
        top = top.where(top != 0, 1.0)
        scaled = torch.linalg.vector_norm(some / top, dim=1) * top[:, 0]
        found[odd] = scaled.clamp(max=about.max).to(found.dtype)
    return found


def omega_of_largest(n: int, levels: int) -> float:
    """The variance of drawn multiples of max |x| / s over |x|^2, at most.

    The largest number is certain. Of the other N = n - 1 each has variance d^2 h (1 - h) with d = max |x| / s and
    h the fraction of y. The ratio's largest value is where all have y = h < 1: N h (1 - h) / (s^2 + N h^2), greatest at
    h = s / (s + sqrt(s^2 + N)), where it is this.
    """
    return (math.sqrt(1 + (n - 1) / levels**2) - 1) / 2
