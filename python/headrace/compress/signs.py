"""Yes and no in a bit: eight flags a byte, the first in the lowest bit; and numbers looked up by such bytes.

NumPy does it where it can; elsewhere, as on a GPU, eight flags lie in memory as eight bytes of 0 or 1, one 64-bit word,
and a product with a constant brings them together in its highest byte, since 2^(8 i) 2^(56 - 7 i) = 2^(56 + i) and no
other product of the two lies there. Back: the byte eight times over, one bit of it kept in each, moved to the lowest.
Words are those of little-endian machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from headrace.comm.fresh import fresh
from headrace.compress import kernels

_GATHER = 0x0102040810204080
_ONES = 0x0101010101010101
_EACH = 0x8040201008040201 - (1 << 64)  # bit i of byte i; as a signed number
_CARRY = 0x7F7F7F7F7F7F7F7F
_PIECE = 1 << 17  # numbers at a time on a CPU: their float32 and what is made of them stay in the cache
_NUMPY = (torch.float16, torch.float32, torch.float64)


def piece_for(x: Tensor, multiple: int = 8) -> int:
    """Numbers to be worked on at a time where x lies, a multiple of `multiple`: much where starting is what costs."""
    size = _PIECE if x.device.type == "cpu" else 1 << 28
    return max(1, size // multiple) * multiple


def pieces_with_sums(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of x [n], each with the sum of its |x|, at least in float32; in memory that is there."""
    wide = torch.promote_types(x.dtype, torch.float32)
    room = torch.empty(min(x.numel(), piece_for(x)), dtype=x.dtype, device=x.device)
    for piece in x.split(piece_for(x)):
        yield piece, torch.abs(piece, out=room[: piece.numel()]).sum(dtype=wide)


def negative(x: Tensor) -> Tensor:
    """Flags of x < 0, bool."""
    return torch.from_numpy(np.less(x.numpy(), 0)) if in_numpy(x) else x < 0


def negative_bits(x: Tensor) -> Tensor:
    """Flags of x < 0 as bytes; see `pack`."""
    if not kernels.serve(x):
        return pack(negative(x))
    bits = torch.empty(-(-x.numel() // 8), dtype=torch.uint8)
    kernels.run("mark_negative", x, x.numel(), bits)
    return bits


def in_numpy(x: Tensor) -> bool:
    """Whether NumPy has the numbers of x: it compares several times as fast."""
    return x.device.type == "cpu" and x.dtype in _NUMPY


def words_of(flags: Tensor) -> Tensor:
    """Flags bool [n] as words int64 [ceil(n / 8)], a flag a byte, zeros behind; the same memory where 8 divides n."""
    return (pad(flags, (0, -flags.numel() % 8)) if flags.numel() % 8 else flags).view(torch.int64)


def counts_of(flags: Tensor, length: int) -> Tensor:
    """Flags that are set in each `length`, a multiple of 8, of bool [n]: int64 [n / length]."""
    together = math.gcd(length // 8, 128)  # so many words add up byte by byte without a carry
    sums = words_of(flags).view(-1, together).sum(1)
    return sums.view(torch.uint8).view(-1, length // together).sum(1)


def pack(flags: Tensor) -> Tensor:
    """Flags bool [n] as bytes uint8 [ceil(n / 8)]."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.packbits(flags.numpy(), bitorder="little"))
    return pack_by_words(flags)


def pack_bit(numbers: Tensor, bit: int) -> Tensor:
    """As `pack`, the flags that a bit of numbers uint8 [n] is set."""
    if numbers.device.type == "cpu":
        return torch.from_numpy(np.packbits(numbers.numpy() & (1 << bit), bitorder="little"))
    return pack_by_words((numbers >> bit & 1).view(torch.bool))


def pack_by_words(flags: Tensor) -> Tensor:
    """As `pack`, on any device."""
    return ((words_of(flags) * _GATHER) >> 56).to(torch.uint8)


def unpack(data: Tensor, n: int) -> Tensor:
    """The first n flags, bool [n], of bytes uint8 [ceil(n / 8)]."""
    if data.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(data.numpy(), count=n, bitorder="little").view(np.bool_))
    return unpack_by_words(data, n)


def unpack_by_words(data: Tensor, n: int) -> Tensor:
    """As `unpack`, on any device."""
    words = data.to(torch.int64).mul_(_ONES).bitwise_and_(_EACH).add_(_CARRY)
    return words.bitwise_right_shift_(7).bitwise_and_(_ONES).view(torch.bool)[:n]


def places(flags: Tensor) -> Tensor:
    """Ascending indices int64 of the flags of bool [n] that are set."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flags.nonzero().view(-1)


def set_flags(flags: Tensor, indices: Tensor) -> None:
    """Set flags of bool [n], in place."""
    if flags.device.type == "cpu":
        flags.numpy()[indices.numpy()] = True
    else:
        flags.index_fill_(0, indices, True)


def ascends(indices: Tensor) -> bool:
    """Whether each of [n] is more than the one before."""
    if indices.device.type == "cpu":
        return bool((indices.numpy()[1:] > indices.numpy()[:-1]).all())
    return bool((indices[1:] > indices[:-1]).all())


def scattered(indices: Tensor, values: Tensor, n: int) -> Tensor:
    """Values [k] at different places of zeros [n]."""
    out = fresh(n, values.dtype, values.device)
    if kernels.serve(values) and kernels.serve(indices, dtype=torch.int64):
        falling = kernels.run("scatter", indices, values, len(indices), n, out)
        if not falling:
            return out
    out.zero_()
    if in_numpy(values):
        out.numpy()[indices.numpy()] = values.numpy()
        return out
    return out.index_copy_(0, indices, values)


def table(clear: Tensor, marked: Tensor) -> Tensor:
    """[256, 8]: for every byte, `marked` (a scalar) where its bit is set and `clear` where not."""
    every = unpack(torch.arange(256, dtype=torch.uint8, device=clear.device), 2048)
    return torch.where(every, marked, clear).view(256, 8)


def chosen(data: Tensor, clear: Tensor, marked: Tensor, n: int) -> Tensor:
    """Numbers [n]: `marked` (a scalar) where the bit of bytes uint8 [ceil(n / 8)] is set, `clear` where not."""
    if not (kernels.serve(clear, marked) and kernels.serve(data, dtype=torch.uint8)):
        return looked_up(data, table(clear, marked))[:n]
    out = fresh(n, clear.dtype, clear.device)
    kernels.run("choose", data, n, 8 * len(data), torch.stack([marked, clear]), out)
    return out


def looked_up(data: Tensor, entries: Tensor) -> Tensor:
    """Bytes uint8 [m] by way of a `table`: [8 m]."""
    out, size = fresh(8 * data.numel(), entries.dtype, data.device), piece_for(data) // 8
    for part, rows in zip(data.split(size), out.view(-1, 8).split(size), strict=True):
        torch.index_select(entries, 0, part.to(torch.int32), out=rows)
    return out
