"""Sums over ranks whose bits do not depend on the transport."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.comm.base import Collective


def sum_in_rank_order(flat: Tensor, collective: Collective) -> Tensor:
    """Each rank sums its chunk in rank order, all gather the chunks; `[n]` to `[n]`.

    Every element is x_0 + x_1 + ... from left to right. Bytes on the wire are those of a ring: 2 (size - 1) / size of
    the tensor's.
    """
    size, rank = collective.size, collective.rank
    chunks = flat.tensor_split(size)
    rows = [c.numel() for c in chunks]
    parts = collective.alltoall(chunks, rows=[rows[rank]] * size)
    total = parts[0]
    for part in parts[1:]:
        total += part
    return torch.cat(collective.allgather(total, rows=rows))
