"""8 bits a number: multiples of the bucket's largest over 127, rounded by chance (`int8`) or to nearest.

    C(x)_i = (m / 127) round(127 x_i / m),  m = max |x| of the bucket

Reference: the uniform quantizer of D. Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and
encoding", NeurIPS 2017, with the largest instead of the norm, as in T. Dettmers, "8-bit approximations for parallelism
in deep learning", ICLR 2016, section 3. `int8` has a bias of 2^-16 of a step at most; `headrace.compress.levels` says
why.

Rounded to nearest, an error is at most half a step d, and no larger than the number where that is below d / 2. With the
largest exact and N = n - 1 others at d / 2 the errors' share is N / (4 127^2 + N), and never more.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from headrace.compress.buckets import DrawnBuckets
from headrace.compress.levels import Levels, largest, omega_of_largest
from headrace.compress.spec import CONTRACTION, RANDOM, UNBIASED, CodecSpec

LEVELS = 127


class Int8Nearest(Levels):
    """See the module's docstring.

    Args:
        bucket: numbers that share a scale, 8 to 65536.
    """

    def __init__(self, bucket: int) -> None:
        super().__init__(LEVELS, bucket)

    def sizes(self, rows: Tensor, room: Tensor) -> Tensor:
        """See `Buckets.sizes`."""
        return largest(rows, room)


class Int8(DrawnBuckets, Int8Nearest):
    """See the module's docstring; options are those of `Int8Nearest`."""


def _omega(n: int, options: Mapping[str, Any]) -> float:
    return omega_of_largest(min(n, options["bucket"]), LEVELS)


def _delta(n: int, options: Mapping[str, Any]) -> float:
    others = min(n, options["bucket"]) - 1
    return 4 * LEVELS**2 / (4 * LEVELS**2 + others)


_spec = partial(
    CodecSpec,
    paper="Dettmers 2016; Alistarh et al. 2017",
    bits="8, and 32 a bucket of 512",
    defaults={"bucket": 512},
)

SPEC = _spec(
    factory=Int8,
    rule="(m / 127) (127 x / m rounded by chance), m = max |x| of the bucket",
    use="A quarter of the bytes without bias, and so without need of error feedback.",
    traits=frozenset({UNBIASED, RANDOM}),
    omega=_omega,
)
NEAREST = _spec(
    factory=Int8Nearest,
    rule="(m / 127) (127 x / m rounded to nearest), m = max |x| of the bucket",
    use="A quarter of the bytes with the least error at that, faster than by chance; with error feedback.",
    traits=frozenset({CONTRACTION}),
    delta=_delta,
)
