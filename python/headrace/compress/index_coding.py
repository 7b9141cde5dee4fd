"""Ascending indices in little more than they must take: P. Elias 1974, R. Fano 1971.

Of k indices below n, the l lower bits of each go as they are, and the rest, which never falls, as steps: bit
(i_j >> l) + j of a row of k + ((n - 1) >> l) bits is set for the j-th index. l is the one that takes the fewest bits,

    bytes = ceil((k + ((n - 1) >> l)) / 8) + l ceil(k / 8),    about k (2 + log2(n / k)) bits

within half a bit an index of what is possible, and, unlike differences with an escape, of a size that k and n alone
decide. The lower bits lie plane by plane, bit 0 of all indices first. Room for k indices also holds fewer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headrace.compress import kernels
from headrace.compress.base import PayloadError
from headrace.compress.signs import ascends, pack, pack_bit, piece_for, places, set_flags, unpack


def low_bits(k: int, n: int) -> int:
    """l: bits of an index that go as they are."""
    return min(range((n - 1).bit_length() + 1), key=lambda low: k * low + ((n - 1) >> low))


def coded_bytes(k: int, n: int) -> int:
    """Bytes of room for k indices below n."""
    if k == 0:
        return 0
    low = low_bits(k, n)
    return -(-(k + ((n - 1) >> low)) // 8) + low * -(-k // 8)


def encode_indices(indices: Tensor, k: int, n: int) -> Tensor:
    """Indices int64 [at most k], strictly ascending and below n, as uint8 [coded_bytes(k, n)]."""
    if k == 0:
        return torch.empty(0, dtype=torch.uint8, device=indices.device)
    low = low_bits(k, n)
    if kernels.serve(indices, dtype=torch.int64):
        return _encode(indices, k, low, k + ((n - 1) >> low))
    steps = torch.zeros(k + ((n - 1) >> low), dtype=torch.bool, device=indices.device)
    planes = torch.zeros(low, -(-k // 8), dtype=torch.uint8, device=indices.device)
    for first, block, counting in _blocks(indices):
        set_flags(steps, (block >> low).add_(counting).add_(first))
        place = planes[:, first // 8 : -(-(first + block.numel()) // 8)]
        for start in range(0, low, 8):
            part = (block >> start).to(torch.uint8)  # one byte of each index: its bits are cheaper to take
            for bit, plane in enumerate(place[start : start + 8]):
                plane.copy_(pack_bit(part, bit))
    return torch.cat([pack(steps), planes.view(-1)])


def decode_indices(data: Tensor, k: int, n: int) -> Tensor:
    """Undo `encode_indices`: int64 [at most k].

    Raises:
        PayloadError: another number of bytes, more than k indices, one out of range or not above the one before.
    """
    if data.numel() != coded_bytes(k, n):
        raise PayloadError(f"{data.numel()} bytes are not {k} indices below {n}")
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=data.device)
    low = low_bits(k, n)
    length = k + ((n - 1) >> low)
    decode = _decode if kernels.serve(data, dtype=torch.uint8) else _decode_by_blocks
    indices = decode(data, k, low, length)
    if indices.numel() and int(indices[-1]) >= n:
        raise PayloadError(f"an index is {int(indices[-1])}, not below {n}")
    return indices


def _encode(indices: Tensor, k: int, low: int, length: int) -> Tensor:
    if len(indices) > k:
        raise IndexError(f"{len(indices)} indices where {k} have room")
    head, plane = -(-length // 8), -(-k // 8)
    data = torch.zeros(head + low * plane, dtype=torch.uint8)
    if kernels.run("encode_places", indices, len(indices), k, low, length, data, data[head:]):
        raise IndexError("an index is out of range")
    return data


def _decode(data: Tensor, k: int, low: int, length: int) -> Tensor:
    count = kernels.run("count_bits", data, length)
    if count > k:
        raise PayloadError(f"{count} indices where {k} have room")
    indices = torch.empty(count, dtype=torch.int64)
    if kernels.run("decode_places", data, length, data[-(-length // 8) :], k, low, indices):
        raise PayloadError("indices do not ascend")
    return indices


def _decode_by_blocks(data: Tensor, k: int, low: int, length: int) -> Tensor:
    indices = places(unpack(data[: -(-length // 8)], length))
    if indices.numel() > k:
        raise PayloadError(f"{indices.numel()} indices where {k} have room")
    planes = data[-(-length // 8) :].view(low, -(-k // 8))
    last = -1
    for first, block, counting in _blocks(indices):
        block.sub_(counting).sub_(first).bitwise_left_shift_(low)
        _add_low_bits(block, planes[:, first // 8 : -(-(first + block.numel()) // 8)])
        if int(block[0]) <= last or not ascends(block):
            raise PayloadError("indices do not ascend")
        last = int(block[-1])
    return indices


def _add_low_bits(block: Tensor, planes: Tensor) -> None:
    """In place, to indices [m] whose lower bits are 0, from planes [low, ceil(m / 8)]."""
    for start in range(0, len(planes), 8):
        part = torch.zeros(block.numel(), dtype=torch.uint8, device=block.device)
        for plane in planes[start : start + 8].flip(0):  # the highest bit first: doubling takes less than shifting
            part.add_(part).add_(unpack(plane, block.numel()).view(torch.uint8))
        block.add_(part.to(torch.int64), alpha=1 << start)


def _blocks(indices: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """So many at a time that they stay in the cache; each with the place of its first, a multiple of 8, and 0, 1, ...
    for each of a block."""
    size = piece_for(indices, 32) // 4
    counting = torch.arange(min(size, indices.numel()), device=indices.device)
    for first in range(0, indices.numel(), size):
        block = indices[first : first + size]
        yield first, block, counting[: block.numel()]
