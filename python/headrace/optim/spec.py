"""What an optimizer declares about itself, what a step may ask for, and the thin class around every update rule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.errors import UserError

ACCEPTS_SPARSE = "accepts_sparse"  # row-sparse gradients are updated row by row; rows without gradient do not change
DENSE_ONLY = "dense_only"  # moves parameters or state where the gradient is zero: row-sparse gradients are refused
ROW_SPARSE_REMEDY = "--optimizer.sparse.name rowwise_adagrad"
STATEFUL = "stateful"  # keeps state between steps
NEEDS_CLOSURE = "needs_closure"  # calls ctx.loss_at
NEEDS_OUTPUTS = "needs_outputs"  # reads ctx.outputs
NEEDS_KEYS = "needs_keys"  # keeps something for every row of the data
NEEDS_FULL_PASS = "needs_full_pass"  # calls ctx.full_pass
TRAITS = (ACCEPTS_SPARSE, DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, NEEDS_OUTPUTS, NEEDS_KEYS, NEEDS_FULL_PASS)

Params = Iterable[Tensor] | Iterable[dict[str, Any]]
State = dict[str, Any]


@dataclass(frozen=True)
class StepContext:
    """What a rule may use beyond gradients. Plain rules ignore it.

    Args:
        loss_at: mean loss of this global batch at other values of the parameters (by name), as a differentiable scalar
            of this rank's rows;
            None: at the present ones.
        outputs: logits of this rank's rows [B].
        keys: row keys of this rank's rows [B], int64.
        full_pass: gradient of the mean loss over all training rows, by name, summed over ranks.
        collective: the way to the other ranks.
    """

    loss_at: Callable[[Mapping[str, Tensor] | None], Tensor] | None = None
    outputs: Tensor | None = None
    keys: Tensor | None = None
    full_pass: Callable[[], dict[str, Tensor]] | None = None
    collective: Collective | None = None


@dataclass(frozen=True)
class OptimizerSpec:
    """One entry of OPTIMIZERS.

    Args:
        factory: `factory(params, **options)` makes the optimizer.
        paper: the reference.
        traits: of TRAITS; tests and checks go by them, never by names.
        defaults: options and their values where none are given.
    """

    factory: Callable[..., RuleOptimizer]
    paper: str
    traits: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(self.traits - set(TRAITS))
        if unknown or not self.traits & {ACCEPTS_SPARSE, DENSE_ONLY}:
            raise ValueError(f"traits must be of {TRAITS}, one of the first two among them; got {sorted(self.traits)}")


class RuleOptimizer(torch.optim.Optimizer):
    """A torch optimizer around one rule: `update(param, grad, state, options)` changes the first and third in place.

    A row-sparse gradient (coalesced torch.sparse_coo) of an optimizer that accepts them runs the same rule on the rows
    that have a gradient, with the same rows of the state; where a state holds one number a row (row-wise rules) it is
    cut alike.

    Args:
        params: tensors or torch parameter groups.
        options: the rule's options; `lr` is one of them.
    """

    sparse = False

    def __init__(self, params: Params, **options: Any) -> None:
        _check_options(options)
        super().__init__(params, options)

    @abstractmethod
    def init_state(self, param: Tensor) -> State:
        """Tensors with param.shape[0] rows, and numbers; made at the first step."""

    @abstractmethod
    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Raises:
            UserError: a row-sparse gradient reached a rule that cannot take it.
        """
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state.update(self.init_state(param))
                if param.grad.is_sparse:
                    self._update_rows(param, param.grad, state, group)
                else:
                    self.update(param, param.grad, state, group)

    def _update_rows(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        if not self.sparse:
            raise dense_only(type(self).__name__.lower())
        grad = grad.coalesce()
        ids, values = grad.indices()[0], grad.values()
        rows = param.index_select(0, ids)
        kept = {name: value.index_select(0, ids) for name, value in state.items() if torch.is_tensor(value)}
        self.update(rows, values, kept, options)
        param.index_copy_(0, ids, rows)
        for name, value in kept.items():
            state[name].index_copy_(0, ids, value)


def dense_only(name: str) -> UserError:
    """The error for row-sparse gradients under a rule that is only right for dense ones."""
    return UserError(
        f"optimizer {name} is only right for dense gradients: it also moves rows that have none (embedding tables)",
        ROW_SPARSE_REMEDY,
    )


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay", "initial_accumulator"):
        value = options.get(name)
        if value is not None and not 0.0 <= value < float("inf"):
            raise UserError(f"optimizer option {name} must be a number of at least 0, not {value}")
    shares = {name: options[name] for name in ("momentum",) if name in options}
    shares |= {f"betas[{i}]": beta for i, beta in enumerate(options.get("betas", ()))}
    for name, value in shares.items():
        if not 0.0 <= value < 1.0:
            raise UserError(f"optimizer option {name} must be in [0, 1), not {value}")
