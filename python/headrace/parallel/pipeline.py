"""Training of a model that is cut into stages, one a rank, and micro-batches that go through them.

    rank = replica x S + stage:   its stage's layers, their optimizer, their part of the checkpoint

Each rank runs its part of a schedule (pipeline_schedule.py), talks to the stages beside it only (boundary.py), and
updates its own parameters (pipeline_update.py). With trait flushes a step makes the update of plain training on the
whole batch; 1f1b makes one every `group` micro-batches, from gradients at the weights that their forward pass saw.
Replicas of the pipeline share the batch: a stage's gradients are summed over them.

References: Huang et al. 2019, Narayanan et al. 2019 and 2021 (see pipeline_schedule.py). Layers that normalize by their
batch see micro-batches, as in GPipe; their running statistics move once a micro-batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headrace.comm import Collective, CollectiveError
from headrace.comm.base import as_bytes
from headrace.comm.mailbox import Mailbox
from headrace.comm.message_group import MessageGroup
from headrace.comm.subgroup import Subgroup
from headrace.errors import UserError
from headrace.optim.clipping import ClippingConfig
from headrace.options import known
from headrace.parallel.boundary import Arrived, Boundary
from headrace.parallel.gathering import gathered_states
from headrace.parallel.pipeline_schedule import FLUSHES, SCHEDULES, Action, Kind, actions, version
from headrace.parallel.pipeline_update import Outcome, StageUpdate, optimizer_of
from headrace.parallel.stage_passes import Losses, StagePasses
from headrace.parallel.stages import Values, assemble, pieces, stage_of, tensors_of
from headrace.parallel.weight_versions import WeightVersions


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """Settings of a pipeline, the same on all ranks.

    Args:
        stages: S; the number of ranks is a multiple of it. 0: as many as ranks.
        schedule: a key of SCHEDULES.
        micro_batches: M, of a replica in a step.
        group: micro-batches an update, of schedules without trait flushes.
        vertical_sync: all stages take the version of the weights that the first one took (without trait flushes).
        recompute: hold inputs of stages only and make the rest again in the backward pass.
        costs: of every layer; empty: numbers of parameters. See `stages.measured_costs`.
        clipping: of gradients.
        seed: of what layers draw.
        timeout_s: how long a neighbouring stage is waited for.
        max_message_bytes: of a micro-batch between stages.
        name: of the pipeline's boxes: two on one mailbox have different ones.

    Raises:
        UserError: what makes no sense.
    """

    stages: int = 0
    schedule: str = "1f1b_flush"
    micro_batches: int = 4
    group: int = 1
    vertical_sync: bool = False
    recompute: bool = False
    costs: tuple[float, ...] = ()
    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    seed: int = 0
    timeout_s: float = 600.0
    max_message_bytes: int = 1 << 30
    name: str = "pipeline"

    def __post_init__(self) -> None:
        known("schedule", self.schedule, SCHEDULES)
        if not isinstance(self.clipping, ClippingConfig):
            raise UserError(f"clipping is {self.clipping!r}", 'ClippingConfig(rule="norm", limit=1.0)')
        if self.micro_batches < 1 or self.group < 1:
            raise UserError(f"{self.micro_batches} micro-batches in groups of {self.group}", "both at least 1")
        if self.flushes and (self.group > 1 or self.vertical_sync):
            raise UserError(f"{self.schedule} updates once a step: no group, no vertical_sync", "schedule 1f1b")
        if not self.flushes and self.clipping.rule == "norm":
            raise UserError(
                f"{self.schedule}: the norm of a gradient over all stages is not known when a stage updates",
                "clipping value or adaptive, or schedule 1f1b_flush",
            )

    @property
    def flushes(self) -> bool:
        """Whether a step makes one update, when the pipeline is empty."""
        return FLUSHES in SCHEDULES[self.schedule].traits


class Pipeline:
    """One rank of a pipeline; all ranks make it and call its methods together.

    Args:
        model: the same on every rank, which keeps a copy of its stage.
        losses: `losses(outputs, targets)`: a loss for every row, [B] or [B, ...].
        optimizer: `{"name": "adam", "lr": 1e-3, ...}`: see `headrace.optim.create`.
        collective, mailbox: of all ranks.
        options: see PipelineOptions.

    Attributes:
        stage: this rank's layers, an nn.Module.
        optimizer: of its parameters; None where it has none.

    Raises:
        UserError: ranks that stages do not divide, options or replicas' weights that differ from rank to rank, a model
            or a rule that cannot be cut.
    """

    def __init__(
        self, model: nn.Sequential | Sequence[nn.Module], losses: Losses, optimizer: Mapping[str, Any],
        collective: Collective, mailbox: Mailbox, options: PipelineOptions,
    ) -> None:  # fmt: skip
        self.options, self.collective = options, collective
        self.stages = options.stages or collective.size
        if collective.size % self.stages:
            raise UserError(f"{collective.size} ranks are no multiple of {self.stages} stages", "stages=...")
        if (mailbox.rank, mailbox.size) != (collective.rank, collective.size):
            raise UserError("the mailbox is not of the same ranks as the collective", "worker.mailbox()")
        self.replica, place = divmod(collective.rank, self.stages)
        self.stage = stage_of(model, self.stages, place, options.costs, options.seed)
        self.optimizer = optimizer_of(self.stage, optimizer)
        self._check_alike(place)
        ranks = list(range(self.replica * self.stages, (self.replica + 1) * self.stages))
        alike = list(range(place, collective.size, self.stages))
        boundary = Boundary(mailbox, ranks, options.name, options.max_message_bytes, options.timeout_s)
        versions = None if options.flushes else WeightVersions(self.stage.trained)
        self.passes = StagePasses(self.stage, boundary, losses, options.recompute, versions)
        self._boundary, self._versions = boundary, versions
        # With a flush all ranks update at once; without one a stage's replicas must not wait for other stages.
        replicas = (
            Subgroup(collective, alike) if options.flushes
            else MessageGroup(mailbox, alike, f"{options.name}.replicas", options.timeout_s)
        )  # fmt: skip
        self._update = StageUpdate(
            self.stage, self.optimizer, options.clipping, collective, Subgroup(collective, ranks), replicas
        )
        self._targets: dict[int, Values] = {}
        self.steps = self._begun = 0  # calls of `step`; micro-batches since the pipeline was empty
        self._failure = ""

    def _check_alike(self, place: int) -> None:
        """Options on all ranks, weights among the replicas of a stage."""
        digest = hashlib.sha256()
        for tensor in self.stage.state_dict().values():
            digest.update(as_bytes(tensor).cpu().numpy().tobytes())
        told = self.collective.allgather_object([asdict(self.options), digest.hexdigest()])
        for rank, (options, weights) in enumerate(told):
            if options != told[0][0]:
                raise UserError(f"rank {rank} has other options of the pipeline than rank 0", "the same on all ranks")
            if rank % self.stages == place and weights != digest.hexdigest():
                raise UserError(f"rank {rank} begins with other weights of stage {place}", "one seed on all ranks")

    def step(self, inputs: Values | None = None, targets: Values | None = None, *, drain: bool = True) -> Outcome:
        """Train on one batch of this replica: micro-batches in the order of its rows.

        Args:
            inputs: [B, ...], or a tuple of such; read by the first stage, may be None on others.
            targets: the same for the last stage.
            drain: end with an empty pipeline. False, without trait flushes: leave micro-batches under way; the next
                call goes on with them.

        Raises:
            UserError: fewer rows than micro-batches, tensors that are missing, no whole number of groups.
            CollectiveError: another stage failed (it is named), or a rank is gone.
        """
        count = self.options.micro_batches
        end = self._begun + count
        if self.options.flushes and not drain:
            raise UserError(f"{self.options.schedule} ends every step with an empty pipeline", "schedule 1f1b")
        if drain and not self.options.flushes and end % self.options.group:
            raise UserError(f"{end} micro-batches are no multiple of groups of {self.options.group}", "group")
        with self._telling():
            given = self._given(inputs, targets, count)
            for action in actions(
                self.options.schedule, self.stages, self.passes.boundary.stage, count, self.options.group,
                first=self._begun, drain=drain,
            ):  # fmt: skip
                self._do(action, given)
            self.steps += 1
            self._begun = 0 if drain else end
            if drain and self._versions is not None:
                self._versions.restart()
            return self._update.outcome(drain)

    def _given(self, inputs: Values | None, targets: Values | None, count: int) -> dict[int, Arrived]:
        """Micro-batches of the first stage; those of targets are kept until their backward passes."""
        if self.passes.last:
            cut = pieces(_there(targets, "targets", "last"), count)
            self._targets |= dict(enumerate(cut, self._begun))
        if not self.passes.first:
            return {}
        cut = pieces(_there(inputs, "inputs", "first"), count)
        return {number: Arrived(tensors_of(x)[0].shape[0], x) for number, x in enumerate(cut, self._begun)}

    def _do(self, action: Action, given: Mapping[int, Arrived]) -> None:
        number, options = action.micro_batch, self.options
        if action.kind is Kind.FORWARD:
            replicas = self.collective.size // self.stages
            part = (self.steps * replicas + self.replica) * options.micro_batches + number - self._begun
            self.passes.forward(number, part, self._version(number), given.get(number))
        elif action.kind is Kind.BACKWARD:
            self._update.note(*self.passes.backward(number, self._targets.pop(number, None)))
        elif self._versions is None:
            self._update.together()
        else:
            ahead = SCHEDULES[options.schedule].ahead(self.stages, self._boundary.stage, options.micro_batches)
            self._versions.before_update(self._version(number + ahead + 1))
            self._update.alone()

    def _version(self, number: int) -> int:
        if self._versions is None:
            return 0
        return version(self.stages, self._boundary.stage, number, self.options.group, self.options.vertical_sync)

    def predict(self, inputs: Values | None = None) -> Values | None:
        """Outputs of the last stage for [B, ...] of this replica, in evaluation mode and without gradients; None in
        other stages. See `step` for arguments and errors."""
        self._check_empty()
        mode, count, outputs = self.stage.training, self.options.micro_batches, []
        with self._telling():
            cut = pieces(_there(inputs, "inputs", "first"), count) if self.passes.first else [None] * count
            self.stage.eval()
            for number, x in enumerate(cut):
                given = None if x is None else Arrived(tensors_of(x)[0].shape[0], x)
                outputs.append(self.passes.outputs_of(number, given))
            self.stage.train(mode)
        found = [tensors_of(x) for x in outputs if x is not None]
        if not found:
            return None
        joined = tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        return joined[0] if torch.is_tensor(outputs[0]) else joined

    def state_dict(self) -> dict[str, Any]:
        """This stage's part of a checkpoint: tensors and JSON values.

        Raises:
            UserError: micro-batches are under way.
        """
        self._check_empty()
        optimizer = {} if self.optimizer is None else self.optimizer.state_dict()
        return {"model": self.stage.state_dict(), "optimizer": optimizer, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave in the same stage of the same cut.

        Raises:
            UserError: micro-batches are under way, or the state is of other layers.
        """
        self._check_empty()
        self._load_layers(state["model"], set(state["model"]))
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])

    def whole_state_dict(self) -> dict[str, Tensor] | None:
        """The model's `state_dict` as if it had never been cut, on rank 0; None on others. All ranks call it.

        Raises:
            UserError: micro-batches are under way.
        """
        self._check_empty()
        states = gathered_states(self.stage.state_dict() if self.replica == 0 else {}, self.collective)
        return None if states is None else assemble(states)

    def load_whole_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take this stage's layers from the state of the whole model; optimizers stay as they are.

        Raises:
            UserError: micro-batches are under way, or layers are missing.
        """
        self._check_empty()
        self._load_layers(state, set(self.stage.state_dict()))

    def _load_layers(self, state: Mapping[str, Tensor], names: set[str]) -> None:
        try:
            self.stage.load_state_dict({name: state[name] for name in names})
        except (KeyError, RuntimeError) as error:
            raise UserError(f"the state does not fit stage {self._boundary.stage}: {error}", "the same cut") from None

    def _check_empty(self) -> None:
        if self._begun:
            raise UserError("micro-batches are under way in the pipeline", "step(..., drain=True) before this")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the other stages what fails here; a pipeline that has failed is of no use any more."""
        if self._failure:
            raise CollectiveError(f"this pipeline failed before: {self._failure}")
        try:
            yield
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            if not self._boundary.told:
                self._boundary.fail(self._failure[:2000])
            raise


def _there(x: Values | None, what: str, stage: str) -> Values:
    if x is None:
        raise UserError(f"the {stage} stage has no {what}", f"step({what}=...) on its rank")
    return x
