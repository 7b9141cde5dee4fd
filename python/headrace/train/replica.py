"""One rank's copy of what is trained: model, optimizers, strategy; the parts of a step; the way to checkpoints and
back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headrace.comm import Collective, LocalGroup
from headrace.data.batch import KEY, LABEL, Batch
from headrace.errors import UserError
from headrace.optim import NonFiniteStepError, Optimizer, StepContext, schedules
from headrace.optim.clipping import ClippingConfig, Shards, clip_gradients
from headrace.optim.master_weights import HALF
from headrace.optim.schedules import Rates
from headrace.parallel.layout import layout
from headrace.strategies import Remote, Strategy
from headrace.strategies.sparse import as_coalesced
from headrace.train import sharded_state
from headrace.train.begun_anew import begun_anew
from headrace.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore, load
from headrace.train.events import Event
from headrace.train.precision import PrecisionConfig


class Replica:
    """See the module's docstring. Gradients between the calls live in `param.grad`; those of rows that other ranks hold
    in `fetched`, until the exchange."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, strategy: Strategy, collective: Collective) -> None:
        self.model, self.optimizer, self.strategy, self.collective = model, optimizer, strategy, collective
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        # What rules may ask of other ranks: of none where ranks step on their own.
        self.peers = LocalGroup(1).collective(0) if strategy.local else collective
        # Whether parameters, and what the optimizer keeps, are this rank's own where no ranks meet.
        self.remote = strategy if isinstance(strategy, Remote) else None
        self.own = strategy.local and self.remote is None
        self.rates, self.loss = Rates(1.0), 0.0
        self.parallel, self.fetched = layout(model, collective), None
        assert not (self.parallel.names and strategy.local), "rows of a rank alone, where ranks meet now and then"
        self.shards = Shards(self.parallel.names, collective) if self.parallel.names else None
        left = [name for name, p in self.params.items() if id(p) not in held]
        if left:
            raise UserError(f"the optimizer has not got parameter {left[0]}", "give every parameter to the optimizer")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def backward(
        self,
        batch: Batch,
        precision: PrecisionConfig,
        *,
        scale: float = 1.0,
        parts: int = 1,
        before_part: Callable[[int], None] = lambda part: None,
    ) -> tuple[float, Tensor]:
        """Gradients of `scale` times the sum of losses over this rank's rows; the sum and the logits [B].

        Rows go through in `parts` pieces whose gradients are added up; `before_part(number)` is called before each.
        Only the last backward is the strategy's, which may send what is whole then.
        """
        self.clear()
        loss, outputs = 0.0, []
        pieces = split(batch, parts)
        self.fetched = self.parallel.fetch(batch.inputs())
        for number, piece in enumerate(pieces):
            before_part(number)
            with precision.autocast(self.device.type), self.parallel.serving(self.fetched):
                logits = self.model(**piece.inputs())
            losses = losses_of(logits.float(), piece).sum()
            with self.strategy.backward() if number == len(pieces) - 1 else nullcontext():
                (losses if scale == 1.0 else losses * scale).backward()
            loss += float(losses.detach())
            outputs.append(logits.detach())
        for param in self.params.values():
            if param.grad is not None and param.grad.is_sparse:
                param.grad = as_coalesced(param.grad)
        self.loss = loss
        return loss, outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def bad_gradient(self) -> bool:
        """Whether a gradient of this rank holds NaN or Inf; every number is looked at only where the sum is bad."""
        for grad in (*self.gradients.values(), *self.parallel.gradients(self.fetched).values()):
            values = grad._values() if grad.is_sparse else grad
            if not torch.isfinite(values.sum()) and not bool(torch.isfinite(values).all()):
                return True
        return False

    def exchange(self, step: int, rows: int, scale: float = 1.0) -> None:
        """Replace gradients by what the strategy makes of all ranks', and those of rows that ranks hold by their sums,
        divided by scale and the global number of rows."""
        summed = self.strategy.on_gradients(self.gradients, step) | self.parallel.exchanged(self.fetched)
        for name, grad in summed.items():
            values = grad._values() if grad.is_sparse else grad
            values.div_(max(1, rows) * scale)
            self.params[name].grad = grad

    def update(self, ctx: StepContext | None, step: int, meets: bool = True) -> bool:
        """The strategy's turn before the optimizer's step, the step, and the strategy's turn on parameters.

        Args:
            ctx: of the step; None where this rank leaves it out and others do not.
            step: of the run.
            meets: whether ranks meet in it.

        Returns:
            Whether the optimizer made its step.

        Raises:
            NonFiniteStepError: it did not, and ranks step together.
        """
        self.strategy.before_update(self.values, self.gradients)
        made = ctx is not None
        try:
            if ctx is not None:
                self._step(ctx)
        except NonFiniteStepError:
            if not self.strategy.local:
                raise
            made = False
        self.strategy.on_parameters(self.values, step, meets)
        return made

    def _step(self, ctx: StepContext) -> None:
        if self.remote is not None and ctx.rows:
            self.remote.push(self.gradients, self.rates, self.loss / ctx.rows)
        elif self.remote is not None:  # all are padding: zeros would move the servers' momentum
            self.remote.push({}, self.rates, None)
        else:
            self.optimizer.step(ctx)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: p.grad for name, p in self.params.items() if p.grad is not None}

    @property
    def values(self) -> dict[str, Tensor]:
        """The parameters' memory by name."""
        return {name: p.data for name, p in self.params.items()}

    def clear(self) -> None:
        """Forget gradients, and what was fetched."""
        self.fetched = None
        for param in self.params.values():
            param.grad = None

    def set_rates(self, rates: Rates) -> None:
        """Scale every group's base learning rate; set the momentum of rules that have one, where it is given."""
        self.rates = rates
        schedules.set_rates(self.optimizer, rates)

    def context(
        self,
        batch: Batch,
        rows: int,
        *,
        outputs: Tensor | None = None,
        full_pass: Callable[[], Iterator[StepContext]] | None = None,
        clipping: ClippingConfig | None = None,
        scale: float = 1.0,
    ) -> StepContext:
        """What rules may ask of a batch (see StepContext); `rows` is what its mean loss is over, `scale` that of
        `backward`.

        Computed in float32, in one piece: nothing scales the gradients that rules take of it, so in fp16 they would
        vanish. Parameters of half precision are made float32 for it. Buffers are copies: statistics that layers keep of
        their inputs (batch norm) are those of steps, not of a rule's trials.
        """
        half = {name: p for name, p in self.model.named_parameters() if p.dtype in HALF}
        fetched = self.fetched if outputs is not None else None

        def outputs_at(params: Mapping[str, Tensor] | None) -> Tensor:
            nonlocal fetched
            given = params or {}
            assert not self.parallel.names & set(given), "a rule moves rows that other ranks hold"
            fetched = self.parallel.fetch(batch.inputs()) if fetched is None else fetched
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            values = {name: p.float() for name, p in half.items() if name not in given} | dict(given)
            with self.parallel.serving(fetched):
                return torch.func.functional_call(self.model, buffers | values, kwargs=batch.inputs())

        def clip(grads: Mapping[str, Tensor]) -> object:
            return clip_gradients(self.params, grads, clipping) if clipping is not None else None

        return StepContext(
            outputs_at=outputs_at,
            losses=lambda logits: losses_of(logits, batch),
            rows=rows,
            outputs=outputs,
            keys=batch.tensors.get(KEY),
            full_pass=full_pass,
            collective=self.peers,
            clip=clip,
            scale=scale,
        )

    def checkpoint(self, state: dict[str, Any]) -> Checkpoint:
        """Everything that a resumed run needs; all ranks call it."""
        with self.strategy.consensus(self.values):
            model = self._copied() if self.own else dict(self.model.state_dict())
        rank = {"strategy": self.strategy.state_dict(), "random": torch.get_rng_state()}
        optimizer = self.optimizer.state_dict()
        if self.own:
            rank |= {"optimizer": optimizer}
        if self.own and not self.strategy.one_copy:
            rank |= {"model": self._copied()}
        if self.parallel.names:
            rank[sharded_state.SHARDS] = sharded_state.cut(model, optimizer, *self._sharded())
        return Checkpoint(model=model, optimizer=optimizer, rank=rank, state=state | {"ranks": self.collective.size})

    def _sharded(self) -> tuple[list[str], list[str]]:
        """Names of parameters of which each rank has rows of its own, and the optimizer's parts for these alone."""
        names = sorted(self.parallel.names)
        return names, sharded_state.parts_with({name: self.params[name] for name in names}, self.optimizer)

    def _copied(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def restore(self, store: CheckpointStore, on_event: Callable[[Event], None]) -> dict[str, Any] | None:
        """Load the newest good checkpoint, the same on every rank; its `state`, or None where there is none."""
        path = None
        if self.collective.rank == 0:
            path = store.latest(lambda name, why: on_event({"type": "damaged", "path": name, "reason": why}))
        name = self.collective.allgather_object(path.name if path else "")[0]
        if not name:
            return None
        saved = load(store.directory / name, self.collective.rank, self.collective.size)
        same = saved.state["ranks"] == self.collective.size
        self._load(saved, same, store.directory / name)
        if not same:
            on_event({"type": "reset", "what": begun_anew(store.directory / name), "was": saved.state["ranks"]})
        return saved.state

    def _load(self, saved: Checkpoint, same_ranks: bool, path: Path) -> None:
        try:
            if self.parallel.names:
                self._put_back(saved, same_ranks, path)
            own = vars(saved) | (saved.rank if self.own and same_ranks else {})
            self.model.load_state_dict(own["model"])
            self.optimizer.load_state_dict(own["optimizer"])
            if same_ranks:
                self.strategy.load_state_dict(saved.rank["strategy"])
                torch.set_rng_state(saved.rank["random"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"checkpoint {path} is of another model, optimizer or strategy: {str(error)[:500]}",
                "resume with the settings in the run's config.yaml",
            ) from error

    def _put_back(self, saved: Checkpoint, same_ranks: bool, path: Path) -> None:
        """The rows of this rank, dealt anew where there were fewer or more ranks."""
        rank, size = self.collective.rank, self.collective.size
        own = saved.rank.get(sharded_state.SHARDS, {})
        shards = own if same_ranks else sharded_state.dealt(path, self.parallel, rank, size)
        sharded_state.put_back(saved.model, saved.optimizer, shards)


def losses_of(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of every row [B], 0 for padding: binary of logits [B] where labels are float, of logits
    [B, classes] where they are int64."""
    label = batch.tensors[LABEL]
    binary = nn.functional.binary_cross_entropy_with_logits
    losses = (binary if label.is_floating_point() else nn.functional.cross_entropy)(logits, label, reduction="none")
    return losses if batch.mask is None else torch.where(batch.mask, losses, torch.zeros_like(losses))


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in `parts` pieces of consecutive rows, or one a row where it has fewer; at least one."""
    parts = max(1, min(parts, len(batch)))
    if parts == 1:
        return [batch]
    cut = {name: tensor.tensor_split(parts) for name, tensor in batch.tensors.items()}
    masks = [None] * parts if batch.mask is None else batch.mask.tensor_split(parts)
    return [replace(batch, tensors={n: t[i] for n, t in cut.items()}, mask=masks[i]) for i in range(parts)]
