"""Tensors by name: those that every rank holds a part of brought to one rank, and sums of those that all hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headrace.comm import Collective
from headrace.comm.base import as_bytes, from_bytes
from headrace.optim.context import summed


def gathered_states(
    state: Mapping[str, Tensor], collective: Collective, root: int = 0
) -> list[dict[str, Tensor]] | None:
    """What every rank calls this with, in rank order, on the root; None on others. To the bit, on the CPU."""
    heads = collective.allgather_object(
        [[name, str(x.dtype).removeprefix("torch."), list(x.shape)] for name, x in state.items()]
    )
    body = torch.cat([torch.empty(0, dtype=torch.uint8), *(as_bytes(x).cpu() for x in state.values())])
    here = collective.rank == root
    bodies = collective.alltoall([body if rank == root else body[:0] for rank in range(collective.size)])
    return [_unpacked(head, raw) for head, raw in zip(heads, bodies, strict=True)] if here else None


def summed_gradients(
    params: Mapping[str, Tensor], dtypes: Sequence[torch.dtype], collective: Collective, count: int = 0
) -> tuple[dict[str, Tensor], int]:
    """Sums over ranks, in rank order, of the gradients of what all hold, and of a number.

    Args:
        params: the same on all ranks; one has a gradient where it has one on any rank.
        dtypes: the same on all ranks of a group whose parts call this at once; those of `params` among them.
        collective: over whom.
        count: of this rank.
    """
    flags = [float(param.grad is not None) for param in params.values()]
    (told,) = summed([torch.tensor([float(count), *flags], dtype=torch.float64)], collective)
    there = [name for name, has in zip(params, told[1:].tolist(), strict=True) if has]
    grads = {name: params[name].grad for name in there}
    whole = {name: torch.zeros_like(params[name]) if grad is None else grad for name, grad in grads.items()}
    return _summed_by_name(whole, dtypes, collective), int(told[0])


def _summed_by_name(
    grads: Mapping[str, Tensor], dtypes: Sequence[torch.dtype], collective: Collective
) -> dict[str, Tensor]:
    """By dtype: an operation for each of `dtypes`, also where no tensor has it."""
    found: dict[str, Tensor] = {}
    device = next((grad.device for grad in grads.values()), torch.device("cpu"))
    for dtype in dtypes:
        mine = {name: grad for name, grad in grads.items() if grad.dtype == dtype}
        _, *sums = summed([torch.empty(0, dtype=dtype, device=device), *mine.values()], collective)
        found |= dict(zip(mine, sums, strict=True))
    return {name: found[name] for name in grads}


def _unpacked(head: list[tuple[str, str, list[int]]], raw: Tensor) -> dict[str, Tensor]:
    likes = {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, dtype, shape in head}
    parts = raw.split([like.nbytes for like in likes.values()])
    return {name: from_bytes(part, like).clone() for (name, like), part in zip(likes.items(), parts, strict=True)}
