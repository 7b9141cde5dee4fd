"""Work that needs nothing but what every rank has, dealt out by cost; and what was made, gathered by all.

Longest processing time first: R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969: at most 4/3 of the best
possible on machines of one speed. Roots of Shampoo's preconditioners, which cost n^3 each, are dealt so and wanted by
all ranks, as in R. Anil et al. 2020 and H.-J. M. Shi et al. 2023, section 4. K-FAC's factors are dealt so as well, but
wanted by some ranks only: see kfac_dealing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.comm.base import Collective


def longest_first(costs: Sequence[float], speeds: Sequence[float]) -> list[int]:
    """For every job the machine that does it, of machines of these speeds: the same list on every rank.

    The longest job first, to where it is done soonest; ties go to the lower number.
    """
    loads, dealt = [0.0] * len(speeds), [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda j: -costs[j]):
        place = min(range(len(speeds)), key=lambda k: (loads[k] + costs[job]) / speeds[k])
        loads[place] += costs[job]
        dealt[job] = place
    return dealt


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
