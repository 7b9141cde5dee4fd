"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners, over blocks of tensors.

For a block of order k with gradient G, in each dimension i that has a basis Q_i:

    G'  = G x_1 Q_1^T ... x_k Q_k^T
    M'  = b1 M' + (1 - b1) G',      V' = b2 V' + (1 - b2) G'^2
    N'  = (M' / (1 - b1^s)) / (sqrt(V' / (1 - b2^s)) + eps)
    w  <- (1 - lr weight_decay) w - lr N' x_1 Q_1 ... x_k Q_k
    L_i <- b2 L_i + (1 - b2) G_(i) G_(i)^T
    where s is a multiple of `interval`:   Q_i <- QR of L_i Q_i,   M' turned into the new bases

The first step makes Q_i, the eigenvectors of the first L_i, and moves nothing, as in the authors' code: Adam in the
basis of its own gradient would divide what is zero there by itself. s counts the steps after it. Blocks without a
basis (tensors of order 1 at `vectors` "none", dimensions above max_dim only) are Adam's from the first step on.

Reference: N. Vyas, D. Morwani, R. Zhao, M. Kwun, I. Shapira, D. Brandfonbrener, L. Janson, S. Kakade, "SOAP: Improving
and stabilizing Shampoo using Adam", ICLR 2025 (arXiv:2409.11321), algorithms 3 and 4. The paper keeps M in the
parameter's basis and turns it at every step; M' turned where the bases change is the same with two products fewer. V'
is not turned, as in the paper. QR goes through the columns in the order of Q_i^T L_i Q_i, large ones first, as the
authors' code does; the columns then go back to their places, where the code moves V' along. Merging and blocks: see
headrace.optim.blocks; the paper has neither, its code merges.

QR and eigenvectors are dealt out over ranks by n^3 and gathered. Where the first L_i has a null space its eigenvectors
are a choice of rounding: runs whose gradients differ by rounding - over other numbers of ranks - are other runs there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.block_rule import Batch, BlockOptimizer
from headrace.optim.blocks import Region, layout, times, unfolded
from headrace.optim.matrix_roots import eigenbases, refined_bases
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec


class Soap(BlockOptimizer):
    """See the module's docstring."""

    def check(self, options: Mapping[str, Any]) -> None:
        """See `BlockOptimizer.check`."""
        super().check(options)
        if options["vectors"] not in ("none", "full"):
            raise UserError(f"optimizer option vectors must be none or full, not {options['vectors']!r}")

    def regions(self, shape: Sequence[int], options: Mapping[str, Any]) -> tuple[Region, ...]:
        """See `BlockOptimizer.regions`."""
        return regions(shape, options)

    def blank(self, region: Region, like: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
        """See `BlockOptimizer.blank`."""
        n = region.number
        state = {name: like.new_zeros(n, *region.sizes) for name in ("mean", "squares")}
        for dim, (kind, size) in enumerate(zip(region.kinds, region.sizes, strict=True)):
            if kind == "full":
                state[f"factor{dim}"] = like.new_zeros(n, size, size)
                state[f"basis{dim}"] = torch.eye(size, dtype=like.dtype, device=like.device).repeat(n, 1, 1)
        return state

    def update_batches(
        self, batches: list[Batch], grads: list[Tensor], params: Sequence[Tensor], options: Mapping[str, Any]
    ) -> None:
        """See `BlockOptimizer.update_batches`."""
        for batch, grad in zip(batches, grads, strict=True):
            if not _is_first(batch):
                update = _adam(batch, grad, options)
                if options["weight_decay"]:
                    update.add_(batch.gathered(params, update.dtype), alpha=options["weight_decay"])
                batch.subtract(params, update, options["lr"])
            _accumulate(batch, grad, options["betas"][1])
        self._turn([b for b in batches if _is_first(b)], lambda factors, _: eigenbases(factors))
        self._turn(
            [b for b in batches if b.full and b.step > 1 and not (b.step - 1) % options["interval"]], refined_bases
        )

    def _turn(self, batches: list[Batch], solve: Any) -> None:
        """New bases, and M' turned into them."""
        for batch in batches:
            batch.state["mean"].copy_(times(batch.state["mean"], _bases(batch, back=True)))
        self.dealt(batches, "factor", "basis", lambda _, factors, old: solve(factors, old))
        for batch in batches:
            batch.state["mean"].copy_(times(batch.state["mean"], _bases(batch)))


def _is_first(batch: Batch) -> bool:
    """Whether this step only makes the bases."""
    return batch.step == 1 and bool(batch.full)


def regions(shape: Sequence[int], options: Mapping[str, Any]) -> tuple[Region, ...]:
    """How a tensor is cut: see headrace.optim.blocks."""
    return layout(shape, options, large="none", vectors=options["vectors"])


def _bases(batch: Batch, back: bool = False) -> list[Tensor | None]:
    """Q_i, or to go back their transposes."""
    bases = [batch.state.get(f"basis{dim}") for dim in range(len(batch.kinds))]
    return [basis if basis is None or not back else basis.mT for basis in bases]


def _adam(batch: Batch, grad: Tensor, options: Mapping[str, Any]) -> Tensor:
    """N' in the parameter's basis."""
    b1, b2 = options["betas"]
    steps = batch.step - 1 if batch.full else batch.step
    turned = times(grad, _bases(batch)) if batch.full else grad
    mean = batch.state["mean"].lerp_(turned, 1.0 - b1)
    squares = batch.state["squares"].mul_(b2).addcmul_(turned, turned, value=1.0 - b2)
    root = squares.sqrt().mul_((1.0 - b2**steps) ** -0.5).add_(options["eps"])
    update = torch.div(mean, root, out=root).div_(1.0 - b1**steps)
    return times(update, _bases(batch, back=True)) if batch.full else update


def _accumulate(batch: Batch, grad: Tensor, b2: float) -> None:
    """G into L."""
    for dim in batch.full:
        flat = unfolded(grad, dim)
        batch.state[f"factor{dim}"].baddbmm_(flat, flat.mT, beta=b2, alpha=1.0 - b2)


def state_bytes(param: Tensor, options: Mapping[str, Any]) -> int:
    """2 numbers a parameter, and 2 b^2 (L, Q) for each dimension of b of every block."""
    numbers = 2 * param.numel()
    for region in regions(param.shape, options):
        full = [size for kind, size in zip(region.kinds, region.sizes, strict=True) if kind == "full"]
        numbers += region.number * sum(2 * size * size for size in full)
    return numbers * max(4, param.element_size())


SPEC = OptimizerSpec(
    factory=Soap,
    paper="Vyas et al. 2024",
    rule="Adam of Q_L^T G Q_R, back by Q_L, Q_R: eigenvectors of means of G G^T and G^T G",
    use="as shampoo, with less to choose: Adam's lr and betas carry over",
    state="2 numbers a parameter, and 2 b^2 for each side b of a block: 6 a parameter for square ones",
    state_bytes=state_bytes,
    cost="12 b flops a parameter for blocks of side b, and every `interval` steps a QR and a product a side",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={
        "lr": 3e-3, "betas": (0.95, 0.95), "eps": 1e-8, "weight_decay": 0.0, "interval": 10, "block_size": 1024,
        "max_dim": 8192, "vectors": "none", "merge_dims": 1024,
    },
)  # fmt: skip
