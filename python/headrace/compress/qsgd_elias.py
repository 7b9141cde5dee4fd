"""QSGD with the code of its paper: short where most numbers become zero, as they do with few levels and large buckets.

    bucket   for every number that is not zero: omega(distance to the one before), sign, omega(level)
    payload  norms float32, bits of every bucket int16, buckets' bits, each from a new byte on

with Elias' omega code: small distances and levels, which are frequent, take few bits. What levels there are and how
they are drawn, is `headrace.compress.qsgd`'s.

Many buckets are decoded abreast, a symbol of each at every turn, few one after another: either is slower than codes of
a fixed size.

Reference: D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, "QSGD: communication-efficient SGD via gradient
quantization and encoding", NeurIPS 2017, section 3.2 and appendix A.2. Differs: sizes of buckets are sent, 16 bits each
and up to 7 to fill a byte, so that all can be decoded at once.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.comm.base import as_bytes
from headrace.compress.base import PayloadError, RandomCodec, taken
from headrace.compress.buckets import Bits
from headrace.compress.elias import omega_tables
from headrace.compress.qsgd import SPEC as QSGD
from headrace.compress.qsgd import Qsgd, omega
from headrace.compress.spec import RANDOM, UNBIASED, VARIABLE, CodecSpec
from headrace.errors import UserError

_DISTANCE, _LEVEL = 17, 13  # bits of the longest codes: 1023 and 127
_SYMBOL = _DISTANCE + 1 + _LEVEL
_MOST = 15  # bits a number, where all have the highest level: 1 of distance
_PIECE = 1 << 18  # numbers that are coded at once
_ABREAST = 1 << 14  # buckets that are decoded at once
_FEW = 64  # buckets: so many take as long one after another as abreast


_ENDS = (1 << _DISTANCE) - 1
_BAD = "a bucket's bits are no distances and levels within it"


class _Tables(NamedTuple):
    distance_codes: Tensor
    distance_bits: Tensor
    distances: Tensor
    level_codes: Tensor  # by k + s, the sign before it
    level_bits: Tensor
    levels: Tensor  # by sign and the bits behind it: k + s + 65536 bits


class QsgdElias(RandomCodec):
    """See the module's docstring.

    Args:
        levels: s, 1 to 127.
        bucket: numbers that share a norm, 8 to 1023.
        norm: of qsgd.NORMS.
    """

    def __init__(self, levels: int, bucket: int, norm: str) -> None:
        if bucket > 1023:
            raise UserError(f"bucket must be at most 1023 numbers, not {bucket}", "512 is the default")
        self.inner = Qsgd(levels, bucket, norm)
        self.inner.packing = Bits(8)
        self.levels, self.bucket = levels, bucket

    def encode_drawing(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """See `RandomCodec.encode_drawing`."""
        data = self.inner.encoded(x, generator)
        head = data.numel() - x.numel()
        codes, size = data[head:], max(1, _PIECE // self.bucket) * self.bucket
        coded = [self._coded(codes[start : start + size]) for start in range(0, x.numel(), size)]
        return torch.cat([data[:head], *(as_bytes(bits) for bits, _ in coded), *(stream for _, stream in coded)])

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        buckets = -(-n // self.bucket)
        head = self.inner.nbytes(n, dtype) - n
        if data.numel() < head + 2 * buckets:
            raise PayloadError(f"{data.numel()} bytes hold no {buckets} norms and sizes")
        bits = taken(data, head, buckets, torch.int16).long()
        ends = ((bits + 7) >> 3).cumsum(0)
        start = head + 2 * buckets
        if int(bits.min()) < 0 or int(bits.max()) > _MOST * self.bucket or start + int(ends[-1]) != data.numel():
            raise PayloadError(f"{data.numel()} bytes are not of the sizes that they name")
        codes = torch.full((n,), self.levels, dtype=torch.uint8, device=data.device)
        fill = self._fill if buckets > _FEW else self._fill_few
        for first in range(0, buckets, _ABREAST):
            last = min(buckets, first + _ABREAST)
            begin, stop = (start + int(ends[bucket - 1]) if bucket else start for bucket in (first, last))
            fill(data[begin:stop], bits[first:last], codes[first * self.bucket : last * self.bucket])
        return self.inner.decode(torch.cat([data[:head], codes]), n, dtype)

    def nbytes(self, n: int, dtype: torch.dtype) -> None:
        """See `Codec.nbytes`."""

    def _coded(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of every bucket int16, and their bytes uint8, of codes k + s of some buckets."""
        tables = _tables(self.levels, codes.device)
        places = (codes != self.levels).nonzero().view(-1)
        kind, owner = codes.index_select(0, places).int(), places // self.bucket
        before = torch.cat([places.new_full((1,), -1), places[:-1]])
        distance = places - torch.maximum(before, owner * self.bucket - 1)
        level_bits = tables.level_bits.index_select(0, kind)
        length = tables.distance_bits.index_select(0, distance) + level_bits
        symbol = (tables.distance_codes.index_select(0, distance) << level_bits) + tables.level_codes.index_select(
            0, kind
        )
        bits = torch.zeros(-(-len(codes) // self.bucket), dtype=torch.int64, device=codes.device)
        bits.index_add_(0, owner, length)
        ends, sizes = length.cumsum(0), (bits + 7) >> 3
        shift = 8 * (sizes.cumsum(0) - sizes) - (bits.cumsum(0) - bits)  # of a bucket's bits, for those that fill bytes
        return bits.to(torch.int16), _written(symbol, length, ends - length + shift[owner], int(sizes.sum()))

    def _fill_few(self, stream: Tensor, bits: Tensor, codes: Tensor) -> None:
        """As `_fill`, symbol by symbol."""
        distances, levels = _lists(self.levels)
        raw, values, begin = stream.cpu().numpy().tobytes(), codes.tolist(), 0
        for bucket, left in enumerate(bits.tolist()):
            end = begin + (left + 7 >> 3)
            number = int.from_bytes(raw[begin:end], "big") >> (8 * (end - begin) - left) << _SYMBOL
            place, limit, begin = bucket * self.bucket - 1, min((bucket + 1) * self.bucket, len(values)), end
            while left > 0:
                window = number >> left
                distance = distances[window >> (1 + _LEVEL) & _ENDS]
                level = levels[window >> (_DISTANCE - (distance >> 16)) & (2 << _LEVEL) - 1]
                place += distance & 65535
                left -= (distance >> 16) + (level >> 16)
                if not (distance and level and left >= 0 and place < limit):
                    raise PayloadError(_BAD)
                values[place] = level & 255
        codes.copy_(torch.tensor(values, dtype=torch.uint8))

    def _fill(self, stream: Tensor, bits: Tensor, codes: Tensor) -> None:
        """Codes of some buckets, where they are not zero; a symbol of each at every turn.

        Raises:
            PayloadError: a symbol is none, goes beyond its bucket's bits, or names a place beyond the bucket.
        """
        tables, windows = _tables(self.levels, codes.device), _windows(stream)
        sizes = (bits + 7) >> 3
        at = 8 * (sizes.cumsum(0) - sizes)
        end, place = at + bits, torch.arange(len(bits), device=codes.device) * self.bucket - 1
        limit = (place + 1 + self.bucket).clamp_(max=len(codes))
        while True:
            on = at < end
            left = int(on.sum())
            if left == 0:
                return
            if left < len(at):
                at, end, place, limit = at[on], end[on], place[on], limit[on]
            window = windows.index_select(0, at >> 3) >> (56 - _SYMBOL - (at & 7))
            window &= (1 << _SYMBOL) - 1
            distance = tables.distances.index_select(0, window >> (1 + _LEVEL))
            used = distance >> 16
            level = tables.levels.index_select(0, (window >> (_DISTANCE - used)) & ((2 << _LEVEL) - 1))
            place = place + (distance & 65535)
            at = at + used + (level >> 16)
            if not bool(((distance > 0) & (level > 0) & (place < limit) & (at <= end)).all()):
                raise PayloadError(_BAD)
            codes[place] = (level & 255).to(torch.uint8)


def _written(symbol: Tensor, length: Tensor, start: Tensor, nbytes: int) -> Tensor:
    """Symbols of up to 32 bits, from the left, into bytes uint8 [nbytes] from bit `start` of each on."""
    words = torch.zeros(nbytes // 4 + 2, dtype=torch.int64, device=symbol.device)
    first, shifted = start >> 5, symbol << (64 - (start & 31) - length)
    words.index_add_(0, first, (shifted >> 32) & 0xFFFFFFFF)  # bits are disjoint: a sum joins them
    words.index_add_(0, first + 1, shifted & 0xFFFFFFFF)
    places = torch.tensor([24, 16, 8, 0], device=symbol.device)
    return (words[:, None] >> places).to(torch.uint8).view(-1)[:nbytes]


def _windows(stream: Tensor) -> Tensor:
    """The 56 bits that begin at every byte, as a number: int64 [bytes + 1]; zeros follow the last."""
    n = len(stream)
    padded = torch.cat([stream, stream.new_zeros(8)])
    windows = padded[: n + 1].long()
    for byte in range(1, 7):
        windows.bitwise_left_shift_(8).add_(padded[byte : byte + n + 1])
    return windows


@cache
def _tables(levels: int, device: torch.device) -> _Tables:
    distance_codes, distance_bits, distances = omega_tables(1023, _DISTANCE)
    codes, bits, found = omega_tables(levels, _LEVEL)
    k = torch.arange(-levels, levels + 1)
    size = k.abs()
    signed = codes[size] + ((k < 0).long() << bits[size])
    number, used = found & 65535, found >> 16
    both = [torch.where(found > 0, levels + sign * number + ((used + 1) << 16), 0) for sign in (1, -1)]
    every = (distance_codes, distance_bits, distances, signed, bits[size] + 1, torch.cat(both).int())
    return _Tables(*(table.to(device) for table in every))


@cache
def _lists(levels: int) -> tuple[list[int], list[int]]:
    tables = _tables(levels, torch.device("cpu"))
    return tables.distances.tolist(), tables.levels.tolist()


SPEC = CodecSpec(
    factory=QsgdElias,
    paper=QSGD.paper,
    rule="qsgd; of numbers that are not zero, distance, sign and level in Elias' code",
    use="Well under half of qsgd's bytes, ten times its time and more: for links of a few Mbit/s.",
    bits="1.6 with 7 levels and 0.5 with one, of normal numbers; 48 a bucket of 512 in that",
    traits=frozenset({UNBIASED, RANDOM, VARIABLE}),
    defaults=QSGD.defaults,
    omega=omega,
)
