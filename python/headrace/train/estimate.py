"""What a run would cost, before it runs: rows, steps, memory, bytes on the wire, minutes from a few measured steps.

Rules may do more than these steps show: by their traits it is said what is not in the figures. Where tables are
sharded, smaller ones stand for a rank's part and ids are folded into them: a rank's memory and lookups, no other ranks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any

import torch

from headrace import optim
from headrace.comm.local import LocalGroup
from headrace.compress.spec import OWN_FEEDBACK
from headrace.data.batch import Batch
from headrace.models.embedding import PADDING_ID
from headrace.optim import OPTIMIZERS, WRAPPERS, Combined, NonFiniteStepError, Optimizer, StepContext
from headrace.optim.clipping import clip
from headrace.optim.spec import NEEDS_CLOSURE, NEEDS_FULL_PASS, NEEDS_KEYS
from headrace.parallel.parallel_config import ParallelConfig
from headrace.strategies import REDUCERS, STRATEGIES
from headrace.strategies.compression import POWERSGD
from headrace.strategies.traffic import Traffic, traffic
from headrace.train.job import TrainJob, choose_device
from headrace.train.loop import NONFINITE_REMEDY, NonFiniteError
from headrace.train.precision import cast_parameters
from headrace.train.replica import Replica

_MEASURED = 4
_START_S = {"local": 1.0, "horovod": 20.0, "torch": 15.0}


@dataclass(frozen=True)
class Estimate:
    """Figures of one run; bytes are a rank's, but embedding_bytes, which are the whole tables'; shard_bytes are what a
    rank holds of them, where they are sharded. `not_in_it` says what rules do beside what was measured."""

    rows: int
    steps_per_epoch: int
    epochs: int
    parameters: int
    embedding_bytes: int
    memory_bytes: int
    wire_bytes_per_step: int
    wire_table_bytes_per_step: int
    seconds_per_step: float
    minutes: float
    not_in_it: tuple[str, ...] = ()
    shard_bytes: int = 0
    strategy: str = "allreduce"

    def lines(self) -> list[str]:
        """For people."""
        steps = self.steps_per_epoch * self.epochs
        return [
            f"rows            {self.rows:,} a epoch, {self.epochs} epochs".replace("a epoch", "an epoch"),
            f"steps           {self.steps_per_epoch:,} an epoch, {steps:,} in all",
            f"parameters      {self.parameters:,}",
            f"embedding       {self.embedding_bytes / 1e6:,.1f} MB"
            + (f", {self.shard_bytes / 1e6:,.1f} MB a rank" if self.shard_bytes else ""),
            f"memory          {self.memory_bytes / 1e6:,.0f} MB a rank (model, gradients, optimizer, data, exact AUC)",
            f"on the wire     {self.wire_bytes_per_step / 1e6:,.2f} MB a step sent by a rank, "
            f"{self.wire_table_bytes_per_step / 1e6:,.2f} of them of embedding tables"
            + (f", were it all-reduce and not {self.strategy}" if self.strategy != "allreduce" else ""),
            f"measured        {1e3 * self.seconds_per_step:,.1f} ms a step on this machine, without the wire",
            f"estimated       {self.minutes:,.1f} minutes",
            *(f"not in it       {text}" for text in self.not_in_it),
        ]


def estimate(job: TrainJob, ranks: int, threads: int, launcher: str) -> Estimate:
    """Make the model, read a few real batches as rank 0 of `ranks`, time their steps; nothing is kept."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _estimate(job, ranks, launcher)
    finally:
        torch.set_num_threads(before)


def _estimate(job: TrainJob, ranks: int, launcher: str) -> Estimate:
    model = _of_a_rank(job, ranks).make_model().to(choose_device(job.device, 0))
    cast_parameters(model.dense_parameters(), job.fit.precision)
    optimizer = optim.create_parts(model, job.optimizers)
    alone = LocalGroup(1).collective(0)
    replica = Replica(
        model, optimizer, STRATEGIES["allreduce"].factory(REDUCERS[job.reduction].factory(), alone), alone
    )
    stream = job.stream("train", 0, ranks, planned=True)
    read = list(islice(stream.epoch(0), _MEASURED))
    batches = [_folded(batch, model) for batch in read] if job.parallel.sharded else read
    seconds, backward = _measured(job, replica, batches)
    touched = _distinct(read[-1]) if read and model.embedding is not None else 0
    sent = _sent(job, replica, ranks, touched)
    steps, memory = stream.steps(0), stream.memory_bytes()
    stream.close()
    per_step = fmean(seconds[1:] or seconds or [0.0])  # the first has what is done once; others may differ by the rule
    one_pass = steps * min(backward, default=0.0)
    evaluated = job.tables["validation"].rows * job.fit.epochs + job.tables["test"].rows
    rows = sum(job.model["cardinalities"].values()) if model.embedding is not None else 0
    width = 0 if model.embedding is None else model.embedding.weight.shape[1]
    lookups = 4 * touched * 4 * width if job.parallel.sharded else 0  # rows and their gradients, asked and served
    total = per_step * job.fit.epochs * steps + 0.5 * per_step * evaluated / max(1, job.batch_size) + _START_S[launcher]
    return Estimate(
        rows=job.tables["train"].rows,
        steps_per_epoch=steps,
        epochs=job.fit.epochs,
        parameters=sum(p.numel() for p in model.dense_parameters()) + rows * width,
        embedding_bytes=4 * rows * width,
        memory_bytes=memory + _model_bytes(model, optimizer) + 8 * job.tables["validation"].rows + lookups,
        wire_bytes_per_step=round(sent.dense + sent.tables),
        wire_table_bytes_per_step=round(sent.tables),
        seconds_per_step=per_step,
        minutes=total / 60.0,
        not_in_it=tuple(_not_in_it(job, ranks, optimizer, one_pass / 60.0, seconds[0] if seconds else 0.0)),
        shard_bytes=sum(p.nbytes for p in model.sparse_parameters()) if job.parallel.sharded else 0,
        strategy=job.strategy.name,
    )


