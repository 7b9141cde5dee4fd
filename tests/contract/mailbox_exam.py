"""What every Mailbox must do, run by each rank of a group; and the transports it is run over.

Written so that it can be shipped to other processes by value: it uses nothing of the test framework.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from contract.collective_exam import on_ranks

from headrace.comm import (
    Collective,
    CollectiveError,
    LocalCollective,
    Mailbox,
    Message,
    Metered,
    SimulatedCluster,
    open_mailbox,
)
from headrace.comm.tcp_mailbox import MailboxLimits, TcpMailbox

KEY = b"k" * 32
WAIT_S = 60.0


def tcp_mailbox(c: Collective, limits: MailboxLimits | None = None, key: bytes = KEY) -> TcpMailbox:
    """A mailbox over TCP between threads."""
    return TcpMailbox(c, key, "127.0.0.1", limits or MailboxLimits(linger_s=5.0))


def _local(size: int, fn: Callable[[Mailbox, Collective], Any]) -> list[Any]:
    return on_ranks(size, lambda c: fn(open_mailbox(Metered(c), KEY), c))


def _tcp(size: int, fn: Callable[[Mailbox, Collective], Any]) -> list[Any]:
    def one(c: LocalCollective) -> Any:
        box = tcp_mailbox(c)
        try:
            return fn(box, c)
        finally:
            box.close()

    return on_ranks(size, one)


def _simulated(size: int, fn: Callable[[Mailbox, Collective], Any]) -> list[Any]:
    cluster = SimulatedCluster(size, latency_s=1e-3, bandwidth=1e9, jitter=0.1)
    results: list[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            results[rank] = fn(open_mailbox(cluster.collective(rank), KEY), cluster.collective(rank))
        except Exception as error:
            results[rank] = error

    try:
        cluster.run(one)
    except Exception as error:
        return [error if result is None else result for result in results]
    return results


TRANSPORTS: dict[str, Callable[[int, Callable[[Mailbox, Collective], Any]], list[Any]]] = {
    "local": _local,
    "simulated": _simulated,
    "tcp": _tcp,
}


def check_mailbox(box: Mailbox, c: Collective) -> int:
    """Run all checks on this rank; the number of checks, or AssertionError."""
    checks = (_content, _order, _boxes_apart, _timeouts, _services, _refuses)
    for check in checks:
        check(box, c)
        c.barrier()
    return len(checks)


def _of(rank: int, n: int) -> torch.Tensor:
    return (torch.arange(n) * (2 * rank + 1) + n).to(torch.uint8)


def _get(box: Mailbox, name: str) -> Message:
    message = box.receive(name, WAIT_S)
    assert message is not None, f"nothing came to box {name}"
    return message


def _content(box: Mailbox, c: Collective) -> None:
    heads = [None, 0, "é", [1, [2.5, None]], {"a": {"b": True}}]
    sizes = [0, 1, 999, 70_000, (1 << 20) + 5]
    for to in range(box.size):
        for head, n in zip(heads, sizes, strict=True):
            box.send(to, "content", f"kind {n}", head, _of(box.rank, n) if n else None)
    found: dict[int, list[Message]] = {rank: [] for rank in range(box.size)}
    for _ in range(box.size * len(heads)):
        message = _get(box, "content")
        found[message.source].append(message)
    for rank, messages in found.items():
        assert [m.head for m in messages] == heads
        for m, n in zip(messages, sizes, strict=True):
            assert m.kind == f"kind {n}" and m.body.dtype == torch.uint8 and torch.equal(m.body, _of(rank, n))


def _order(box: Mailbox, c: Collective) -> None:
    for k in range(40):
        for to in range(box.size):
            box.send(to, "order", "n", k, _of(box.rank, 50_000 if k % 7 == 0 else 1))
    came: dict[int, list[int]] = {rank: [] for rank in range(box.size)}
    for _ in range(40 * box.size):
        message = _get(box, "order")
        came[message.source].append(message.head)
    assert came == {rank: list(range(40)) for rank in range(box.size)}
    assert box.receive("order", 0.0) is None


def _boxes_apart(box: Mailbox, c: Collective) -> None:
    to = (box.rank + 1) % box.size
    for name in ("first", "second", "third"):
        box.send(to, name, name)
    assert [_get(box, name).kind for name in ("third", "first", "second")] == ["third", "first", "second"]
    assert box.receive("fourth", 0.0) is None


def _timeouts(box: Mailbox, c: Collective) -> None:
    assert box.receive("late", 0.0) is None
    assert box.receive("late", 0.01) is None
    c.barrier()
    box.send((box.rank + 1) % box.size, "late", "came")
    assert _get(box, "late").source == (box.rank - 1) % box.size


def _services(box: Mailbox, c: Collective) -> None:
    """A counter on every rank that all add to; handlers answer, and run one at a time."""
    total = [0]

    def add(message: Message) -> None:
        total[0] += message.head
        box.send(message.source, "answers", "total", [box.rank, total[0]], message.body)

    box.serve("adding", add)
    for k in range(1, 6):
        for to in range(box.size):
            box.send(to, "adding", "add", k, _of(box.rank, 10 * k))
    answers = [_get(box, "answers") for _ in range(5 * box.size)]
    for to in range(box.size):
        totals = [m.head[1] for m in answers if m.source == to]
        assert totals == sorted(totals) and len(totals) == 5 and all(m.head[0] == to for m in answers if m.source == to)
        assert [m.body.numel() for m in answers if m.source == to] == [10, 20, 30, 40, 50]
    assert max(m.head[1] for m in answers) <= 15 * box.size


def _refuses(box: Mailbox, c: Collective) -> None:
    for to, head, body in (
        (box.size, None, None),
        (-1, None, None),
        (0, object(), None),
        (0, None, torch.zeros(3)),
        (0, None, torch.zeros(2, 2, dtype=torch.uint8)),
        (0, None, torch.zeros(6, dtype=torch.uint8)[::2]),
    ):
        try:
            box.send(to, "refused", "x", head, body)
        except (TypeError, ValueError):
            continue
        raise AssertionError("what is no message was sent")
    assert box.receive("refused", 0.0) is None


def ends(call: Callable[[], Any]) -> str:
    """What a call's CollectiveError says."""
    try:
        found = call()
    except CollectiveError as error:
        return str(error)
    raise AssertionError(f"a call came back with {found!r} instead of an error")
