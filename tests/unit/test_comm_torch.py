"""What the torch transport asks gloo for, without a network; tests/distributed/test_launch.py has the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.comm import CollectiveError, torch_dist
from headrace.comm.torch_dist import TorchCollective


class Group:
    """Rank 1 of 3: writes down what it is asked for; what arrives is the number of the rank it comes from."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int, int]] = []

    def init_process_group(self, *args: Any, **options: Any) -> None:
        """Nobody is met."""

    def get_rank(self) -> int:
        return 1

    def get_world_size(self) -> int:
        return 3

    def irecv(self, x: Tensor, source: int, tag: int) -> Work:
        self.calls.append(("ask", source, x.numel(), tag))
        return Work(lambda: x.fill_(source))

    def isend(self, x: Tensor, to: int, tag: int) -> Work:
        self.calls.append(("send", to, x.numel(), tag))
        return Work(lambda: x)


class Work:
    def __init__(self, done: Callable[[], Any]) -> None:
        self.wait = done


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    made = Group()
    monkeypatch.setattr(torch_dist, "dist", made)
    return made


def test_what_is_to_come_is_asked_for_before_anything_is_sent(group: Group) -> None:
    """Else a link carries one direction after the other: docs/exchange.md."""
    c = TorchCollective()
    chunks = [torch.full((n,), 9, dtype=torch.uint8) for n in (2, 5, 0)]
    parts = c.alltoall(chunks, rows=[3, 5, 4])
    assert [(what, rank, n) for what, rank, n, _ in group.calls] == [("ask", 0, 3), ("ask", 2, 4), ("send", 0, 2)]
    assert [part.tolist() for part in parts] == [[0] * 3, [9] * 5, [2] * 4]
    c.allgather(torch.zeros(1), rows=[1, 1, 1])
    assert [what for what, *_ in group.calls[3:]] == ["ask", "ask", "send", "send"]
    assert len({tag for *_, tag in group.calls[:3]}) == 1
    assert {tag for *_, tag in group.calls[:3]}.isdisjoint(tag for *_, tag in group.calls[3:])


@pytest.mark.parametrize("rows", [[1, 3, 1], [1, 0, 1], [1], [1, 1, 1, 1]])
def test_rows_that_are_not_ones_own_are_refused_before_anyone_waits(group: Group, rows: list[int]) -> None:
    with pytest.raises(CollectiveError, match="are not those that come"):
        TorchCollective().allgather(torch.ones(1, dtype=torch.uint8), rows)
    assert not group.calls
