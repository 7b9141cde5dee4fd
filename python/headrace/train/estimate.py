"""What a run would cost, before it runs: rows, steps, memory, bytes on the wire, minutes from a few measured steps."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch

from headrace import optim
from headrace.comm.local import LocalGroup
from headrace.optim import NonFiniteStepError, Optimizer
from headrace.optim.clipping import clip
from headrace.strategies import REDUCERS, STRATEGIES
from headrace.train.job import TrainJob, choose_device
from headrace.train.precision import cast_parameters
from headrace.train.replica import Replica

_MEASURED = 4
_START_S = {"local": 1.0, "horovod": 20.0, "torch": 15.0}


@dataclass(frozen=True)
class Estimate:
    """Figures of one run; bytes are a rank's."""

    rows: int
    steps_per_epoch: int
    epochs: int
    parameters: int
    embedding_bytes: int
    memory_bytes: int
    wire_bytes_per_step: int
    seconds_per_step: float
    minutes: float

    def lines(self) -> list[str]:
        """For people."""
        steps = self.steps_per_epoch * self.epochs
        return [
            f"rows            {self.rows:,} a epoch, {self.epochs} epochs".replace("a epoch", "an epoch"),
            f"steps           {self.steps_per_epoch:,} an epoch, {steps:,} in all",
            f"parameters      {self.parameters:,}",
            f"embedding       {self.embedding_bytes / 1e6:,.1f} MB",
            f"memory          {self.memory_bytes / 1e6:,.0f} MB a rank (model, gradients, optimizer, data, exact AUC)",
            f"on the wire     {self.wire_bytes_per_step / 1e6:,.2f} MB a step sent by a rank",
            f"measured        {1e3 * self.seconds_per_step:,.1f} ms a step on this machine, without the wire",
            f"estimated       {self.minutes:,.1f} minutes",
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
    model = job.make_model().to(choose_device(job.device, 0))
    cast_parameters(model.dense_parameters(), job.fit.precision)
    optimizer = optim.create_parts(model, job.optimizers)
    alone = LocalGroup(1).collective(0)
    replica = Replica(
        model, optimizer, STRATEGIES["allreduce"].factory(REDUCERS[job.reduction].factory(), alone), alone
    )
    stream = job.stream("train", 0, ranks, planned=True)
    seconds, touched = [0.0], 0
    device = next(model.parameters()).device
    batches = list(islice(stream.epoch(0), _MEASURED))
    # A pass over all rows is not estimated: one over these stands for it, so that rules find rows by their keys.
    these = partial(map, lambda batch: replica.context(batch.to(device), batch.rows, job.fit.precision), batches)
    for step, batch in enumerate(batches):
        start = time.perf_counter()
        on_device = batch.to(device)
        _, outputs = replica.backward(on_device, job.fit.precision, parts=job.fit.accumulate)
        replica.exchange(step, batch.rows)
        touched = sum(p.grad._values().shape[0] for p in model.sparse_parameters() if p.grad is not None)
        clip(replica.params, job.fit.clipping)
        context = replica.context(on_device, batch.rows, job.fit.precision, outputs=outputs, full_pass=these)
        with suppress(NonFiniteStepError):
            replica.update(context, step)
        seconds.append(time.perf_counter() - start)
    steps, memory = stream.steps(0), stream.memory_bytes()
    stream.close()
    per_step = min(seconds[2:] or seconds[1:] or seconds)
    evaluated = job.tables["validation"].rows * job.fit.epochs + job.tables["test"].rows
    total = per_step * job.fit.epochs * steps + 0.5 * per_step * evaluated / max(1, job.batch_size) + _START_S[launcher]
    return Estimate(
        rows=job.tables["train"].rows,
        steps_per_epoch=steps,
        epochs=job.fit.epochs,
        parameters=sum(p.numel() for p in model.parameters()),
        embedding_bytes=sum(p.nbytes for p in model.sparse_parameters()),
        memory_bytes=memory + _model_bytes(model, optimizer) + 8 * job.tables["validation"].rows,
        wire_bytes_per_step=_wire(model, ranks, touched),
        seconds_per_step=per_step,
        minutes=total / 60.0,
    )


def _model_bytes(model: Any, optimizer: Optimizer) -> int:
    """Parameters, dense gradients, optimizer state."""
    return (
        sum(p.nbytes for p in model.parameters())
        + sum(p.nbytes for p in model.dense_parameters())
        + optimizer.state_bytes()
    )


def _wire(model: Any, ranks: int, touched: int) -> int:
    """Dense gradients go round a ring; the touched rows (id and values) go to every other rank."""
    dense = sum(p.nbytes for p in model.dense_parameters())
    row = sum(8 + 4 * p.shape[1] for p in model.sparse_parameters())
    return 2 * (ranks - 1) * dense // ranks + (ranks - 1) * touched * row
