"""Yes and no in a bit: eight flags a byte, the first in the lowest bit.

Eight flags lie in memory as eight bytes of 0 or 1, one 64-bit word; a product with a constant brings them together in
its highest byte, since 2^(8 i) 2^(56 - 7 i) = 2^(56 + i) and no other product of the two lies there. Back: the byte
eight times over, one bit of it kept in each, moved to the lowest. Words are those of little-endian machines.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_GATHER = 0x0102040810204080
_ONES = 0x0101010101010101
_EACH = 0x8040201008040201 - (1 << 64)  # bit i of byte i; as a signed number
_CARRY = 0x7F7F7F7F7F7F7F7F
_PIECE = 1 << 16  # numbers at a time on a CPU: their float32 and what is made of them stay in the cache


def piece_for(x: Tensor, multiple: int = 8) -> int:
    """Numbers to be worked on at a time where x lies, a multiple of `multiple`: much where starting is what costs."""
    size = _PIECE if x.device.type == "cpu" else 1 << 28
    return max(1, size // multiple) * multiple


def words_of(flags: Tensor) -> Tensor:
    """Flags bool [n] as words int64 [ceil(n / 8)], a flag a byte, zeros behind; the same memory where 8 divides n."""
    return (pad(flags, (0, -flags.numel() % 8)) if flags.numel() % 8 else flags).view(torch.int64)


def pack_words(words: Tensor) -> Tensor:
    """Words int64 [m], each of eight flags, as bytes uint8 [m]."""
    return ((words * _GATHER) >> 56).to(torch.uint8)


def counts_of(words: Tensor) -> Tensor:
    """Flags that are set in each word: int64 [m]."""
    return (words * _ONES) >> 56


def pack(flags: Tensor) -> Tensor:
    """Flags bool [n] as bytes uint8 [ceil(n / 8)]."""
    parts = [pack_words(words_of(piece)) for piece in flags.split(8 * piece_for(flags))]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def unpack(data: Tensor, n: int) -> Tensor:
    """The first n flags, bool [n], of bytes uint8 [ceil(n / 8)]."""
    words = data.to(torch.int64).mul_(_ONES).bitwise_and_(_EACH).add_(_CARRY)
    return words.bitwise_right_shift_(7).bitwise_and_(_ONES).view(torch.bool)[:n]
