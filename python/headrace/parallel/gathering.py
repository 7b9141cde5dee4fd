"""Tensors by name that every rank holds a part of, brought to one rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from headrace.comm import Collective
from headrace.comm.base import as_bytes, from_bytes


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


def _unpacked(head: list[tuple[str, str, list[int]]], raw: Tensor) -> dict[str, Tensor]:
    likes = {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, dtype, shape in head}
    parts = raw.split([like.nbytes for like in likes.values()])
    return {name: from_bytes(part, like).clone() for (name, like), part in zip(likes.items(), parts, strict=True)}
