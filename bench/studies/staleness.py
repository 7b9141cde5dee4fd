"""`python -m bench.studies.staleness`: bounds of staleness against time, where one worker in four is slow.

    .venv/bin/python -m bench.studies.staleness [--minutes 10] [--report]

Eight workers of a simulated cluster (headrace.comm.simulated) train a network of two layers on planted data by SGD; the
first of them is the server. A gradient takes a second of virtual time. Two clusters: in `always` workers 3 and 7 take
three times as long; in `sometimes` any worker takes four times as long for two gradients on end, at random, a quarter
of the time: so two of the eight are slow on the average in both. A run lasts so many virtual seconds, not steps. What
is compared: the mean of all gradients in lockstep (all-reduce), bounds, none, the bound that tunes itself, and for no
bound delay compensation and rates by staleness. Every one is tuned over three learning rates with seed 0; the best, by
the mean of the held loss over the run, is run with the other seeds. A run is a line of
docs/results/study_staleness.jsonl; call again to go on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from bench.studies.images import ROOT
from bench.studies.lines import Line, Lines, read
from bench.studies.running import command
from bench.studies.task import finite
from headrace.comm.simulated import SimulatedClock, SimulatedCluster
from headrace.optim import create as create_optimizer
from headrace.optim.schedules import Rates
from headrace.strategies import REDUCERS, Equipment, create
from headrace.strategies.parameter_server import ParameterServer

RESULTS = ROOT / "docs" / "results" / "study_staleness.jsonl"
WORKERS, BATCH, SECONDS, POINTS, HELD = 8, 16, 160.0, 40, 2000
INPUTS, HIDDEN, CLASSES = 20, 32, 10
CLUSTERS = ("always", "sometimes")
SEEDS = (0, 1, 2)
LOCKSTEP = "allreduce"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    LOCKSTEP: (LOCKSTEP, {}),
    **{f"bound {s}": ("ssp", {"bound": s}) for s in (0, 1, 2, 4, 8, 16)},
    "tuned": ("ssp", {"bound": 4, "tune": True, "bound_max": 16, "window": 4}),
    "no bound": ("parameter_server", {}),
    "compensation constant": ("parameter_server", {"compensation": "constant"}),
    "compensation adaptive": ("parameter_server", {"compensation": "adaptive"}),
    "rates by staleness": ("parameter_server", {"rates": "staleness"}),
}


def rates_of(way: str) -> tuple[float, float, float]:
    """Learning rates that are tried: where every gradient is a step of its own about an eighth of lockstep's."""
    best = 1.2 if way in (LOCKSTEP, "rates by staleness") else 0.2
    return best / 2, best, best * 2


