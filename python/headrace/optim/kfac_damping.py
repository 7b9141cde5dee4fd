"""Levenberg and Marquardt's rule for K-FAC's damping.

    rho = (h(w + d) - h(w)) / M(d),    M(d) = g.d + (1/2) d^T F d + (1/2) damping |d|^2
    rho > 3/4: damping <- omega damping;    rho < 1/4: damping <- damping / omega;    omega = (19/20)^interval

h: mean loss of this batch with its L2 term; F d: with the exact Gauss-Newton matrix of this batch, not with K-FAC's.

Reference: J. Martens and R. Grosse, ICML 2015, sections 6.4 and 6.5. Differs from the paper: d is the step that was
made (clipped, with momentum), and only damping adapts, not the gamma of the split beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from headrace.optim.context import Named, StepContext, summed, value_at

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
    ctx: StepContext, before: Named, after: Named, grads: Named, decays: Mapping[str, float], damping: float
) -> float:
    """rho of the step from `before` to `after`, both by the model's names; the same on every rank.

    Args:
        ctx: the step's.
        before: parameters before it.
        after: and after.
        grads: of h at `before`, with the L2 terms.
        decays: L2 coefficient of every parameter.
        damping: without the L2 coefficients.
    """
    step = {name: after[name] - value for name, value in before.items()}
    change = value_at(ctx, after) - value_at(ctx, before)
    model = 0.5 * _curvature(ctx, before, step)
    for name, moved in step.items():
        middle = (before[name] + 0.5 * moved).double()
        change += decays[name] * float((middle * moved).sum())
        model += float((grads[name].double() * moved).sum())
        model += 0.5 * (damping + decays[name]) * float(moved.double().square().sum())
    return change / model if model else 0.0


def _curvature(ctx: StepContext, at: Named, step: Named) -> float:
    """d^T F d: J d by differentiating a vector-Jacobian product, which is linear in its vector."""
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
        outputs = ctx.outputs_at(leaves)
        vector = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, list(leaves.values()), vector, create_graph=True, allow_unused=True)
        used = [(p, step[name]) for name, p in zip(leaves, pulled, strict=True) if p is not None and p.requires_grad]
        made = torch.autograd.grad([p for p, _ in used], vector, [d for _, d in used]) if used else None
        moved = torch.zeros_like(outputs) if made is None else made[0].detach()
        z = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(ctx.losses(z).sum(), z, create_graph=True)
        bent = torch.autograd.grad((slope * moved).sum(), z)[0] if slope.requires_grad else torch.zeros_like(z)
    total = (bent.double() * moved.double()).sum().reshape(1)
    return float(summed([total], ctx.collective)[0]) / max(1, ctx.rows)
