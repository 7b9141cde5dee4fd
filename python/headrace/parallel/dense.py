"""Dense models spread over ranks: cut into stages (pipeline) or into parts of layers (tensor), by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from headrace.comm import Collective
from headrace.comm.mailbox import Mailbox
from headrace.errors import UserError
from headrace.options import choose, known
from headrace.parallel.pipeline import Pipeline, PipelineOptions
from headrace.parallel.tensor_model import TensorParallel

NEEDS_MAILBOX = "needs_mailbox"  # ranks send each other messages: `create` must be given a mailbox
OWN_OPTIMIZER = "own_optimizer"  # makes the updates itself, by `optimizer`
TRAITS = (NEEDS_MAILBOX, OWN_OPTIMIZER)


@dataclass(frozen=True, kw_only=True)
class ParallelismSpec:
    """One entry of PARALLELISMS.

    Args:
        factory: `factory(model, collective, mailbox, options)`.
        paper: the reference.
        holds: what of the model a rank holds.
        sends: what goes over the wire in a step, in words.
        traits: of TRAITS; tests and checks go by them, never by names.
        required: options that have no default.
        defaults: the others.
    """

    factory: Callable[..., Pipeline | TensorParallel]
    paper: str
    holds: str
    sends: str
    traits: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _pipeline(model: Any, collective: Collective, mailbox: Mailbox | None, options: dict[str, Any]) -> Pipeline:
    assert mailbox is not None
    losses, optimizer = options.pop("losses"), options.pop("optimizer")
    return Pipeline(model, losses, optimizer, collective, mailbox, PipelineOptions(**options))


def _tensor(model: Any, collective: Collective, mailbox: Mailbox | None, options: dict[str, Any]) -> TensorParallel:
    return TensorParallel(model, collective=collective, **options)


PARALLELISMS: dict[str, ParallelismSpec] = {
    "pipeline": ParallelismSpec(
        factory=_pipeline,
        paper="Huang et al. 2019; Narayanan et al. 2019, 2021",
        holds="consecutive layers",
        sends="activations to the next stage and their gradients back",
        traits=frozenset({NEEDS_MAILBOX, OWN_OPTIMIZER}),
        required=("losses", "optimizer"),
        defaults={each.name: getattr(PipelineOptions(), each.name) for each in fields(PipelineOptions)},
    ),
    "tensor": ParallelismSpec(
        factory=_tensor,
        paper="Shoeybi et al. 2019",
        holds="rows or columns of the weights of linear layers",
        sends="sums of activations forward and of their gradients backward, a block",
        required=("plan",),
        defaults={"ranks": 0},
    ),
}


def create(
    name: str,
    /,  # a pipeline has an option of that name as well
    model: nn.Module | list[nn.Module],
    collective: Collective,
    mailbox: Mailbox | None = None,
    **options: Any,
) -> Any:
    """This rank's part of a model; all ranks call it alike.

    Args:
        name: a key of PARALLELISMS.
        model: the same bits on every rank; it is copied.
        collective: of all ranks.
        mailbox: of this rank, with trait needs_mailbox.
        options: those that the entry requires, and others over its defaults.

    Raises:
        UserError: an unknown name or option, one that is missing, or what the parallelism refuses.
    """
    known("parallelism", name, PARALLELISMS)
    spec = PARALLELISMS[name]
    if missing := [each for each in spec.required if each not in options]:
        raise UserError(f"parallelism {name} needs {missing[0]}", f"create({name!r}, ..., {missing[0]}=...)")
    if NEEDS_MAILBOX in spec.traits and mailbox is None:
        raise UserError(f"parallelism {name} sends messages from rank to rank", "mailbox=...")
    given = {each: options.pop(each) for each in spec.required}
    return spec.factory(model, collective, mailbox, given | choose(f"parallelism {name}", spec.defaults, options))
