"""The local collective passes the exam, and releases everybody when something is wrong.

Horovod and torch.distributed sit the same exam in tests/distributed/test_launch.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from contract.collective_exam import check_collective, on_ranks

from headrace.comm import Collective, CollectiveError, LocalCollective, LocalGroup, Metered


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("wrap", [lambda c: c, Metered], ids=["bare", "metered"])
def test_exam(size: int, wrap: Callable[[Collective], Collective]) -> None:
    assert on_ranks(size, lambda c: check_collective(wrap(c))) == [10] * size


def test_is_a_collective() -> None:
    assert isinstance(LocalGroup(1).collective(0), Collective)
    assert isinstance(Metered(LocalGroup(1).collective(0)), Collective)


def test_an_error_releases_the_others() -> None:
    def fn(c: LocalCollective) -> None:
        if c.rank == 1:
            raise KeyError("boom")
        c.allreduce(torch.ones(2))

    first, cause, third = on_ranks(3, fn, timeout_s=None)
    assert isinstance(cause, KeyError)
    for released in (first, third):
        assert isinstance(released, CollectiveError)
        assert "rank 1 failed: KeyError('boom')" in str(released)


def test_different_operations_are_named() -> None:
    def fn(c: LocalCollective) -> None:
        c.barrier() if c.rank == 0 else c.allreduce(torch.ones(2))

    for error in on_ranks(2, fn):
        assert isinstance(error, CollectiveError)
        assert "allreduce torch.float32 [2]" in str(error) and "barrier" in str(error)


def test_different_shapes_are_named() -> None:
    for error in on_ranks(2, lambda c: c.allreduce(torch.ones(2 + c.rank))):
        assert isinstance(error, CollectiveError)
        assert "[2]" in str(error) and "[3]" in str(error)


def test_rows_that_do_not_come_are_refused() -> None:
    """Transports that cut what they receive by `rows` would not notice: this one is what callers are tested with."""
    calls: list[Callable[[LocalCollective], object]] = [
        lambda c: c.allgather(torch.ones(c.rank, 2), [1, 0]),
        lambda c: c.alltoall([torch.ones(c.rank), torch.ones(c.rank)], [1, 0]),
    ]
    for call in calls:
        for error in on_ranks(2, call):
            assert isinstance(error, CollectiveError) and "[0, 1] rows came" in str(error)


def test_nobody_waits_longer_than_the_timeout() -> None:
    for error in on_ranks(2, lambda c: None if c.rank else c.barrier(), timeout_s=0.05):
        assert error is None or "no answer from every rank within 0.05 s" in str(error)


@pytest.mark.parametrize("first", ["leaver", "waiter"])
def test_a_rank_that_ends_early_releases_those_who_wait(first: str) -> None:
    group, errors = LocalGroup(2, timeout_s=None), []

    def wait() -> None:
        try:
            group.collective(0).barrier()
        except CollectiveError as error:
            errors.append(str(error))

    waiter = threading.Thread(target=wait)
    if first == "leaver":
        group.leave(1)
        waiter.start()
    else:
        waiter.start()
        while not group._calls[0]:
            pass
        group.leave(1)
    waiter.join(20)
    assert errors == ["rank 1 ended while others wait for it"]


def test_metered_counts_what_the_formulas_say() -> None:
    def fn(c: LocalCollective) -> dict[str, int]:
        m = Metered(c)
        m.allreduce(torch.zeros(12))  # 48 bytes
        m.allreduce(torch.zeros(12, dtype=torch.bfloat16))  # travels as float32
        m.allgather(torch.zeros(2 + c.rank, 3, dtype=torch.float64))
        m.alltoall([torch.zeros(10 * j, dtype=torch.uint8) for j in range(c.size)])
        m.broadcast(torch.zeros(5), root=2)
        m.barrier()
        m.allgather_object([1])
        assert m.sent_bytes == sum(m.sent.values())
        return dict(m.sent)

    for rank, sent in enumerate(on_ranks(3, fn)):
        assert sent == {
            "allreduce": 2 * (2 * 2 * 48 // 3),
            "allgather": 2 * (2 + rank) * 3 * 8,
            "alltoall": 10 * (0 + 1 + 2) - 10 * rank,
            "broadcast": 2 * 20 if rank == 2 else 0,
            "barrier": 0,
            "object": 2 * len("[1]"),
        }
