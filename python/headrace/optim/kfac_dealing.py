"""Who decomposes which factor, who preconditions which layer's gradient, and the messages between them.

Layers are dealt to groups of gradient workers, their factors to ranks of the group: both by longest processing time
first (see dealing), with n^3 as the time of a factor [n, n]. J. G. Pauloski et al., "KAISA: an adaptive
second-order optimizer framework for deep neural networks", SC 2021: the share of ranks that are gradient workers of a
layer trades memory for messages.

    share 1 / size   MEM-OPT     one rank a layer keeps its inverses; it sends its gradient to all in every step
    between          HYBRID-OPT  a group keeps them; each worker sends to its share of the other ranks
    share 1          COMM-OPT    all ranks keep all inverses; nothing is sent between refreshes

Differs from the paper: ranks need not be a multiple of the group (no group is smaller than asked), and messages are one
all-to-all instead of broadcasts in many sub-groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.optim.dealing import longest_first


@dataclass(frozen=True)
class Deal:
    """The same on every rank.

    Args:
        workers: ranks that keep the inverses of a layer and precondition its gradient, by layer.
        solvers: ranks that decompose a layer's A and G, of its workers, by layer.
        size: number of ranks.
    """

    workers: tuple[tuple[int, ...], ...]
    solvers: tuple[tuple[int, int], ...]
    size: int

    def served(self, layer: int, worker: int) -> tuple[int, ...]:
        """Ranks that get the layer's preconditioned gradient from this worker of its."""
        group = self.workers[layer]
        others = [rank for rank in range(self.size) if rank not in group]
        return tuple(others[group.index(worker) :: len(group)])


def deal(shapes: Sequence[tuple[int, int]], size: int, share: float) -> Deal:
    """Give out layers and factors.

    Args:
        shapes: (m, n) of every layer's G [m, m] and A [n, n].
        size: number of ranks.
        share: of the ranks that are gradient workers of a layer, in (0, 1].
    """
    groups = size // max(1, round(share * size))
    members = [tuple(range(k * size // groups, (k + 1) * size // groups)) for k in range(groups)]
    costs = [m**3 + n**3 for m, n in shapes]
    group_of = longest_first(costs, [len(group) for group in members])
    solvers = [[0, 0] for _ in shapes]
    for k, group in enumerate(members):
        jobs = [(layer, side) for layer in range(len(shapes)) if group_of[layer] == k for side in (0, 1)]
        dealt = longest_first([shapes[layer][1 - side] ** 3 for layer, side in jobs], [1.0] * len(group))
        for (layer, side), place in zip(jobs, dealt, strict=True):
            solvers[layer][side] = group[place]
    return Deal(tuple(members[k] for k in group_of), tuple((a, g) for a, g in solvers), size)


@dataclass(frozen=True)
class Parcel:
    """A tensor on its way: `tensor` is read on the sender and overwritten on the receivers; one shape on all."""

    sender: int
    receivers: tuple[int, ...]
    tensor: Tensor


def deliver(parcels: Sequence[Parcel], collective: Collective | None) -> None:
    """Send all parcels, the same list on every rank (their tensors aside), in one all-to-all for each dtype."""
    if collective is None or not any(p.sender != r for p in parcels for r in p.receivers):
        return
    for dtype in sorted({p.tensor.dtype for p in parcels}, key=str):
        _deliver([p for p in parcels if p.tensor.dtype == dtype], collective)


def _deliver(parcels: Sequence[Parcel], collective: Collective) -> None:
    me, empty = collective.rank, parcels[0].tensor.new_empty(0)
    chunks, coming = [], []
    for rank in range(collective.size):
        own = [p.tensor.reshape(-1) for p in parcels if p.sender == me != rank and rank in p.receivers]
        chunks.append(torch.cat([empty, *own]))
        coming.append([p for p in parcels if p.sender == rank != me and me in p.receivers])
    rows = [sum(p.tensor.numel() for p in some) for some in coming]
    for some, flat in zip(coming, collective.alltoall(chunks, rows=rows), strict=True):
        parts = torch.split(flat, [p.tensor.numel() for p in some])
        for parcel, part in zip(some, parts, strict=True):
            parcel.tensor.copy_(part.view_as(parcel.tensor))
