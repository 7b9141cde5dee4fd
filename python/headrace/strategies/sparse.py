"""Row-sparse gradients: sums of rows by id in a fixed order, exchanged as (ids, rows) and never as dense tables.

Order of summation, on every transport: on a rank in order of occurrence, then over ranks in rank order.

Bytes a rank sends, with n_k the rows it touched in table k of K and w those of a row:

    sum over k of (N - 1) n_k (8 + w)                        rows as they are
    sum over k of (N - 1) (16 + 8 n_k + bytes of the rows)   rows by way of a codec; ids are exact all the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headrace.comm.base import Collective, as_bytes, from_bytes
from headrace.comm.metered import TABLES, part
from headrace.compress.base import PayloadError, taken
from headrace.models.embedding import sum_rows


class RowCodec(Protocol):
    """What rows go through on their way."""

    def encode(self, name: str, rows: Tensor, rank: int) -> Tensor:
        """Bytes uint8 [m] of a table's rows [n, ...], n > 0, on this rank."""

    def decode(self, data: Tensor, like: Tensor) -> Tensor:
        """Rows of the shape and type of `like`.

        Raises:
            PayloadError: the bytes are none of such rows.
        """


def coalesced(grad: Tensor) -> Tensor:
    """A row-sparse gradient with every id once, in rising order; sums in order of occurrence."""
    if grad.is_coalesced():
        return grad
    return with_rows(*sum_rows(grad._indices()[0], grad._values()), grad)


def as_coalesced(grad: Tensor) -> Tensor:
    """Autograd forgets that a gradient is coalesced: say it again where rows are distinct and rise, else make it so,
    in an order that does not depend on the number of threads."""
    ids, rows = grad._indices()[0], grad._values()
    if not bool((ids[1:] > ids[:-1]).all()):
        ids, rows = sum_rows(ids, rows)
    return with_rows(ids, rows, grad)


