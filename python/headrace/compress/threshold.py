"""Every number above a threshold is sent as the threshold.

    C(x)_i = tau sign(x_i) where |x_i| > tau, else 0;   relative: tau = `tau` mean|x|

Reference: N. Strom, "Scalable distributed DNN training using commodity GPU cloud computing", Interspeech 2015. It needs
error feedback, which keeps what is above the threshold as well as what is below. There tau is absolute, which has to be
found for each model; here it is relative unless told otherwise, since gradients of different tensors and times differ
by orders of magnitude, and one tau in their own measure then serves all: the number of entries follows the shape of the
distribution only, at most n / `tau` of them (Markov). The default is 2 because what feedback holds of steady gradients
comes to fill (-tau, tau) evenly, with a mean of tau / 2: above 2 hardly anything would then be sent, and memory grow.

There an entry is a word of 32 bits, 31 for the place and one for the sign. Here the signs of all entries are a plane of
bits, and their places are coded as headrace.compress.index_coding says.

No contraction: nothing is sent while all |x_i| are alike. Where something is not finite, tau is sent as NaN and the
entries are the numbers that are not finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headrace.comm.sums import saturated
from headrace.compress.base import Codec, PayloadError, State, joined, taken
from headrace.compress.index_coding import coded_bytes, decode_indices, encode_indices
from headrace.compress.limits import within
from headrace.compress.selection import all_finite, places_beyond
from headrace.compress.signs import chosen, negative_bits, piece_for, pieces_with_sums, scattered
from headrace.compress.spec import VARIABLE, CodecSpec


class Threshold(Codec):
    """C(x) of the module's docstring. On the wire: the number of entries int64, tau float32, signs, places.

    Args:
        tau: above 0.
        relative: tau is given in means of |x|.
    """

    def __init__(self, tau: float, relative: bool) -> None:
        within("tau", tau, 0, 3e38, above=True)
        self._tau, self._relative = tau, relative

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        n = x.numel()
        tau = self._threshold(x)
        beyond = places_beyond(x, tau.to(x.dtype)) if tau == tau else x.isfinite().logical_not_().nonzero().view(-1)
        count = torch.full((1,), beyond.numel(), dtype=torch.int64, device=x.device)
        signs = negative_bits(x.index_select(0, beyond))
        return joined([count, tau.view(1), signs, encode_indices(beyond, beyond.numel(), n)]), state

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        count = int(taken(data, 0, 1, torch.int64)) if data.numel() >= 12 else -1
        start = 12 - (-count // 8)
        if not 0 <= count <= n or data.numel() != start + coded_bytes(count, n):
            raise PayloadError(f"{data.numel()} bytes are not {count} entries of {n} numbers")
        places = decode_indices(data[start:], count, n)
        if places.numel() != count:
            raise PayloadError(f"{places.numel()} places of {count} came")
        tau = saturated(taken(data, 8, 1, torch.float32), dtype)[0]
        values = chosen(data[12:start], tau, -tau, count)
        return scattered(places, values, n)

    def nbytes(self, n: int, dtype: torch.dtype) -> None:
        """See `Codec.nbytes`."""

    def _threshold(self, x: Tensor) -> Tensor:
        """tau float32, or NaN where x is not finite."""
        if not self._relative:
            return torch.tensor(self._tau if all_finite(x) else math.nan, device=x.device)
        total = torch.stack([part for _, part in pieces_with_sums(x)]).double().sum()
        if not bool(total.isfinite()):  # a sum beyond float32, or a number that is not finite
            total = torch.stack([piece.double().abs().sum() for piece in x.split(piece_for(x))]).sum()
        return saturated(total * (self._tau / x.numel()), torch.float32)


SPEC = CodecSpec(
    factory=Threshold,
    paper="Strom 2015",
    rule="tau sign(x) where |x| > tau, else 0",
    use="Few numbers are large and their count may vary; only with error feedback, which it needs to lose nothing.",
    bits="6 to 12 a number that is sent: about 0.4 at tau 2",
    traits=frozenset({VARIABLE}),
    defaults={"tau": 2.0, "relative": True},
)
