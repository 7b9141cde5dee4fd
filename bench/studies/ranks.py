"""A run of several ranks, threads of this process: what they exchange is counted, what they agree on is scored.

    every rank: the project's own loop over its rows of the same global batches
    where a point of the curve is due, between two steps: strategy.consensus on all ranks, scores by rank 0

Global batches are the same for any number of ranks. Bytes are those of `headrace.comm.metered` and those that servers
and workers mail; what goes over for a point of the curve is not counted. Strategies that do not wait run on a simulated
cluster (`headrace.comm.simulated`), so that their runs repeat: a step takes a second there, times a factor that is
drawn for every rank and step, and messages take no time.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.studies.clicks import Rows
from bench.studies.lag import EVERY, Energy, Measured
from bench.studies.task import DIVERGED, DONE, REFUSED, TIME, Setting, Trained, Watch
from headrace.comm.base import Collective
from headrace.comm.clock import Clock, WallClock
from headrace.comm.mailbox import Mailbox
from headrace.comm.metered import TABLES, Metered
from headrace.comm.simulated import SimulatedCluster
from headrace.data.batch import Batch
from headrace.data.stream import Audit
from headrace.errors import UserError
from headrace.launch import LaunchOptions, Worker, launch, values
from headrace.optim import Optimizer, create_parts, row_sparse_parameters
from headrace.optim.layer_decay import like_groups
from headrace.optim.schedules import ScheduleConfig
from headrace.strategies import REDUCERS, STRATEGIES, Equipment, Reducer, Strategy, create
from headrace.strategies.adaptive import Adaptive
from headrace.strategies.compressed import CompressedReducer
from headrace.strategies.compression import CompressionConfig, check, compressed
from headrace.strategies.pushes import push_codecs
from headrace.strategies.strategy_config import StrategyConfig, check_strategy
from headrace.strategies.surroundings import Surroundings
from headrace.train.events import Event
from headrace.train.loop import FitConfig, Hooks, NonFiniteError, fit

KINDS = ("dense", "sparse", "rest")
POINTS = 8


@dataclass(frozen=True, kw_only=True)
class Exchange(Setting):
    """A setting of ranks that train together.

    Args:
        ranks: how many.
        compression: fields of CompressionConfig.
        strategy: fields of StrategyConfig; `jitter`, where it is there, makes it a run on a simulated cluster: the
            deviation of the logarithm of the factor.
    """

    ranks: int
    compression: Mapping[str, Any]
    strategy: Mapping[str, Any]

    @property
    def told(self) -> str:
        """In a line."""
        parts = [self.compression["name"], *_flat(self.compression.get("options", {}))]
        parts += [self.compression["feedback"]] if self.compression["name"] != "none" else []
        if self.strategy["name"] != "allreduce":
            parts += [self.strategy["name"], *_flat(self.strategy.get("options", {}))]
        return f"{' '.join(parts):<50} lr {self.options['lr']:<7} ranks {self.ranks}"


def _flat(options: Mapping[str, Any]) -> list[str]:
    return [f"{name} {value}" for name, value in options.items()]


class RankTask(Protocol):
    """A task that ranks can share; see `bench.studies.task.Task` for what else it is."""

    @property
    def name(self) -> str: ...
    @property
    def metric(self) -> str: ...

    batch: int
    epochs: int
    limit_s: float
    parts: tuple[str, ...]

    @property
    def train_rows(self) -> int: ...

    def about(self) -> dict[str, Any]:
        """See `Task.about`."""

    def model(self, seed: int) -> nn.Module:
        """With its first weights."""

    def optimizers(self, setting: Setting) -> Mapping[str, Mapping[str, Any]]:
        """As `headrace.optim.create_parts` takes them."""

    def training(self, setting: Setting, rank: int, size: int) -> Rows:
        """A rank's part of the global batches."""

    def scores(self, model: nn.Module, split: str) -> tuple[float | None, float | None]:
        """Mean loss and metric over the rows for "validation" or "test"."""


