"""Shampoo: AdaGrad with a full matrix a dimension, over blocks of tensors.

For a block of order k with gradient G, at its step t, in each dimension i:

    L_i <- L_i + G_(i) G_(i)^T                  accumulation "sum"
    L_i <- b2 L_i + (1 - b2) G_(i) G_(i)^T      accumulation "mean"; L_i / (1 - b2^t) is used
    R_i  = (L_i + eps max_eigenvalue(L_i) I)^(-1 / p)      where t - 1 - start is a multiple of `interval`
    P    = M x_1 R_1 ... x_k R_k,   M <- b1 M + (1 - b1) G, over 1 - b1^t
    U    = |D|_F / |P|_F P          D: the graft's direction for M; without a graft U = P; up to step `start` U = D
    V   <- momentum V + U
    w   <- (1 - lr weight_decay) w - lr V       nesterov: U + momentum V for V

G_(i) is the unfolding of G in dimension i, x_i the product in it, p = `exponent` or, at 0, twice the number of
dimensions that have a preconditioner: 2k. Grafts, element by element, with g a gradient and m of M:

    sgd m     adagrad m / (sqrt(sum g^2) + graft_eps)     rmsprop m / (sqrt(v) + graft_eps), v <- b2 v + (1 - b2) g^2
    adam m / (sqrt(v / (1 - b2^t)) + graft_eps)           none: U = P

Merging and blocks: see headrace.optim.blocks. Dimensions above max_dim have no preconditioner ("none") or the diagonal
of theirs (`large` "diagonal", from the present L_i); tensors of order 1 the diagonal (`vectors` "diagonal": AdaGrad,
or Adam with means) or the whole matrix ("full"). Blocks without any preconditioner take the graft's direction alone.
graft_norm "block" takes norms over a block (Shi et al.), "tensor" over all of a tensor's (Anil et al.). `root` is
"eigh" or "newton" (coupled Newton iteration: products alone, for devices where those are fast; on a CPU eigh is).
decoupled = False puts weight_decay w into G. A root that fails leaves the last good one (first the identity); a factor
of zeros has the identity.

References: V. Gupta, T. Koren, Y. Singer, "Shampoo: Preconditioned stochastic tensor optimization", ICML 2018,
algorithm 2; R. Anil, V. Gupta, T. Koren, K. Regan, Y. Singer, "Scalable second order optimization for deep learning",
arXiv:2002.09018, 2020 (grafting, start, interval, blocks, roots dealt out); H.-J. M. Shi et al., "A distributed
data-parallel PyTorch implementation of the Distributed Shampoo optimizer", arXiv:2309.06497, 2023 (algorithm 2).
Differences: L starts at 0, not at eps I, and the ridge is relative (as in the code of Anil et al.), so that the
direction does not depend on the gradient's scale; merging (see blocks); the decay is not in the momentum.

Roots are dealt out over ranks by n^3 and gathered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.block_rule import Batch, BlockOptimizer
from headrace.optim.blocks import Region, layout, times, unfolded
from headrace.optim.matrix_roots import inverse_roots
from headrace.optim.spec import DENSE_ONLY, STATEFUL, OptimizerSpec

CHOICES = {
    "accumulation": ("mean", "sum"), "root": ("eigh", "newton"), "large": ("none", "diagonal"),
    "vectors": ("diagonal", "full"), "graft": ("none", "sgd", "adagrad", "rmsprop", "adam"),
    "graft_norm": ("block", "tensor"),
}  # fmt: skip
_SQUARES = ("adagrad", "rmsprop", "adam")  # grafts with a sum of squares


class Shampoo(BlockOptimizer):
    """See the module's docstring."""

    def check(self, options: Mapping[str, Any]) -> None:
        """See `BlockOptimizer.check`."""
        super().check(options)
        for name, choices in CHOICES.items():
            if options[name] not in choices:
                raise UserError(f"optimizer option {name} must be one of {', '.join(choices)}, not {options[name]!r}")
        if options["exponent"] < 0 or (options["root"] == "newton" and options["exponent"] != int(options["exponent"])):
            raise UserError("optimizer option exponent must be at least 0, and a whole number for Newton's iteration",
                            "--optimizer.dense.root eigh")  # fmt: skip
        if options["start"] < 0 or (options["start"] and options["graft"] == "none"):
            raise UserError("there is no rule for the steps before optimizer option start",
                            "--optimizer.dense.graft adam")  # fmt: skip
        if options["nesterov"] and not options["momentum"]:
            raise UserError("optimizer option nesterov needs momentum", "--optimizer.dense.momentum 0.9")

    def regions(self, shape: Sequence[int], options: Mapping[str, Any]) -> tuple[Region, ...]:
        """See `BlockOptimizer.regions`."""
        return regions(shape, options)

    def blank(self, region: Region, like: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
        """See `BlockOptimizer.blank`."""
        n = region.number
        state = {name: like.new_zeros(n, *region.sizes) for name in elementwise(options)}
        for dim, (kind, size) in enumerate(zip(region.kinds, region.sizes, strict=True)):
            if kind == "full":
                state[f"factor{dim}"] = like.new_zeros(n, size, size)
                state[f"root{dim}"] = torch.eye(size, dtype=like.dtype, device=like.device).repeat(n, 1, 1)
            elif kind == "diagonal":
                state[f"diagonal{dim}"] = like.new_zeros(n, size)
        return state

    def update_batches(
        self, batches: list[Batch], grads: list[Tensor], params: Sequence[Tensor], options: Mapping[str, Any]
    ) -> None:
        """See `BlockOptimizer.update_batches`."""
        lr, decay = options["lr"], options["weight_decay"]
        if decay and not options["decoupled"]:
            for batch, grad in zip(batches, grads, strict=True):
                grad.add_(batch.gathered(params, grad.dtype), alpha=decay)
        for batch, grad in zip(batches, grads, strict=True):
            _accumulate(batch, grad, options)
        due = [b for b in batches if (age := b.step - 1 - options["start"]) >= 0 and not age % options["interval"]]
        self.dealt(due, "factor", "root", lambda batch, factors, _: _roots(batch, factors, options))
        if decay and options["decoupled"]:
            torch._foreach_mul_(list(params), 1.0 - lr * decay)
        updates = _grafted(batches, grads, len(params), options)
        for batch, update in zip(batches, updates, strict=True):
            batch.subtract(params, _pushed(batch, update, options), lr)


def regions(shape: Sequence[int], options: Mapping[str, Any]) -> tuple[Region, ...]:
    """How a tensor is cut: see headrace.optim.blocks."""
    return layout(shape, options, large=options["large"], vectors=options["vectors"])


def elementwise(options: Mapping[str, Any]) -> list[str]:
    """Names of what is kept for every number of a parameter."""
    kept = {"mean": options["betas"][0] > 0, "squares": options["graft"] in _SQUARES, "pushed": options["momentum"] > 0}
    return [name for name, is_kept in kept.items() if is_kept]


def _accumulate(batch: Batch, grad: Tensor, options: Mapping[str, Any]) -> None:
    """G into L, the graft's squares, and M; `grad` is M afterwards, its bias corrected."""
    b1, b2 = options["betas"]
    keep, add = (b2, 1.0 - b2) if options["accumulation"] == "mean" else (1.0, 1.0)
    for dim, kind in enumerate(batch.kinds):
        if kind == "none":
            continue
        flat = unfolded(grad, dim)
        if kind == "full":
            batch.state[f"factor{dim}"].baddbmm_(flat, flat.mT, beta=keep, alpha=add)
        else:
            batch.state[f"diagonal{dim}"].mul_(keep).add_(flat.square().sum(2), alpha=add)
    if "squares" in batch.state:
        keep, add = (1.0, 1.0) if options["graft"] == "adagrad" else (b2, 1.0 - b2)
        batch.state["squares"].mul_(keep).addcmul_(grad, grad, value=add)
    if b1:
        batch.state["mean"].lerp_(grad, 1.0 - b1)
        torch.div(batch.state["mean"], 1.0 - b1**batch.step, out=grad)


def _correction(batch: Batch, options: Mapping[str, Any]) -> float:
    """What L is divided by."""
    return float(1.0 - options["betas"][1] ** batch.step) if options["accumulation"] == "mean" else 1.0


def _exponent(batch: Batch, options: Mapping[str, Any]) -> float:
    return options["exponent"] or 2.0 * sum(kind != "none" for kind in batch.kinds)


def _roots(batch: Batch, factors: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return inverse_roots(
        factors / _correction(batch, options), _exponent(batch, options), options["eps"], options["root"]
    )


def _preconditioned(batch: Batch, mean: Tensor, options: Mapping[str, Any]) -> Tensor:
    """P."""
    factors: list[Tensor | None] = []
    for dim, kind in enumerate(batch.kinds):
        if kind == "diagonal":
            diagonal = batch.state[f"diagonal{dim}"] / _correction(batch, options)
            greatest = diagonal.amax(1, keepdim=True)
            ridged = torch.where(greatest > 0, diagonal + options["eps"] * greatest, 1.0)
            factors.append(ridged ** (-1.0 / _exponent(batch, options)))
        else:
            factors.append(batch.state[f"root{dim}"] if kind == "full" else None)
    return times(mean, factors)


def _graft(batch: Batch, mean: Tensor, options: Mapping[str, Any]) -> Tensor:
    """D."""
    if "squares" not in batch.state:
        return mean
    corrected = options["graft"] == "adam"
    scale = (1.0 - options["betas"][1] ** batch.step) ** -0.5 if corrected else 1.0
    return mean / batch.state["squares"].sqrt().mul_(scale).add_(options["graft_eps"])


def _grafted(batches: list[Batch], means: list[Tensor], tensors: int, options: Mapping[str, Any]) -> list[Tensor]:
    """U of every batch."""
    updates: list[Tensor] = []
    norms: list[Tensor | None] = []  # of D and P, [N, 2], where one is given the other's
    for batch, mean in zip(batches, means, strict=True):
        if batch.step <= options["start"] or all(kind == "none" for kind in batch.kinds):
            updates.append(_graft(batch, mean, options))
            norms.append(None)
            continue
        updates.append(_preconditioned(batch, mean, options))
        grafted = options["graft"] != "none"
        directions = [_graft(batch, mean, options), updates[-1]] if grafted else []
        norms.append(torch.stack([batch.norms(d) for d in directions], 1) if grafted else None)
    if options["graft_norm"] == "tensor":
        norms = _over_tensors(batches, norms, tensors)
    for batch, update, norm in zip(batches, updates, norms, strict=True):
        if norm is not None:
            update.mul_(batch.each(torch.where(norm[:, 1] > 0, norm[:, 0] / norm[:, 1], 0.0)))
    return updates


def _over_tensors(batches: list[Batch], norms: list[Tensor | None], tensors: int) -> list[Tensor | None]:
    """Norms of blocks to those of the tensors they are of, [N, 2]."""
    found = [(batch, norm) for batch, norm in zip(batches, norms, strict=True) if norm is not None]
    squares: list[Any] = [0.0] * tensors
    for batch, norm in found:
        for member in batch.members:
            squares[member.tensor] = squares[member.tensor] + norm[member.rows].square().sum(0)
    return [
        None
        if norm is None
        else torch.stack([squares[m.tensor] for m in batch.members for _ in range(m.region.number)]).sqrt()
        for batch, norm in zip(batches, norms, strict=True)
    ]


def _pushed(batch: Batch, update: Tensor, options: Mapping[str, Any]) -> Tensor:
    """V, or what Nesterov makes of it."""
    momentum = options["momentum"]
    if not momentum:
        return update
    pushed = batch.state["pushed"].mul_(momentum).add_(update)
    return update.add_(pushed, alpha=momentum) if options["nesterov"] else pushed


def state_bytes(param: Tensor, options: Mapping[str, Any]) -> int:
    """n numbers each for M, squares, V where they are kept; 2 b^2 (L, R) a dimension of b of every block, or b."""
    numbers = len(elementwise(options)) * param.numel()
    for region in regions(param.shape, options):
        for kind, size in zip(region.kinds, region.sizes, strict=True):
            numbers += region.number * {"full": 2 * size * size, "diagonal": size, "none": 0}[kind]
    return numbers * max(4, param.element_size())


SPEC = OptimizerSpec(
    factory=Shampoo,
    paper="Gupta, Koren, Singer 2018; Anil et al. 2020; Shi et al. 2023",
    rule="L <- b2 L + (1-b2) G G^T, R with G^T G;  W <- W - lr |D| / |P| P, P = L^(-1/4) G R^(-1/4)",
    use="layers of up to some thousand units where steps are dear: fewer of them than Adam for more work each",
    state="2 numbers a parameter (momentum: 3), and 2 b^2 for each side b of a block: 6 a parameter for square ones",
    state_bytes=state_bytes,
    cost="8 b flops a parameter for blocks of side b, and every `interval` steps an eigendecomposition a side",
    traits=frozenset({DENSE_ONLY, STATEFUL}),
    defaults={
        "lr": 1e-3, "betas": (0.9, 0.999), "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "decoupled": True,
        "eps": 1e-6, "accumulation": "mean", "exponent": 0, "root": "eigh", "interval": 10, "start": 0,
        "block_size": 1024, "max_dim": 8192, "large": "none", "vectors": "diagonal", "merge_dims": 1024,
        "graft": "adam", "graft_norm": "block", "graft_eps": 1e-8,
    },
)  # fmt: skip
