"""One rank's copy of what is trained: model, optimizers, strategy; the parts of a step; the way to checkpoints and
back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from headrace.comm import Collective, LocalGroup
from headrace.data.batch import KEY, LABEL, Batch
from headrace.errors import UserError
from headrace.models.embedding import sum_rows
from headrace.optim import NonFiniteStepError, Optimizer, StepContext, schedules
from headrace.optim.clipping import ClippingConfig, clip_gradients
from headrace.optim.master_weights import HALF
from headrace.optim.schedules import Rates
from headrace.strategies import Remote, Strategy
from headrace.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore, load
from headrace.train.events import Event
from headrace.train.precision import PrecisionConfig


class Replica:
    """See the module's docstring. Gradients between the calls live in `param.grad`."""

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
        for number, piece in enumerate(pieces):
            before_part(number)
            with precision.autocast(self.device.type):
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
        for param in self.params.values():
            if param.grad is None:
                continue
            values = param.grad._values() if param.grad.is_sparse else param.grad
            if not torch.isfinite(values.sum()) and not bool(torch.isfinite(values).all()):
                return True
        return False

    def exchange(self, step: int, rows: int, scale: float = 1.0) -> None:
        """Replace gradients by what the strategy makes of all ranks', divided by scale and the global number of
        rows."""
        for name, grad in self.strategy.on_gradients(self.gradients, step).items():
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
        if self.remote is not None:
            self.remote.push(self.gradients, self.rates, self.loss / max(1, ctx.rows))
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
        """Forget gradients."""
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

        def outputs_at(params: Mapping[str, Tensor] | None) -> Tensor:
            given = params or {}
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            values = {name: p.float() for name, p in half.items() if name not in given} | dict(given)
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
            model = self._copied() if self.own else self.model.state_dict()
        rank = {"strategy": self.strategy.state_dict(), "random": torch.get_rng_state()}
        if self.own:
            rank |= {"optimizer": self.optimizer.state_dict()}
        if self.own and not self.strategy.one_copy:
            rank |= {"model": self._copied()}
        return Checkpoint(
            model=model, optimizer=self.optimizer.state_dict(), rank=rank, state=state | {"ranks": self.collective.size}
        )

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
        saved = load(store.directory / name, self.collective.rank)
        same = saved.state["ranks"] == self.collective.size
        self._load(saved, same, str(store.directory / name))
        if not same:
            what = "strategy and random state"
            what += ", and all ranks' optimizers but the first's" if self.own else ""
            what += ", and the servers' optimizers" if self.remote is not None else ""
            on_event({"type": "reset", "what": what, "was": saved.state["ranks"]})
        return saved.state

    def _load(self, saved: Checkpoint, same_ranks: bool, path: str) -> None:
        try:
            own = vars(saved) | (saved.rank if self.own and same_ranks else {})
            self.model.load_state_dict(own["model"])
            self.optimizer.load_state_dict(own["optimizer"])
            if same_ranks:
                self.strategy.load_state_dict(saved.rank["strategy"])
                torch.set_rng_state(saved.rank["random"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"checkpoint {path} is of another model, optimizer or strategy: {str(error)[:500]}",
                "resume with the settings in the run's config.yaml",
            ) from error


def losses_of(logits: Tensor, batch: Batch) -> Tensor:
    """Binary cross-entropy of every row [B], 0 for padding."""
    losses = nn.functional.binary_cross_entropy_with_logits(logits, batch.tensors[LABEL], reduction="none")
    return losses if batch.mask is None else torch.where(batch.mask, losses, torch.zeros_like(losses))


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in `parts` pieces of consecutive rows, or one a row where it has fewer; at least one."""
    parts = max(1, min(parts, len(batch)))
    if parts == 1:
        return [batch]
    cut = {name: tensor.tensor_split(parts) for name, tensor in batch.tensors.items()}
    masks = [None] * parts if batch.mask is None else batch.mask.tensor_split(parts)
    return [replace(batch, tensors={n: t[i] for n, t in cut.items()}, mask=masks[i]) for i in range(parts)]


def as_coalesced(grad: Tensor) -> Tensor:
    """Autograd forgets that a gradient is coalesced: say it again where rows are distinct and rise, else make it so,
    in an order that does not depend on the number of threads."""
    ids, rows = grad._indices()[0], grad._values()
    if not bool((ids[1:] > ids[:-1]).all()):
        ids, rows = sum_rows(ids, rows)
    return torch.sparse_coo_tensor(ids[None], rows, grad.shape, is_coalesced=True, check_invariants=False)


def weights_sha256(model: nn.Module, collective: Collective | None = None) -> str:
    """sha256 over names and bytes of parameters and buffers; with a collective, checked to be equal on all ranks.

    Raises:
        RuntimeError: ranks hold different weights after a synchronous run.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    own = digest.hexdigest()
    everyone = collective.allgather_object(own) if collective else [own]
    if len(set(everyone)) > 1:
        raise RuntimeError(f"ranks hold different weights: {', '.join(d[:12] for d in everyone)}")
    return own