def with_rows(ids: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """A coalesced gradient of the size of `like` with these rows; ids are distinct and rise."""
    return torch.sparse_coo_tensor(ids.unsqueeze(0), rows, like.shape, is_coalesced=True, check_invariants=False)


def tables_of(grads: Mapping[str, Tensor], collective: Collective) -> set[str]:
    """Names of the parameters with a row-sparse gradient on any rank; all ranks call it together."""
    own = [name for name, grad in grads.items() if grad.is_sparse]
    return {name for names in collective.allgather_object(own) for name in names}


def reduce_sparse(grads: dict[str, Tensor], collective: Collective, codec: RowCodec | None = None) -> dict[str, Tensor]:
    """Sum row-sparse gradients over ranks; one ragged all-gather for all tables of one row shape and dtype.

    Args:
        grads: torch.sparse_coo with one sparse dimension; same names and sizes on every rank, in the same order.
        collective: over whom.
        codec: of the rows of all ranks, this one's included; None: as they are.

    Returns:
        Coalesced tensors of the same sizes: the same bits on every transport.
    """
    local = {name: coalesced(grad) for name, grad in grads.items()}
    if collective.size == 1:
        return local
    summed: dict[str, Tensor] = {}
    for tables in grouped(local):
        summed |= tables.merged(tables.gathered(collective, codec))
    return {name: summed[name] for name in grads}


def grouped(grads: dict[str, Tensor]) -> list[Tables]:
    """Coalesced gradients by row shape and dtype, in the order of their first."""
    groups: dict[tuple[torch.dtype, torch.Size], dict[str, Tensor]] = {}
    for name, grad in grads.items():
        groups.setdefault((grad.dtype, grad.shape[1:]), {})[name] = grad
    return [Tables(group) for group in groups.values()]


@dataclass(frozen=True)
class Tables:
    """Gradients of tables of one row shape and dtype, laid end to end: a table's ids begin where the one before ends.

    Args:
        grads: coalesced, by name.
    """

    grads: dict[str, Tensor]

    @property
    def offsets(self) -> list[int]:
        """Where each table begins, and the end."""
        found = [0]
        for grad in self.grads.values():
            found.append(found[-1] + grad.shape[0])
        return found

    def gathered(self, collective: Collective, codec: RowCodec | None = None) -> list[tuple[Tensor, Tensor]]:
        """Every rank's ids, rising, and rows, by rank."""
        ids = torch.cat([g._indices()[0] + at for g, at in zip(self.grads.values(), self.offsets, strict=False)])
        with part(collective, TABLES):
            if codec is None:
                rows = torch.cat([g._values() for g in self.grads.values()])
                return [_unpack(raw, rows) for raw in collective.allgather(_pack(ids, rows))]
            message = self._message(ids, codec, collective.rank)
            return [self._opened(raw, codec) for raw in collective.allgather(message)]

    def merged(self, parts: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Sums of ranks' rows by id, in the given order, by table."""
        ids, rows = sum_rows(torch.cat([i for i, _ in parts]), torch.cat([r for _, r in parts]))
        cuts = torch.searchsorted(ids, torch.tensor(self.offsets, device=ids.device)).tolist()
        return {
            name: with_rows(ids[a:b] - offset, rows[a:b], grad)
            for (name, grad), offset, a, b in zip(self.grads.items(), self.offsets, cuts, cuts[1:], strict=False)
        }

    def _message(self, ids: Tensor, codec: RowCodec, rank: int) -> Tensor:
        """Rows and bytes of every table int64 [2 K], ids, bytes."""
        nothing = torch.empty(0, dtype=torch.uint8, device=ids.device)
        payloads = [
            codec.encode(name, grad._values(), rank) if grad._values().numel() else nothing
            for name, grad in self.grads.items()
        ]
        sizes = [g._values().shape[0] for g in self.grads.values()] + [p.numel() for p in payloads]
        return torch.cat([as_bytes(torch.tensor(sizes, device=ids.device)), as_bytes(ids), *payloads])

    def _opened(self, raw: Tensor, codec: RowCodec) -> tuple[Tensor, Tensor]:
        tables, like = len(self.grads), next(iter(self.grads.values()))._values()
        if raw.numel() < 16 * tables:
            raise PayloadError(f"{raw.numel()} bytes hold no sizes of {tables} tables")
        sizes: list[int] = taken(raw, 0, 2 * tables, torch.int64).tolist()
        counts, lengths = sizes[:tables], sizes[tables:]
        start = 8 * (2 * tables + sum(counts))
        if min(sizes) < 0 or raw.numel() != start + sum(lengths):
            raise PayloadError(f"{raw.numel()} bytes came for {sum(counts)} ids and rows of {sum(lengths)} bytes")
        ids = taken(raw, 16 * tables, sum(counts), torch.int64)
        rows = [
            codec.decode(data, like.new_empty(count, *like.shape[1:])) if count else like[:0]
            for data, count in zip(torch.split(raw[start:], lengths), counts, strict=True)
        ]
        return ids, torch.cat(rows)


def _pack(ids: Tensor, rows: Tensor) -> Tensor:
    """Ids and rows as uint8 `[n, 8 + bytes of a row]`: one message instead of two."""
    n = ids.numel()
    return torch.cat([as_bytes(ids).view(n, 8), as_bytes(rows).view(n, -1)], dim=1) if n else _nothing(rows)


def _nothing(rows: Tensor) -> Tensor:
    width = 8 + rows.element_size() * rows.shape[1:].numel()
    return torch.empty(0, width, dtype=torch.uint8, device=rows.device)


def _unpack(packed: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    n, number = packed.shape[0], torch.empty(0, dtype=torch.int64, device=packed.device)
    # Flat first: a slice of one row or none passes for contiguous, and its stride may not suit the wider type.
    return from_bytes(packed[:, :8].reshape(-1), number, n), from_bytes(packed[:, 8:].reshape(-1), like, n)
