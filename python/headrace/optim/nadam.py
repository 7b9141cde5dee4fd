"""NAdam: Adam with Nesterov's momentum and a warmed-up b1.

    m, v <- means of g, g^2 as Adam's,     mu_t = b1 (1 - 0.96^(t momentum_decay) / 2),
    m^ = mu_{t+1} m / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) g / (1 - mu_1 ... mu_t),
    w <- w - lr m^ / (sqrt(v / (1 - b2^t)) + eps)

Reference: T. Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016, algorithm 2. As in
torch.optim.NAdam, which differs from the paper: m is the mean with b1 where the paper has mu_t, and v's correction is
without the paper's further factor b2. The product of mu is float64 here; torch's is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.optim.base import State
from headrace.optim.elementwise import Elementwise
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec, numbers


def _mu(t: int, options: Mapping[str, Any]) -> float:
    return float(options["betas"][0] * (1.0 - 0.5 * 0.96 ** (t * options["momentum_decay"])))


class NAdam(Elementwise):
    """See the module's docstring."""

    def init_state(self, param: Tensor, options: Mapping[str, Any]) -> State:
        """m = v = 0; t, and mu_1 ... mu_t."""
        return {"m": torch.zeros_like(param), "v": torch.zeros_like(param), "t": 0, "mus": 1.0}

    def advance(self, state: State, options: Mapping[str, Any]) -> None:
        """See `Elementwise.advance`."""
        state["t"] += 1
        state["mus"] *= _mu(state["t"], options)

    def rule(self, params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """See `Elementwise.rule`."""
        b1, b2 = options["betas"]
        m, v = [state["m"] for state in states], [state["v"] for state in states]
        torch._foreach_lerp_(m, grads, 1.0 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, grads, grads, 1.0 - b2)
        roots = torch._foreach_sqrt(v)
        torch._foreach_div_(roots, [(1.0 - b2 ** state["t"]) ** 0.5 for state in states])
        torch._foreach_add_(roots, options["eps"])
        now, ahead = zip(*(_shares(state, options) for state in states), strict=True)
        torch._foreach_addcdiv_(params, grads, roots, [-options["lr"] * share for share in now])
        torch._foreach_addcdiv_(params, m, roots, [-options["lr"] * share for share in ahead])


def _shares(state: State, options: Mapping[str, Any]) -> tuple[float, float]:
    """What g and m are multiplied with in m^."""
    mu, after = _mu(state["t"], options), _mu(state["t"] + 1, options)
    return (1.0 - mu) / (1.0 - state["mus"]), after / (1.0 - state["mus"] * after)


SPEC = OptimizerSpec(
    factory=NAdam,
    paper="Dozat 2016",
    rule="as adam, with m^ = what m^ will be at the next step if g stays",
    use="as adam, a little faster where gradients are smooth",
    state="2 numbers a parameter",
    state_bytes=numbers(2),
    cost="7 numbers moved a parameter",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={
        "lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 4e-3, "weight_decay": 0.0, "decoupled": False,
    },
)  # fmt: skip
