"""Work on hostile items in a forked child: what hangs, crashes or eats memory costs its item, not the job.

The child arms alarms before an item, with the default action, so the kernel ends it wherever it hangs, also inside a C
library, and also when nobody is left to wait for it: one of its CPU time, which a busy machine does not shorten, and a
later one of the clock. Its address space is bounded. The next item gets a new child. Fork after loading models:
children share them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

_CLOCK_FACTOR = 10
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Lost:
    """An item without a result: timeout, memory, crashed or failed, and what is known beside."""

    reason: str
    detail: str = ""


class Guarded(Generic[T, R]):
    """Call a function in a child process, within limits.

    Args:
        work: what to do with an item; items and results are pickled.
        seconds: CPU time an item may take; by the clock, ten times as long.
        memory_bytes: the child may grow by so much.
    """

    def __init__(self, work: Callable[[T], R], *, seconds: float, memory_bytes: int) -> None:
        self._work, self._seconds, self._memory_bytes = work, seconds, memory_bytes
        self._child: tuple[Any, Connection] | None = None

    def __call__(self, item: T) -> R | Lost:
        """The result, or why there is none."""
        process, connection = self._child or self._start()
        try:
            connection.send(item)
            result: R | Lost = connection.recv()
            return result
        except (EOFError, OSError):
            return self._end(process, connection)

    def close(self) -> None:
        """End the child."""
        if self._child:
            self._end(*self._child)

    def __enter__(self) -> Guarded[T, R]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, ours, self._work, self._seconds, self._memory_bytes))
        process.daemon = True
        process.start()
        theirs.close()
        self._child = process, ours
        return self._child

    def _end(self, process: Any, connection: Connection) -> Lost:
        self._child = None
        connection.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        code = process.exitcode
        return Lost("timeout") if code in (-signal.SIGPROF, -signal.SIGALRM) else Lost("crashed", f"exit code {code}")


def _serve(
    connection: Connection, other_end: Connection, work: Callable[[Any], Any], seconds: float, memory_bytes: int
) -> None:
    """The child: one item after the other until the parent closes the pipe."""
    other_end.close()
    faulthandler.disable()  # a child that crashes is expected
    for number in (signal.SIGPROF, signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _bound_memory(memory_bytes)
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = connection.recv()
            _alarm(seconds)
            result = _attempt(work, item)
            _alarm(0)
            connection.send(result)
    os._exit(0)


def _alarm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * _CLOCK_FACTOR)


def _attempt(work: Callable[[Any], Any], item: Any) -> Any:
    try:
        return work(item)
    except MemoryError:
        return Lost("memory")
    except Exception as error:
        return Lost("failed", f"{type(error).__name__}: {error}"[:200])


def _bound_memory(more: int) -> None:
    """Let the address space grow by `more` bytes over what it is now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
