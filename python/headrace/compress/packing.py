"""Small whole numbers end to end in bytes: of 1 to 16 bits each, and of three values each, five to a byte.

Neighbours do not share a byte: n numbers are cut into `planes` equal stretches (the last filled up with zeros), and
number j of every stretch goes into the same bytes j, j + m, j + 2 m, ... with m the length of a stretch: whole
stretches are shifted and joined at once. For 4 bits byte j is number j and 16 times number j + m.

Longer tensors may be packed in pieces, one behind the other: `piece` numbers each, which fill whole bytes. Kernels take
them all at once.

    bits b    planes 8 / gcd(8, b), each m = ceil(n / planes); b / gcd(8, b) bytes for every j
    trits     planes 5; byte j is the sum of 3^p times number j of stretch p
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from headrace.compress import kernels
from headrace.compress.base import PayloadError

TRITS = 5  # in a byte: 3^5 = 243


def bits_layout(bits: int) -> tuple[int, int]:
    """Stretches, and bytes that a number of each fills together."""
    common = gcd(8, bits)
    return 8 // common, bits // common


def bits_bytes(n: int, bits: int) -> int:
    """Bytes of n numbers of `bits` bits."""
    planes, rows = bits_layout(bits)
    return rows * -(-n // planes)


def pack_bits(values: Tensor, bits: int, out: Tensor, piece: int | None = None) -> None:
    """Write numbers into bytes.

    Args:
        values: [n], n > 0, uint8 or wider, each in [0, 2^bits).
        bits: 1 to 16.
        out: uint8 [bits_bytes(n, bits)], written.
        piece: numbers of a piece, None: all.
    """
    if bits == 8:
        out.copy_(values)
        return
    if bits < 8 and kernels.serve(values, out, dtype=torch.uint8):
        kernels.run("pack_bits", values, len(values), bits, piece or len(values), out)
        return
    if piece is not None and len(values) > piece:
        for part, place in zip(values.split(piece), out.split(bits_bytes(piece, bits)), strict=True):
            pack_bits(part, bits, place)
        return
    planes, rows = bits_layout(bits)
    stretches, data = _stretches(values, planes), out.view(rows, -1)
    for row in range(rows):
        first = True
        for plane in range(8 * row // bits, planes):
            low = plane * bits - 8 * row  # where the number begins in this byte; before it where negative
            if low >= 8:
                break
            part = stretches[plane]
            part = part >> -low if low < 0 else part << low if low else part
            part = part if part.dtype == torch.uint8 else part.bitwise_and(255).to(torch.uint8)
            data[row].copy_(part) if first else data[row].bitwise_or_(part)
            first = False


def unpack_bits(data: Tensor, bits: int, n: int, piece: int | None = None, room: Tensor | None = None) -> Tensor:
    """Numbers [n] of bytes that `pack_bits` wrote: uint8, int32 where they are wider than that.

    Args:
        data: uint8 [bits_bytes(n, bits)].
        bits: as they were packed.
        n: numbers.
        piece: as they were packed.
        room: uint8 [n or more] on the same device, which may be used for them.
    """
    planes, rows = bits_layout(bits)
    if bits == 8:
        return data
    if bits < 8 and kernels.serve(data, dtype=torch.uint8):
        found = torch.empty(n, dtype=torch.uint8) if room is None else room[:n]
        kernels.run("unpack_bits", data, bits, n, piece or n, found)
        return found
    if piece is not None and n > piece:
        parts = data.split(bits_bytes(piece, bits))
        return torch.cat([unpack_bits(part, bits, min(piece, n - i * piece)) for i, part in enumerate(parts)])
    wide = data if bits < 8 else data.to(torch.int32)
    source = wide.view(rows, -1)
    values = torch.empty(planes, source.shape[1], dtype=wide.dtype, device=data.device)
    for plane in range(planes):
        row, low = divmod(plane * bits, 8)
        value = values[plane]
        torch.bitwise_right_shift(source[row], low, out=value)
        for further in range(row + 1, (plane * bits + bits - 1) // 8 + 1):
            value.bitwise_or_(source[further] << (8 * (further - row) - low))
        if low + bits != 8 or bits > 8:
            value.bitwise_and_((1 << bits) - 1)
    return values.view(-1)[:n]


def trits_bytes(n: int) -> int:
    """Bytes of n numbers of three values."""
    return -(-n // TRITS)


def pack_trits(values: Tensor, out: Tensor, piece: int | None = None) -> None:
    """Write numbers into bytes.

    Args:
        values: uint8 [n], n > 0, each 0, 1 or 2.
        out: uint8 [trits_bytes(n)], written.
        piece: see `pack_bits`.
    """
    if kernels.serve(values, out, dtype=torch.uint8):
        kernels.run("pack_trits", values, len(values), piece or len(values), out)
        return
    if piece is not None and len(values) > piece:
        for part, place in zip(values.split(piece), out.split(trits_bytes(piece)), strict=True):
            pack_trits(part, place)
        return
    stretches = _stretches(values, TRITS)
    out.copy_(stretches[0])
    for plane in range(1, TRITS):
        out.add_(stretches[plane], alpha=3**plane)


def unpack_trits(data: Tensor, n: int, piece: int | None = None, room: Tensor | None = None) -> Tensor:
    """Numbers uint8 [n] of bytes that `pack_trits` wrote; see `unpack_bits`.

    Raises:
        PayloadError: a byte is over 242.
    """
    if (most := int(data.max())) >= 3**TRITS:
        raise PayloadError(f"a byte of five numbers of three values is at most 242; {most} came")
    if kernels.serve(data, dtype=torch.uint8):
        found = torch.empty(n, dtype=torch.uint8) if room is None else room[:n]
        kernels.run("unpack_trits", data, n, piece or n, found)
        return found
    if piece is not None and n > piece:
        parts = data.split(trits_bytes(piece))
        return torch.cat([unpack_trits(part, min(piece, n - i * piece)) for i, part in enumerate(parts)])
    values = torch.empty(TRITS, len(data), dtype=torch.uint8, device=data.device)
    left = data.to(torch.int16)
    for plane in range(TRITS - 1):
        # left // 3: 85 / 256 is a 768th less, and of one more right for all up to 255; dividing takes 8 times as long.
        third = (left + 1).mul_(85).bitwise_right_shift_(8)
        values[plane].copy_(left.sub_(third, alpha=3))
        left = third
    values[TRITS - 1].copy_(left)
    return values.view(-1)[:n]


def _stretches(values: Tensor, planes: int) -> Tensor:
    """[planes, m], filled up with zeros."""
    missing = -len(values) % planes
    if missing:
        values = torch.cat([values, values.new_zeros(missing)])
    return values.view(planes, -1)
