"""QSGD: multiples of the bucket's norm over s, rounded by chance.

    C(x)_i = |x| sign(x_i) k / s,  k = floor(s |x_i| / |x|), or one more with the probability of the fraction

with |x| the Euclidean norm of the bucket ("l2", as the paper) or its largest number ("max", with less variance at the
same bits: most are wasted where the norm is many times the largest). Codes of -s to s have a fixed number of bits, 4
for s = 7; `qsgd_elias` has the paper's code of variable length. The bias is 2^-16 of a level at most.

    E |C(x) - x|^2 <= min(n / s^2, sqrt(n) / s) |x|^2   for a bucket of n (lemma 3.1)

Reference: D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, "QSGD: communication-efficient SGD via gradient
quantization and encoding", NeurIPS 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headrace.compress.buckets import DrawnBuckets
from headrace.compress.levels import Levels, largest, norms, omega_of_largest
from headrace.compress.spec import RANDOM, UNBIASED, CodecSpec
from headrace.errors import UserError

NORMS = ("l2", "max")


class Qsgd(DrawnBuckets, Levels):
    """See the module's docstring.

    Args:
        levels: s, 1 to 127; 2 s + 1 values are sent.
        bucket: numbers that share a norm, 8 to 65536.
        norm: of NORMS.
    """

    def __init__(self, levels: int, bucket: int, norm: str) -> None:
        if not 1 <= levels <= 127:
            raise UserError(f"levels must be between 1 and 127, not {levels}", "7 take 4 bits a number, 127 take 8")
        if norm not in NORMS:
            raise UserError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}", "l2 is the paper's")
        super().__init__(levels, bucket)
        self.norm = norm

    def sizes(self, rows: Tensor, room: Tensor) -> Tensor:
        """See `Buckets.sizes`."""
        return norms(rows) if self.norm == "l2" else largest(rows, room)


def omega(n: int, options: Mapping[str, Any]) -> float:
    """Of a tensor of n numbers."""
    n, levels = min(n, options["bucket"]), options["levels"]
    return min(n / levels**2, math.sqrt(n) / levels) if options["norm"] == "l2" else omega_of_largest(n, levels)


SPEC = CodecSpec(
    factory=Qsgd,
    paper="Alistarh et al. 2017",
    rule="|x| sign(x) (s |x_i| / |x| rounded by chance) / s, by buckets",
    use="As few bits as wanted without bias: 4 with 7 levels, 2 with one.",
    bits="4 with 7 levels, and 32 a bucket of 512",
    traits=frozenset({UNBIASED, RANDOM}),
    defaults={"levels": 7, "bucket": 512, "norm": "l2"},
    omega=omega,
)
