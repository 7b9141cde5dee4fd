"""Threads that run one at a time, in the order of a virtual time: a program of many threads that repeats exactly.

A thread runs until it spends time, waits, or ends; then the baton goes to the earliest that can go on, equal times in
the order in which they were set. Events without a thread (a message on its way) come before threads of the same time.
What runs between costs no virtual time. So nothing depends on the machine: not on its speed, its load, or its cores.
"""

from __future__ import annotations

import hashlib
import heapq
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch

from headrace.comm.base import CollectiveError

# Virtual memory only: 1,000 threads take what they touch.
_STACK_BYTES = 2 << 20
_MAX_IDLE_TURNS = 10_000
_MAX_TOLD = 20


class Deadlock(CollectiveError):  # noqa: N818 - the thing's name
    """Nobody can go on; the message says who waits for what."""


class Fiber:
    """One thread that takes part.

    Attributes:
        rank: whose it is.
        main: whether the rank ends with it.
        time: its virtual time, seconds.
        waits_for: says what, while it waits.
        turns: how often it gave the baton away without its time going on.
        spends: how often it said that it computed.
    """

    def __init__(self, rank: int, name: str, main: bool, time: float) -> None:
        self.rank, self.name, self.main, self.time = rank, name, main, time
        self.waits_for: Callable[[], str] | None = None
        self.turns = self.spends = self.token = 0
        self.baton = threading.Lock()
        self.baton.acquire()

    def __str__(self) -> str:
        return f"rank {self.rank}" if self.main else f"rank {self.rank} ({self.name})"


