"""Ascending indices in little more than they must take: P. Elias 1974, R. Fano 1971.

Of k indices below n, the l lower bits of each go as they are, and the rest, which never falls, as steps: bit
(i_j >> l) + j of a row of k + ((n - 1) >> l) bits is set for the j-th index. l is the one that takes the fewest bits,

    bytes = ceil((k + ((n - 1) >> l)) / 8) + l ceil(k / 8),    about k (2 + log2(n / k)) bits

within half a bit an index of what is possible, and, unlike differences with an escape, of a size that k and n alone
decide. The lower bits lie plane by plane, bit 0 of all indices first. Room for k indices also holds fewer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.compress.base import PayloadError
from headrace.compress.signs import pack, places, unpack


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
    low, count = low_bits(k, n), indices.numel()
    steps = torch.zeros(k + ((n - 1) >> low), dtype=torch.bool, device=indices.device)
    steps.index_fill_(0, (indices >> low) + torch.arange(count, device=indices.device), True)
    planes = torch.zeros(low, -(-k // 8), dtype=torch.uint8, device=indices.device)
    for start in range(0, low if count else 0, 8):
        part = (indices >> start & 255).to(torch.uint8)  # one byte of each index: its bits are cheaper to take
        for bit, plane in enumerate(planes[start : start + 8]):
            plane[: -(-count // 8)] = pack((part >> bit & 1).view(torch.bool))
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
    found = places(unpack(data[: -(-length // 8)], length))
    count = found.numel()
    if count > k:
        raise PayloadError(f"{count} indices where {k} have room")
    indices = found.sub_(torch.arange(count, device=data.device)) << low
    planes = data[-(-length // 8) :].view(low, -(-k // 8))
    for start in range(0, low if count else 0, 8):
        part = torch.zeros(count, dtype=torch.uint8, device=data.device)
        for bit, plane in enumerate(planes[start : start + 8]):
            part |= unpack(plane, count).view(torch.uint8) << bit
        indices |= part.to(torch.int64) << start
    if count and (int(indices[-1]) >= n or not bool((indices[1:] > indices[:-1]).all())):
        raise PayloadError(f"indices do not ascend, or reach {n}")
    return indices
