"""Sharpness-aware minimization: the gradient is taken where the loss is about the worst within a ball.

    e = rho T^2 g / |T g|,     step with the gradient at w + e, from w;     T = 1, or with adaptive |w| + eta (bias: 1)

References: P. Foret et al., "Sharpness-aware minimization for efficiently improving generalization", ICLR 2021, eq. 2
and algorithm 1 (p = 2); ASAM: J. Kwon et al., "ASAM: Adaptive sharpness-aware minimization", ICML 2021, eq. 6 and
algorithm 1, weights number by number, biases without T as in the authors' code. There every accelerator perturbs by the
gradient of its own rows; here g is that of the global batch, so that the step does not depend on the number of ranks.
Embedding tables are neither perturbed nor stepped by it. The second pass runs under the model's training mode: batch
normalization would count the batch twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Optimizer
from headrace.optim.clipping import global_norm
from headrace.optim.context import Named, NonFiniteStepError, StepContext, value_and_gradient
from headrace.optim.spec import NEEDS_CLOSURE
from headrace.optim.wrapper import CHANGES_GRADIENT, Wrapper, WrapperSpec


class Sam(Wrapper):
    """See the module's docstring.

    Args:
        inner: makes the step from w; weight decay is its own affair, at w.
        rho: radius of the ball.
        adaptive: ASAM.
        eta: of ASAM.

    Raises:
        UserError: rho or eta below 0.
    """

    def __init__(self, inner: Optimizer, rho: float, adaptive: bool, eta: float) -> None:
        super().__init__(inner)
        if not (0.0 <= rho < math.inf and 0.0 <= eta < math.inf):
            raise UserError(f"sam: rho and eta must be at least 0, not {rho} and {eta}")
        self.rho, self.adaptive, self.eta = rho, adaptive, eta

    @torch.no_grad()
    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`.

        Raises:
            NonFiniteStepError: the gradient at w + e is not finite, on all ranks alike; nothing has changed.
        """
        if ctx is None:
            raise UserError("sam evaluates the loss at other parameters", "give step the batch's StepContext")
        params = {name: p for name, p in self.named().items() if p.grad is not None}
        perturbed = self._perturbed(params)
        if perturbed is not None:
            _, grads = value_and_gradient(ctx, perturbed)
            if not math.isfinite(global_norm(list(grads.values()))):
                raise NonFiniteStepError("sam: the gradient at the perturbed weights is not finite")
            if ctx.clip is not None:
                ctx.clip(grads)
            for name, param in params.items():
                param.grad = grads[name]
        self.inner.step(ctx)

    def _perturbed(self, params: Named) -> Named | None:
        """w + e by name; None where the gradient is zero."""
        grads = {name: p.grad for name, p in params.items() if p.grad is not None}
        scales = {name: self._scale(name, p) for name, p in params.items()} if self.adaptive else {}
        directions = {name: g * scales[name] if name in scales else g for name, g in grads.items()}
        norm = global_norm(list(directions.values()))
        if norm == 0.0:
            return None
        factor = self.rho / norm
        return {
            name: p + factor * (directions[name] * scales[name] if name in scales else directions[name])
            for name, p in params.items()
        }

    def _scale(self, name: str, param: Tensor) -> Tensor:
        bias = "bias" in name.rpartition(".")[2]
        return torch.ones_like(param) if bias else param.abs() + self.eta


SPEC = WrapperSpec(
    factory=Sam,
    paper="Foret et al. 2021; Kwon et al. 2021",
    rule="g at w + rho g / |g|, step from w",
    use="models that overfit: flatter minima for a second pass a step",
    state="none",
    cost="a second forward and backward and an exchange",
    traits=frozenset({NEEDS_CLOSURE, CHANGES_GRADIENT}),
    defaults={"rho": 0.05, "adaptive": False, "eta": 0.01},
)
