"""Codecs that send a scale for every bucket of numbers, and a small code for every number.

A payload is the scales, in float32 (float64 for float64), and behind them the packed codes. Work goes in pieces of some
buckets that stay in the cache: each is drawn for and packed by itself. Kernels take several at a time.

What a scale is, holds for all of them: it is 0 for a bucket of zeros and no number where the bucket holds one that is
not finite; else at least LEAST times the type's smallest normal number, so that what is divided by it is exact, and a
millionth below the type's largest at most, so that its multiples are finite. Buckets whose largest number is below the
former are coded as if it were that; with a range of 8e-34 and less no gradient of float32 notices.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.comm.fresh import fresh
from headrace.comm.sums import saturated
from headrace.compress import kernels
from headrace.compress.base import Codec, RandomCodec, State, taken
from headrace.compress.packing import bits_bytes, pack_bits, pack_trits, trits_bytes, unpack_bits, unpack_trits
from headrace.errors import UserError

PIECE = 1 << 17  # numbers; draws depend on it
ABREAST = 16  # pieces for kernels: what is around a call costs more than memory that is farther away
LEAST = 2.0**16
MOST = 1 - 1e-6
_SHAPES = 64  # views of as many are kept
_KEPT = threading.local()
_WHOLE = 40  # buckets: so many fill whole bytes, whatever the packing


@dataclass(frozen=True)
class Bits:
    """Codes of so many bits."""

    bits: int

    def nbytes(self, n: int) -> int:
        """Of n codes."""
        return bits_bytes(n, self.bits)

    def pack(self, codes: Tensor, out: Tensor, piece: int) -> None:
        """Write codes [n] into bytes; see `pack_bits`."""
        pack_bits(codes, self.bits, out, piece)

    def unpack(self, data: Tensor, n: int, piece: int, room: Tensor) -> Tensor:
        """Codes [n]; see `unpack_bits`."""
        return unpack_bits(data, self.bits, n, piece, room)


class Trits:
    """Codes of three values."""

    def nbytes(self, n: int) -> int:
        """See `Bits.nbytes`."""
        return trits_bytes(n)

    def pack(self, codes: Tensor, out: Tensor, piece: int) -> None:
        """See `Bits.pack`."""
        pack_trits(codes, out, piece)

    def unpack(self, data: Tensor, n: int, piece: int, room: Tensor) -> Tensor:
        """See `Bits.unpack`."""
        return unpack_trits(data, n, piece, room)


@dataclass(frozen=True)
class Piece:
    """A piece or several: numbers [start, stop), scales [first, last), bytes [begin, end) behind the scales."""

    start: int
    stop: int
    first: int
    last: int
    begin: int
    end: int


class _Draws(NamedTuple):
    """Views of a scratch: bytes of random words as numbers, those again from the second byte on, where both go."""

    even: Tensor
    askew: Tensor
    straight: Tensor
    odd: Tensor
    first: Tensor
    second: Tensor
    whole: Tensor


class Scratch:
    """Memory for the pieces of tensors: asked for anew for each, the system would clear it anew as well.

    Views of it are made once for a shape: making them takes as long as what is done with them.

    Args:
        n: numbers of a piece, at most.
        dtype: of these.
        device: of these.

    Attributes:
        generator: of the draws; None: nothing is drawn.
    """

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n, self.dtype, self.device = n, dtype, device
        self.generator: torch.Generator | None = None
        self.codes = torch.empty(n, dtype=torch.uint8, device=device)
        self._numbers, self._others = (torch.empty(n, dtype=dtype, device=device) for _ in range(2))
        self._views: dict[tuple[torch.Size, torch.dtype | None], Tensor] = {}
        self._draws: dict[tuple[torch.Size, torch.dtype], _Draws] = {}
        self._moved = torch.empty(n, dtype=torch.uint8, device=device)
        self._words = torch.empty(_words(n) + 2 * ABREAST, dtype=torch.int64, device=device)

    @property
    def shapes(self) -> int:
        """How many it has views of."""
        return len(self._views)

    def numbers(self, shape: torch.Size) -> Tensor:
        """Memory for as many; always the same."""
        if (shape, None) not in self._views:
            self._views[shape, None] = self._numbers[: shape.numel()].view(shape)
        return self._views[shape, None]

    def others(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """More memory, for as many of a type no wider than the numbers'; draws are there, too."""
        if (shape, dtype) not in self._views:
            self._views[shape, dtype] = self._others.view(dtype)[: shape.numel()].view(shape)
        return self._views[shape, dtype]

    def draws(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """As many whole numbers of [0, 65536), each as likely as any other; of a type no wider than the numbers'.

        The upper 8 bits of a number are the lower ones of another, half of them away: 8 fresh bits for each take half
        the time of 16. What is rounded by two such numbers is hardly correlated, and bounds of the square of an error
        are sums over single numbers.
        """
        if (shape, dtype) not in self._draws:
            self._draws[shape, dtype] = self._drawn(self.others(shape, dtype))
        views = self._draws[shape, dtype]
        self.words(shape.numel(), shape.numel())
        views.first.copy_(views.even)
        views.straight.copy_(views.askew)
        views.second.copy_(views.odd)
        return views.whole

    def words(self, n: int, piece: int) -> Tensor:
        """Random bits int64 for n numbers: those that `draws` makes as many of, in turns of `piece`, end to end."""
        count = n // piece * _words(piece) + (_words(n % piece) if n % piece else 0)
        return self._words[:count].random_(-(1 << 63), None, generator=self.generator)

    def _drawn(self, whole: Tensor) -> _Draws:
        n = whole.numel()
        half = -(-n // 2)
        raw, out = self._words[: _words(n)].view(torch.uint8), whole.view(-1)
        straight = self._moved[: 2 * (n - half)]  # numbers must not begin at an odd byte
        return _Draws(
            even=raw[: 2 * half].view(torch.uint16),
            askew=raw[1 : 2 * (n - half) + 1],
            straight=straight,
            odd=straight.view(torch.uint16),
            first=out[:half],
            second=out[half:],
            whole=whole,
        )


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

    def sizes(self, rows: Tensor, room: Tensor) -> Tensor:
        """What the scale of every row [rows, width] is made of [rows]; `room` is like the rows.

        0 where the row is, not finite where a number of the row is not.
        """
        raise NotImplementedError

    def scales(self, sizes: Tensor) -> Tensor:
        """Scales of sizes, of any shape, in the range that the module's docstring gives; of 0 the least of it."""
        about = torch.finfo(sizes.dtype)
        return sizes.clamp(about.tiny * LEAST, about.max * MOST)

    def codes(self, rows: Tensor, scales: Tensor, out: Tensor, scratch: Scratch) -> None:
        """Codes of rows [rows, width] with scales [rows, 1], into `out`, uint8 like the rows."""
        raise NotImplementedError

    def values(self, codes: Tensor, out: Tensor) -> None:
        """Codes [n] as parts of a scale, into `out` [n]; of any codes."""
        raise NotImplementedError

    def steps(self, scales: Tensor) -> Tensor:
        """What values are multiplied by, of scales [rows]."""
        return scales

    def restore(self, codes: Tensor, steps: Tensor, out: Tensor) -> None:
        """Values of codes [n] times the step of their bucket, of steps [buckets], into `out` [n]."""
        self.values(codes, out)
        for step, rows in self._rows(steps, out):
            rows.mul_(step)

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `Codec.encode`."""
        return self.encoded(x, None), state

    def encoded(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Bytes of x [n]."""
        n, wide = x.numel(), _wide(x.dtype)
        data = fresh(self.nbytes(n, x.dtype), torch.uint8, x.device)
        head = self._buckets(n) * wide.itemsize
        sizes, body = data[:head].view(wide), data[head:]
        abreast = ABREAST if kernels.serve(x) else 1
        scratch = _scratch(min(n, self.piece * abreast), wide, x.device)
        scratch.generator = generator
        whole = self.packing == Bits(8)
        for piece in self._pieces(n, abreast):
            numbers, packed = x[piece.start : piece.stop].to(wide), body[piece.begin : piece.end]
            codes = packed if whole else scratch.codes[: numbers.numel()]
            for size, rows, out in self._rows(sizes[piece.first : piece.last], numbers, codes):
                size[:, 0] = self.sizes(rows, scratch.numbers(rows.shape))
                self.codes(rows, self.scales(size), out, scratch)
            if not whole:
                self.packing.pack(codes, packed, self.piece)
        sizes.copy_(self.scales(sizes).where(sizes != 0, 0.0).where(sizes.isfinite(), math.nan))
        return data

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        wide = _wide(dtype)
        steps = self.steps(taken(data, 0, self._buckets(n), wide))
        body = data[steps.numel() * wide.itemsize :]
        found = fresh(n, dtype, data.device)
        abreast = ABREAST if kernels.serve(data, dtype=torch.uint8) else 1
        room = _scratch(min(n, self.piece * abreast), wide, data.device).codes
        for piece in self._pieces(n, abreast):
            out = found[piece.start : piece.stop]
            numbers = out if dtype == wide else torch.empty(out.numel(), dtype=wide, device=data.device)
            codes = self.packing.unpack(body[piece.begin : piece.end], out.numel(), self.piece, room)
            self.restore(codes, steps[piece.first : piece.last], numbers)
            if numbers is not out:
                out.copy_(saturated(numbers, dtype))
        return found

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """See `Codec.nbytes`."""
        return self._buckets(n) * _wide(dtype).itemsize + self.packing.nbytes(n)

    def _buckets(self, n: int) -> int:
        return -(-n // self.bucket)

    @property
    def piece(self) -> int:
        """Numbers of a piece: whole buckets that fill whole bytes."""
        return max(1, PIECE // (self.bucket * _WHOLE)) * _WHOLE * self.bucket

    def _pieces(self, n: int, abreast: int) -> Iterator[Piece]:
        size, rows = self.piece * abreast, self.piece // self.bucket * abreast
        for first, start in zip(range(0, self._buckets(n), rows), range(0, n, size), strict=True):
            stop, last = min(n, start + size), min(self._buckets(n), first + rows)
            yield Piece(start, stop, first, last, self.packing.nbytes(start), self.packing.nbytes(stop))

    def _rows(self, scales: Tensor, *numbers: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Scales [rows, 1] and numbers [rows, width]: of all whole buckets, then of one that is not."""
        total, width = numbers[0].numel(), self.bucket
        whole = total - total % width
        if whole == total:
            yield scales[:, None], *(t.view(-1, width) for t in numbers)
            return
        if whole:
            yield scales[: whole // width, None], *(t[:whole].view(-1, width) for t in numbers)
        yield scales[whole // width :, None], *(t[whole:].view(1, -1) for t in numbers)


class DrawnBuckets(RandomCodec, Buckets):
    """Buckets whose codes are drawn."""

    def encode_drawing(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """See `RandomCodec.encode_drawing`."""
        return self.encoded(x, generator)


def _scratch(n: int, dtype: torch.dtype, device: torch.device) -> Scratch:
    """This thread's, where it is large enough; a larger one than pieces need by default is not kept."""
    kept: Scratch | None = getattr(_KEPT, "scratch", None)
    if kept is None or (kept.dtype, kept.device) != (dtype, device) or kept.n < n or kept.shapes > _SHAPES:
        kept = Scratch(max(n, PIECE), dtype, device)
        if n <= PIECE * ABREAST:
            _KEPT.scratch = kept
    return kept


def _words(n: int) -> int:
    """Of 8 bytes, for the draws of n numbers: a byte for each, and one more for an odd one."""
    return -(-n // 2) // 4 + 1


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
