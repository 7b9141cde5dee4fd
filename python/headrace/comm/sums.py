"""Sums over ranks whose bits do not depend on the transport, and numbers kept within the range of their type."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.comm.fresh import fresh

_PIECE = 1 << 17  # numbers at a time on a CPU: what is made of them stays in the cache


def sum_in_rank_order(flat: Tensor, collective: Collective, wide: torch.dtype | None = None) -> Tensor:
    """Numbers of all ranks, added up; `[n]` to a new `[n]`.

    Args:
        flat: numbers that are sent and, where there are more than two ranks, as sums sent again in their own type.
        collective: over whom.
        wide: type to add up in, rounded and kept within the own type's range afterwards; None: the own.

    Every element is x_0 + x_1 + ... from left to right. Bytes on the wire are those of a ring, 2 (size - 1) / size of
    the tensor's: of chunks that each rank sums, which all gather then; of two ranks, of everything, summed by both.
    """
    if collective.size != 2:
        return sum_by_chunks(flat, collective, wide)
    return _summed(collective.allgather(flat, rows=[flat.numel()] * 2), wide)


def sum_by_chunks(flat: Tensor, collective: Collective, wide: torch.dtype | None = None) -> Tensor:
    """`sum_in_rank_order`, by the same two operations for any number of ranks."""
    size, rank = collective.size, collective.rank
    chunks = flat.tensor_split(size)
    rows = [c.numel() for c in chunks]
    parts = collective.alltoall(chunks, rows=[rows[rank]] * size)
    return torch.cat(collective.allgather(_summed(parts, wide), rows=rows))


def _summed(parts: list[Tensor], wide: torch.dtype | None) -> Tensor:
    """Tensors [n] of one type to their sum, in the memory of the first."""
    if wide is None:
        return in_order(parts)
    room = _PIECE if parts[0].device.type == "cpu" else max(1, parts[0].numel())
    for first, *others in zip(*(part.split(room) for part in parts), strict=True):
        first.copy_(saturated(in_order([first.to(wide), *others]), first.dtype))
    return parts[0]


def in_order(parts: Iterable[Tensor]) -> Tensor:
    """The sum from left to right, of one tensor or more; the first of them becomes it."""
    rest = iter(parts)
    total = next(rest)
    for part in rest:
        total += part
    return total


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a type (x itself where it has it); finite numbers beyond its range become its largest, others not finite."""
    if x.dtype == dtype:
        return x
    if x.device.type != "cpu" or x.numel() <= _PIECE:
        return _within(x, dtype).to(dtype)
    found = fresh(x.numel(), dtype, x.device)
    for part, out in zip(x.reshape(-1).split(_PIECE), found.split(_PIECE), strict=True):
        out.copy_(_within(part, dtype))
    return found.view(x.shape)


def _within(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x, or its numbers brought within the range of a type that has a smaller one."""
    largest = torch.finfo(dtype).max
    if torch.finfo(x.dtype).max <= largest:
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.device.type == "cpu" and x.numel():
        least, most = (float(end) for end in torch.aminmax(wide))
        if -largest <= least and most <= largest:
            return wide + 0.0  # as below: there is no minus zero
    return wide.clamp(-largest, largest).add_(wide - wide)  # the difference: 0, or NaN where not finite
