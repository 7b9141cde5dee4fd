"""All mailboxes pass one exam, and release everybody when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract.mailbox_exam import TRANSPORTS, WAIT_S, check_mailbox, ends

from headrace.comm import Collective, Mailbox, Message, MeteredMailbox

Run = Callable[[int, Callable[[Mailbox, Collective], Any]], list[Any]]


@pytest.fixture(params=TRANSPORTS)
def run(request: pytest.FixtureRequest) -> Run:
    return TRANSPORTS[request.param]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("wrap", [lambda box: box, MeteredMailbox], ids=["bare", "metered"])
def test_exam(run: Run, size: int, wrap: Callable[[Mailbox], Mailbox]) -> None:
    assert run(size, lambda box, c: check_mailbox(wrap(box), c)) == [6] * size


def test_who_closes_releases_all_after_what_has_come(run: Run) -> None:
    def fn(box: Mailbox, c: Collective) -> list[Any]:
        if box.rank == 1:
            box.send(0, "a", "last")
            box.close()
            box.close()
            return [ends(lambda: box.receive("a")), ends(lambda: box.send(0, "a", "x"))]
        first = box.receive("a", WAIT_S) if box.rank == 0 else None
        return [first and first.kind, ends(lambda: box.receive("a")), ends(lambda: box.receive("b", WAIT_S))]

    left, closed, right = run(3, fn)
    assert closed == ["this mailbox was closed"] * 2
    assert left == ["last", *["rank 1 closed its mailbox"] * 2]
    assert right == [None, *["rank 1 closed its mailbox"] * 2]


def test_a_service_that_fails_is_the_end_for_all(run: Run) -> None:
    def fail(message: Message) -> None:
        raise KeyError("boom")

    def fn(box: Mailbox, c: Collective) -> str:
        if box.rank == 2:
            box.serve("bad", fail)
        if box.rank == 0:
            box.send(2, "bad", "x")
        return ends(lambda: box.receive("answers"))

    for told in run(3, fn):
        assert "rank 2" in told and "KeyError('boom')" in told


def test_handlers_of_a_closed_mailbox_end(run: Run) -> None:
    def fn(box: Mailbox, c: Collective) -> int:
        seen: list[int] = []
        box.serve("numbers", lambda message: seen.append(message.head))
        for k in range(3):
            box.send(box.rank, "numbers", "n", k)
        while len(seen) < 3:
            box.receive("nothing", 1e-3)
        c.barrier()
        box.close()
        return len(seen)

    assert run(2, fn) == [3, 3]


def test_metered_counts_body_and_head_by_kind(run: Run) -> None:
    def fn(box: Mailbox, c: Collective) -> Any:
        m = MeteredMailbox(box)
        m.send((box.rank + 1) % 2, "a", "push", {"n": 1}, torch.zeros(100, dtype=torch.uint8))
        m.send((box.rank + 1) % 2, "a", "push", None, torch.zeros(7, dtype=torch.uint8))
        m.send((box.rank + 1) % 2, "a", "pull")
        m.send(box.rank, "a", "push", "to oneself: free", torch.zeros(7, dtype=torch.uint8))
        got = [m.receive("a", WAIT_S) for _ in range(4)]
        c.barrier()
        return dict(m.sent), dict(m.messages), m.sent_bytes, len(got)

    body_and_head = 100 + len('{"n": 1}') + 7
    for found in run(2, fn):
        assert found == ({"push": body_and_head, "pull": 0}, {"push": 2, "pull": 1}, body_and_head, 4)
