"""Some ranks of a group as a group of their own, when all ranks of it do the same in theirs.

    hosts = [Subgroup(collective, members) for the members of every host][mine]

The parts must be disjoint and hold every rank, and all ranks call the same operation at the same time: an operation in
the parts is one `alltoall` of the whole group, in which nothing goes from part to part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from headrace.comm.base import Collective, check_chunks, check_root, decode_object, encode_object
from headrace.comm.sums import sum_by_chunks


class Subgroup:
    """See the module's docstring.

    Args:
        whole: the group.
        members: ranks of the whole that belong to this one's part, this one among them, ascending.
    """

    def __init__(self, whole: Collective, members: Sequence[int]) -> None:
        if whole.rank not in members or sorted(set(members)) != list(members):
            raise ValueError(f"rank {whole.rank} must be among ascending members; got {list(members)}")
        self.whole, self.members = whole, list(members)

    @property
    def rank(self) -> int:
        return self.members.index(self.whole.rank)

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def name(self) -> str:
        return self.whole.name

    def allreduce(self, x: Tensor) -> Tensor:
        """See `Collective.allreduce`; summed in rank order, by as many operations in parts of any size."""
        return sum_by_chunks(x.reshape(-1), self).view(x.shape)

    def allgather(self, x: Tensor, rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.allgather`."""
        x = x.reshape(1) if x.dim() == 0 else x
        return self.alltoall([x] * self.size, rows)

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.alltoall`."""
        check_chunks(chunks, self.size)
        everyone = [chunks[0][:0]] * self.whole.size
        known = None if rows is None else [0] * self.whole.size
        for place, member in enumerate(self.members):
            everyone[member] = chunks[place]
            if known is not None and rows is not None:
                known[member] = rows[place]
        found = self.whole.alltoall(everyone, known)
        return [found[member] for member in self.members]

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """See `Collective.broadcast`."""
        check_root(root, self.size)
        mine = x.reshape(-1)
        rows = [mine.numel() if place == root else 0 for place in range(self.size)]
        found = self.alltoall([mine if self.rank == root else mine[:0]] * self.size, rows)
        return found[root].view(x.shape)

    def barrier(self) -> None:
        """See `Collective.barrier`; waits for all ranks of the whole."""
        self.whole.barrier()

    def allgather_object(self, value: Any) -> list[Any]:
        """See `Collective.allgather_object`."""
        return [decode_object(raw) for raw in self.allgather(encode_object(value))]


def parts_by(collective: Collective, label: str) -> tuple[Subgroup, Subgroup]:
    """The ranks of this one's label (its host), and the ranks that have this one's place under their label.

    Raises:
        ValueError: labels have unequal numbers of ranks, so that places have no partners everywhere.
    """
    labels = collective.allgather_object(label)
    by_label: dict[str, list[int]] = {}
    for rank, each in enumerate(labels):
        by_label.setdefault(each, []).append(rank)
    if len({len(ranks) for ranks in by_label.values()}) != 1:
        counts = ", ".join(f"{each}: {len(ranks)}" for each, ranks in by_label.items())
        raise ValueError(f"every host must have as many ranks as the others; got {counts}")
    inside = by_label[label]
    place = inside.index(collective.rank)
    return Subgroup(collective, inside), Subgroup(collective, sorted(ranks[place] for ranks in by_label.values()))
