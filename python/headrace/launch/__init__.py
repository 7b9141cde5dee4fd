"""Run a function on N ranks and get every rank's value or error back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from headrace.errors import UserError
from headrace.launch.channel import driver, hostname
from headrace.launch.slots import check_slots, is_local
from headrace.launch.supervisor import Backend, Limits, Supervisor
from headrace.launch.worker import LaunchOptions, RankFailed, RankResult, Worker, values

LAUNCHERS = ("horovod", "torch", "local")

__all__ = ["LAUNCHERS", "LaunchOptions", "RankFailed", "RankResult", "Worker", "launch", "values"]


def launch(
    fn: Callable[[Worker], Any],
    n: int,
    *,
    launcher: str = "horovod",
    spark: Any = None,
    on_event: Callable[[int, dict[str, Any]], None] | None = None,
    timeout_s: float | None = None,
    options: LaunchOptions | None = None,
) -> list[RankResult]:
    """Run `fn(worker)` on `n` ranks; SIGTERM and Ctrl-C become a stop request to all of them.

    Args:
        fn: returns a JSON-able value; large results belong on disk. Shipped by cloudpickle to other processes.
        n: number of ranks.
        launcher: one of LAUNCHERS: processes by Horovod on Spark, by Spark's TorchDistributor, or threads here.
        spark: the session; needed by all but `local`.
        on_event: called as `on_event(rank, event)` for what ranks emit, one call at a time.
        timeout_s: limit for the whole job; None is no limit.
        options: see LaunchOptions.

    Returns:
        One result a rank, in rank order; a rank's error is a value (see `values` to raise it).

    Raises:
        UserError: for what cannot be launched: an unknown launcher, no session, too few slots, files that only Horovod
            writes.
    """
    if n < 1:
        raise UserError(f"{n} ranks asked for", "set --ranks to 1 or more")
    if launcher not in LAUNCHERS:
        raise UserError(f"unknown launcher {launcher!r}", f"choose one of {', '.join(LAUNCHERS)}")
    options, on_event = options or LaunchOptions(), on_event or _ignore
    if launcher != "horovod" and (options.timeline or options.autotune):
        raise UserError(f"launcher {launcher} has no timeline and no autotune: both are Horovod's", "launcher horovod")
    with stop_on_signals() as stop:
        if launcher == "local":
            from headrace.launch import local

            return local.run(fn, n, options, on_event, stop, timeout_s)
        check_slots(spark, n)
        return _on_spark(fn, n, launcher, spark, on_event, Limits(options, stop, timeout_s))


def _on_spark(
    fn: Callable[[Worker], Any],
    n: int,
    launcher: str,
    spark: Any,
    on_event: Callable[[int, dict[str, Any]], None],
    limits: Limits,
) -> list[RankResult]:
    """Run processes under Spark and follow them over the channel."""
    host = spark.sparkContext.getConf().get("spark.driver.host", "") or hostname()
    stall_s = limits.options.stall_timeout_s
    with driver(n, local=is_local(spark), host=host, stall_timeout_s=stall_s) as end:
        backend: Backend
        if launcher == "horovod":
            from headrace.launch.horovod_spark import HorovodBackend

            backend = HorovodBackend(fn, n, spark, end.address, limits.options)
        else:
            from headrace.launch.torch_spark import TorchBackend

            backend = TorchBackend(fn, n, spark, end.address, limits.options)
        return Supervisor(backend, end, on_event, limits).run()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; a second signal interrupts at once. Outside the main thread: never set."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _ignore(rank: int, event: dict[str, Any]) -> None:
    """Nobody listens."""
