"""torch's own optimizers under our contract: fused into one loop over memory where torch has that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from headrace.errors import UserError
from headrace.optim.base import Optimizer, Params, check_options
from headrace.optim.context import StepContext
from headrace.optim.decay import decayed
from headrace.optim.spec import dense_only


class TorchOptimizer(Optimizer):
    """An optimizer of torch.optim; groups and state are those of the one inside.

    Args:
        params: see `Optimizer`.
        name: key in OPTIMIZERS, for errors.
        inner: makes torch's optimizer of parameters and options.
        fused: torch has a fused form; it takes dense gradients only, so groups with row-sparse ones go without.
        sparse: row-sparse gradients are updated row by row.
        options: of torch's optimizer; `decoupled`: weight decay is done here, before its step, and not by it.
    """

    def __init__(
        self,
        params: Params,
        name: str,
        inner: Callable[..., torch.optim.Optimizer],
        *,
        fused: bool,
        sparse: bool,
        **options: Any,
    ) -> None:
        check_options(options)
        self.name, self.fused, self.sparse = name, fused, sparse
        decoupled = options.pop("decoupled", False)
        self.inner = inner(params, **options, **({"fused": True} if fused else {}))
        self.inner.defaults["decoupled"] = decoupled
        for group in self.inner.param_groups:
            group.setdefault("decoupled", decoupled)
        torch.optim.Optimizer.__init__(self, self.inner.param_groups, self.inner.defaults)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        for group in self.param_groups:
            rows_only = any(p.grad is not None and p.grad.is_sparse for p in group["params"])
            if rows_only and not self.sparse:
                raise dense_only(self.name)
            if rows_only and group.get("weight_decay"):
                raise UserError(
                    "weight decay would move rows that have no gradient", "--optimizer.sparse.weight_decay 0"
                )
            if rows_only and group.get("fused"):
                group["fused"] = False
        apart = [group for group in self.param_groups if group.get("decoupled")]
        decays = [_decayed(group) for group in apart]
        try:
            self.inner.step()
        finally:
            for group, decay in zip(apart, decays, strict=True):
                group["weight_decay"] = decay

    def state_dict(self) -> dict[str, Any]:
        """As torch gives it."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept what `state_dict` gave."""
        self.inner.load_state_dict(state_dict)
        self._share()


@torch.no_grad()
def _decayed(group: dict[str, Any]) -> float:
    """Decay a group's parameters; torch is to see no weight decay. What it was."""
    params = [p for p in group["params"] if p.grad is not None]
    if params:
        decayed(params, params, group)
    decay = float(group["weight_decay"])
    group["weight_decay"] = 0.0
    return decay


def torch_factory(
    name: str, inner: Callable[..., torch.optim.Optimizer], *, fused: bool = False, sparse: bool = False
) -> Callable[..., TorchOptimizer]:
    """A factory for OptimizerSpec; arguments as of `TorchOptimizer`."""

    def make(params: Params, **options: Any) -> TorchOptimizer:
        return TorchOptimizer(params, name, inner, fused=fused, sparse=sparse, **options)

    return make
