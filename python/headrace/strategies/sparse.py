"""Row-sparse gradients: sums of rows by id in a fixed order, exchanged as (ids, rows) and never as dense tables.

Order of summation, on every transport: on a rank in order of occurrence, then over ranks in rank order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.comm.base import Collective, as_bytes
from headrace.models.embedding import sum_rows


def coalesced(grad: Tensor) -> Tensor:
    """A row-sparse gradient with every id once, in rising order; sums in order of occurrence."""
    if grad.is_coalesced():
        return grad
    return _sparse(*sum_rows(grad._indices()[0], grad._values()), grad)


def reduce_sparse(grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
    """Sum row-sparse gradients over ranks; one ragged all-gather for all tables of one row shape and dtype.

    Args:
        grads: torch.sparse_coo with one sparse dimension; same names and sizes on every rank, in the same order.

    Returns:
        Coalesced tensors of the same sizes: the same bits on every transport.
    """
    local = {name: coalesced(grad) for name, grad in grads.items()}
    if collective.size == 1:
        return local
    groups: dict[tuple[torch.dtype, torch.Size], list[str]] = {}
    for name, grad in local.items():
        groups.setdefault((grad.dtype, grad.shape[1:]), []).append(name)
    summed: dict[str, Tensor] = {}
    for names in groups.values():
        summed |= _reduce_group({name: local[name] for name in names}, collective)
    return {name: summed[name] for name in grads}


def _reduce_group(grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
    """Lay the tables of a group end to end, exchange and merge their rows, take them apart again."""
    offsets = [0]
    for grad in grads.values():
        offsets.append(offsets[-1] + grad.shape[0])
    ids = torch.cat([g._indices()[0] + offset for g, offset in zip(grads.values(), offsets, strict=False)])
    rows = torch.cat([g._values() for g in grads.values()])
    parts = [_unpack(part, rows) for part in collective.allgather(_pack(ids, rows))]
    ids, rows = sum_rows(torch.cat([i for i, _ in parts]), torch.cat([r for _, r in parts]))
    cuts = torch.searchsorted(ids, torch.tensor(offsets, device=ids.device)).tolist()
    return {
        name: _sparse(ids[a:b] - offset, rows[a:b], grad)
        for (name, grad), offset, a, b in zip(grads.items(), offsets, cuts, cuts[1:], strict=False)
    }


def _pack(ids: Tensor, rows: Tensor) -> Tensor:
    """Ids and rows as uint8 `[n, 8 + bytes of a row]`: one message instead of two."""
    n = ids.numel()
    return torch.cat([as_bytes(ids).view(n, 8), as_bytes(rows).view(n, -1)], dim=1) if n else _nothing(rows)


def _nothing(rows: Tensor) -> Tensor:
    width = 8 + rows.element_size() * rows.shape[1:].numel()
    return torch.empty(0, width, dtype=torch.uint8, device=rows.device)


def _unpack(packed: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    n = packed.shape[0]
    ids = packed[:, :8].contiguous().view(torch.int64).reshape(n)
    return ids, packed[:, 8:].contiguous().view(like.dtype).reshape(n, *like.shape[1:])


def _sparse(ids: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(ids.unsqueeze(0), rows, like.shape, is_coalesced=True, check_invariants=False)
