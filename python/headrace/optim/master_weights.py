"""float32 masters for parameters of half precision: any rule updates them, the model gets them rounded.

    m <- rule(m, float32(g)),     w <- round(m);     m_0 = float32(w_0)

Reference: P. Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.1. An update below half a unit in
the last place of w is lost without them (bf16: under 1/512 of the weight).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from headrace.optim.base import Optimizer
from headrace.optim.context import StepContext

HALF = (torch.bfloat16, torch.float16)
NamedList = list[tuple[str, Tensor]]


class MasterWeights(Optimizer):
    """See the module's docstring. Parameters that are not of half precision are their own masters.

    Args:
        params: (name, parameter) pairs of the model.
        make: makes the optimizer of (name, master) pairs; wrappers inside it see masters too.
    """

    def __init__(self, params: NamedList, make: Callable[[NamedList], Optimizer]) -> None:
        masters = {
            name: nn.Parameter(p.detach().float()) if p.dtype in HALF else p for name, p in params
        }  # fmt: skip
        self.inner = make(list(masters.items()))
        own = dict(params)
        groups = [{**g, "params": [own[name] for name in g["param_names"]]} for g in self.inner.param_groups]
        torch.optim.Optimizer.__init__(self, groups, {})
        self._pairs = [(own[name], master) for name, master in masters.items() if own[name] is not master]

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({k: v for k, v in outer.items() if k not in ("params", "param_names")})
        for param, master in self._pairs:
            master.grad = None if param.grad is None else param.grad.to(master.dtype)
        self.inner.step(ctx)
        for param, master in self._pairs:
            param.copy_(master)
            master.grad = None

    def averages(self) -> list[tuple[Tensor, Tensor]]:
        """See `Optimizer.averages`."""
        of = {id(master): param for param, master in self._pairs}
        return [(of.get(id(master), master), average) for master, average in self.inner.averages()]

    def with_own_gradient(self) -> list[str]:
        """See `Optimizer.with_own_gradient`."""
        return self.inner.with_own_gradient()

    def state_dict(self) -> dict[str, Any]:
        """The inner state and the masters."""
        return {"inner": self.inner.state_dict(), "masters": [master.detach() for _, master in self._pairs]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: it is another optimizer's, or of other parameters.
        """
        masters = state_dict.get("masters", [])
        if [tuple(m.shape) for m in masters] != [tuple(m.shape) for _, m in self._pairs]:
            raise ValueError("the state has no master weights of these parameters")
        self.inner.load_state_dict(state_dict["inner"])
        for (param, master), saved in zip(self._pairs, masters, strict=True):
            master.copy_(saved)
            param.copy_(saved)
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update({k: v for k, v in inner.items() if k not in ("params", "param_names")})
