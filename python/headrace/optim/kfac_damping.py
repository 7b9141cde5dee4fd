"""Levenberg and Marquardt's rule for K-FAC's damping.

    rho = (h(w + d) - h(w)) / M(d),    M(d) = g.d + (1/2) d^T F d + (1/2) damping |d|^2
    rho > 3/4: damping <- omega damping;    rho < 1/4: damping <- damping / omega;    omega = (19/20)^interval

h: mean loss of this batch with its L2 term; F d: with the exact Gauss-Newton matrix of this batch, not with K-FAC's.

Reference: J. Martens and R. Grosse, ICML 2015, sections 6.4 and 6.5. Differs from the paper: d is the step that was
made (clipped, with momentum), and only damping adapts, not the gamma of the split beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from headrace.optim.context import Named, StepContext, summed, value_and_gradient, value_at
from headrace.optim.curvature import Linearized

_LEAST, _MOST = 1e-10, 1e10


def adapted(damping: float, ratio: float, interval: int) -> float:
    """The damping after a step whose reduction was `ratio` of the model's."""
    omega = (19.0 / 20.0) ** interval
    if ratio > 0.75:
        damping *= omega
    elif not ratio >= 0.25:  # NaN too
        damping /= omega
    return min(max(damping, _LEAST), _MOST)


def reduction_ratio(
    ctx: StepContext, before: Named, after: Named, decays: Mapping[str, float], damping: float
) -> float:
    """rho of the step from `before` to `after`, both by the model's names; the same on every rank.

    -inf where it says nothing: where h(w + d) is not finite, or M(d), by the momentum in d, is no decrease. The
    gradient in M is h's own, evaluated here: the one that was given to the step may have been clipped.

    Args:
        ctx: the step's.
        before: parameters before it.
        after: and after.
        decays: L2 coefficient of every parameter.
        damping: without the L2 coefficients.
    """
    step = {name: after[name] - value for name, value in before.items()}
    value, grads = value_and_gradient(ctx, before)
    change = value_at(ctx, after) - value
    model = 0.5 * _curvature(ctx, before, step)
    for name, moved in step.items():
        decayed = decays[name] * before[name].double()
        size = float(moved.double().square().sum())
        change += float((decayed * moved).sum()) + 0.5 * decays[name] * size
        model += float(((grads[name] + decayed) * moved).sum()) + 0.5 * (damping + decays[name]) * size
    return change / model if model < 0.0 and math.isfinite(change) else -math.inf


def _curvature(ctx: StepContext, at: Named, step: Named) -> float:
    """d^T F d."""
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
        outputs = ctx.outputs_at(leaves)
        moved = Linearized(outputs, list(leaves.values())).push([step[name] for name in leaves]).detach()
        z = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(ctx.losses(z).sum(), z, create_graph=True)
        bent = torch.autograd.grad((slope * moved).sum(), z)[0] if slope.requires_grad else torch.zeros_like(z)
    total = (bent.double() * moved.double()).sum().reshape(1)
    return float(summed([total], ctx.collective)[0]) / max(1, ctx.rows)
