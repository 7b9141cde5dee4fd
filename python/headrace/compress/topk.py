"""The largest numbers by absolute value, with their places.

    C(x)_i = x_i for the k = max(1, ceil(ratio n)) numbers with the largest |x_i|, 0 for the others

Reference: D. Alistarh, T. Hoefler, M. Johansson, S. Khirirat, N. Konstantinov, C. Renggli, "The convergence of
sparsified gradient methods", NeurIPS 2018. It wants error feedback. Numbers that are 0 are not sent, and of equals any;
NaN and infinite numbers are larger than all others, so they are sent first.

Contraction. What is left out has at most the mean square of all: |C(x) - x|^2 <= (1 - k / n) |x|^2, delta = k / n.
Values in float16 are parts of the largest, v = max h / 2^15, off by 2^-11 of themselves: delta = (1 - 2^-20) k / n.

Both selections find the k largest (headrace.compress.selection); `sampled` is the faster one. The payload has room for
k numbers, whatever they are. Places are coded as headrace.compress.index_coding says: 8.6 bits each at ratio 0.01.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.comm.sums import saturated
from headrace.compress.base import Codec, State, joined, taken
from headrace.compress.index_coding import coded_bytes, decode_indices, encode_indices
from headrace.compress.limits import one_of, within
from headrace.compress.selection import SELECTIONS, largest
from headrace.compress.signs import scattered
from headrace.compress.spec import CONTRACTION, CodecSpec

VALUES = {"float32": torch.float32, "float16": torch.float16}
_LARGEST_HALF = float(1 << 15)


def kept(n: int, ratio: float) -> int:
    """k: numbers of n that are sent, at least one."""
    return max(1, min(n, math.ceil(ratio * n - 1e-9)))


class TopK(Codec):
    """C(x) of the module's docstring. On the wire: values, the largest before them if float16, then places.

    Args:
        ratio: of numbers that are sent, in (0, 1].
        selection: of SELECTIONS.
        values: of VALUES.
    """

    def __init__(self, ratio: float, selection: str, values: str) -> None:
        within("ratio", ratio, 0, 1, above=True)
        one_of("selection", selection, SELECTIONS)
        one_of("values", values, list(VALUES))
        self._ratio, self._selection, self._half = ratio, selection, values == "float16"

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        n = x.numel()
        k = kept(n, self._ratio)
        indices = largest(x, k, self._selection)
        values = torch.zeros(k, dtype=torch.float32, device=x.device)
        values[: indices.numel()] = saturated(x.index_select(0, indices), torch.float32)
        coded = encode_indices(indices, k, n)
        return joined([*(_halves(values) if self._half else [values]), coded]), state

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        k = kept(n, self._ratio)
        start = self._value_bytes(k)
        indices = decode_indices(data[start:], k, n)
        if self._half:
            scale = taken(data, 0, 1, torch.float32).double() / _LARGEST_HALF
            values = taken(data, 4, k, torch.float16) * scale
        else:
            values = taken(data, 0, k, torch.float32)
        return scattered(indices, saturated(values[: indices.numel()], dtype), n)

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """See `Codec.nbytes`."""
        k = kept(n, self._ratio)
        return self._value_bytes(k) + coded_bytes(k, n)

    def _value_bytes(self, k: int) -> int:
        return 4 + 2 * k if self._half else 4 * k


def _halves(values: Tensor) -> list[Tensor]:
    """The largest |value| float32 [1], and all as its parts float16 [k]."""
    most = values.abs().max().view(1)
    return [most, (values.double() * (_LARGEST_HALF / most.double())).half()]


def _delta(n: int, options: Mapping[str, Any]) -> float:
    rounded = 1 - 2**-20 if options["values"] == "float16" else 1
    return rounded * kept(n, options["ratio"]) / n


SPEC = CodecSpec(
    factory=TopK,
    paper="Alistarh et al. 2018",
    rule="x where |x| is among the k largest, else 0",
    use="A hundredth of the bytes, with error feedback, where few numbers matter, as in embeddings and wide layers.",
    bits="0.41 at ratio 0.01: 32 (or 16) a number that is sent, and 8.6 for its place",
    traits=frozenset({CONTRACTION}),
    defaults={"ratio": 0.01, "selection": "sampled", "values": "float32"},
    delta=_delta,
)
