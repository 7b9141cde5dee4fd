"""Codecs that send a scale for every bucket of numbers, and a small code for every number.

A payload is the scales, in float32 (float64 for float64), and behind them the packed codes. Work goes in pieces of some
buckets that stay in the cache.

What a scale is, holds for all of them: it is 0 for a bucket of zeros and no number where the bucket holds one that is
not finite; else at least LEAST times the type's smallest normal number, so that what is divided by it is exact, and a
millionth below the type's largest at most, so that its multiples are finite. Buckets whose largest number is below the
former are coded as if it were that; with a range of 8e-34 and less no gradient of float32 notices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.comm.sums import saturated
from headrace.compress.base import Codec, RandomCodec, State, taken
from headrace.compress.packing import bits_bytes, pack_bits, pack_trits, trits_bytes, unpack_bits, unpack_trits
from headrace.errors import UserError

PIECE = 1 << 17  # numbers; draws depend on it
LEAST = 2.0**16
MOST = 1 - 1e-6
_WHOLE = 40  # buckets: so many fill whole bytes, whatever the packing


@dataclass(frozen=True)
class Bits:
    """Codes of so many bits."""

    bits: int

    def nbytes(self, n: int) -> int:
        """Of n codes."""
        return bits_bytes(n, self.bits)

    def pack(self, codes: Tensor, out: Tensor) -> None:
        """Write codes [n] into bytes."""
        pack_bits(codes, self.bits, out)

    def unpack(self, data: Tensor, n: int) -> Tensor:
        """Codes [n]."""
        return unpack_bits(data, self.bits, n)


class Trits:
    """Codes of three values."""

    def nbytes(self, n: int) -> int:
        """See `Bits.nbytes`."""
        return trits_bytes(n)

    def pack(self, codes: Tensor, out: Tensor) -> None:
        """See `Bits.pack`."""
        pack_trits(codes, out)

    def unpack(self, data: Tensor, n: int) -> Tensor:
        """See `Bits.unpack`."""
        return unpack_trits(data, n)


@dataclass(frozen=True)
class Piece:
    """Some buckets: numbers [start, stop), scales [first, last), bytes [begin, end) behind the scales."""

    start: int
    stop: int
    first: int
    last: int
    begin: int
    end: int


class Buckets(Codec):
    """Base of these codecs; see the module's docstring.

    Args:
        bucket: numbers that have a scale together.
        packing: of the codes.
    """

    def __init__(self, bucket: int, packing: Bits | Trits) -> None:
        if not 8 <= bucket <= 1 << 16:
            raise UserError(f"bucket must be between 8 and 65536 numbers, not {bucket}", "512 suits most gradients")
        self.bucket, self.packing = bucket, packing

    def scales(self, rows: Tensor, room: Tensor) -> Tensor:
        """A scale [rows] of every row [rows, width], before it is kept in its range; `room` is like the rows."""
        raise NotImplementedError

    def codes(self, rows: Tensor, scales: Tensor, room: Tensor, generator: torch.Generator | None) -> Tensor:
        """Codes uint8 [rows, width] of rows [rows, width] with scales [rows, 1]; `room` is like the rows."""
        raise NotImplementedError

    def values(self, codes: Tensor, out: Tensor) -> None:
        """Codes [n] as parts of a scale, into `out` [n]; of any codes."""
        raise NotImplementedError

    def steps(self, scales: Tensor) -> Tensor:
        """What values are multiplied by, of scales [rows]."""
        return scales

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        return self.encoded(x, None), state

    def encoded(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Bytes of x [n]."""
        n, wide = x.numel(), _wide(x.dtype)
        data = torch.empty(self.nbytes(n, x.dtype), dtype=torch.uint8, device=x.device)
        head = self._buckets(n) * wide.itemsize
        scales, body = data[:head].view(wide), data[head:]
        for piece in self._pieces(n):
            numbers = x[piece.start : piece.stop].to(wide)
            codes = torch.empty(numbers.numel(), dtype=torch.uint8, device=x.device)
            blocks = self._rows(scales[piece.first : piece.last], numbers, torch.empty_like(numbers), codes)
            for scale, rows, room, out in blocks:
                scale[:, 0] = sendable(self.scales(rows, room))
                out.copy_(self.codes(rows, scale, room, generator))
            self.packing.pack(codes, body[piece.begin : piece.end])
        return data

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        wide = _wide(dtype)
        steps = self.steps(taken(data, 0, self._buckets(n), wide))
        body = data[steps.numel() * wide.itemsize :]
        found = torch.empty(n, dtype=dtype, device=data.device)
        for piece in self._pieces(n):
            out = found[piece.start : piece.stop]
            numbers = out if dtype == wide else torch.empty(out.numel(), dtype=wide, device=data.device)
            self.values(self.packing.unpack(body[piece.begin : piece.end], out.numel()), numbers)
            for step, rows in self._rows(steps[piece.first : piece.last], numbers):
                rows.mul_(step)
            if numbers is not out:
                out.copy_(saturated(numbers, dtype))
        return found

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """See `Codec.nbytes`."""
        return self._buckets(n) * _wide(dtype).itemsize + self.packing.nbytes(n)

    def _buckets(self, n: int) -> int:
        return -(-n // self.bucket)

    def _pieces(self, n: int) -> Iterator[Piece]:
        rows = max(1, PIECE // (self.bucket * _WHOLE)) * _WHOLE
        size = rows * self.bucket
        for first, start in zip(range(0, self._buckets(n), rows), range(0, n, size), strict=True):
            stop, last = min(n, start + size), min(self._buckets(n), first + rows)
            yield Piece(start, stop, first, last, self.packing.nbytes(start), self.packing.nbytes(stop))

    def _rows(self, scales: Tensor, *numbers: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Scales [rows, 1] and numbers [rows, width]: of all whole buckets, then of one that is not."""
        total, width = numbers[0].numel(), self.bucket
        whole = total - total % width
        if whole:
            yield scales[: whole // width, None], *(t[:whole].view(-1, width) for t in numbers)
        if whole < total:
            yield scales[whole // width :, None], *(t[whole:].view(1, -1) for t in numbers)


class DrawnBuckets(RandomCodec, Buckets):
    """Buckets whose codes are drawn."""

    def encode_drawing(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """See `RandomCodec.encode_drawing`."""
        return self.encoded(x, generator)


def sendable(scales: Tensor) -> Tensor:
    """Scales kept in their range; see the module's docstring."""
    about = torch.finfo(scales.dtype)
    kept = scales.clamp(about.tiny * LEAST, about.max * MOST)
    return kept.where(scales != 0, 0.0).add_(scales - scales)


def draw_16_bits(out: Tensor, generator: torch.Generator) -> None:
    """Whole numbers of [0, 65536), each as likely as any other, into `out` [n] of any type.

    A number and one other have 8 bits in common, the upper of one and the lower of the other: with 8 fresh bits for
    each, half the time. What is rounded by them is hardly correlated, and the square of an error is a sum over single
    numbers.
    """
    n, half = out.numel(), -(-out.numel() // 2)
    words = torch.empty(half // 4 + 1, dtype=torch.int64, device=out.device).random_(
        -(1 << 63), None, generator=generator
    )
    raw = words.view(torch.uint8)
    out[:half].copy_(raw[: 2 * half].view(torch.uint16))
    out[half:].copy_(raw[1 : 2 * (n - half) + 1].clone().view(torch.uint16))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
