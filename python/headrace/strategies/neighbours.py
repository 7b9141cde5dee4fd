"""Exchange with some ranks only: one `alltoall` whose chunks for all others are empty, on every transport."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from headrace.comm.base import Collective


def exchange(
    collective: Collective, sent: Mapping[int, Tensor], rows: Mapping[int, int] | None, like: Tensor
) -> dict[int, Tensor]:
    """What neighbours sent here, by rank.

    Args:
        collective: all ranks call it at the same time.
        sent: to whom goes what.
        rows: from whom something comes, and how much in dim 0. None, on all ranks, those without neighbours too: from
            whom something goes to, and nobody knows how much.
        like: of the type and the row shape of all that is sent.
    """
    nothing = like[:0]
    ranks = range(collective.size)
    sizes = None if rows is None else [rows.get(j, 0) for j in ranks]
    arrived = collective.alltoall([sent.get(j, nothing) for j in ranks], sizes)
    return {j: arrived[j] for j in (sent if rows is None else rows)}


def mix(flat: Tensor, heard: Mapping[int, float], arrived: Mapping[int, Tensor]) -> Tensor:
    """x + sum over neighbours j, ascending, of W_j (x_j - x), in float32 at least.

    Differences, not W x: weights like 1/3 are rounded, so a plain sum of equal numbers would be another number, and
    the mean over ranks would drift.
    """
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
    mixed = wide.clone()
    for j in sorted(heard):
        mixed.add_(arrived[j].to(wide.dtype) - wide, alpha=heard[j])
    return mixed.to(flat.dtype)
