"""TernGrad: the bucket's largest, minus it, or nothing.

    C(x)_i = m sign(x_i) with probability |x_i| / m, else 0;  m = max |x| of the bucket
    clipped: x_i is first kept within c sigma of zero, and m = min(max |x|, c sigma)

Five numbers go into a byte, 1.6 bits each. Without clipping the bias is 2^-16 of m at most, and

    E |C(x) - x|^2 <= (sqrt(n) - 1) / 2 |x|^2   for a bucket of n

With clipping (`terngrad_clipped`) there is a bias, towards zero in the few largest numbers, for much less variance:
error feedback sends what was cut off later. No bound holds for it.

Reference: W. Wen et al., "TernGrad: ternary gradients to reduce communication in distributed deep learning", NeurIPS
2017, with c = 2.5. Differs: a bucket of 512 where the paper has a layer; sigma is the root of the mean square, about
zero and not about the mean, so that numbers that are all alike are not cut to nothing; ranks do not agree on one m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headrace.compress.buckets import DrawnBuckets, Trits
from headrace.compress.levels import Levels, largest, norms, omega_of_largest
from headrace.compress.spec import RANDOM, UNBIASED, CodecSpec
from headrace.errors import UserError


class TernGrad(DrawnBuckets, Levels):
    """See the module's docstring.

    Args:
        bucket: numbers that share a largest, 8 to 65536.
    """

    def __init__(self, bucket: int) -> None:
        super().__init__(1, bucket, Trits())

    def sizes(self, rows: Tensor, room: Tensor) -> Tensor:
        """See `Buckets.sizes`."""
        return largest(rows, room)


class ClippedTernGrad(TernGrad):
    """See the module's docstring.

    Args:
        bucket: numbers that share a largest, 8 to 65536.
        clip: c, at least 1.
    """

    clipped = True

    def __init__(self, bucket: int, clip: float) -> None:
        if not clip >= 1:
            raise UserError(f"clip must be at least 1, not {clip}", "2.5 is the paper's; without: terngrad")
        super().__init__(bucket)
        self.clip = clip

    def sizes(self, rows: Tensor, room: Tensor) -> Tensor:
        """See `Buckets.sizes`."""
        bound = norms(rows).mul_(self.clip / math.sqrt(rows.shape[1]))
        return torch.minimum(super().sizes(rows, room), bound)


def _omega(n: int, options: Mapping[str, Any]) -> float:
    return omega_of_largest(min(n, options["bucket"]), 1)


_spec = partial(CodecSpec, paper="Wen et al. 2017", bits="1.6, and 32 a bucket of 512")

SPEC = _spec(
    factory=TernGrad,
    rule="m sign(x) with probability |x| / m, else 0; m = max |x| of the bucket",
    use="The fewest bits without bias; noise grows with the root of the bucket.",
    traits=frozenset({UNBIASED, RANDOM}),
    defaults={"bucket": 512},
    omega=_omega,
)
CLIPPED = _spec(
    factory=ClippedTernGrad,
    rule="terngrad of x kept within c sigma of zero",
    use="As terngrad with half its noise, where error feedback sends what was cut off.",
    traits=frozenset({RANDOM}),
    defaults={"bucket": 512, "clip": 2.5},
)