class Scheduler:
    """Virtual time and who runs in it.

    Args:
        stall_s: real seconds one thread may run without giving the baton away before the run is given up: it then waits
            for a lock that a waiting thread holds.
    """

    def __init__(self, stall_s: float = 600.0) -> None:
        self.reason: str | None = None
        self.failure: BaseException | None = None
        self.now = 0.0
        self.digest = hashlib.sha256()
        self._stall_s = stall_s
        self._heap: list[tuple[float, int, int, Fiber | Callable[[], None], int]] = []
        self._pushed = self._switches = self._mains = 0
        self._fibers: dict[Fiber, None] = {}
        self._local = threading.local()
        self._running: Fiber | None = None
        self._done = threading.Event()
        self._interrupted = False

    @property
    def here(self) -> Fiber | None:
        """The thread that asks; None where it is none of these."""
        return getattr(self._local, "fiber", None)

    @property
    def current(self) -> Fiber:
        """The thread that asks."""
        if (fiber := self.here) is None:
            raise RuntimeError("only threads of the simulated cluster may do this; start others by `spawn` or `serve`")
        return fiber

    def trace(self, *facts: Any) -> None:
        """Add what happened now to the digest by which two runs are compared."""
        self.digest.update(repr((self.now.hex(), *facts)).encode())

    def spawn(self, rank: int, name: str, fn: Callable[[], Any], *, main: bool = False) -> None:
        """Start a thread at the time of the one that asks; what it raises ends the run."""
        fiber = Fiber(rank, name, main, self.now)
        self._fibers[fiber] = None
        self._mains += main
        thread = threading.Thread(target=self._thread, args=(fiber, fn), name=f"headrace-{rank}-{name}", daemon=True)
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
        self._push(fiber.time, fiber, 0)

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self._push(time, action, 0)

    def spend(self, seconds: float) -> None:
        """Let the thread's time go on; others run meanwhile, also those of this very time where it is 0."""
        fiber = self._may_go_on()
        fiber.time += seconds
        fiber.turns = 0 if seconds > 0 else fiber.turns + 1
        if fiber.turns > _MAX_IDLE_TURNS:
            raise RuntimeError(f"{fiber} asks again and again at {fiber.time} s and spends no time: nothing can come")
        self._push(fiber.time, fiber, fiber.token)
        self._pass_on(fiber)
        self._may_go_on()

    def wait(self, what: Callable[[], str], until: float | None = None) -> None:
        """Wait until woken or until a time.

        Raises:
            CollectiveError: the run ended meanwhile.
        """
        fiber = self._may_go_on()
        fiber.waits_for, fiber.turns = what, 0
        if until is not None:
            self._push(until, fiber, fiber.token)
        self._pass_on(fiber)
        self._may_go_on()

    def wake(self, fiber: Fiber, time: float) -> None:
        """Let a waiting thread go on at a time, unless it does before."""
        self._push(time, fiber, fiber.token)

    def abort(self, reason: str, failure: BaseException | None = None) -> None:
        """Release whoever waits or spends, now and later, and let `run` raise; the first reason stays."""
        if self.reason is None:
            self.failure = failure or CollectiveError(reason)
            self._release(reason)

    def run(self) -> None:
        """Run until all threads have ended.

        Raises:
            BaseException: what ended a thread, with a note that says which.
        """
        threads = torch.get_num_threads()
        self._hand_over(None)
        seen, waited = -1, 0.0
        try:
            while not self._done.wait(1.0):
                seen, waited = (seen, waited + 1.0) if seen == self._switches else (self._switches, 0.0)
                if waited > self._stall_s:
                    raise RuntimeError(self._stalled())
        except BaseException:
            self._interrupted = True
            raise
        finally:
            torch.set_num_threads(threads)
        if self.failure is not None:
            raise self.failure

    def _push(self, time: float, what: Fiber | Callable[[], None], token: int) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (time, int(isinstance(what, Fiber)), self._pushed, what, token))

    def _thread(self, fiber: Fiber, fn: Callable[[], Any]) -> None:
        self._local.fiber = fiber
        fiber.baton.acquire()
        torch.set_num_threads(1)  # thread by thread: else every rank would start a pool of its own
        try:
            if self.reason is None:
                fn()
        except BaseException as error:
            self._failed(fiber, error)
        del self._fibers[fiber]
        self._mains -= fiber.main
        if not self._mains:
            self._release("all ranks have ended")
        self._hand_over(fiber)

    def _failed(self, fiber: Fiber, error: BaseException) -> None:
        released = isinstance(error, CollectiveError) and self.reason is not None
        if not released:
            error.add_note(f"in {fiber} of the simulated cluster, at {fiber.time} s")
            self.abort(f"{fiber} failed: {error!r}", error)

    def _release(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            for fiber in self._fibers:
                if fiber.waits_for is not None:
                    self.wake(fiber, self.now)

    def _may_go_on(self) -> Fiber:
        fiber = self.current
        if self._interrupted:
            raise CollectiveError("the simulated cluster was given up")
        if self.reason is not None:
            raise CollectiveError(self.reason)
        return fiber

    def _pass_on(self, fiber: Fiber) -> None:
        """Give the baton to whoever is next and wait until it comes back."""
        if self._hand_over(fiber):
            fiber.baton.acquire()

    def _hand_over(self, fiber: Fiber | None) -> bool:
        """Give the baton away; False where it stays."""
        following = self._next()
        self._switches += 1
        if following is None:
            self._done.set()
        elif following is not fiber:
            self._running = following
            following.baton.release()
        return following is not fiber

    def _next(self) -> Fiber | None:
        """The earliest that can go on, its time set; None where all have ended."""
        while self._fibers:
            if not self._heap:
                self._give_up()
                continue
            time, _, _, what, token = heapq.heappop(self._heap)
            if not isinstance(what, Fiber):
                self.now = time
                what()
            elif what in self._fibers and what.token == token:
                what.token += 1
                what.waits_for = None
                self.now = what.time = max(what.time, time)
                return what
        return None

    def _give_up(self) -> None:
        waiting = [f"{f} waits for {f.waits_for()} since {f.time} s" for f in self._fibers if f.waits_for]
        more = [f"and {len(waiting) - _MAX_TOLD} more"] if len(waiting) > _MAX_TOLD else []
        text = "nobody can go on: " + "; ".join(waiting[:_MAX_TOLD] + more)
        assert self.reason is None, text
        self.abort(text, Deadlock(text))

    def _stalled(self) -> str:
        fiber = self._running
        frames = sys._current_frames()
        threads = [t.ident for t in threading.enumerate() if fiber and t.name == f"headrace-{fiber.rank}-{fiber.name}"]
        stack = "".join(traceback.format_stack(frames[threads[0]])) if threads and threads[0] in frames else ""
        return (
            f"{fiber} has run for {self._stall_s} s without a word: it may wait for a lock that another thread holds "
            f"over `send`, `receive` or `spend`\n{stack}"
        )
