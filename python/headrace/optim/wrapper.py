"""What optimizers around optimizers share: one state, groups of the one inside, averages for evaluation.

    wrapper(inner): step(ctx) does its own part around inner.step(ctx); one state_dict holds both

A wrapper goes around any rule for dense gradients. It would have to touch every row of an embedding table at every
step, so tables keep their own rule.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import Optimizer
from headrace.optim.context import StepContext
from headrace.optim.spec import NEEDS_CLOSURE

AVERAGES = "averages"  # evaluation and export use averaged weights
CHANGES_GRADIENT = "changes_gradient"  # hands the rule inside another gradient than the batch's at the weights
WRAPPER_TRAITS = (AVERAGES, NEEDS_CLOSURE, CHANGES_GRADIENT)


@dataclass(frozen=True, kw_only=True)
class WrapperSpec:
    """One entry of WRAPPERS; fields as of OptimizerSpec.

    Args:
        factory: `factory(inner, **options)` makes the optimizer around `inner`.
        paper: the reference.
        rule: what it does, in one line.
        use: when to choose it.
        state: what it keeps beside the inner state.
        cost: of a step beside the inner one.
        traits: of WRAPPER_TRAITS.
        defaults: options and their values where none are given.
    """

    factory: Callable[..., Wrapper]
    paper: str
    rule: str
    use: str
    state: str
    cost: str
    traits: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)


class Wrapper(Optimizer):
    """An optimizer around another.

    Args:
        inner: does the update; its groups are this one's.

    Attributes:
        params: all parameters, in the order of `kept`; a rule may move parameters between its groups (kfac does).
    """

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        torch.optim.Optimizer.__init__(self, [dict(group) for group in inner.param_groups], {})
        self.params: list[Tensor] = [param for group in inner.param_groups for param in group["params"]]
        self.steps = 0
        self.kept: list[Tensor] = []
        self._share()

    def _share(self) -> None:
        self.param_groups = self.inner.param_groups

    @abstractmethod
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""

    def averages(self) -> list[tuple[Tensor, Tensor]]:
        """See `Optimizer.averages`: those of the inner optimizer."""
        return self.inner.averages()

    def with_own_gradient(self) -> list[str]:
        """See `Optimizer.with_own_gradient`."""
        return self.inner.with_own_gradient()

    def state_dict(self) -> dict[str, Any]:
        """The inner state, the number of steps, a tensor a parameter (none before the wrapper begins)."""
        return {"inner": self.inner.state_dict(), "steps": self.steps, "kept": list(self.kept)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: it is another optimizer's, or of other parameters.
        """
        if set(state_dict) != {"inner", "steps", "kept"}:
            raise ValueError(f"the state is not one of {type(self).__name__.lower()} around another optimizer")
        params, kept = self.params, state_dict["kept"]
        if kept and [tuple(k.shape) for k in kept] != [tuple(p.shape) for p in params]:
            raise ValueError(f"{type(self).__name__.lower()} keeps tensors of other shapes")
        self.inner.load_state_dict(state_dict["inner"])
        self.steps = state_dict["steps"]
        self.kept = [k.detach().to(p.device, copy=True) for k, p in zip(kept, params, strict=False)]
        self._share()


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[bool]:
    """Parameters hold their averages inside, without a copy; gives whether there are any.

    Buffers (statistics of batch normalization) stay those of training: see optim.swa.
    """
    pairs = optimizer.averages()
    trained = [param.data for param, _ in pairs]
    try:
        for param, average in pairs:
            param.data = average.to(param.dtype)
        yield bool(pairs)
    finally:
        for (param, _), values in zip(pairs, trained, strict=True):
            param.data = values
