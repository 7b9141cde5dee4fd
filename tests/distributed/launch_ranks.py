"""What the ranks of the launch tests run; shipped by value, since executors do not see the tests."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import psutil
import pyspark.cloudpickle
import torch
from contract import collective_exam, mailbox_exam

for pickler in (cloudpickle, pyspark.cloudpickle):
    for module in (collective_exam, mailbox_exam, sys.modules[__name__]):
        pickler.register_pickle_by_value(module)


def sit_exam(worker: Any, job: Any) -> dict[str, Any]:
    """The exams for collectives, reducers and mailboxes, a training job, then wait for a stop request."""
    result = collective_exam.exam(worker)
    result["mailbox"] = mailbox_exam.check_mailbox(worker.mailbox(), worker.collective)
    result["trained"] = job(worker)
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
    """Rank 1 is sent a signal, the others wait for it in a collective."""

    def fn(worker: Any) -> None:
        me = psutil.Process()
        worker.emit({"pid": me.pid, "started": me.create_time()})
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