@dataclass(frozen=True)
class Ranked:
    """A task whose settings are Exchanges; all but training is the task's own.

    Args:
        base: what is trained.
    """

    base: RankTask

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    @property
    def steps(self) -> int:
        """Of a run at the task's own batch and epochs."""
        return self.base.epochs * max(1, self.base.train_rows // self.base.batch)

    def train(self, setting: Setting, watch: Watch) -> Trained:
        """See `Task.train`."""
        assert isinstance(setting, Exchange)
        model = self.base.model(setting.seed)
        watch.resume()

        def rank_main(seat: Seat) -> dict[str, Any]:
            return _Rank(self.base, setting, copy.deepcopy(model), watch, seat).result()

        try:
            check(CompressionConfig(**setting.compression))
        except UserError as error:
            return Trained(outcome=REFUSED, why=str(error), more=_told([{}] * setting.ranks))
        results = (_simulated if "jitter" in setting.strategy else _launched)(rank_main, setting)
        if any(result["outcome"] == "stopped" for result in results):
            raise SystemExit("stopped in a run, which has no line: call again to go on")
        return Trained(outcome=results[0]["outcome"], why=results[0]["why"], more=_told(results))


def _told(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ranks say of their exchange, for the run's line."""
    figures = [result.get("figures", {}) for result in results]
    sent = {kind: [result.get("sent", {}).get(kind, 0) for result in results] for kind in KINDS}
    more = {name: results[0][name] for name in ("chosen", "lag") if results[0].get(name)}
    return {"sent": sent, "ratio": ratio(figures), "exchange": figures} | more


@dataclass(frozen=True)
class Seat:
    """What a rank is given.

    Args:
        collective: of all ranks.
        mailbox: opens the rank's mailbox.
        clock: the rank's time.
        should_stop: whether the study is to end.
    """

    collective: Collective
    mailbox: Callable[[], Mailbox]
    clock: Clock
    should_stop: Callable[[], bool]


def _launched(rank_main: Callable[[Seat], dict[str, Any]], setting: Exchange) -> list[dict[str, Any]]:
    """Results of ranks as threads that run at the same time."""
    options = LaunchOptions(threads=torch.get_num_threads())

    def main(worker: Worker) -> dict[str, Any]:
        return rank_main(Seat(worker.collective, worker.mailbox, WallClock(), worker.should_stop))

    return values(launch(main, setting.ranks, launcher="local", options=options))


def _simulated(rank_main: Callable[[Seat], dict[str, Any]], setting: Exchange) -> list[dict[str, Any]]:
    """Results of ranks on a simulated cluster."""
    cluster = SimulatedCluster(setting.ranks, jitter=setting.strategy["jitter"], seed=setting.seed)

    def main(rank: int) -> dict[str, Any]:
        return rank_main(
            Seat(cluster.collective(rank), lambda: cluster.mailbox(rank), cluster.clock(rank), lambda: False)
        )

    return cluster.run(main)


def ratio(figures: Sequence[Mapping[str, float]]) -> float | None:
    """Bytes of gradients that were compressed, before over after, over all ranks; None where none were."""
    before, after = (sum(each.get(f"bytes_{when}", 0) for each in figures) for when in ("before", "after"))
    return round(before / after, 2) if after else None


class Apart:
    """A reducer whose dense and row-sparse gradients go one after the other, so that dense ones' bytes can be told.

    A strategy that looks at what a reducer is and has finds the inner one.

    Attributes:
        dense_bytes: sent.
        energy: of what one codec sends and keeps, every EVERY steps.
    """

    def __init__(self, inner: Reducer) -> None:
        self.inner = inner
        self.dense_bytes, self.steps = 0, 0
        self.energy = Energy()
        if isinstance(inner, CompressedReducer) and not isinstance(inner, Adaptive):
            own = inner.feedback
            inner.feedback = Measured(own.codec, own.variant, own.decay, self.energy)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # as isinstance sees it
        return type(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `Reducer.reduce`."""
        assert isinstance(collective, Metered)
        before = collective.sent_bytes
        self.steps += 1
        self.energy.looks = self.steps % EVERY == 0
        summed = self.inner.reduce({name: grad for name, grad in grads.items() if not grad.is_sparse}, collective)
        self.dense_bytes += collective.sent_bytes - before
        summed |= self.inner.reduce({name: grad for name, grad in grads.items() if grad.is_sparse}, collective)
        return {name: summed[name] for name in grads}


@dataclass(frozen=True)
class _Between:
    """A rank's batches, each of which takes a second of its clock; `done(step)` is called when a step is made and
    before the next one begins."""

    rows: Rows
    clock: Clock
    done: Callable[[int], None]

    def steps(self, epoch: int) -> int:
        """Batches an epoch."""
        return self.rows.steps(epoch)

    def audit(self, epoch: int) -> Audit:
        """See `Rows.audit`."""
        return self.rows.audit(epoch)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch."""
        for batch in self.rows.epoch(epoch, start_step):
            self.clock.spend(1.0)
            yield batch
            self.done(epoch * self.steps(epoch) + batch.step + 1)


class _Rank:
    """One rank of one run."""

    def __init__(self, task: RankTask, setting: Exchange, model: nn.Module, watch: Watch, seat: Seat) -> None:
        self.task, self.setting, self.model, self.watch, self.seat = task, setting, model, watch, seat
        self.collective = Metered(seat.collective)
        rows = task.training(setting, self.collective.rank, self.collective.size)
        self.total = setting.epochs * rows.steps(0)
        self.batches = _Between(rows, seat.clock, self._step_done)
        self.due = {self.total * point // POINTS for point in range(1, POINTS + 1)}
        self.unseen: Counter[str] = Counter()  # bytes sent for points
        self.at = 0  # step of the last one
        self.chosen: dict[str, str] = {}  # codecs by tensor, where they are chosen
        exact = REDUCERS["ordered"].factory()
        self.reducer = Apart(compressed(self.compression, exact, setting.seed, tell=self._heard))
        self.strategy: Strategy | None = None

    def result(self) -> dict[str, Any]:
        """Train; the outcome, bytes and figures of this rank."""
        try:
            outcome, why = self._trained()
        except NonFiniteError as error:
            outcome, why = DIVERGED, str(error).splitlines()[0]
        except UserError as error:
            outcome, why = REFUSED, str(error)
        figures = self.strategy.figures() if self.strategy else {}
        return {"outcome": outcome, "why": why, "sent": self._kinds(), "figures": figures, "chosen": self.chosen,
                "lag": self.reducer.energy.told}  # fmt: skip

    @property
    def compression(self) -> CompressionConfig:
        """The setting's."""
        return CompressionConfig(**self.setting.compression)

    def _sent(self) -> Counter[str]:
        """All bytes so far, and those of tables."""
        figures = self.strategy.figures() if self.strategy else {}
        every = self.collective.sent_bytes + int(figures.get("mailed_bytes", 0))
        tables = self.collective.parts[TABLES] + int(figures.get("mailed_bytes_of_tables", 0))
        return Counter(all=every, tables=tables)

    def _kinds(self) -> dict[str, int]:
        """Bytes that count, so far. What is neither of gradients nor of parameters is told apart where gradients go
        by a sum, and stands with the dense ones elsewhere: some words a message."""
        sent = self._sent()
        every, sparse = (sent[kind] - self.unseen[kind] for kind in ("all", "tables"))
        dense = self.reducer.dense_bytes or every - sparse
        return {"dense": dense, "sparse": sparse, "rest": every - sparse - dense}

    def _strategy(self, optimizer: Optimizer) -> Strategy:
        name, options = self.setting.strategy["name"], self.setting.strategy.get("options", {})
        around = Surroundings(ranks=self.collective.size, compression=self.compression)
        check_strategy(StrategyConfig(name=name, options=dict(options)), around)
        equipment = self._equipment(optimizer) if STRATEGIES[name].remote else None
        return create(name, self.reducer, self.collective, equipment, **options)

    def _equipment(self, optimizer: Optimizer) -> Equipment:
        tables = row_sparse_parameters(self.model)
        parts = self.task.optimizers(self.setting)
        return Equipment(
            mailbox=self.seat.mailbox(),
            optimizer=lambda part: like_groups(create_parts(part, parts), optimizer),
            tables=frozenset(name for name, p in self.model.named_parameters() if id(p) in tables),
            codecs=push_codecs(self.compression, self.setting.seed),
            clock=self.seat.clock,
            should_stop=self._asked,
        )

    def _asked(self) -> bool:
        return self.seat.should_stop() or (self.collective.rank == 0 and self.watch.over)

    def _trained(self) -> tuple[str, str]:
        setting = self.setting
        optimizer = create_parts(self.model, self.task.optimizers(setting))
        self.strategy = self._strategy(optimizer)
        schedule = ScheduleConfig(**setting.schedule)
        cfg = FitConfig(epochs=setting.epochs, log_every=1, seed=setting.seed, schedule=schedule)
        hooks = Hooks(should_stop=self._asked)
        try:
            result = fit(self.model, self.batches, optimizer, self.strategy, self.collective, cfg, self._on, hooks)
            stopped = self.seat.should_stop()
            if self.at < result.cursor.global_step and not stopped:
                self._point(result.cursor.global_step, last=True)
        finally:
            self.strategy.close()
        if stopped:
            return "stopped", ""
        if result.cursor.global_step < self.total:
            return TIME, f"ended by its limit of {self.watch.limit_s:g} CPU s of training"
        if self.collective.rank == 0 and self.watch.curve[-1]["validation_loss"] is None:
            return DIVERGED, "the validation loss is not a number"
        return DONE, ""

    def _on(self, event: Event) -> None:
        if event["type"] == "step" and "loss" in event:
            self.watch.step(event["loss"], event["rows"])

    def _heard(self, event: Event) -> None:
        self.chosen |= event.get("layers", {})

    def _step_done(self, step: int) -> None:
        if step in self.due:
            self._point(step, last=step == self.total)

    def _point(self, step: int, last: bool) -> None:
        """All ranks come here in the same step; what rank 0 sent until now, and scores of what all agree on."""
        assert self.strategy is not None
        self.collective.barrier()  # a rank that waits may be a server for those that do not yet
        self.at, before, sent = step, self._sent(), self._kinds()
        with self.strategy.consensus({name: p.data for name, p in self.model.named_parameters()}):
            if self.collective.rank == 0:
                self._score(step, sent, last)
            self.collective.barrier()
        self.unseen += self._sent() - before

    def _score(self, step: int, sent: Mapping[str, int], last: bool) -> None:
        scores: dict[str, float | int | None] = {}
        self.model.eval()
        for split in ("validation", "test") if last else ("validation",):
            scores[f"{split}_loss"], scores[split] = self.task.scores(self.model, split)
        self.model.train()
        counts = {f"{kind}_bytes": sent[kind] for kind in ("dense", "sparse")}
        self.watch.point(step * self.setting.epochs / self.total, **scores, sent_bytes=sum(sent.values()), **counts)
