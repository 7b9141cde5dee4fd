"""Work that is equal on all ranks, dealt out: each rank does its part, and all gather the results.

Roots of Shampoo's preconditioners and inverses of K-FAC's factors cost n^3 each and need nothing but what every rank
has. They are dealt by cost, the largest first, each to the rank with the least so far (R. L. Graham, "Bounds on
multiprocessing timing anomalies", 1969: at most 4/3 of the best possible), as in R. Anil et al. 2020 and H.-J. M. Shi
et al. 2023, section 4.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.comm.base import Collective


def deal(costs: Sequence[float], size: int) -> list[int]:
    """The rank that does each piece of work, of `size`: the same list on every rank."""
    loads = [(0.0, rank) for rank in range(size)]
    owners = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, owners[piece] = loads[0]
        heapq.heapreplace(loads, (load + costs[piece], owners[piece]))
    return owners


def owned(owners: Sequence[int], rank: int) -> list[int]:
    """The pieces of `rank`."""
    return [piece for piece, owner in enumerate(owners) if owner == rank]


def share(stacks: Sequence[Tensor], owners: Sequence[Sequence[int]], collective: Collective | None) -> None:
    """Fill in what other ranks made, in place: one all-gather for each dtype.

    Args:
        stacks: results [N_j, ...] on one device; row i of stack j is right on rank owners[j][i], and on all afterwards.
        owners: a rank for every row of every stack; the same on every rank.
        collective: the way to the other ranks; None: there are none.
    """
    if collective is None or collective.size == 1:
        return
    for dtype in dict.fromkeys(stack.dtype for stack in stacks):
        places = [j for j, stack in enumerate(stacks) if stack.dtype == dtype]
        _share([stacks[j] for j in places], [owners[j] for j in places], collective)


def _share(stacks: Sequence[Tensor], owners: Sequence[Sequence[int]], collective: Collective) -> None:
    rows = [[owned(of, rank) for of in owners] for rank in range(collective.size)]
    sizes = [[len(r) * s.shape[1:].numel() for s, r in zip(stacks, own, strict=True)] for own in rows]
    sent = torch.cat([s[r].reshape(-1) for s, r in zip(stacks, rows[collective.rank], strict=True)])
    for rank, flat in enumerate(collective.allgather(sent, rows=[sum(own) for own in sizes])):
        if rank != collective.rank:
            for stack, own, part in zip(stacks, rows[rank], flat.split(sizes[rank]), strict=True):
                stack[own] = part.view(len(own), *stack.shape[1:])
