"""Numbers at random places, the same on all ranks: only values travel, and they add up.

    randomk            C(x)_i = x_i where i is drawn, else 0
    randomk_unbiased   C(x)_i = (n / k) x_i where i is drawn, else 0

k = max(1, ceil(ratio n)) places are drawn without replacement. Reference: S. U. Stich, J.-B. Cordonnier, M. Jaggi,
"Sparsified SGD with memory", NeurIPS 2018 (the first, with feedback); J. Wangni, J. Wang, J. Liu, T. Zhang, "Gradient
sparsification for communication-efficient distributed optimization", NeurIPS 2018 (the second).

Each place is drawn with chance p = k / n. First: E |C(x) - x|^2 = (1 - p) |x|^2, delta = k / n. Second: E C(x) = x and
E |C(x) - x|^2 = p (1 / p - 1)^2 |x|^2 + (1 - p) |x|^2 = (n / k - 1) |x|^2 = omega |x|^2.

A number that is not finite may not be drawn: the first value is NaN then.

Places: different numbers among c > k drawn with replacement are, given how many they are, any set of that size with
equal chance; so is what remains when some are left out at random. Hence work in proportion to k, not n.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headrace.comm.base import as_bytes
from headrace.comm.sums import saturated
from headrace.compress.base import SharedDrawCodec, taken
from headrace.compress.limits import within
from headrace.compress.selection import all_finite
from headrace.compress.signs import scattered
from headrace.compress.spec import CONTRACTION, RANDOM, SHARED_DRAWS, SUMMABLE, UNBIASED, CodecSpec
from headrace.compress.topk import kept


def drawn_places(n: int, k: int, generator: torch.Generator) -> Tensor:
    """int64 [k]: a set of k of n places, each with equal chance, ascending."""
    device = generator.device
    if 4 * k > n:
        return torch.randperm(n, generator=generator, device=device)[:k].sort().values
    found = torch.empty(0, dtype=torch.int64, device=device)
    while found.numel() < k:
        # Of c draws, n (1 - exp(-c / n)) differ: as many as should give k, and four standard deviations and more.
        count = math.ceil(-n * math.log1p(-k / n) + 4 * math.sqrt(k) + 8)
        found = torch.randint(0, n, (count,), generator=generator, device=device).unique()
    left_out = torch.randperm(found.numel(), generator=generator, device=device)[: found.numel() - k]
    remains = torch.ones(found.numel(), dtype=torch.bool, device=device)
    remains[left_out] = False
    return found[remains]


class RandomK(SharedDrawCodec):
    """C(x) of the module's docstring. On the wire: x at the drawn places, in its own type.

    Args:
        unbiased: scale by n / k, when decoding.
        ratio: of numbers that are sent, in (0, 1].
    """

    def __init__(self, unbiased: bool, ratio: float) -> None:
        within("ratio", ratio, 0, 1, above=True)
        self._unbiased, self._ratio = unbiased, ratio

    def encode_drawing(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """See `RandomCodec.encode_drawing`."""
        values = x.index_select(0, drawn_places(x.numel(), kept(x.numel(), self._ratio), generator))
        if not all_finite(x):
            values[0] = math.nan
        return as_bytes(values)

    def decode_drawing(self, data: Tensor, n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """See `SharedDrawCodec.decode_drawing`."""
        k = kept(n, self._ratio)
        values = taken(data, 0, k, dtype)
        if self._unbiased:
            values = _scaled(values, n / k)
        return scattered(drawn_places(n, k, generator), values, n)

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """See `Codec.nbytes`."""
        return kept(n, self._ratio) * dtype.itemsize


def _scaled(values: Tensor, factor: float) -> Tensor:
    """Values times a factor of at least 1, within the range of their type."""
    largest = torch.finfo(torch.float64).max / factor * (1 - 1e-9)
    wide = values.double().clamp(-largest, largest).add_(values - values)  # the difference: NaN where not finite
    return saturated(wide * factor, values.dtype)


def _spec(unbiased: bool, rule: str, use: str, **bound: Any) -> CodecSpec:
    return CodecSpec(
        factory=partial(RandomK, unbiased),
        paper="Wangni et al. 2018" if unbiased else "Stich et al. 2018",
        rule=rule,
        use=use,
        bits="0.32 at ratio 0.01: 32 a number that is sent",
        traits=frozenset({RANDOM, SHARED_DRAWS, SUMMABLE, UNBIASED if unbiased else CONTRACTION}),
        defaults={"ratio": 0.01},
        **bound,
    )


KEPT = _spec(
    False,
    "x at k places drawn by all ranks alike, else 0",
    "Payloads are to add up within an all-reduce; with error feedback, and slower to converge than top-k.",
    delta=lambda n, options: kept(n, options["ratio"]) / n,
)
SCALED = _spec(
    True,
    "n / k x at k places drawn by all ranks alike, else 0",
    "As randomk where no memory may be kept: without error feedback, at a ratio near 1.",
    omega=lambda n, options: n / kept(n, options["ratio"]) - 1,
)
