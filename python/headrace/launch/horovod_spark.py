"""Ranks as Horovod processes, one a Spark task.

Horovod's rendezvous server has no authentication (see docs/launching.md): on one machine it is kept to loopback.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from headrace.launch.channel import Address
from headrace.launch.rank import run_rank
from headrace.launch.slots import is_local, python_executable
from headrace.launch.worker import LaunchOptions, Worker

_PATCH = threading.RLock()


class HorovodBackend:
    """One `horovod.spark.run`.

    Args:
        fn: what every rank runs.
        n: number of ranks.
        spark: the session.
        address: the driver's end of the channel.
        options: see LaunchOptions.
    """

    def __init__(
        self, fn: Callable[[Worker], Any], n: int, spark: Any, address: Address, options: LaunchOptions
    ) -> None:
        self._fn, self._n, self._spark, self._address, self._options = fn, n, spark, address, options
        self._abort = threading.Event()
        self._group: str | None = None
        self._output = Tail(100)

    def run(self) -> None:
        """See `Backend.run`; what the ranks last printed is added to an error."""
        import horovod.spark
        from horovod.spark.driver import job_id

        with _abortable(self._abort), _quiet(self._output):
            self._group = f"horovod.spark.run.{job_id.JOB_ID + 1}"
            try:
                horovod.spark.run(
                    _rank_main,
                    args=(self._fn, self._address, self._options),
                    num_proc=self._n,
                    start_timeout=int(self._options.start_timeout_s),
                    use_gloo=True,
                    use_mpi=False,
                    env=self._environment(),
                    stdout=self._output,
                    stderr=self._output,
                    verbose=0,
                    nics={"lo"} if is_local(self._spark) else None,
                    executable=python_executable(self._spark),
                )
            except Exception as error:
                raise RuntimeError(f"{error}\nlast output of the ranks:\n{self._output}") from error

    def abort(self, *, hard: bool) -> None:
        """See `Backend.abort`."""
        self._abort.set()
        if hard and self._group is not None:
            self._spark.sparkContext.cancelJobGroup(self._group)

    def _environment(self) -> dict[str, str]:
        threads = str(self._options.threads)
        own = {"HOROVOD_TIMELINE": self._options.timeline, "HOROVOD_AUTOTUNE_LOG": self._options.autotune}
        own |= {"HOROVOD_AUTOTUNE": "1" if self._options.autotune else ""}
        return {name: value for name, value in own.items() if value} | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(int(self._options.transport_timeout_s)),
            "HOROVOD_STALL_CHECK_DISABLE": "1",
            "HOROVOD_LOG_LEVEL": "error",
        }


def _rank_main(fn: Callable[[Worker], Any], address: Address, options: LaunchOptions) -> None:
    """The body of a Horovod process."""
    from headrace.comm.horovod import HorovodCollective

    rank, local_rank = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_LOCAL_RANK"])
    run_rank(fn, address, options, rank, local_rank, HorovodCollective)


class Tail:
    """A text stream that keeps the last lines written to it."""

    def __init__(self, lines: int) -> None:
        self._lines: deque[str] = deque(maxlen=lines)
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            self._lines.append(text[-10_000:])
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def __str__(self) -> str:
        with self._lock:
            return "".join(self._lines)


@contextlib.contextmanager
def _abortable(event: threading.Event) -> Iterator[None]:
    """Let `event` end the job instead of the signal handlers that Horovod 0.28 installs.

    Those work in the main thread only, would replace ours, and know no end in good order.
    """
    from horovod.runner import gloo_run

    with _PATCH:
        original = gloo_run.register_shutdown_event
        gloo_run.register_shutdown_event = lambda: event
        try:
            yield
        finally:
            gloo_run.register_shutdown_event = original


@contextlib.contextmanager
def _quiet(output: Tail) -> Iterator[None]:
    """Let what ends Horovod's Spark job be part of our error: its thread would print Java's trace for each failure."""
    from horovod.spark import runner

    def in_thread(target: Callable[..., None], args: tuple[Any, ...] = (), **options: Any) -> threading.Thread:
        def run(*args: Any) -> None:
            try:
                target(*args)
            except Exception as error:
                lines = str(error).splitlines(keepends=True)
                output.write("".join(line for line in lines if not line.startswith("\tat ")))

        return original(run, args, **options)

    with _PATCH:
        original = runner.in_thread
        runner.in_thread = in_thread
        try:
            yield
        finally:
            runner.in_thread = original
