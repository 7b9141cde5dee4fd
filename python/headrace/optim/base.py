"""The classes around update rules: what every optimizer is, one rule a tensor, one of torch's own, several in one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.context import StepContext
from headrace.optim.spec import dense_only

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
State = dict[str, Any]

_NOT_NEGATIVE = (
    "lr", "eps", "weight_decay", "initial_accumulator", "momentum_decay", "beta2_decay", "eps_scale", "ns_steps",
    "adam_scale", "adam_eps",
)  # fmt: skip
_POSITIVE = ("clip_threshold",)
_SHARES = ("momentum", "betas", "rho", "alpha", "adam_betas")


class Optimizer(torch.optim.Optimizer):
    """A torch optimizer whose step may be given a context.

    Args:
        params: tensors, (name, tensor) pairs, or torch parameter groups of either.
        options: the rule's options; `lr` is one of them.

    Raises:
        UserError: an option out of range.
    """

    def __init__(self, params: Params, **options: Any) -> None:
        check_options(options)
        super().__init__(params, options)

    @abstractmethod
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Raises:
            UserError: a row-sparse gradient reached a rule that cannot take it, or the rule needs a context.
        """

    def state_bytes(self) -> int:
        """Bytes of all tensors kept between steps."""
        return tensor_bytes(self.state_dict())

    def averages(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters and the averages that evaluation and export use instead; none but from wrappers that average."""
        return []

    def with_own_gradient(self) -> list[str]:
        """Names of the rules in it that have trait own_gradient."""
        return []

    def named(self) -> dict[str, Tensor]:
        """All parameters by the model's names.

        Raises:
            UserError: the optimizer was made from tensors without names.
        """
        found: dict[str, Tensor] = {}
        for group in self.param_groups:
            if "param_names" not in group:
                raise UserError(
                    f"{type(self).__name__} evaluates the loss at other parameters and has to know their names",
                    "make it from the model, or from model.named_parameters()",
                )
            found |= dict(zip(group["param_names"], group["params"], strict=True))
        return found


class RuleOptimizer(Optimizer):
    """An optimizer around one rule: `update(param, grad, state, options)` changes the first and third in place.

    A row-sparse gradient (coalesced torch.sparse_coo) of an optimizer that accepts them runs the same rule on the rows
    that have a gradient, with the same rows of the state; where a state holds one number a row (row-wise rules) it is
    cut alike. Rules that are written for many tensors at once are `ListRule`s.
    """

    sparse = False

    @abstractmethod
    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """Tensors with param.shape[0] rows, and numbers; made at the first step."""

    @abstractmethod
    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """The rule, in place."""

    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """The rule for all tensors of a group that have dense gradients, in place."""
        for param, grad, state in zip(params, grads, states, strict=True):
            self.update(param, grad, state, options)

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        for group in self.param_groups:
            dense: list[Tensor] = []
            for param in group["params"]:
                if param.grad is None or not param.numel():
                    continue
                if not self.state[param]:
                    self.state[param].update(self.init_state(param, group))
                if param.grad.is_sparse:
                    self._update_rows(param, param.grad, self.state[param], group)
                else:
                    dense.append(param)
            if dense:
                self.update_many(dense, [p.grad for p in dense], [self.state[p] for p in dense], group)  # type: ignore[misc]

    def _update_rows(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        if not self.sparse:
            raise dense_only(type(self).__name__.lower())
        grad = grad.coalesce()
        ids, values = grad.indices()[0], grad.values()
        if not ids.numel():
            return
        rows = param.index_select(0, ids)
        kept = {name: value.index_select(0, ids) for name, value in state.items() if torch.is_tensor(value)}
        self.update(rows, values, kept, options)
        param.index_copy_(0, ids, rows)
        for name, value in kept.items():
            state[name].index_copy_(0, ids, value)


class ListRule(RuleOptimizer):
    """A rule that is written for all tensors of a group at once."""

    @abstractmethod
    def update_many(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        """See `RuleOptimizer.update_many`."""

    def update(self, param: Tensor, grad: Tensor, state: State, options: Mapping[str, Any]) -> None:
        """One tensor."""
        self.update_many([param], [grad], [state], options)


class Combined(Optimizer):
    """Several optimizers as one, each with parameters of its own, stepped in the order given; one `state_dict`."""

    def __init__(self, parts: Mapping[str, Optimizer]) -> None:
        self.parts = dict(parts)
        groups = [dict(group) for part in self.parts.values() for group in part.param_groups]
        torch.optim.Optimizer.__init__(self, groups, {})
        self._share()

    def _share(self) -> None:
        """Schedules that change a group's lr here change it in its part: the groups are the same objects."""
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        for part in self.parts.values():
            part.step(ctx)

    def averages(self) -> list[tuple[Tensor, Tensor]]:
        """See `Optimizer.averages`."""
        return [pair for part in self.parts.values() for pair in part.averages()]

    def with_own_gradient(self) -> list[str]:
        """See `Optimizer.with_own_gradient`."""
        return [name for part in self.parts.values() for name in part.with_own_gradient()]

    def state_dict(self) -> dict[str, Any]:
        """State of every part by its name."""
        return {"parts": {name: part.state_dict() for name, part in self.parts.items()}}

    def state_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.state_bytes() for part in self.parts.values())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: the parts are others.
        """
        if set(state_dict.get("parts", {})) != set(self.parts):
            raise ValueError(f"the state has parts {sorted(state_dict.get('parts', {}))}, not {sorted(self.parts)}")
        for name, part in self.parts.items():
            part.load_state_dict(state_dict["parts"][name])
        self._share()


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if torch.is_tensor(value):
        return value.nbytes
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(tensor_bytes(child) for child in children)


def check_options(options: Mapping[str, Any]) -> None:
    """Ranges that hold for every rule.

    Raises:
        UserError: an option out of range.
    """
    for name in _NOT_NEGATIVE:
        value = options.get(name)
        if value is not None and not 0.0 <= value < float("inf"):
            raise UserError(f"optimizer option {name} must be a number of at least 0, not {value}")
    for name in _POSITIVE:
        if name in options and not options[name] > 0.0:
            raise UserError(f"optimizer option {name} must be above 0, not {options[name]}")
    for name in _SHARES:
        values = options.get(name, ())
        for i, value in enumerate(values if isinstance(values, tuple | list) else [values]):
            if value is not None and not 0.0 <= value < 1.0:
                which = f"{name}[{i}]" if isinstance(values, tuple | list) else name
                raise UserError(f"optimizer option {which} must be in [0, 1), not {value}")
