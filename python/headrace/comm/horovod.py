"""Horovod as a Collective: the only module that calls its operations.

One synchronous operation at a time, each on one flat tensor, so that neither fusion nor asynchrony can change the order
of a sum. What is only moved (gathered, exchanged, broadcast) travels as bytes, so every dtype can; what is summed must
be of a dtype Horovod adds. A Horovod built without NCCL takes no CUDA tensors: those pass through pinned host memory,
at the price of two copies over PCIe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.comm.base import (
    CollectiveError,
    as_bytes,
    check_chunks,
    check_reducible,
    check_root,
    decode_object,
    encode_object,
    from_bytes,
    row_bytes,
)

# All operations share one name: ranks that call different ones then get an error at once instead of waiting for ever.
_NAME = "headrace"

# Dtypes that Horovod does not add: summed in a wider one, then rounded or taken modulo 256.
_WIDER = {torch.bfloat16: torch.float32, torch.uint8: torch.int32}

_WORDS = {4: torch.int32, 8: torch.int64}  # by size, to move others in


class HorovodCollective:
    """The calling process's end of Horovod's global process set; `horovod.torch.init()` is called here."""

    name = "horovod"

    def __init__(self) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        hvd.init()
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        self.local_rank: int = hvd.local_rank()
        self._on_gpu = bool(hvd.nccl_built())

    def close(self) -> None:
        """Leave the group; whoever still waits for this rank is released with an error."""
        self._hvd.shutdown()

    def allreduce(self, x: Tensor) -> Tensor:
        """See `Collective.allreduce`; bfloat16 is summed in float32 and rounded once, uint8 in int32."""
        check_reducible(x)
        if x.numel() == 0:
            return x.detach().clone()
        wide = _WIDER.get(x.dtype, x.dtype)
        flat = self._stage(x.detach().to(wide).contiguous().reshape(-1))
        total: Tensor = self._call(lambda: self._hvd.allreduce(flat, op=self._hvd.Sum, name=_NAME))
        return self._unstage(total, x).to(x.dtype).reshape(x.shape)

    def allgather(self, x: Tensor, rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.allgather`."""
        if x.dim() == 0:
            return [part.reshape(()) for part in self.allgather(x.reshape(1), rows=[1] * self.size)]
        rows = rows or self._gather_ints(x.shape[0])
        width = row_bytes(x)
        if sum(rows) * width == 0:
            return [x.new_empty((n, *x.shape[1:])) for n in rows]
        # Horovod counts all that it gathers in an int32, in elements: bytes would end at 2 GiB.
        word = _WORDS.get(x.element_size(), torch.uint8)
        raw = self._stage(as_bytes(x).view(word))
        gathered: Tensor = self._call(lambda: self._hvd.allgather(raw, name=_NAME))
        parts = torch.split(as_bytes(self._unstage(gathered, x)), [n * width for n in rows])
        return [from_bytes(part.clone(), x, n) for part, n in zip(parts, rows, strict=True)]

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.alltoall`. Horovod tells what was received, so `rows` saves nothing here."""
        check_chunks(chunks, self.size)
        like, width = chunks[0], row_bytes(chunks[0])
        raw = self._stage(torch.cat([as_bytes(c) for c in chunks]))
        # Splits are int32, in elements: rows of one byte would end at 2 GiB, so a row is the unit where it has a size.
        splits = torch.tensor([c.shape[0] for c in chunks], dtype=torch.int32)
        table = raw.view(-1, width) if width else raw.new_empty(int(splits.sum()), 0)
        received, counts = self._call(lambda: self._hvd.alltoall(table, splits=splits, name=_NAME))
        parts = torch.split(self._unstage(received, like).reshape(-1), [int(n) * width for n in counts])
        return [from_bytes(p.clone(), like, int(n)) for p, n in zip(parts, counts, strict=True)]

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """See `Collective.broadcast`."""
        check_root(root, self.size)
        if x.numel() == 0:
            return x.detach().clone()
        raw = self._stage(as_bytes(x))
        sent: Tensor = self._call(lambda: self._hvd.broadcast(raw, root, name=_NAME))
        return from_bytes(self._unstage(sent, x), x)

    def barrier(self) -> None:
        """See `Collective.barrier`: an exchange of one number, since Horovod's own cannot be told from a stall."""
        self._gather_ints(0)

    def allgather_object(self, value: Any) -> list[Any]:
        """See `Collective.allgather_object`."""
        return [decode_object(raw) for raw in self.allgather(encode_object(value))]

    def _gather_ints(self, value: int) -> list[int]:
        numbers = self._call(lambda: self._hvd.allgather(torch.tensor([value]), name=_NAME))
        return [int(n) for n in numbers]

    def _stage(self, x: Tensor) -> Tensor:
        if not x.is_cuda or self._on_gpu:
            return x
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        return host.copy_(x)

    def _unstage(self, x: Tensor, like: Tensor) -> Tensor:
        return x.to(like.device)

    def _call(self, operation: Callable[[], Any]) -> Any:
        """Run an operation; Horovod's many ways to say that it failed become one."""
        try:
            return operation()
        except (RuntimeError, ValueError) as error:
            raise CollectiveError(f"rank {self.rank} of {self.size} (horovod): {error}") from error
