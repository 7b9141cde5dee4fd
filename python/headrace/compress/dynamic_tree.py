"""Dynamic tree quantization: blocks of 2048 numbers, each divided by its largest and rounded to one of 256 values.

After the sign bit, E zero bits say 10^-E, a one ends them, and the k = 6 - E bits left are a number f that stands for
the middle of the f-th of 2^k equal parts of [0.1, 1]; two codes are 0 and 1. Numbers without sign have the sign bit as
one more bit of f, k = 7 - E. A block's largest number is kept exactly.

Reference: T. Dettmers, "8-bit approximations for parallelism in deep learning", ICLR 2016; T. Dettmers, M. Lewis,
S. Shleifer, L. Zettlemoyer, "8-bit optimizers via block-wise quantization", ICLR 2022, sections 1.3 and 2. Differs in
one point: a number without sign that is not zero is never rounded to zero, for a second moment of zero under a first
moment that is not makes a step of 1 / eps (B. Li, J. Chen, J. Zhu, "Memory efficient optimizers with 4-bit states",
NeurIPS 2023, the zero-point problem).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.compress import kernels

BLOCK = 2048
_ZEROS = 7  # exponents 10^0 to 10^-6


def tree_values(signed: bool) -> npt.NDArray[np.float64]:
    """The 256 values of a code, ascending."""
    positive: list[npt.NDArray[np.float64]] = []
    for exponent in range(_ZEROS):
        edges = np.linspace(0.1, 1.0, 2 ** (_ZEROS - exponent - signed) + 1)
        positive.append(10.0**-exponent * (edges[:-1] + edges[1:]) / 2)
    values = np.concatenate(positive)
    return np.sort(np.concatenate([values, -values, [0.0, 1.0]] if signed else [values, [0.0, 1.0]]))


@dataclass(frozen=True)
class _Tables:
    """What rounding to the nearest value needs, and the way back.

    The upper bits of a number (sign, exponent, _FINE bits of the mantissa) say between which two values it lies at
    most; the `low` bits below, f, whether it is beyond the middle of these two. An entry is the code of the lower value
    times 2^low, and as much as makes f carry into the code where it is: code = (entry + f) >> low. One look-up finds
    the nearest value exactly, 30 times as fast as a binary search. f counts towards larger numbers: of negative ones
    its bits are turned around.
    """

    values: Tensor
    pairs: Tensor  # float32: of every two codes the two values, as one integer
    entries: Tensor
    whole: torch.dtype  # integers as long as the numbers
    low: int


_FINE = 7  # bits: numbers that share them have one middle among them at most


@cache
def _tables(signed: bool, dtype: torch.dtype, device: torch.device) -> _Tables:
    values = tree_values(signed)
    middles = (values[:-1] + values[1:]) / 2
    if not signed:
        middles[0] = 0.0  # what is not zero stays so
    whole, bits, mantissa = (torch.int64, 64, 52) if dtype == torch.float64 else (torch.int32, 32, 23)
    low = mantissa - _FINE
    entries = _entries(torch.tensor(middles, dtype=dtype).view(whole).numpy(), bits, low, mantissa)
    own = torch.tensor(values, dtype=dtype)
    every = torch.arange(1 << 16)
    pairs = torch.stack([own[every & 255], own[every >> 8]], 1)
    pairs = pairs.view(torch.int64).view(-1) if dtype == torch.float32 else pairs[:0]
    return _Tables(own.to(device), pairs.to(device), torch.tensor(entries, dtype=whole, device=device), whole, low)


def _entries(middles: npt.NDArray[Any], bits: int, low: int, mantissa: int) -> npt.NDArray[np.int64]:
    """By upper bits, of the bits of ascending middles; see _Tables."""
    middle = _ascending(middles.astype(np.int64), bits)
    assert (np.diff(middle >> low) > 0).all(), "two middles among numbers with the same upper bits"
    upper = np.arange(1 << (bits - low), dtype=np.int64)
    signed = upper - (upper >> (bits - low - 1) << (bits - low))
    first = _ascending(signed << low, bits) >> low << low  # of those with the same upper bits
    code = np.searchsorted(middle, first, side="left")
    inside = np.append(middle, first.min())[code]  # a middle among them, or one that is not
    carries = (1 << low) - 1 - (inside - first)
    found = (code << low) + np.where((inside >> low) == (first >> low), carries, 0)
    # What is no number becomes the code of zero, or the next where its sign bit is set; its block's scale tells.
    none = (upper & ((1 << (bits - low - 1)) - 1)) > ((1 << (bits - 1 - mantissa)) - 1) << (mantissa - low)
    zero = int(np.searchsorted(middle, 0, side="left"))
    return np.where(none, (zero + (signed < 0)) << low, found)


def _ascending(whole: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """The bits of floating-point numbers as integers in the same order."""
    return np.where(whole < 0, whole ^ ((1 << (bits - 1)) - 1), whole)


def scales_like(x: Tensor) -> Tensor:
    """Zero scales for a tensor of any shape: one number a block, at least in float32."""
    return torch.zeros(-(-x.numel() // BLOCK), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def quantize(x: Tensor, codes: Tensor, scales: Tensor, *, signed: bool) -> None:
    """Round x into `codes` and `scales`.

    Args:
        x: [n]; not negative where not signed. Infinite numbers become the largest of the type. Where a number is none
            so is the scale, always the same.
        codes: [n] uint8, written.
        scales: [blocks], written.
        signed: which values.
    """
    if kernels.serve(x, scales) and kernels.serve(codes, dtype=torch.uint8):
        entries = _tables(signed, scales.dtype, x.device).entries
        kernels.run("tree_quantize", x, x.numel(), signed, entries, codes, scales)
        return
    whole = x.numel() - x.numel() % BLOCK
    for part, out, scale in (
        (x[:whole].view(-1, BLOCK), codes[:whole].view(-1, BLOCK), scales[: whole // BLOCK]),
        (x[whole:].view(1, -1), codes[whole:].view(1, -1), scales[whole // BLOCK :]),
    ):
        if part.numel():
            _quantize_rows(part, out, scale, signed)


def _quantize_rows(x: Tensor, codes: Tensor, scales: Tensor, signed: bool) -> None:
    """One block a row."""
    tables = _tables(signed, scales.dtype, x.device)
    x = x.to(scales.dtype)
    torch.amax(x.abs() if signed else x, 1, out=scales)
    scales.nan_to_num_(math.nan, torch.finfo(scales.dtype).max, -math.inf)
    bits = (x / scales.where(scales > 0, 1.0)[:, None]).view(-1).view(tables.whole)  # those over 1 are infinite
    signs = bits >> 8 * bits.element_size() - 1
    upper = (bits >> tables.low).bitwise_and_(len(tables.entries) - 1)
    beyond = bits.bitwise_xor_(signs).bitwise_and_((1 << tables.low) - 1)
    found = torch.index_select(tables.entries, 0, upper, out=signs).add_(beyond).bitwise_right_shift_(tables.low)
    codes.copy_(found.view_as(codes))


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype, *, signed: bool, out: Tensor | None = None) -> Tensor:
    """What codes [n] and scales [blocks] stand for: [n]; written into `out` [n] of `dtype`, where it is given."""
    own = scales.dtype == dtype
    values = out if out is not None and own else torch.empty(codes.numel(), dtype=scales.dtype, device=codes.device)
    tables = _tables(signed, scales.dtype, codes.device)
    if kernels.serve(scales, values) and kernels.serve(codes, dtype=torch.uint8):
        kernels.run("tree_values", codes, codes.numel(), scales, tables.values, values)
    else:
        _look_up(codes, tables, values)
        whole = codes.numel() - codes.numel() % BLOCK
        values[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
        values[whole:].mul_(scales[whole // BLOCK :])
    if out is None:
        return values.to(dtype)
    return out if own else out.copy_(values)


def _look_up(codes: Tensor, tables: _Tables, out: Tensor) -> None:
    """Values of codes, two at a time where they lie so: that takes half the time."""
    even = codes.numel() - codes.numel() % 2
    if codes.storage_offset() % 2 or out.storage_offset() % 2 or not len(tables.pairs):
        even = 0
    if even:
        places = codes[:even].view(torch.uint16).to(torch.int32)
        torch.index_select(tables.pairs, 0, places, out=out[:even].view(torch.int64))
    if even < codes.numel():
        torch.index_select(tables.values, 0, codes[even:].int(), out=out[even:])
