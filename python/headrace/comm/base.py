"""What every transport offers, and the parts of it that do not depend on the transport.

All ranks call the same operations in the same order. Tensors stay on the caller's device, results are new tensors, and
an operation that cannot be completed raises `CollectiveError` on every rank that waits in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

REDUCIBLE = (torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bfloat16)


class CollectiveError(RuntimeError):
    """An operation could not be completed: a rank failed, left, stalled, or called something else."""


@runtime_checkable
class Collective(Protocol):
    """One rank's end of a group of `size` ranks."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def name(self) -> str: ...

    def allreduce(self, x: Tensor) -> Tensor:
        """Sum over ranks; one shape on all. Integers are exact, the order of a float sum is the transport's."""

    def allgather(self, x: Tensor, rows: Sequence[int] | None = None) -> list[Tensor]:
        """Every rank's `x`, in rank order: dim 0 may differ, the rest is equal.

        Args:
            x: `[n_r, ...]`, or a scalar.
            rows: `n_r` of every rank where the caller knows them: saves the exchange of sizes.
        """

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        """Send `chunks[j]` to rank j; return what each rank sent here, in rank order.

        Args:
            chunks: `size` tensors that differ in dim 0 only.
            rows: rows to come from every rank where the caller knows them: saves the exchange of sizes.
        """

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """The root's `x` on every rank; shape and dtype are equal on all."""

    def barrier(self) -> None:
        """Return when all ranks have called it."""

    def allgather_object(self, value: Any) -> list[Any]:
        """Every rank's JSON-able value, in rank order."""


def check_reducible(x: Tensor) -> None:
    """Raise `TypeError` for a dtype whose sum over ranks is not defined on every transport."""
    if x.dtype not in REDUCIBLE or x.layout != torch.strided:
        raise TypeError(f"allreduce takes dense tensors of {', '.join(map(str, REDUCIBLE))}; got {x.layout} {x.dtype}")


def check_chunks(chunks: Sequence[Tensor], size: int) -> None:
    """Raise `ValueError` unless there is a chunk for every rank and all agree but for dim 0."""
    if len(chunks) != size:
        raise ValueError(f"alltoall needs {size} chunks, one a rank; got {len(chunks)}")
    if any(c.dim() == 0 or c.shape[1:] != chunks[0].shape[1:] or c.dtype != chunks[0].dtype for c in chunks):
        raise ValueError("alltoall chunks must have one dtype and differ in dim 0 only")


def check_root(root: int, size: int) -> None:
    """Raise `ValueError` unless `root` is a rank."""
    if not 0 <= root < size:
        raise ValueError(f"root must be in [0, {size}); got {root}")


def as_bytes(x: Tensor) -> Tensor:
    """The same memory as a flat uint8 tensor (a copy where `x` is not contiguous): any dtype can then be moved."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def from_bytes(raw: Tensor, like: Tensor, rows: int | None = None) -> Tensor:
    """Undo `as_bytes`: dtype and trailing shape of `like`, `rows` in dim 0 (None: exactly the shape of `like`)."""
    shape = like.shape if rows is None else (rows, *like.shape[1:])
    if raw.numel() == 0:
        return torch.empty(shape, dtype=like.dtype, device=raw.device)
    if raw.storage_offset() % like.element_size():
        raw = raw.clone()
    return raw.view(like.dtype).reshape(shape)


def row_bytes(like: Tensor) -> int:
    """Bytes of one row (an index of dim 0) of `like`."""
    return like.element_size() * like.shape[1:].numel()


def summed_bytes(x: Tensor) -> int:
    """Bytes of a tensor on its way through `allreduce`, where bfloat16 travels as float32."""
    return x.numel() * max(x.element_size(), 4 if x.is_floating_point() else 1)


def encode_object(value: Any) -> Tensor:
    """A JSON-able value as uint8 `[n]`."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def decode_object(raw: Tensor) -> Any:
    """Undo `encode_object`."""
    return json.loads(raw.cpu().numpy().tobytes())
