"""RMSProp, plain or centred, with or without momentum.

    v <- alpha v + (1 - alpha) g^2,     u = g / (sqrt(v) + eps)
    centred: v - a^2 for v, where a <- alpha a + (1 - alpha) g
    w <- w - lr u,     or with momentum b <- momentum b + u,  w <- w - lr b

References: T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", Coursera, 2012; centred: A. Graves, arXiv:1308.0850,
2013, eq. 38 to 41. As in torch.optim.RMSprop, and unlike Graves, eps stands beside the root and lr outside of b. The
centred v is kept as the variance itself,

    v <- alpha (v + (1 - alpha) (g - a)^2) with a before its step,

which is the same number, but no difference of large ones: it cannot fall below 0 (torch's can, and its root is NaN).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import State
from headrace.optim.elementwise import Elementwise
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec


def _kept(options: Mapping[str, Any]) -> list[str]:
    return ["v", *(["a"] if options["centered"] else []), *(["b"] if options["momentum"] else [])]


class RMSProp(Elementwise):
    """See the module's docstring."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """v = 0, centred also a = 0, with momentum also b = 0."""
        return {name: torch.zeros_like(param) for name in _kept(options)}

    def rule(self, params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """See `Elementwise.rule`."""
        alpha, lr, momentum = options["alpha"], options["lr"], options["momentum"]
        v = [state["v"] for state in states]
        torch._foreach_mul_(v, alpha)
        if options["centered"]:
            a = [state["a"] for state in states]
            apart = torch._foreach_sub(grads, a)
            torch._foreach_addcmul_(v, apart, apart, alpha * (1.0 - alpha))
            torch._foreach_add_(a, apart, alpha=1.0 - alpha)
        else:
            torch._foreach_addcmul_(v, grads, grads, 1.0 - alpha)
        roots = torch._foreach_sqrt(v)
        torch._foreach_add_(roots, options["eps"])
        if not momentum:
            torch._foreach_addcdiv_(params, grads, roots, -lr)
            return
        b = [state["b"] for state in states]
        torch._foreach_mul_(b, momentum)
        torch._foreach_addcdiv_(b, grads, roots)
        torch._foreach_add_(params, b, alpha=-lr)


SPEC = OptimizerSpec(
    factory=RMSProp,
    paper="Tieleman and Hinton 2012; Graves 2013",
    rule="v <- mean of g^2;  w <- w - lr g / (sqrt(v) + eps)",
    use="recurrent nets and losses that drift; centred where gradients have a large mean",
    state="1 number a parameter, centred 1 more, with momentum 1 more",
    state_bytes=lambda param, options: len(_kept(options)) * param.nbytes,
    cost="5 to 9 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={
        "lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False, "weight_decay": 0.0,
        "decoupled": False,
    },
)  # fmt: skip
