"""Gradients of single rows, in the two forms that a table can hold.

linear   outputs are affine in the parameters, o_i = A_i w + c_i: row i's gradient is A_i^T s_i with s_i = dloss_i/do_i,
         a number an output. A_i never changes, so the gradient of any time is had again from s_i of that time and a
         vector-Jacobian product at the present parameters.
full     the gradient itself, one number a parameter; by reverse mode with one-hot vectors, many rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headrace.optim.context import Named, StepContext

_CHUNK = 32  # rows whose gradients are taken at once: bounds what is held between
_SCALES = (1.0, 30.0, 1000.0)


@dataclass(frozen=True)
class RowGradients:
    """What is known of a rank's rows of a batch.

    Args:
        entries: [B, C], a row's gradient each.
        total: sum of gradients, by parameter, that entries [B, C] stand for: these, those of another time, or
            differences, as long as they belong to the same rows.
    """

    entries: Tensor
    total: Callable[[Tensor], Named]


@torch.enable_grad()
def linear_rows(ctx: StepContext, params: Mapping[str, Tensor]) -> RowGradients:
    """Entries are dloss/doutput at `params`, C numbers for C outputs."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    outputs = ctx.outputs_at(leaves)
    at = outputs.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(ctx.losses(at).sum(), at)

    def total(entries: Tensor) -> Named:
        made = torch.autograd.grad(
            outputs, list(leaves.values()), entries.view_as(outputs), allow_unused=True, retain_graph=True
        )
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), made, strict=True)}

    return RowGradients(slopes.reshape(len(slopes), outputs.shape[1:].numel()), total)


@torch.enable_grad()
def full_rows(ctx: StepContext, params: Mapping[str, Tensor]) -> RowGradients:
    """Entries are gradients at `params`, C numbers for C parameters, in their order."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    losses = ctx.losses(ctx.outputs_at(leaves))
    sizes = [p.numel() for p in leaves.values()]
    entries = losses.new_zeros(len(losses), sum(sizes))
    for rows in torch.arange(len(losses), device=losses.device).split(_CHUNK) if len(losses) else ():
        one_hot = nn.functional.one_hot(rows, len(losses)).to(losses.dtype)
        made = torch.autograd.grad(
            losses, list(leaves.values()), one_hot, is_grads_batched=True, allow_unused=True, retain_graph=True
        )
        for columns, grad in zip(entries.split(sizes, 1), made, strict=True):
            if grad is not None:
                columns[rows] = grad.reshape(len(rows), -1)

    def total(summands: Tensor) -> Named:
        parts = summands.sum(0).split(sizes)
        return {name: part.view_as(p) for (name, p), part in zip(leaves.items(), parts, strict=True)}

    return RowGradients(entries.detach(), total)


def is_linear(ctx: StepContext, own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether the batch's outputs are affine in `own`, with a Jacobian that no other parameter changes.

    Second differences o(w + d + e, v + f) - o(w + e, v + f) - o(w + d, v) + o(w, v) along random directions of several
    lengths must be rounding, on every rank. Directions are the same on all ranks.
    """
    generator = torch.Generator().manual_seed(0)

    def direction(params: Mapping[str, Tensor], scale: float) -> Named:
        return {
            name: scale * torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.device, p.dtype)
            for name, p in params.items()
        }

    def mixed_difference_vanishes(scale: float, others: Mapping[str, Tensor]) -> bool:
        d, e, f = direction(own, scale), direction(own, scale), direction(others, scale)
        moved = {name: p + e[name] for name, p in own.items()} | {name: p + f[name] for name, p in others.items()}
        further = moved | {name: moved[name] + d[name] for name in own}
        here = [dict(own), {name: p + d[name] for name, p in own.items()}, moved, further]
        o, o_d, o_ef, o_def = (ctx.outputs_at(params) for params in here)
        size = sum(float(x.abs().max()) for x in (o, o_d, o_ef, o_def)) if o.numel() else 0.0
        # A comparison with NaN is False, which is right: outputs that overflow are not affine.
        return bool(((o_def - o_ef - o_d + o).abs() <= torch.finfo(o.dtype).eps ** 0.5 * size).all())

    with torch.no_grad():
        # Own parameters first: a model that is bent in them is found out without a copy of its tables.
        both = [{}, others] if others else [{}]
        good = all(mixed_difference_vanishes(scale, rest) for rest in both for scale in _SCALES)
    verdict = torch.tensor([int(good)])
    if ctx.collective is None or ctx.collective.size == 1:
        return good
    return all(bool(v) for v in ctx.collective.allgather(verdict, rows=[1] * ctx.collective.size))
