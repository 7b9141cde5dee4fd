"""What one rank of a training run does: open the pinned data, make model and optimizers, fit, evaluate on test once,
export.

A TrainJob is pickled to the ranks; it holds values only.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from headrace import models, optim
from headrace.catalog.pinned import PinnedTable
from headrace.comm.base import Collective
from headrace.comm.mailbox import Mailbox
from headrace.comm.metered import EVALUATION, TABLES, Metered
from headrace.data.batch import Batch
from headrace.data.stream import DataConfig, Stream
from headrace.errors import UserError
from headrace.models.embedding import FusedEmbedding
from headrace.optim import WRAPPERS, Optimizer
from headrace.optim.layer_decay import like_groups
from headrace.optim.wrapper import AVERAGES
from headrace.parallel.layout import layout
from headrace.parallel.parallel_config import ParallelConfig
from headrace.parallel.sharded_tables import ShardedEmbedding
from headrace.strategies import BUCKET_BYTES, REDUCERS, Equipment, Overlap, Reducer, Strategy, create, pays
from headrace.strategies.aggregation import AggregationConfig, aggregated
from headrace.strategies.compression import CompressionConfig, compressed
from headrace.strategies.overlap import ByBuckets
from headrace.strategies.pushes import push_codecs
from headrace.strategies.strategy_config import StrategyConfig
from headrace.train.checkpoint import CheckpointStore
from headrace.train.evaluate import Evaluation, evaluate
from headrace.train.events import Event, OnEvent
from headrace.train.export import save_model
from headrace.train.fit_config import FitConfig
from headrace.train.loop import FitResult, Hooks, fit
from headrace.train.precision import cast_parameters

FAST_STEPS = 8
_EVALUATION_BATCH = 8192


class Worker(Protocol):
    """What the launcher hands to a rank (launch.Worker)."""

    @property
    def collective(self) -> Collective: ...
    @property
    def local_rank(self) -> int: ...
    @property
    def emit(self) -> OnEvent: ...
    @property
    def should_stop(self) -> Any: ...
    def mailbox(self) -> Mailbox: ...
    def alone(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A whole training run, as values.

    Args:
        tables: pinned splits "train", "validation", "test" (the last two may have no rows).
        model: name and options of `models.create`.
        optimizers: {"dense": {"name": ..., options}, "sparse": {...}}.
        data: of the training stream.
        batch_size: rows of a global batch.
        fit: see FitConfig.
        reduction: a key of REDUCERS: how what is not compressed is summed.
        compression: of gradients; checked.
        aggregation: of ranks' gradients; checked, and none where they are compressed.
        strategy: when ranks exchange what; checked.
        parallel: what of the model lies on which rank; checked.
        overlap: "on", "off": whether dense gradients are exchanged while backward runs; "auto" where that pays.
        bucket_bytes: dense gradients exchanged in one operation; bits do not depend on it.
        device: "auto", "cpu", "cuda".
        directory: of the run; all ranks see it.
        keep: checkpoints kept.
        about: JSON for checkpoints and model.json: versions, transform, configuration.
        fast: a few batches of everything.
    """

    tables: Mapping[str, PinnedTable]
    model: Mapping[str, Any]
    optimizers: Mapping[str, Mapping[str, Any]]
    data: DataConfig
    batch_size: int
    fit: FitConfig
    reduction: str
    device: str
    directory: str
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    keep: int = 2
    overlap: str = "auto"
    bucket_bytes: int = BUCKET_BYTES
    about: Mapping[str, Any] = field(default_factory=dict)
    fast: bool = False

    def __call__(self, worker: Worker) -> dict[str, Any]:
        """Train; the value is the same on every rank, but for seconds and bytes."""
        collective = Metered(worker.collective)
        device = choose_device(self.device, worker.local_rank)
        with worker.alone():
            model = self.make_model(collective.rank, collective.size).to(device)
        cast_parameters(model.dense_parameters(), self.fit.precision)
        optimizer = optim.create_parts(model, self.optimizers)
        strategy = self.make_strategy(model, collective, optimizer, worker)
        train = self.stream("train", collective.rank, collective.size, planned=True)
        worker_events: OnEvent = worker.emit if collective.rank == 0 else _ignore
        worker_events({"type": "start", "device": str(device), "steps": train.steps(0), **describe(model)})
        try:
            result = fit(model, train, optimizer, strategy, collective, self.fit, worker_events, self._hooks(worker))
            with as_tested(model, optimizer, strategy, self.optimizers):
                test = None if result.stopped == "asked" else self._test(model, worker)
        finally:
            train.close()
            strategy.close()
        if test is not None:
            worker_events({"type": "eval", "split": "test", "step": result.cursor.global_step, **test.to_dict()})
            with as_tested(model, optimizer, strategy, self.optimizers):
                save_model(model, Path(self.directory), dict(self.model), dict(self.about), worker.collective)
        return summary(result, test, collective, strategy) | {"lookups": layout(model, collective).figures()}

    def make_model(self, rank: int = 0, size: int = 1) -> models.ClickModel:
        """The model, the same bits on every rank; where tables are sharded, with the rows of one rank of `size`."""
        options = dict(self.model)
        table: Callable[..., FusedEmbedding] = FusedEmbedding
        if self.parallel.sharded:
            table = partial(ShardedEmbedding, rank=rank, size=size)
        return models.create(
            options.pop("name"), options.pop("cardinalities"), options.pop("num_dense"), table=table, **options
        )

    def make_strategy(
        self, model: models.ClickModel, collective: Collective, optimizer: Optimizer, worker: Worker
    ) -> Strategy:
        """The run's; gradients are exchanged while backward runs where that can be and pays.

        Raises:
            UserError: ranks lie on hosts in a way that the settings do not allow.
        """
        spec = self.strategy.spec
        on_event: OnEvent = worker.emit if collective.rank == 0 else _ignore
        reducer = self._reducer(model, collective, on_event) if not spec.remote else REDUCERS[self.reduction].factory()
        equipment = self._equipment(model, optimizer, worker) if spec.remote else None
        return create(self.strategy.name, reducer, collective, equipment, **self.strategy.options)

    def _reducer(self, model: models.ClickModel, collective: Collective, on_event: OnEvent) -> Reducer:
        host = socket.gethostname()
        exact = REDUCERS[self.reduction].factory(bucket_bytes=self.bucket_bytes)
        reducer: Reducer
        if self.aggregation.name == "none":
            reducer = compressed(self.compression, exact, self.fit.seed, collective, host, on_event)
        else:
            reducer = aggregated(self.aggregation, exact)
        if self.strategy.spec.synchronous and isinstance(reducer, ByBuckets) and pays(self.overlap, collective, host):
            dense = {id(p) for p in model.dense_parameters()}
            named = {name: p for name, p in model.named_parameters() if id(p) in dense and p.requires_grad}
            reducer = Overlap(reducer, collective, named)
        return reducer

    def _equipment(self, model: models.ClickModel, optimizer: Optimizer, worker: Worker) -> Equipment:
        tables = {id(p) for p in model.sparse_parameters()}
        return Equipment(
            mailbox=worker.mailbox(),
            optimizer=lambda part: like_groups(optim.create_parts(part, self.optimizers), optimizer),
            tables=frozenset(name for name, p in model.named_parameters() if id(p) in tables),
            codecs=push_codecs(self.compression, self.fit.seed),
            should_stop=worker.should_stop,
            on_event=worker.emit,
        )

    def stream(self, split: str, rank: int, size: int, *, planned: bool = False) -> Stream:
        """A split's batches for a rank: planned and shuffled for training, else in the table's order and padded."""
        if planned:
            return Stream(self.tables[split], self.data, rank, size, batch_size=self.batch_size)
        plain = DataConfig(lanes=self.data.lanes, remainder="pad", shuffle=False, prefetch=self.data.prefetch)
        rows = max(self.batch_size, _EVALUATION_BATCH // self.data.lanes * self.data.lanes)
        return Stream(self.tables[split], plain, rank, size, batch_size=rows)

    def _hooks(self, worker: Worker) -> Hooks:
        table = self.tables["train"]
        store = CheckpointStore(Path(self.directory) / "checkpoints", self.keep)
        return Hooks(
            validation=(lambda: self._batches("validation", worker)) if self.tables["validation"].rows else None,
            training=lambda: self._batches("train", worker, whole=True),
            store=store,
            about=dict(self.about),
            should_stop=worker.should_stop,
            rows=table.rows,
            fingerprint=table.fingerprint,
        )

    def _batches(self, split: str, worker: Worker, *, whole: bool = False) -> Iterable[Batch]:
        """A split in the table's order; a few batches of it in fast runs, unless rules count on all rows."""
        stream = self.stream(split, worker.collective.rank, worker.collective.size)
        try:
            yield from islice(stream.epoch(0), FAST_STEPS if self.fast and not whole else None)
        finally:
            stream.close()

    def _test(self, model: models.ClickModel, worker: Worker) -> Evaluation | None:
        return evaluate(
            model,
            self._batches("test", worker),
            worker.collective,
            precision=self.fit.precision,
            should_stop=worker.should_stop,
        )


@contextmanager
def as_tested(
    model: nn.Module, optimizer: Optimizer, strategy: Strategy, given: Mapping[str, Mapping[str, Any]]
) -> Iterator[None]:
    """Inside, after training, parameters are what is tested and exported: averages where the optimizer has any, which
    are means over the ranks where each steps on its own. All ranks enter together.

    Args:
        model: what was trained.
        optimizer: of all of it.
        strategy: of the run, which is finished.
        given: the optimizer's settings, by part.
    """
    around = [WRAPPERS[name] for part in given.values() for name in part.get("wrappers", {})]
    with optim.averaged(optimizer):
        values = {name: param.data for name, param in model.named_parameters() if param.requires_grad}
        differ = strategy.local and any(AVERAGES in spec.traits for spec in around)
        with strategy.consensus(values) if differ else nullcontext():
            yield


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device of a rank: a GPU of its own where there is one.

    Raises:
        UserError: an unknown device, or a GPU asked for where there is none.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {wanted!r} is not one of auto, cpu, cuda")
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("--device cuda, but torch sees no GPU on this machine", "--device cpu")
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def describe(model: models.ClickModel) -> dict[str, Any]:
    """Name, layers and sizes, for people."""
    sparse = 0 if model.embedding is None else model.embedding.rows * model.embedding.weight.shape[1]
    dense = sum(p.numel() for p in model.dense_parameters())
    return {"model": type(model).__name__, "layers": str(model), "dense_parameters": dense, "sparse_parameters": sparse}


def summary(result: FitResult, test: Evaluation | None, collective: Metered, strategy: Strategy) -> dict[str, Any]:
    """A rank's value: JSON. Without figures of the test data a stop was asked for, maybe while they were made."""
    exchange, spent = strategy.figures(), result.waiting.spent()
    return {
        "stopped": result.stopped if test is not None else "asked",
        "epochs": result.cursor.epoch,
        "steps": result.cursor.global_step,
        "skipped_steps": result.cursor.skipped,
        "overflow_steps": result.cursor.overflows,
        "clipped_steps": result.cursor.clipped,
        "rows_per_second": result.rows_per_second,
        "train_seconds": result.seconds,
        "weights_sha256": result.weights_sha256,
        "audits": [audit.to_dict() for audit in result.audits],
        "validation": result.evaluation.metrics.to_dict() if result.evaluation else None,
        "test": test.metrics.to_dict() if test else None,
        "bytes_of_tables": collective.parts[TABLES] + int(exchange.get("mailed_bytes_of_tables", 0)),
        "bytes_of_evaluation": collective.parts[EVALUATION],
        "bytes_sent": collective.sent_bytes + int(exchange.get("mailed_bytes", 0)),
        "exchange": exchange,
        "send_seconds": spent.send,
        "wait_seconds": spent.wait,
    }


def _ignore(event: Event) -> None:
    """Only rank 0 reports."""