def _measured(job: TrainJob, replica: Replica, batches: list[Batch]) -> tuple[list[float], list[float]]:
    """Seconds of every step, and of the forward and backward passes in it."""
    seconds: list[float] = []
    backward: list[float] = []
    device = replica.device
    # A pass over all rows is not estimated: one over these stands for it, so that rules find rows by their keys.
    these = partial(map, lambda batch: replica.context(batch.to(device), batch.rows), batches)
    for step, batch in enumerate(batches):
        start = time.perf_counter()
        on_device = batch.to(device)
        _, outputs = replica.backward(on_device, job.fit.precision, parts=job.fit.accumulate)
        backward.append(time.perf_counter() - start)
        replica.exchange(step, batch.rows)
        clip(replica.params, job.fit.clipping)
        context = replica.context(
            on_device, batch.rows, outputs=outputs, full_pass=these, clipping=job.fit.clipping
        )  # fmt: skip
        _update(replica, context, step, job.fit.on_nonfinite)
        seconds.append(time.perf_counter() - start)
    return seconds, backward


def _update(replica: Replica, context: StepContext, step: int, on_nonfinite: str) -> None:
    try:
        replica.update(context, step)
    except NonFiniteStepError as error:
        if on_nonfinite != "skip":
            raise NonFiniteError(
                f"the loss or a gradient is not a finite number in measured step {step}: {error}", NONFINITE_REMEDY
            ) from error


def _not_in_it(job: TrainJob, ranks: int, optimizer: Combined, minutes: float, first: float) -> Iterator[str]:
    """What strategy and hosts change of the bytes, and what each rule does beside what was measured; a pass over all
    rows takes so many minutes, the first step so many seconds."""
    if job.strategy.name != "allreduce":
        yield f"what {job.strategy.name} sends and keeps: bytes are those of all-reduce in every step"
    codec = job.compression
    if ranks > 1 and (codec.variant != "none" or codec.name == POWERSGD or OWN_FEEDBACK in codec.traits):
        yield f"memory that {codec.name} keeps of what it did not send: 4 to 10 bytes a number"
    if codec.hierarchical:
        yield "what ranks of one host send each other: bytes are those of one rank a host"
    for part in optimizer.parts:
        given = job.optimizers[part]
        name = given["name"]
        rule, around = OPTIMIZERS[name], [WRAPPERS[wrapper] for wrapper in given.get("wrappers", {})]
        options = {**rule.defaults, **given}
        if NEEDS_FULL_PASS in rule.traits:
            yield f"passes over all rows, about {minutes:,.1f} minutes each or more ({name}: {rule.cost})"
        if NEEDS_FULL_PASS in rule.traits and NEEDS_KEYS in rule.traits:
            yield f"memory that grows with the rows ({name}: {rule.state})"
        due = {key: options[key] for key in rule.defaults if key.endswith("interval")}
        intervals = [f"{key} {value}" for key, value in due.items() if float(value) > 1]
        if intervals:
            yield (
                f"work at intervals ({name}: {', '.join(intervals)}): the first step, with what is due then, took "
                f"{1e3 * first:,.1f} ms"
            )
        if NEEDS_CLOSURE in rule.traits.union(*(spec.traits for spec in around)):
            yield f"what {_with(name, given)} exchanges beside the gradient"
            if job.fit.accumulate > 1:
                yield (
                    f"memory of a rank's whole batch: {_with(name, given)} evaluates it in one piece, whatever "
                    "--train.accumulate"
                )


def _with(name: str, given: Mapping[str, Any]) -> str:
    """`adam with sam`."""
    around = ", ".join(given.get("wrappers", {}))
    return f"{name} with {around}" if around else name


def _model_bytes(model: Any, optimizer: Optimizer) -> int:
    """Parameters, dense gradients (float32), optimizer state."""
    return (
        sum(p.nbytes for p in model.parameters())
        + sum(4 * p.numel() for p in model.dense_parameters())
        + optimizer.state_bytes()
    )


def _sent(job: TrainJob, replica: Replica, ranks: int, touched: int) -> Traffic:
    """As the settings have it; where tables are sharded, the touched rows go to and from their owners."""
    if not job.parallel.sharded:
        return traffic(job.compression, replica.gradients, ranks)
    dense = {name: grad for name, grad in replica.gradients.items() if not grad.is_sparse}
    width = sum(4 * p.shape[1] for p in replica.params.values() if p.grad is not None and p.grad.is_sparse)
    return traffic(job.compression, dense, ranks)._replace(tables=(ranks - 1) / ranks * touched * (4 + 2 * width))


def _of_a_rank(job: TrainJob, ranks: int) -> TrainJob:
    """A job whose tables, all of them on one rank, are as large as a rank's part."""
    if not job.parallel.sharded:
        return job
    sizes = {name: -(-size // ranks) for name, size in job.model["cardinalities"].items()}
    return replace(job, model={**job.model, "cardinalities": sizes}, parallel=ParallelConfig())


def _folded(batch: Batch, model: Any) -> Batch:
    """A batch with ids of these tables."""
    return replace(batch, tensors=batch.tensors | {"sparse": batch.tensors["sparse"] % model.embedding.limits.cpu()})


def _distinct(batch: Batch) -> int:
    """Rows of tables that a batch touches."""
    return sum(len(column[column != PADDING_ID].unique()) for column in batch.tensors["sparse"].T)