@dataclass(frozen=True)
class Task:
    """What all runs share."""

    name: str = "planted network"
    workers: int = WORKERS
    batch: int = BATCH
    seconds: float = SECONDS

    def about(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One run."""

    cluster: str
    way: str
    lr: float
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@cache
def rows() -> tuple[Tensor, Tensor]:
    """Inputs [n, 20] and classes [n] that a network of other weights gives, a tenth of them at random."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(20_000 + HELD, INPUTS, generator=generator)
    first, second = (torch.randn(shape, generator=generator) for shape in ((INPUTS, 24), (24, CLASSES)))
    y = ((x @ first).relu() @ second).argmax(1)
    noise = torch.rand(len(y), generator=generator) < 0.1
    return x, torch.where(noise, torch.randint(CLASSES, (len(y),), generator=generator), y)


def speed(cluster: str, seed: int) -> Any:
    """Of a rank's n-th gradient: what SimulatedCluster takes."""
    if cluster == "always":
        return [1.0 / 3.0 if rank % 4 == 3 else 1.0 for rank in range(WORKERS)]

    def sometimes(rank: int, n: int) -> float:
        key = ((seed * 1009 + rank) * 10_007 + n // 2) & 0x7FFFFFFF
        slow = torch.rand((), generator=torch.Generator().manual_seed(key)) < 1.0 / 13.0  # p 4 / (p 4 + 1 - p) = 1/4
        return 0.25 if slow else 1.0

    return sometimes


class Run:
    """One setting, run."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.cluster = SimulatedCluster(
            WORKERS, speeds=speed(setting.cluster, setting.seed), latency_s=0.01, bandwidth=1e6, seed=setting.seed
        )  # fmt: skip
        self.curve: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        self.updates = 0

    def model(self) -> nn.Module:
        """The same on all ranks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.setting.seed)
            return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))

    def point(self, params: Mapping[str, Tensor], now: float) -> None:
        """Held loss at the parameters of time `now`, where a point of the curve is due."""
        if now < len(self.curve) * SECONDS / POINTS or len(self.curve) > POINTS:
            return
        x, y = rows()
        with torch.no_grad():
            hidden = (x[-HELD:] @ params["0.weight"].T + params["0.bias"]).relu()
            loss = nn.functional.cross_entropy(hidden @ params["2.weight"].T + params["2.bias"], y[-HELD:])
        self.curve.append({"time": round(now, 3), "updates": self.updates, "loss": finite(float(loss))})

    def __call__(self) -> Line:
        """The line, but for what it is known by."""
        start = time.process_time()
        work = self._lockstep if self.setting.way == LOCKSTEP else self._served
        figures = self.cluster.run(work)
        self.decisions.sort(key=lambda d: d["step"])
        return {
            "curve": self.curve, "decisions": self.decisions, "updates": self.updates,
            "waited": round(fmean(f.get("exchange_seconds", 0.0) for f in figures) / SECONDS, 4),
            "staleness_mean": round(fmean(f.get("staleness_mean", 0.0) for f in figures), 3),
            "staleness_max": max(f.get("staleness_max", 0.0) for f in figures),
            "cpu_seconds": round(time.process_time() - start, 2), "load": round(os.getloadavg()[0], 1),
        }  # fmt: skip

    def _batches(self, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the rank's own rows, at random, without end."""
        x, y = rows()
        generator = torch.Generator().manual_seed(self.setting.seed * 100 + rank)
        while True:
            at = torch.randint(20_000 // WORKERS, (BATCH,), generator=generator) * WORKERS + rank
            yield x[at], y[at]

    def _gradients(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[dict[str, Tensor], float]:
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        params = dict(model.named_parameters())
        return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True)), float(loss.detach())

    def _lockstep(self, rank: int) -> dict[str, float]:
        clock, collective, model = self.cluster.clock(rank), self.cluster.collective(rank), self.model()
        strategy = create(LOCKSTEP, REDUCERS["ordered"].factory(), collective)
        params, optimizer = dict(model.named_parameters()), create_optimizer("sgd", model, lr=self.setting.lr)
        for batch in self._batches(rank):
            if rank == 0:
                self.point({n: p.detach() for n, p in params.items()}, clock.now())
            grads, _ = self._gradients(model, batch)
            clock.spend(1.0)
            for name, total in strategy.on_gradients(grads, 0).items():
                params[name].grad = total / WORKERS
            optimizer.step()
            self.updates += rank == 0
            if clock.now() >= SECONDS:  # the same on all ranks: they have just met
                return {}
        raise AssertionError("batches have no end")

    def _served(self, rank: int) -> dict[str, float]:
        clock, model = self.cluster.clock(rank), self.model()
        strategy = self._strategy(rank, clock)
        params = dict(model.named_parameters())
        strategy.begin(params)
        if strategy.shard is not None:
            self._watch(strategy, clock)
        values = {name: p.data for name, p in params.items()}
        for step, batch in enumerate(self._batches(rank)):
            grads, loss = self._gradients(model, batch)
            clock.spend(1.0)
            if clock.now() >= SECONDS:
                break
            strategy.push(grads, Rates(1.0), loss)
            strategy.on_parameters(values, step, False)
        strategy.leave()
        self.cluster.collective(rank).barrier()
        return strategy.figures()

    def _strategy(self, rank: int, clock: SimulatedClock) -> ParameterServer:
        equipment = Equipment(
            mailbox=self.cluster.mailbox(rank), clock=clock, on_event=self.decisions.append,
            optimizer=lambda part: create_optimizer("sgd", part, lr=self.setting.lr),
        )  # fmt: skip
        name, _ = WAYS[self.setting.way]
        options = {"servers": 1, "meet_minutes": 0.0} | dict(self.setting.options)
        made = create(name, REDUCERS["ordered"].factory(), self.cluster.collective(rank), equipment, **options)
        assert isinstance(made, ParameterServer)
        return made

    def _watch(self, strategy: ParameterServer, clock: SimulatedClock) -> None:
        """Points of the curve from what the server holds, before each message."""
        shard = strategy.shard
        assert shard is not None
        handle, held = shard.handle, {name: param.detach() for name, param in shard.part.held.items()}

        def watched(message: Any) -> Any:
            self.point(held, clock.now())
            letters = handle(message)
            self.updates = shard.updates
            return letters

        shard.handle = watched  # type: ignore[method-assign]


def score(line: Line) -> float:
    """What settings are chosen by: the mean of the held loss over the run."""
    losses = [point["loss"] for point in line["curve"]]
    return fmean(losses) if losses and None not in losses else float("inf")


def setting(cluster: str, way: str, lr: float, seed: int = 0) -> Setting:
    """Of a way of WAYS."""
    return Setting(cluster=cluster, way=way, lr=lr, seed=seed, options=WAYS[way][1])


def best_rate(lines: Lines, task: Any, cluster: str, way: str) -> float | None:
    """Of the rates with seed 0; None while one is missing."""
    found = [(lr, lines.get(task, setting(cluster, way, lr))) for lr in rates_of(way)]  # type: ignore[arg-type]
    if any(line is None for _, line in found):
        return None
    return min(found, key=lambda pair: score(pair[1] or {}))[0]


def due(lines: Lines, task: Any) -> Iterator[Setting]:
    """What is left: rates by rates for all ways, then seed by seed of the best."""
    for turn in (1, 0, 2):
        for cluster in CLUSTERS:
            for way in WAYS:
                wanted = setting(cluster, way, rates_of(way)[turn])
                if lines.get(task, wanted) is None:  # type: ignore[arg-type]
                    yield wanted
    for seed in SEEDS[1:]:
        for cluster in CLUSTERS:
            for way in WAYS:
                lr = best_rate(lines, task, cluster, way)
                if lr is not None and lines.get(task, setting(cluster, way, lr, seed)) is None:  # type: ignore[arg-type]
                    yield setting(cluster, way, lr, seed)


def go_on(results: Path, minutes: float) -> None:
    """Run what is due until the time is up."""
    task, lines, end = Task(), Lines(results), time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < end and (wanted := next(due(lines, task), None)) is not None:
            line = {"run": {"task": task.about(), **asdict(wanted)}, **Run(wanted)()}
            lines.append(line)
            print(
                f"{wanted.cluster:<10} {wanted.way:<22} lr {wanted.lr:<5g} seed {wanted.seed} loss {score(line):.4f} "
                f"updates {line['updates']:<5} {line['cpu_seconds']} CPU s", file=sys.stderr, flush=True,
            )  # fmt: skip
    finally:
        lines.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the study, then write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of this call")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="run nothing, write the report")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not args.report:
        go_on(args.results, args.minutes)
    from bench.studies.staleness_report import write

    write(read(args.results), args.results.with_suffix(".md"))


if __name__ == "__main__":
    command(main)
