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

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
    """What rounding to the nearest value needs.

    A number's half-precision neighbour (one of 65536) is looked up: all numbers that round to it lie between two
    values at most, `low` and the next, which `middle` divides. So two look-ups and a comparison find the nearest value
    exactly, 15 times as fast as a binary search.
    """

    values: Tensor
    low: Tensor
    middle: Tensor
    sign: torch.dtype  # integers as long as the numbers: their sign bit is the comparison, at an eighth of its time


@cache
def _tables(signed: bool, dtype: torch.dtype, device: torch.device) -> _Tables:
    values = tree_values(signed)
    middles = (values[:-1] + values[1:]) / 2
    if not signed:
        middles[0] = 0.0  # what is not zero stays so
    halves = np.arange(-(1 << 15), 1 << 15).astype(np.int16).view(np.float16)
    with np.errstate(invalid="ignore", over="ignore"):
        below = (halves.astype(np.float64) + np.nextafter(halves, np.float16(-np.inf)).astype(np.float64)) / 2
    # Conversion to half precision may round twice (by way of float32): a little below the edge is still this number.
    low = np.searchsorted(middles, np.nan_to_num(below, nan=0.0, posinf=2.0, neginf=-2.0) * _slack(below), side="left")
    middle = np.append(middles, np.inf)[low]
    sign = torch.int64 if dtype == torch.float64 else torch.int32
    return _Tables(
        torch.tensor(values, dtype=dtype, device=device),
        torch.tensor(low, dtype=sign, device=device),
        torch.tensor(middle, dtype=dtype, device=device),
        sign,
    )


def _slack(below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(below > 0, 1 - 1e-6, 1 + 1e-6)


def scales_like(x: Tensor) -> Tensor:
    """Zero scales for a tensor of any shape: one number a block, at least in float32."""
    return torch.zeros(-(-x.numel() // BLOCK), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def quantize(x: Tensor, codes: Tensor, scales: Tensor, *, signed: bool) -> None:
    """Round x into `codes` and `scales`.

    Args:
        x: [n]; not negative where not signed. Infinite numbers become the largest of the type.
        codes: [n] uint8, written.
        scales: [blocks], written.
        signed: which values.
    """
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
    torch.amax(x.abs() if signed else x, 1, out=scales).clamp_(max=torch.finfo(scales.dtype).max)
    y = x / scales.where(scales > 0, 1.0)[:, None]
    y.clamp_(-1.0, 1.0)  # infinite numbers
    key = y.half().view(torch.int16).int().add_(1 << 15).view(-1)
    below = tables.middle.index_select(0, key).sub_(y.view(-1))
    above = below.view(tables.sign).bitwise_right_shift_(8 * below.element_size() - 1)  # -1 or 0: y > middle
    codes.copy_(tables.low.index_select(0, key).sub_(above).view_as(codes))


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype, *, signed: bool) -> Tensor:
    """What codes [n] and scales [blocks] stand for: [n]."""
    values = _tables(signed, scales.dtype, codes.device).values.index_select(0, codes.int())
    whole = codes.numel() - codes.numel() % BLOCK
    values[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
    values[whole:].mul_(scales[whole // BLOCK :])
    return values.to(dtype)
