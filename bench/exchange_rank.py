"""One rank of row f: waits for its link, joins the others, trains, prints what its interface counted.

Started by exchange_lab.py, which reads `up`, writes a line of JSON, reads `joined`, writes `go`, reads `met`; then, for
every run, writes a line of JSON and reads one.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import exchange_network as network

WARM = 5  # steps before counters and clocks are read: connections, buckets, first uncompressed steps of hooks
WIDTHS = (256, 512, 512, 16)
BATCH = 128  # rows of a step, of all ranks together
TASK = {"widths": list(WIDTHS), "batch": BATCH, "rows_tested": 2048}
MEET_S = 120.0  # for ranks to find each other, before they say where they wait
ALONE = 20  # steps without exchange, for the time of computing


def main() -> None:
    """See the module's docstring."""
    network.die_with_parent()
    network.enter()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print("up", file=answers, flush=True)
    place = json.loads(sys.stdin.readline())
    faulthandler.dump_traceback_later(MEET_S)
    network.join(place["rank"], place["mbit"])
    import torch

    print("joined", file=answers, flush=True)
    sys.stdin.readline()  # torch gives up where a rank has no address yet
    os.environ |= place["environment"]
    torch.set_num_threads(1)
    collective = _collective(place)
    print("met", file=answers, flush=True)
    for text in sys.stdin:
        run = json.loads(text)
        faulthandler.dump_traceback_later(0.9 * run["timeout"])
        found = train(run, collective)
        faulthandler.cancel_dump_traceback_later()
        gc.collect()  # what a contestant leaves behind is not in the next one's time
        print(json.dumps(found), file=answers, flush=True)


def _collective(place: dict[str, Any]) -> Any:
    if place["transport"] == "horovod":
        from headrace.comm.horovod import HorovodCollective

        return HorovodCollective()
    from headrace.comm.torch_dist import TorchCollective

    where = f"tcp://{network.address(0)}:29500"
    return TorchCollective(120.0, init_method=where, rank=place["rank"], size=place["ranks"])


def make_model(seed: int) -> Any:
    """A perceptron of WIDTHS."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS)]
    return nn.Sequential(*[each for layer in layers for each in (layer, nn.ReLU())][:-1])


class Task:
    """Classes that a fixed perceptron of one hidden layer gives to normal rows: the same rows on every machine."""

    def __init__(self, seed: int) -> None:
        import torch

        self.seed, self._torch = seed, torch
        draw = torch.Generator().manual_seed(1_000_003)
        self._hidden = torch.randn(WIDTHS[0], 64, generator=draw) / WIDTHS[0] ** 0.5
        self._out = torch.randn(64, WIDTHS[-1], generator=draw)

    def rows(self, number: int, rank: int, count: int) -> Any:
        """Inputs [count, 256] and classes [count] of a step and rank."""
        draw = self._torch.Generator().manual_seed(1_000_000 * self.seed + 1000 * number + rank)
        x = self._torch.randn(count, WIDTHS[0], generator=draw)
        return x, ((2 * x @ self._hidden).tanh() @ self._out).argmax(1)


def train(run: dict[str, Any], collective: Any) -> dict[str, Any]:
    """All steps of a run; figures of the steps after WARM."""
    import torch
    from torch.nn import functional

    from bench.exchange_contestants import Entry, contestant

    rank, size, steps = collective.rank, collective.size, run["steps"]
    task = Task(run["seed"])
    made = contestant(Entry(*run["entry"]), make_model(run["seed"]), collective, network.address(rank))

    def step(number: int) -> None:
        x, classes = task.rows(number, rank, BATCH // size)
        made.optimizer.zero_grad()
        made.backward(functional.cross_entropy(made.module(x), classes))
        made.optimizer.step()

    for number in range(WARM):
        step(number)
    collective.barrier()
    formula = made.sent()
    counted = measured(lambda number: step(WARM + number), steps - WARM, collective.barrier)
    formula = made.sent() - formula
    made.finish()
    x, classes = task.rows(999, 999, TASK["rows_tested"])
    with torch.no_grad():
        loss = float(functional.cross_entropy(made.module(x), classes))
    own = {"formula_bytes": formula, "loss": loss, "figures": made.figures()}
    return counted | own | {"alone_ms": alone(task, rank, size)}


def measured(step: Callable[[int], None], steps: int, barrier: Callable[[], None]) -> dict[str, Any]:
    """What the interface counted during steps, milliseconds of each, and the process's own of all."""
    before, cpu = network.counters(), time.process_time()
    ends = [time.perf_counter()]
    for number in range(steps):
        step(number)
        ends.append(time.perf_counter())
    barrier()
    after = network.counters()
    return {
        **{name: after[name] - before[name] for name in after},
        "ms": [round(1e3 * (b - a), 3) for a, b in itertools.pairwise(ends)],
        "cpu_ms": 1e3 * (time.process_time() - cpu) / steps,
    }


def alone(task: Task, rank: int, size: int) -> float:
    """Milliseconds of a step in which nothing is exchanged, while the other ranks do the same."""
    import torch
    from torch.nn import functional

    model = make_model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    took = []
    for number in range(ALONE):
        start = time.perf_counter()
        x, classes = task.rows(number, rank, BATCH // size)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), classes).backward()
        optimizer.step()
        took.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(took[2:]), 3)


if __name__ == "__main__":
    main()
