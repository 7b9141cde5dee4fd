"""What an optimizer declares about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headrace.errors import UserError

if TYPE_CHECKING:
    from headrace.optim.base import Optimizer

ACCEPTS_SPARSE = "accepts_sparse"  # row-sparse gradients are updated row by row; rows without gradient do not change
DENSE_ONLY = "dense_only"  # moves parameters or state where the gradient is zero: row-sparse gradients are refused
ROW_SPARSE_REMEDY = "--optimizer.sparse.name rowwise_adagrad"
STATEFUL = "stateful"  # keeps state between steps
NEEDS_CLOSURE = "needs_closure"  # evaluates the loss at other parameters (ctx.loss_at, ctx.outputs_at)
NEEDS_OUTPUTS = "needs_outputs"  # reads ctx.outputs
NEEDS_KEYS = "needs_keys"  # keeps something for every row of the data, or draws numbers by the rows' keys
NEEDS_FULL_PASS = "needs_full_pass"  # calls ctx.full_pass
NEEDS_MODEL = "needs_model"  # looks into the model's layers: `create` must be given the model
OWN_GRADIENT = "own_gradient"  # steps along gradients of its own, alone or added to the one it is given: what is done
# to that one before the step (clipping, sam) would not reach it, or make its estimate wrong, and is refused
TRAITS = (
    ACCEPTS_SPARSE, DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, NEEDS_OUTPUTS, NEEDS_KEYS, NEEDS_FULL_PASS, NEEDS_MODEL,
    OWN_GRADIENT,
)  # fmt: skip

StateBytes = Callable[[Tensor, Mapping[str, Any]], int]


def numbers(count: float, fixed: int = 0) -> StateBytes:
    """`count` numbers of the parameter's type for each of its own, and `fixed` bytes a tensor."""
    return lambda param, options: int(count * param.numel() * param.element_size()) + fixed


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """One entry of OPTIMIZERS. The documentation's table is made of these.

    Args:
        factory: `factory(params, **options)` makes the optimizer; with trait needs_model `factory(params, model=...,
            **options)`.
        paper: the reference.
        rule: the update in one line.
        use: when to choose it, in one sentence.
        state: what is kept between steps, in words ("2 numbers a parameter").
        state_bytes: `state_bytes(param, options)`: at most so many bytes of state for a parameter tensor.
        cost: of a step, in words, beside that of a gradient ("7 numbers moved a parameter").
        traits: of TRAITS; tests and checks go by them, never by names.
        defaults: options and their values where none are given.
    """

    factory: Callable[..., Optimizer]
    paper: str
    rule: str
    use: str
    state: str
    state_bytes: StateBytes
    cost: str
    traits: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(self.traits - set(TRAITS))
        if unknown or len(self.traits & {ACCEPTS_SPARSE, DENSE_ONLY}) != 1:
            raise ValueError(f"traits must be of {TRAITS}, one of the first two among them; got {sorted(self.traits)}")


def dense_only(name: str) -> UserError:
    """The error for row-sparse gradients under a rule that is only right for dense ones."""
    return UserError(
        f"optimizer {name} is only right for dense gradients: it also moves rows that have none (embedding tables)",
        ROW_SPARSE_REMEDY,
    )
