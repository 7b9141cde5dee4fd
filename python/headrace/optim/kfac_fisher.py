"""The Fisher's factors of outputs' gradients without the data's labels: backward passes of roots of the loss' Hessian.

    H_i = d^2 loss_i / d outputs_i^2 = S_i S_i^T,     J^T H J = sum_c (J^T s_c) (J^T s_c)^T = E_z[(J^T S z)(J^T S z)^T]

For losses that are -log p of an exponential family in its natural parameters (squared error, cross-entropy of logits)
H_i does not depend on the label and J^T H J is the Fisher matrix: S z has the covariance of the gradient under labels
drawn from the model (J. Martens, "New insights and perspectives on the natural gradient method", JMLR 21, 2020, section
9; A. Botev, H. Ritter, D. Barber, "Practical Gauss-Newton optimisation for deep learning", ICML 2017, for all columns).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError
from headrace.optim.context import StepContext
from headrace.optim.kfac_layers import Layer

EMPIRICAL, SAMPLED, GAUSS_NEWTON = FISHERS = ("empirical", "sampled", "gauss_newton")
MOST_OUTPUTS = 256


def add_pass(layers: Sequence[Layer], ctx: StepContext, fisher: str, seed: int) -> None:
    """Add this batch to the layers' sums by a forward pass and backward passes of our own; no gradient is touched.

    Args:
        layers: to be watched.
        ctx: the batch.
        fisher: "sampled": one backward pass, of S z with signs z drawn; "gauss_newton": one an output, exact.
        seed: of the signs.

    Raises:
        UserError: too many outputs a row for H_i to be held, or rows without keys where signs are to be drawn.
    """
    for layer in layers:
        layer.seen = []
    try:
        with torch.enable_grad():
            outputs = ctx.outputs_at(None)
        calls = [(layer, inputs, edge) for layer in layers for inputs, edge in layer.seen or ()]
    finally:
        for layer in layers:
            layer.seen = None
    if not calls or not outputs.requires_grad:
        return
    kept: list[Tensor | None] = [None] * len(calls)
    for column in _columns(ctx, outputs.detach(), fisher, seed):
        edges = [edge for *_, edge in calls]
        made = torch.autograd.grad(outputs, edges, column, retain_graph=True, allow_unused=True)
        for i, ((layer, *_), grad) in enumerate(zip(calls, made, strict=True)):
            if grad is not None:
                some, before = layer.add_gradient(grad), kept[i]
                kept[i] = some if before is None else before | some
    for (layer, inputs, _), some_kept in zip(calls, kept, strict=True):
        if some_kept is not None:
            layer.add_inputs(inputs, some_kept)


def _columns(ctx: StepContext, outputs: Tensor, fisher: str, seed: int) -> Iterator[Tensor]:
    """Columns s_c, or one S z, in the shape of outputs [B, ...]."""
    roots = loss_roots(ctx, outputs)
    if fisher == GAUSS_NEWTON:
        for c in range(roots.shape[1]):
            if roots.dim() == 3:
                yield roots[:, :, c].reshape(outputs.shape)
            else:
                column = torch.zeros_like(roots)
                column[:, c] = roots[:, c]
                yield column.view(outputs.shape)
        return
    if ctx.keys is not None or roots.shape[1] > 1:  # of one output the sign counts only where rows mix: batch norm
        signs = _signs(ctx, roots.shape[1], seed).to(roots)
        roots = roots * signs if roots.dim() == 2 else _product(roots, signs)
    yield roots.reshape(outputs.shape)


def _product(roots: Tensor, signs: Tensor) -> Tensor:
    """S z [B, C]; rows that are rounding alone (signs in the null space) are 0, and so do not count."""
    drawn = (roots @ signs[:, :, None])[:, :, 0]
    least = 4.0 * signs.shape[1] * torch.finfo(roots.dtype).eps * roots.abs().amax((1, 2))
    return torch.where((drawn.abs().amax(1) > least)[:, None], drawn, 0.0)


def _signs(ctx: StepContext, columns: int, seed: int) -> Tensor:
    """+-1 [B, columns], bits of the rows' hashed keys and the seed: they do not depend on which rank has a row.

    Raises:
        UserError: the rows have no keys.
    """
    if ctx.keys is None:
        raise UserError(
            "K-FAC draws signs by the rows' keys, and there are none", "--optimizer.dense.fisher gauss_newton"
        )
    rows = splitmix64(ctx.keys.cpu().numpy())
    words = [rows ^ splitmix64(np.array([seed * 4099 + word])) for word in range(-(-columns // 64))]
    bits = [splitmix64(word)[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1) for word in words]
    return torch.from_numpy(1.0 - 2.0 * np.concatenate(bits, 1)[:, :columns])


def loss_roots(ctx: StepContext, outputs: Tensor) -> Tensor:
    """S_i of every row, C numbers an output: [B, C, C] with H_i = S_i S_i^T, or its diagonal [B, C] where it has no
    more; directions of negative curvature are zero, NaN is NaN.

    Raises:
        UserError: a Hessian that is not diagonal, of more than MOST_OUTPUTS numbers an output.
    """
    rows = outputs.shape[0]
    width = outputs.shape[1:].numel()
    with torch.enable_grad():
        at = outputs.reshape(rows, width).detach().requires_grad_()
        (slope,) = torch.autograd.grad(ctx.losses(at.view(outputs.shape)).sum(), at, create_graph=True)
    if not slope.requires_grad:  # linear in the outputs
        return torch.zeros_like(at)

    def times(vector: Tensor) -> Tensor:
        (made,) = torch.autograd.grad(slope, at, vector.expand_as(at), retain_graph=True)
        return made

    diagonal = _diagonal(times, at)
    if diagonal is not None:
        return diagonal.clamp(min=0.0).sqrt()
    if width > MOST_OUTPUTS:
        raise UserError(
            f"K-FAC without labels needs the loss' Hessian of every row: {width} outputs a row are more than "
            f"{MOST_OUTPUTS}",
            "--optimizer.dense.fisher empirical",
        )
    unit = torch.eye(width, dtype=at.dtype, device=at.device)
    hessian = torch.stack([times(unit[c]) for c in range(width)], 1).double()
    if not bool(torch.isfinite(hessian).all()):
        return torch.full_like(at, torch.nan)
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    least = 4.0 * width * torch.finfo(at.dtype).eps * values.amax(1, keepdim=True)
    values = torch.where(values > least, values, 0.0)  # rounding about 0, whose root would not be small
    # The symmetric root: eigenvectors' signs, and so what z draws, are not those of another batch's arithmetic.
    return ((vectors * values.clamp(min=0.0).sqrt()[:, None]) @ vectors.mT).to(at.dtype)


def _diagonal(times: Callable[[Tensor], Tensor], at: Tensor) -> Tensor | None:
    """The Hessians' diagonals [B, C], or None where there is more.

    z (H z) is the diagonal, to the bit, for every vector z of signs where there is nothing else. One z for each bit of
    the number of an output: every two outputs differ in one. Entries beside the diagonal would all have to cancel.
    """
    numbers = torch.arange(at.shape[1], device=at.device)
    diagonal = times(torch.ones_like(numbers, dtype=at.dtype))
    for bit in range((at.shape[1] - 1).bit_length()):
        signs = (1 - 2 * ((numbers >> bit) & 1)).to(at.dtype)
        if not torch.equal(signs * times(signs), diagonal):
            return None
    return diagonal
