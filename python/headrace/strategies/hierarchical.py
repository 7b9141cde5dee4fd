"""Sums of dense gradients in two tiers: as they are within a host, compressed between hosts.

    each rank gets its chunk of every tensor from the ranks of its host and adds up      (reduce-scatter, rank order)
    ranks of one place on all hosts sum their chunks by a reducer, compressed or not     (`inner`)
    the ranks of a host gather the chunks' sums                                          (all-gather)

So every byte between hosts goes over once, however many ranks a host has, and all of a host's ranks send at the same
time. What is remembered is of chunks: of a parameter's name and the place that its rank has on its host. Reference, for
the exact case: J. Cho, U. Finkler, M. Serrano, D. Kung, H. Hunter, "BlueConnect", SysML 2019; without its further
tiers.

Bytes of a rank, for B of gradients, L ranks on each of H hosts:

    within the host   2 (L - 1) / L B
    between hosts     those of `inner` for B / L bytes and H ranks

Tensors of less than min_numel numbers are summed over all ranks as they are; row-sparse ones too, by their rows. The
sum is that of hosts' sums: ordered, the same bits on all ranks and transports, but not those of one tier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.comm.subgroup import Subgroup, parts_by
from headrace.comm.sums import in_order
from headrace.errors import UserError
from headrace.strategies.overlap import ByBuckets
from headrace.strategies.reducers import BucketReducer, OfLarge


class Hierarchical(OfLarge):
    """See the module's docstring. Made by all ranks together, which then exchange their hosts' names.

    Args:
        inner: sums chunks between hosts, whatever their size, empty ones too.
        rest: sums the others.
        collective: over whom; `reduce` must be given the same.
        host: this rank's.
        min_numel: tensors of fewer numbers go over all ranks at once.
        tell: takes the event of a memory that is lost.

    Raises:
        UserError: hosts have unequal numbers of ranks.
    """

    def __init__(
        self, inner: ByBuckets, rest: BucketReducer, collective: Collective, host: str, min_numel: int,
        tell: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:  # fmt: skip
        super().__init__(rest, min_numel)
        self.inner, self._whole, self._tell = inner, collective, tell
        hosts = collective.allgather_object(host)
        self._layout = [hosts.index(each) for each in hosts]
        try:
            self.inside, self.across = parts_by(collective, host)
        except ValueError as error:
            raise UserError(f"--compression.hierarchical: {error}", "--compression.hierarchical false") from None

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `Reducer.reduce`."""
        self._check(collective)
        return super().reduce(grads, collective)

    def reduce_bucket(self, bucket: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `OfLarge.reduce_bucket`."""
        self._check(collective)
        return super().reduce_bucket(bucket, collective)

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """See `Reducer.settle`."""
        self.inner.settle(made, rescaled)

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`: of what goes between hosts."""
        return self.inner.figures()

    def state_dict(self) -> dict[str, Any]:
        """What `inner` remembers, and which ranks were together."""
        return {"hosts": self._layout, "between": self.inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave; nothing is remembered, and that is told, where ranks lie on other hosts now:
        chunks are others.

        Raises:
            ValueError: for the state of another reducer.
        """
        if "hosts" not in state:
            raise ValueError("the checkpoint knows nothing of hosts: gradients were not summed in two tiers then")
        if list(state["hosts"]) == self._layout:
            self.inner.load_state_dict(state["between"])
        elif state["between"]:
            lost = {"what": "memory of compressed gradients", "why": "of other hosts' chunks"}
            self._tell({"type": "reset", **lost})

    def _check(self, collective: Collective) -> None:
        if collective is not self._whole:
            raise ValueError("the hosts are those of another collective, the one that this was made with")

    def sum_large(
        self, large: dict[str, Tensor], small: dict[str, Tensor], collective: Collective
    ) -> dict[str, Tensor]:
        """See `OfLarge.sum_large`.

        What is large goes by whole tensors: ranks of a host may have chunks of unequal sizes, and all must do the same.
        """
        place = self.inside.rank
        chunks = {name: g.reshape(-1).tensor_split(self.inside.size) for name, g in large.items()}
        by_place = [[parts[j] for parts in chunks.values()] for j in range(self.inside.size)]
        mine = _scattered(by_place, self.inside)
        names = [f"{name}/{place}" for name in large]
        summed = self.inner.reduce_bucket(dict(zip(names, mine, strict=True)), self.across)
        whole = _gathered([summed[name] for name in names], by_place, self.inside)
        return {name: x.view(g.shape) for (name, g), x in zip(large.items(), whole, strict=True)}


def _scattered(by_place: Sequence[Sequence[Tensor]], inside: Subgroup) -> list[Tensor]:
    """This place's chunks, summed over the ranks of the host in their order, by one operation."""
    own = by_place[inside.rank]
    if inside.size == 1:
        return list(own)
    messages = [torch.cat(list(parts)) for parts in by_place]
    arrived = inside.alltoall(messages, rows=[messages[inside.rank].numel()] * inside.size)
    return list(torch.split(in_order(arrived), [x.numel() for x in own]))


def _gathered(mine: Sequence[Tensor], by_place: Sequence[Sequence[Tensor]], inside: Subgroup) -> list[Tensor]:
    """Whole flat tensors of the chunks of all places, by one operation."""
    if inside.size == 1:
        return list(mine)
    sizes = [[x.numel() for x in parts] for parts in by_place]
    arrived = inside.allgather(torch.cat(list(mine)), rows=[sum(each) for each in sizes])
    parts = [torch.split(message, each) for message, each in zip(arrived, sizes, strict=True)]
    return [torch.cat(each) for each in zip(*parts, strict=True)]
