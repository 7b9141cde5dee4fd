"""Groups by messages: what a Subgroup gives, when their members like."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from contract.parallel_ranks import on_ranks, values_of

from headrace.comm import Collective, CollectiveError, LocalGroup
from headrace.comm.message_group import MessageGroup
from headrace.comm.subgroup import Subgroup

PARTS = ([0, 2], [1, 3, 4])


def operations(c: Collective, rank: int) -> list[Any]:
    """Every operation once, of numbers that differ by rank."""
    g = torch.Generator().manual_seed(rank)
    ragged = [torch.randn((rank + place) % 3, 2, generator=g) for place in range(c.size)]
    results: list[Any] = [c.allreduce(torch.randn(7, 3, generator=g)), *c.alltoall(ragged), *c.allgather(ragged[0])]
    results += c.allgather(torch.randn(4, generator=g).to(torch.bfloat16), [4] * c.size)
    results += [c.broadcast(torch.randn(3, generator=g), root=c.size - 1), c.allreduce(torch.tensor([1 << 60, rank]))]
    c.barrier()
    return [*results, *c.allgather(torch.zeros(2, 0)), *c.allgather_object({"rank": rank})]


def test_operations_are_those_of_a_subgroup() -> None:
    def rank(c: Any, mailbox: Any) -> tuple[list[Any], list[Any]]:
        members = next(part for part in PARTS if c.rank in part)
        group = MessageGroup(mailbox, members, "group")
        assert (group.size, members[group.rank]) == (len(members), c.rank)
        return operations(group, c.rank), operations(Subgroup(c, members), c.rank)

    for found, wanted in values_of(on_ranks(5, rank)):
        for one, two in zip(found, wanted, strict=True):
            assert torch.equal(one, two) and one.dtype == two.dtype if torch.is_tensor(one) else one == two


def test_members_need_nobody_else() -> None:
    """One group is through with everything before the other begins; a Subgroup would wait for ever."""
    through = threading.Event()

    def rank(c: Any, mailbox: Any) -> float:
        group = MessageGroup(mailbox, [0, 1] if c.rank < 2 else [2, 3], "group")
        if c.rank >= 2:
            assert through.wait(30.0)
        total = float(sum(group.allreduce(torch.tensor([float(c.rank)]))[0] for _ in range(3)))
        if c.rank < 2:
            group.barrier()
            through.set()
        return total

    assert values_of(on_ranks(4, rank)) == [3.0, 3.0, 15.0, 15.0]


def test_what_was_sent_does_not_change_with_the_tensor() -> None:
    def rank(c: Any, mailbox: Any) -> list[list[float]]:
        group, x = MessageGroup(mailbox, [0, 1], "group"), torch.ones(2)
        found = group.allgather(x)
        x.zero_()
        found[c.rank].mul_(2.0)
        c.barrier()
        return [part.tolist() for part in found]

    assert values_of(on_ranks(2, rank)) == [[[2.0, 2.0], [1.0, 1.0]], [[1.0, 1.0], [2.0, 2.0]]]


def test_something_else_and_nothing_are_errors() -> None:
    post = LocalGroup(2)
    group = MessageGroup(post.mailbox(0), [0, 1], "group", timeout_s=0.05)
    with pytest.raises(CollectiveError, match=r"no answer from rank 1 within 0.05 s in group group"):
        group.allgather(torch.zeros(2))
    for kind, count, size in (
        ("torch.float64 []", 2, 8), ("torch.float32 []", 2, 7), ("torch.float32 []", 3, 12),
        ("torch.float32 []", -2, 8), ("torch.float32 []", None, 8), ("torch.float32 []", "2", 8),
    ):  # fmt: skip
        post.mailbox(1).send(0, "group.1", kind, count, torch.zeros(size, dtype=torch.uint8))
        with pytest.raises(CollectiveError, match=f"{size} bytes of {kind[:13]}"):
            group.allgather(torch.zeros(2), [2, 2])
    for members in ([1], [1, 0], [0, 0, 1]):
        with pytest.raises(ValueError, match="ascending"):
            MessageGroup(post.mailbox(0), members, "group")
