"""Mailboxes of a simulated cluster: messages come when its network has brought them."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from torch import Tensor

from headrace.comm.base import CollectiveError, check_root
from headrace.comm.mailbox import Message, check_message, message_bytes
from headrace.comm.simulated_network import Network
from headrace.comm.virtual_time import Fiber, Scheduler


class SimulatedPost:
    """The boxes of all ranks, and what is on its way to them.

    A rank that is gone is news: others hear of it a latency later, and read what was on its way to them before.
    """

    def __init__(self, scheduler: Scheduler, network: Network) -> None:
        self.scheduler, self.network = scheduler, network
        self.waiting: list[dict[str, Fiber]] = [{} for _ in range(network.size)]
        self.closed: dict[int, str] = {}
        self._boxes: list[defaultdict[str, deque[Message]]] = [defaultdict(deque) for _ in range(network.size)]
        self._on_the_way = [0] * network.size
        self._gone: str | None = None

    def send(self, to: int, box: str, message: Message) -> None:
        """Send a message on its way."""
        now, nbytes = self.scheduler.now, message_bytes(message.head, message.body)
        crc = zlib.crc32(message.body.numpy().data)
        self.scheduler.trace("send", message.source, to, box, message.kind, message.head, nbytes, crc)
        self._on_the_way[to] += 1
        if to == message.source:
            self._deliver(to, box, message)
            return
        first, last = self.network.depart(now, message.source, to, nbytes)
        self.scheduler.at(first, lambda: self._reach(to, box, message, nbytes, last))

    def take(self, rank: int, box: str) -> Message | None:
        """The next message of a box, None where there is none yet.

        Raises:
            CollectiveError: and none will come.
        """
        if queue := self._boxes[rank][box]:
            return queue.popleft()
        if reason := self.reason(rank):
            raise CollectiveError(reason)
        return None

    def reason(self, rank: int) -> str | None:
        """Why nothing more comes to a rank."""
        return self.closed.get(rank) or (None if self._on_the_way[rank] else self._gone)

    def leave(self, rank: int, reason: str, news: str) -> None:
        """A rank is gone; `reason` is what its own threads are told, `news` what the others are."""
        if rank not in self.closed:
            self.closed[rank] = reason
            self._wake(rank)
            self.scheduler.at(self.scheduler.now + self.network.longest_latency, lambda: self._spread(news))

    def _reach(self, to: int, box: str, message: Message, nbytes: int, last: float) -> None:
        time = self.network.arrive(self.scheduler.now, to, nbytes, last)
        self.scheduler.at(time, lambda: self._deliver(to, box, message))

    def _deliver(self, to: int, box: str, message: Message) -> None:
        self.scheduler.trace("come", message.source, to, box)
        self._on_the_way[to] -= 1
        self._boxes[to][box].append(message)
        if box in self.waiting[to]:
            self.scheduler.wake(self.waiting[to][box], self.scheduler.now)
        if self.reason(to):
            self._wake(to)

    def _spread(self, text: str) -> None:
        if self._gone is None:
            self._gone = text
            for rank in range(self.network.size):
                if self.reason(rank):
                    self._wake(rank)

    def _wake(self, rank: int) -> None:
        for fiber in self.waiting[rank].values():
            self.scheduler.wake(fiber, self.scheduler.now)


class SimulatedMailbox:
    """One rank's end of a `SimulatedPost`."""

    def __init__(self, post: SimulatedPost, rank: int) -> None:
        check_root(rank, post.network.size)
        self._post = post
        self.rank = rank
        self.size = post.network.size

    def send(self, to: int, box: str, kind: str, head: Any = None, body: Tensor | None = None) -> None:
        """See `Mailbox.send`; takes the sender no time, however long its line is busy."""
        message = Message(self.rank, kind, json.loads(json.dumps(head)), check_message(self, to, body))
        scheduler = self._post.scheduler
        if reason := scheduler.reason or self._post.reason(self.rank):
            raise CollectiveError(reason)
        if to in self._post.closed:
            raise CollectiveError(f"rank {to} is gone")
        assert scheduler.current.rank == self.rank, "a mailbox belongs to the threads of its rank"
        self._post.send(to, box, message)

    def receive(self, box: str, timeout_s: float | None = None) -> Message | None:
        """See `Mailbox.receive`; seconds of virtual time."""
        scheduler, fiber = self._post.scheduler, self._post.scheduler.current
        assert fiber.rank == self.rank, "a mailbox belongs to the threads of its rank"
        until = None if timeout_s is None else fiber.time + timeout_s
        while (message := self._post.take(self.rank, box)) is None:
            if until is not None and fiber.time >= until:
                scheduler.spend(0.0)  # others of this very time first: who asks again and again must not keep them off
                return self._post.take(self.rank, box)
            self._wait(box, until, fiber)
        return message

    def serve(self, box: str, handler: Callable[[Message], None]) -> None:
        """See `Mailbox.serve`."""

        def run() -> None:
            while (message := self.receive(box)) is not None:
                handler(message)

        self._post.scheduler.spawn(self.rank, f"box {box}", run)

    def close(self) -> None:
        """See `Mailbox.close`."""
        self._post.leave(self.rank, "this mailbox was closed", f"rank {self.rank} closed its mailbox")

    def _wait(self, box: str, until: float | None, fiber: Fiber) -> None:
        waiting = self._post.waiting[self.rank]
        assert box not in waiting, f"one thread reads a box; two read {box!r}"
        waiting[box] = fiber
        try:
            self._post.scheduler.wait(lambda: f"a message in box {box!r}", until)
        finally:
            del waiting[box]
