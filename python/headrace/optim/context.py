"""What a step may use beyond gradients, and the sums over rows and ranks that rules make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.comm.sums import sum_in_rank_order

Named = dict[str, Tensor]


class NonFiniteStepError(ArithmeticError):
    """A rule met NaN or Inf in what it computed itself, on all ranks alike, and has changed nothing."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """One global batch as a rank sees it. Plain rules ignore it.

    Args:
        outputs_at: outputs [B, ...] of this rank's rows at other values of some parameters (by the model's names; those
            left out keep their values), differentiable; None: at the present ones.
        losses: loss of every row [B] from outputs [B, ...]; 0 for rows that are padding.
        rows: of the global batch, over all ranks, without padding; in a context of full_pass: of this rank's own batch.
        outputs: outputs [B, ...] of the backward pass that made the gradients, detached.
        keys: row keys of this rank's rows [B], int64; -1 where a row is padding.
        full_pass: contexts that go through all training rows once, of them this rank's share, as many on every rank.
        collective: the way to the other ranks; None: there are none.
        clip: what the loop does to gradients before a step, in place, by the model's names: for rules that take a
            gradient of their own; None: nothing.
        scale: what losses were multiplied by in the backward pass that made the gradients (these are divided by it
            again): for rules that watched that pass.
    """

    outputs_at: Callable[[Mapping[str, Tensor] | None], Tensor]
    losses: Callable[[Tensor], Tensor]
    rows: int
    outputs: Tensor | None = None
    keys: Tensor | None = None
    full_pass: Callable[[], Iterator[StepContext]] | None = None
    collective: Collective | None = None
    clip: Callable[[Named], object] | None = None
    scale: float = 1.0

    def loss_at(self, params: Mapping[str, Tensor] | None = None) -> Tensor:
        """This rank's part of the global batch's mean loss, differentiable: summed over ranks it is the mean.

        A float64 sum: line searches compare values that differ in few digits.
        """
        return self.losses(self.outputs_at(params)).sum(dtype=torch.float64) / max(1, self.rows)


def summed(tensors: list[Tensor], collective: Collective | None) -> list[Tensor]:
    """Sums over ranks of dense tensors of one dtype, in rank order: the same bits on every transport."""
    if collective is None or collective.size == 1:
        return tensors
    total = sum_in_rank_order(torch.cat([t.reshape(-1) for t in tensors]), collective)
    parts = torch.split(total, [t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def check_finite(tensors: Iterable[Tensor], what: str) -> None:
    """Refuse NaN and Inf; `tensors` are the same on all ranks, so all refuse. Numbers are looked at one by one only
    where a sum is bad.

    Raises:
        NonFiniteStepError: there are.
    """
    if not all(bool(t.sum().isfinite()) or bool(t.isfinite().all()) for t in tensors):
        raise NonFiniteStepError(f"{what} is not finite")


def value_and_gradient(ctx: StepContext, params: Named) -> tuple[float, Named]:
    """Mean loss of the global batch at `params`, and its gradient by name; the same on every rank."""
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        loss = ctx.loss_at(leaves)
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves.values(), grads, strict=True)]
    (value,) = summed([loss.detach().reshape(1)], ctx.collective)
    return float(value), dict(zip(leaves, summed(filled, ctx.collective), strict=True))


def value_at(ctx: StepContext, params: Named) -> float:
    """Mean loss of the global batch at `params`; the same on every rank."""
    with torch.no_grad():
        return float(summed([ctx.loss_at(params).reshape(1)], ctx.collective)[0])


def full_gradient(ctx: StepContext, params: Named) -> Named:
    """Gradient by name, at `params`, of the mean loss of all training rows: one pass, the same on every rank.

    Every batch's sum is added up on its rank; ranks are summed once, at the end, in rank order.

    Raises:
        NonFiniteStepError: the loss, or a number of its gradient, is NaN or Inf.
    """
    if ctx.full_pass is None:
        raise ValueError("this step's context has no way through all training rows")
    first = next(iter(params.values()))
    loss, rows = first.new_zeros(1, dtype=torch.float64), first.new_zeros(1, dtype=torch.float64)
    grads = {name: torch.zeros_like(value) for name, value in params.items()}
    for part in ctx.full_pass():
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
            total = part.losses(part.outputs_at(leaves)).sum()
            made = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        for name, grad in zip(grads, made, strict=True):
            if grad is not None:
                grads[name] += grad
        loss += total.detach()
        rows += part.rows
    loss, rows = summed([loss, rows], ctx.collective)
    sums = summed(list(grads.values()), ctx.collective)
    check_finite([loss, *sums], "the full gradient")
    return {name: s / rows.to(s.dtype) for name, s in zip(grads, sums, strict=True)}
