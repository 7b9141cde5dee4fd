"""Ranks as threads of this process: no start-up cost, the same bits as the other launchers."""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from headrace.comm.base import CollectiveError
from headrace.comm.local import LocalGroup
from headrace.launch.worker import LaunchOptions, MailboxOnce, RankResult, Worker

OnEvent = Callable[[int, dict[str, Any]], None]


class _Run:
    """The state of one launch: the group, the results, and who failed first."""

    def __init__(self, n: int, options: LaunchOptions, on_event: OnEvent, stop: threading.Event) -> None:
        # A stopped thread stops the whole process, so only a deadlock can outlast the wait: no limit of our own.
        self.group = LocalGroup(n, timeout_s=None)
        self.results: list[RankResult | None] = [None] * n
        self._options, self._on_event, self._stop = options, on_event, stop
        self._event_lock = threading.Lock()

    def rank_main(self, fn: Callable[[Worker], Any], rank: int) -> None:
        """Run one rank; its value or traceback ends in `results`."""
        torch.set_num_threads(self._options.threads)

        def emit(event: dict[str, Any]) -> None:
            with self._event_lock:
                self._on_event(rank, json.loads(json.dumps(event)))

        try:
            mailbox = MailboxOnce(lambda: self.group.mailbox(rank))
            value = fn(Worker(self.group.collective(rank), rank, emit, self._stop.is_set, mailbox))
            self.results[rank] = RankResult(rank, json.loads(json.dumps(value)))
            self.group.leave(rank)
        except BaseException as error:  # whatever ends a rank must reach the driver
            released = isinstance(error, CollectiveError) and self.group.aborted
            self.results[rank] = RankResult(rank, error=traceback.format_exc(), released=released)
            self.group.abort(f"rank {rank} failed: {error!r}")


def run(
    fn: Callable[[Worker], Any],
    n: int,
    options: LaunchOptions,
    on_event: OnEvent,
    stop: threading.Event,
    timeout_s: float | None,
) -> list[RankResult]:
    """Run `fn` on `n` threads and wait for all of them."""
    threads_before = torch.get_num_threads()
    job = _Run(n, options, on_event, stop)
    threads = [
        threading.Thread(target=job.rank_main, args=(fn, rank), name=f"headrace-rank-{rank}", daemon=True)
        for rank in range(n)
    ]
    for thread in threads:
        thread.start()
    try:
        _join(threads, job.group, stop, options, timeout_s)
    except BaseException:
        job.group.abort("the driver was interrupted")
        raise
    finally:
        torch.set_num_threads(threads_before)
    return [result or RankResult(rank, error="did not end in time") for rank, result in enumerate(job.results)]


def _join(
    threads: list[threading.Thread],
    group: LocalGroup,
    stop: threading.Event,
    options: LaunchOptions,
    timeout_s: float | None,
) -> None:
    """Wait for the threads; after the time limit, or the grace after a stop request, release them and give up."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    reason = f"the job took longer than {timeout_s} s"
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(0.05)
        if stop.is_set() and (deadline is None or reason.startswith("the job")):
            deadline, reason = time.monotonic() + options.stop_grace_s, "ranks did not end after a stop request"
        if deadline is not None and time.monotonic() > deadline:
            group.abort(reason)
            for thread in threads:
                thread.join(2.0)
            return
