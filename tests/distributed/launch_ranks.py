"""What the ranks of the launch tests run; shipped by value, since executors do not see the tests."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import psutil
import pyspark.cloudpickle
import torch
from contract import collective_exam, mailbox_exam, parallel_exam, parallel_ranks

PAUSE_S = 3.0

for pickler in (cloudpickle, pyspark.cloudpickle):
    for module in (collective_exam, mailbox_exam, parallel_exam, parallel_ranks, sys.modules[__name__]):
        pickler.register_pickle_by_value(module)


def sit_exam(worker: Any, job: Any, jobs: dict[str, Any], halted: dict[str, int]) -> dict[str, Any]:
    """The exams for collectives, reducers, mailboxes and models spread over ranks, a training job, further ones (see
    `train_runs`), then wait for a stop request."""
    from headrace.launch.worker import MailboxOnce

    result = collective_exam.exam(worker)
    result["mailbox"] = mailbox_exam.check_mailbox(worker.mailbox(), worker.collective)
    own = MailboxOnce(worker.mailbox._open)  # the exam for mailboxes leaves its own as it may
    result["parallel"] = parallel_exam.check_parallel(worker, own())
    own.close()
    result |= {"trained": job(worker), "runs": train_runs(worker, jobs, halted)}
    worker.emit({"kind": "trained"})
    for _ in range(600):
        if worker.should_stop():
            break
        time.sleep(0.1)
    return result | {"stopped": worker.should_stop()}


def fail(worker: Any) -> None:
    """Rank 1 raises, the others wait for it in a collective."""
    worker.collective.barrier()
    if worker.rank == 1:
        raise KeyError("the seventh row")
    while True:
        worker.collective.allreduce(torch.ones(3))


def by_signal(signum: int) -> Callable[[Any], None]:
    """Rank 1 is sent a signal, the others wait for it in a collective; they tell the time before it."""

    def fn(worker: Any) -> None:
        me = psutil.Process()
        worker.emit({"pid": me.pid, "started": me.create_time(), "at": time.monotonic()})
        worker.collective.barrier()
        if worker.rank == 1:
            os.kill(os.getpid(), signum)
        while True:
            worker.collective.allreduce(torch.ones(3))

    return fn


def sleep(worker: Any) -> None:
    """Tell the pid, then sleep for ever."""
    me = psutil.Process()
    worker.emit({"pid": me.pid, "started": me.create_time()})
    signal.pause()


def alive(pid: int, started: float) -> bool:
    """Whether the process that reported this pid still runs."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone_within(processes: list[tuple[int, float]], seconds: float) -> bool:
    """Whether all of them end in this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(alive(*p) for p in processes):
            return True
        time.sleep(0.1)
    return False


def train_runs(worker: Any, jobs: dict[str, Any], halted: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Training jobs, one after the other: by name a rank's value, rank 0's curve, when updates ended.

    Args:
        worker: of the rank.
        jobs: by name.
        halted: after which update rank 1 is stopped for PAUSE_S, by name of the job.
    """
    from headrace.launch.worker import MailboxOnce

    found = {}
    for name, job in jobs.items():
        events: list[dict[str, Any]] = []
        with noted_updates(worker.rank, halted.get(name, 0)) as notes:
            fresh = MailboxOnce(worker.mailbox._open)  # a strategy closes its own
            value = job(dataclasses.replace(worker, emit=events.append, mailbox=fresh))
        curve = [(event["step"], event["loss"]) for event in events if event["type"] == "step"]
        found[name] = value | notes | {"curve": curve}
    return found


@contextlib.contextmanager
def noted_updates(rank: int, halt_at: int) -> Iterator[dict[str, Any]]:
    """Inside, when this process's updates ended, and from when to when it was stopped; 0: nothing is noted."""
    from headrace.train.replica import Replica

    notes: dict[str, Any] = {"updates": [], "halted": None}
    original = Replica.update

    def update(self: Any, *args: Any, **options: Any) -> bool:
        made = original(self, *args, **options)
        notes["updates"].append(time.monotonic())
        if rank == 1 and len(notes["updates"]) == halt_at:
            notes["halted"] = halt()
        return made

    if halt_at:
        Replica.update = update  # type: ignore[method-assign]
    try:
        yield notes
    finally:
        Replica.update = original  # type: ignore[method-assign]


def halt() -> tuple[float, float]:
    """Stop this process for PAUSE_S by SIGSTOP; from when to when."""
    began = time.monotonic()
    quiet = subprocess.DEVNULL  # else launchers wait for the end of its output
    subprocess.Popen(["/bin/sh", "-c", f"sleep {PAUSE_S}; kill -CONT {os.getpid()}"], stdout=quiet, stderr=quiet)
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    return began, time.monotonic()
