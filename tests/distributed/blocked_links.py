"""A launch whose ranks are processes in network namespaces of their own; in the middle of a step a link goes down.

    blocked_links.py lab HOW WHAT    the driver: prints a line of JSON
    blocked_links.py rank            a rank, started by the driver

HOW: `machine`, rank 1 can reach nobody; `ranks`, the two ranks cannot reach each other, the driver reaches both.
WHAT ranks are doing: `allreduce`, or `messages` of the mailbox.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import exchange_network as network
from headrace.comm.torch_dist import TorchCollective
from headrace.launch.channel import Address, Driver
from headrace.launch.rank import run_rank
from headrace.launch.supervisor import Limits, Supervisor
from headrace.launch.worker import LaunchOptions, Worker

MBIT, CUT_AT = 1000, 20  # of a link; the step in which it goes down


@dataclass(frozen=True)
class Quick(LaunchOptions):
    """A rank that is silent for 3 s is taken for stopped, an operation is given up after 6 s."""

    stall_timeout_s: float = 3.0

    @property
    def transport_timeout_s(self) -> float:
        return 6.0


def steps(worker: Worker, what: str) -> None:
    """Without end."""
    box, x = worker.mailbox(), torch.ones(10_000)
    other = 1 - worker.rank
    for step in itertools.count():
        worker.emit({"step": step})
        if what == "allreduce":
            worker.collective.allreduce(x)
        else:
            box.send(other, "box", "step", step, torch.ones(10_000, dtype=torch.uint8))
            assert box.receive("box").head == step  # type: ignore[union-attr]


def rank() -> None:
    """In a namespace of its own."""
    network.die_with_parent()
    network.enter()
    print("up", flush=True)
    given = json.loads(sys.stdin.readline())
    me = given["rank"]
    network.join(me, MBIT)
    print("joined", flush=True)
    sys.stdin.readline()  # the others have an address
    where, options = f"tcp://{network.address(0)}:29500", Quick()
    driver = Address(given["host"], given["port"], bytes.fromhex(given["key"]), given["beat_s"])
    run_rank(
        lambda worker: steps(worker, given["what"]), driver, options, me, 0,
        lambda: TorchCollective(options.transport_timeout_s, init_method=where, rank=me, size=2),
    )  # fmt: skip


class Backend:
    """Starts two ranks behind their links."""

    def __init__(self, what: str, address: Address) -> None:
        self._what, self._address = what, address
        self.processes: list[subprocess.Popen[str]] = []
        self.ended: dict[int, float] = {}

    def run(self) -> None:
        """See `headrace.launch.supervisor.Backend`."""
        pipe = subprocess.PIPE
        for _ in range(2):
            command = [sys.executable, __file__, "rank"]
            self.processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        self._hear("up")
        for me, process in enumerate(self.processes):
            network.attach(me, process.pid, MBIT)
            a = self._address
            told = {"host": a.host, "port": a.port, "key": a.key.hex(), "beat_s": a.beat_s}
            self._tell(me, json.dumps(told | {"rank": me, "what": self._what}))
        self._hear("joined")
        for me in range(2):
            self._tell(me, "go")
        threads = [threading.Thread(target=self._follow, args=(me,)) for me in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def abort(self, *, hard: bool) -> None:
        """Nothing: whether ranks end by themselves is the question."""

    def _follow(self, me: int) -> None:
        self.processes[me].wait()
        self.ended[me] = time.monotonic()

    def _hear(self, word: str) -> None:
        for process in self.processes:
            assert process.stdout is not None and process.stdout.readline() == f"{word}\n"

    def _tell(self, me: int, text: str) -> None:
        pipe = self.processes[me].stdin
        assert pipe is not None
        print(text, file=pipe, flush=True)


def lab(how: str, what: str) -> None:
    """The driver, and the cutter of links."""
    network.enter()
    network.make_hub()
    cut: queue.Queue[float] = queue.Queue()
    options = Quick()
    end = Driver(2, bind=network.HUB_ADDRESS, host=network.HUB_ADDRESS, stall_timeout_s=options.stall_timeout_s)
    backend = Backend(what, end.address)

    def on_event(source: int, event: dict[str, Any]) -> None:
        if source or event["step"] != CUT_AT:
            return
        if how == "machine":
            network.tool("ip", "link", "set", "port1", "down")
        else:
            for me in range(2):
                network.tool("bridge", "link", "set", "dev", f"port{me}", "isolated", "on")
        cut.put(time.monotonic())

    try:
        results = Supervisor(backend, end, on_event, Limits(options, threading.Event(), 60.0)).run()
        told, at = time.monotonic(), cut.get_nowait()
        until = told + 30.0
        while len(backend.ended) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        errors = [result.error for result in results]
        released = [result.released for result in results]
        ended = [backend.ended[me] - at if me in backend.ended else None for me in range(2)]
        print(json.dumps({"errors": errors, "released": released, "told_s": told - at, "ended_s": ended}), flush=True)
    finally:
        for process in backend.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


if __name__ == "__main__":
    rank() if sys.argv[1] == "rank" else lab(*sys.argv[2:])
