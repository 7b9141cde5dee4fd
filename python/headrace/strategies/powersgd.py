"""PowerSGD: every matrix goes as two thin ones, found by one step of a power iteration on the sum over ranks.

    M_w = gradient of rank w [n, m] + e_w              a tensor is seen as [its first size, all others together]
    P   = sum of M_w Q,  P^ = orthonormal basis of P   Q [m, r] from the step before: a warm start; at first drawn
    Q   = sum of M_w' P^
    sum = P^ Q',  e_w <- decay (M_w - P^ (M_w' P^)')   so the sums of results + all e_w = the sum of gradients

Reference: T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: practical low-rank gradient compression for distributed
optimization", NeurIPS 2019, algorithms 1 and 2. Different from it:

    - sums instead of means, momentum is the optimizer's;
    - the basis is that of QR in float64, with signs such that R's diagonal is not negative: the space of Gram-Schmidt,
      but orthonormal also where P has linearly dependent columns;
    - columns of Q are kept at length 1, which changes no result, and a column that has become 0 or is not finite stays
      what it was: else a matrix whose gradient was 0 once might be 0 for ever;
    - a tensor goes uncompressed unless it is a matrix of min_numel numbers or more with 2 r (n + m) <= n m.

Bytes a rank sends: 2 (N - 1) / N w r (n + m) for a matrix, w the bytes of a number: those of the gradient's type, 4 at
least. Matrices of a bucket go together, in two sums, and small tensors of their type with the first. Sums go in rank
order; the bases are each rank's own work on the same bits, so ranks hold the same bits where they have the same library
on the same kind of machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.comm.sums import saturated, sum_in_rank_order
from headrace.compress.base import State, generator_of
from headrace.strategies.compressed import key_of
from headrace.strategies.memory import Memory
from headrace.strategies.reducers import BucketReducer, OfLarge


@dataclass(frozen=True, kw_only=True)
class PowerSGDConfig:
    """How matrices are approximated.

    Args:
        rank: columns of P and Q.
        decay: of what was not sent: 1 keeps all of it, 0 nothing.
        min_numel: tensors of fewer numbers go as they are.
        seed: of the first Q.
    """

    rank: int = 2
    decay: float = 1.0
    min_numel: int = 1024
    seed: int = 0


class _Matrix(NamedTuple):
    """A gradient on its way: itself, with memory as [n, m], and the start Q [m, r]."""

    grad: Tensor
    whole: Tensor
    start: Tensor


class PowerSGD(Memory, OfLarge):
    """See the module's docstring.

    Args:
        cfg: see PowerSGDConfig.
        rest: sums what is not compressed and does not go along, and says how large buckets are.
    """

    def __init__(self, cfg: PowerSGDConfig, rest: BucketReducer) -> None:
        Memory.__init__(self)
        OfLarge.__init__(self, rest, cfg.min_numel)
        self.cfg = cfg

    def fits(self, grad: Tensor) -> bool:
        """Whether a gradient is compressed."""
        if grad.dim() < 2 or not super().fits(grad):
            return False
        rows = grad.shape[0]
        return 2 * self.cfg.rank * (rows + grad.numel() // rows) <= grad.numel()

    def scaled(self, state: State, factor: float) -> State:
        """See `Memory.scaled`; the start of the iteration has no scale."""
        return state | {"memory": state["memory"] * factor}

    def sum_large(
        self, large: dict[str, Tensor], small: dict[str, Tensor], collective: Collective
    ) -> dict[str, Tensor]:
        """See `OfLarge.sum_large`: small ones go along with P where they are of its type."""
        if collective.size == 1:
            return large
        with self.timed("encode"):
            matrices = {name: self._matrix(name, grad) for name, grad in large.items()}
            own = [each.whole @ each.start for each in matrices.values()]
        along = small if own[0].dtype == next(iter(large.values())).dtype else {}
        sums = self._summed([*own, *along.values()], collective)
        summed = dict(zip(along, sums[len(own) :], strict=True))
        with self.timed("encode"):
            bases = [orthonormal(p) for p in sums[: len(own)]]
            own = [each.whole.T @ basis for each, basis in zip(matrices.values(), bases, strict=True)]
        totals = self._summed(own, collective)
        with self.timed("decode"):
            return summed | {
                name: self._finished(name, matrix, *factors)
                for (name, matrix), *factors in zip(matrices.items(), bases, own, totals, strict=True)
            }

    def _matrix(self, name: str, grad: Tensor) -> _Matrix:
        kind = torch.promote_types(grad.dtype, torch.float32)
        whole = grad.reshape(grad.shape[0], -1).to(kind)
        state = self.kept(name)
        if state is not None:
            return _Matrix(grad, whole + state["memory"], state["start"])
        generator = generator_of(key_of(self.cfg.seed, name, 0), 0)
        drawn = torch.randn(whole.shape[1], self.cfg.rank, generator=generator, dtype=torch.float64)
        return _Matrix(grad, whole, (drawn / drawn.norm(dim=0)).to(whole.device, kind))

    def _summed(self, own: Sequence[Tensor], collective: Collective) -> list[Tensor]:
        """Sums over ranks of matrices, by one operation."""
        with self.timed("exchange"):
            total = sum_in_rank_order(torch.cat([x.reshape(-1) for x in own]), collective)
        parts = torch.split(total, [x.numel() for x in own])
        return [part.view(x.shape).clone() for part, x in zip(parts, own, strict=True)]  # products see memory they own

    def _finished(self, name: str, matrix: _Matrix, basis: Tensor, own: Tensor, total: Tensor) -> Tensor:
        """The sum, as the gradient is shaped and typed; what was not sent is remembered."""
        left = (matrix.whole - basis @ own.T).mul_(self.cfg.decay).nan_to_num_(0.0, 0.0, 0.0)
        self.remember(name, {"memory": left, "start": next_start(matrix.start, total)})
        self.numbers["in"] += matrix.grad.nbytes
        self.numbers["out"] += (basis.numel() + total.numel()) * total.element_size()
        return saturated(basis @ total.T, matrix.grad.dtype).view(matrix.grad.shape)


def orthonormal(p: Tensor) -> Tensor:
    """An orthonormal basis [n, r] of a space that holds the columns of p [n, r]; NaN where p is not finite."""
    if not bool(torch.isfinite(p).all()):
        return torch.full_like(p, torch.nan)
    basis, upper = torch.linalg.qr(p.double())
    return (basis * torch.where(upper.diagonal() < 0, -1.0, 1.0)).to(p.dtype)


def next_start(start: Tensor, total: Tensor) -> Tensor:
    """Columns of `total` [m, r] at length 1; those without a direction as in `start`."""
    wide = total.double()
    length = wide.norm(dim=0)
    usable = torch.isfinite(length) & (length > 0)
    return torch.where(usable, wide / length, start.double()).to(start.dtype)
