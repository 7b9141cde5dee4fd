"""The driver's side of a launched job: follows the ranks, ends the job when one fails, leaves no process behind."""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import psutil

from headrace.launch.channel import Driver, Peer, hostname
from headrace.launch.worker import LaunchOptions, RankResult

# After the first failure the others have this long to fail by themselves, then they are told to end.
_RELEASE_S = 10.0
_JOIN_S = 20.0
_TICK_S = 0.2


class Backend(Protocol):
    """Starts the processes of a job and waits for them."""

    def run(self) -> None:
        """Block until every process has ended; raises where one did not end well."""

    def abort(self, *, hard: bool) -> None:
        """Make `run` end, from another thread: in its own good order, or (hard) by cancelling its Spark job."""


@dataclass(frozen=True)
class Limits:
    """How long a job may take, and what a stop request is."""

    options: LaunchOptions
    stop: threading.Event
    timeout_s: float | None


class Supervisor:
    """Follows one job.

    Args:
        backend: starts the ranks.
        end: the driver's end of the channel.
        on_event: called as `on_event(rank, event)` in the calling thread.
        limits: see Limits.
    """

    def __init__(
        self, backend: Backend, end: Driver, on_event: Callable[[int, dict[str, Any]], None], limits: Limits
    ) -> None:
        self._backend, self._end, self._on_event = backend, end, on_event
        self._options, self._stop, self._timeout_s = limits.options, limits.stop, limits.timeout_s
        self._outcomes: dict[int, RankResult] = {}
        self._silent: set[int] = set()
        self._failure: str | None = None
        self._give_up_at: float | None = None
        self._stopping = False
        self._backend_error = ""
        self._began = self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._run_backend, name="headrace-launch", daemon=True)

    def run(self) -> list[RankResult]:
        """Run the job to its end; one result a rank."""
        self._thread.start()
        try:
            while not self._over():
                self._take_one()
                self._watch()
        except BaseException:
            self._end_all()
            raise
        if self._failure is None:
            self._end.tell("bye")
            self._thread.join(_JOIN_S)
        if self._failure is not None or self._thread.is_alive():
            self._end_all()
        return [self._result(rank) for rank in range(self._end.size)]

    def _run_backend(self) -> None:
        try:
            self._backend.run()
        except BaseException as error:
            self._backend_error = f"{type(error).__name__}: {error}"

    def _over(self) -> bool:
        if len(self._outcomes) == self._end.size:
            return True
        if self._give_up_at is not None and time.monotonic() > self._give_up_at:
            return True
        # The launcher is done, nobody is connected, nothing is left to read: the missing ranks never reported.
        connected = any(not peer.lost for peer in list(self._end.peers.values()))
        return not self._thread.is_alive() and not connected and self._end.inbox.empty()

    def _take_one(self) -> None:
        try:
            rank, message = self._end.inbox.get(timeout=_TICK_S)
        except queue.Empty:
            return
        kind = message.get("type")
        if kind == "event":
            self._on_event(rank, message["event"])
        elif kind == "result":
            self._outcomes.setdefault(rank, RankResult(rank, message["value"]))
        elif kind == "error":
            # `released` is kept for ranks whose collective failed because of another rank: settled at the end.
            self._outcomes.setdefault(rank, RankResult(rank, error=message["error"], released=message["collective"]))
            self._fail(f"rank {rank} failed")
        elif kind == "lost" and rank not in self._outcomes:
            self._silent.add(rank)
            self._outcomes[rank] = RankResult(rank, error=f"{self._end.peers[rank]} died")
            self._fail(f"rank {rank} died")

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self._looked > 10 * _TICK_S:
            # This process itself was held up (stopped, or busy in on_event): the ranks' silence proves nothing.
            for peer in list(self._end.peers.values()):
                peer.last_seen = now
        self._looked = now
        self._watch_limits(now)
        for rank, peer in list(self._end.peers.items()):
            silent_s = now - peer.last_seen
            if rank not in self._outcomes and silent_s > self._options.stall_timeout_s:
                text = f"{peer} stalled: not heard of for {silent_s:.0f} s; stopped, or its machine cannot be reached"
                self._outcomes[rank] = RankResult(rank, error=self._with_hint(text))
                # Its connections stay open, so the others would wait for it without end: no time is given to them.
                self._fail(text, 0.0)

    def _watch_limits(self, now: float) -> None:
        options = self._options
        if self._stop.is_set() and not self._stopping:
            self._stopping = True
            self._end.tell("stop")
            self._fail(f"no end within {options.stop_grace_s:.0f} s of the stop request", options.stop_grace_s)
            self._failure = None  # not a failure as long as the ranks end in time
        if self._timeout_s is not None and now - self._began > self._timeout_s:
            self._fail(f"the job took longer than timeout_s = {self._timeout_s:.0f} s", 0.0)
        up = len(self._end.peers)
        if up < self._end.size and now - self._began > options.start_timeout_s:
            self._fail(f"{up} of {self._end.size} ranks came up within {options.start_timeout_s:.0f} s", 0.0)

    def _fail(self, reason: str, give_up_in_s: float = _RELEASE_S) -> None:
        """Remember the first reason; the job is given up at the earliest of the dates set."""
        self._failure = self._failure or reason
        at = time.monotonic() + give_up_in_s
        self._give_up_at = at if self._give_up_at is None else min(at, self._give_up_at)

    def _end_all(self) -> None:
        """Tell, abort, then kill; whatever runs on this machine is gone when this returns."""
        self._end.tell("abort")
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline and any(not p.lost for p in list(self._end.peers.values())):
            time.sleep(0.05)
        for peer in list(self._end.peers.values()):
            kill(peer)
        for hard in (False, True):
            if self._thread.is_alive():
                self._backend.abort(hard=hard)
                self._thread.join(_JOIN_S)
        self._end.close()

    def _result(self, rank: int) -> RankResult:
        """The rank's result with its cause worked out, and `released` only where another rank is to blame."""
        result = self._outcomes.get(rank)
        if result is None:
            return self._missing(rank)
        if rank in self._silent:
            peer = self._end.peers[rank]
            cause = cause_of_death(self._backend_error, peer)
            return replace(result, error=self._with_hint(f"{peer} died: {cause}"))
        blamed = any(r.error is not None and not r.released for r in self._outcomes.values())
        return replace(result, released=result.released and blamed)

    def _missing(self, rank: int) -> RankResult:
        failure = self._failure
        if failure is None and self._stopping:
            failure = f"no end within {self._options.stop_grace_s:.0f} s of the stop request"
        if rank not in self._end.peers and not self._outcomes:
            text = f"rank {rank} never reported: {failure or ''} {self._backend_error}".strip()
            return RankResult(rank, error=self._with_hint(text))
        return RankResult(rank, error=f"rank {rank} was ended: {failure}", released=bool(self._outcomes))

    def _with_hint(self, text: str) -> str:
        return f"{text}\n{self._options.resume_hint}" if self._options.resume_hint else text


def cause_of_death(backend_error: str, peer: Peer) -> str:
    """What the launcher says killed a rank, in words."""
    number = None
    if torch := re.search(rf"Signal (\d+) \(\w+\) received by PID {peer.pid}\b", backend_error):
        number = int(torch[1])
    elif horovod := re.search(rf"Process name: {peer.rank}\s+Exit code: (\d+)", backend_error):
        code = int(horovod[1])
        if code < 128:
            return f"it ended with exit code {code} and without a word"
        number = code - 128
    if number is None:
        return "its connection closed without a word (killed, or its machine went away)"
    name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
    memory = "; if nobody sent it, memory ran out: lower the batch size or give executors more" if number == 9 else ""
    return f"killed by signal {number} ({name}){memory}"


def kill(peer: Peer) -> None:
    """SIGKILL a rank and its children if it runs on this machine and is still the process that said hello."""
    if peer.host != hostname():
        return
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(peer.pid)
        if abs(process.create_time() - peer.started) > 1.0:
            return
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
