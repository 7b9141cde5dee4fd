"""torch.distributed as a Collective: gloo for tensors in memory, NCCL for those on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
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


class TorchCollective:
    """The calling process's end of torch's default process group.

    Args:
        timeout_s: an operation that takes longer fails on every rank.
        init_method: where ranks meet; None reads MASTER_ADDR and MASTER_PORT, as torchrun sets them.
        rank: this rank; None reads RANK.
        size: number of ranks; None reads WORLD_SIZE.
        gpu: NCCL for CUDA tensors; without it they pass through host memory to gloo.
    """

    name = "torch"

    def __init__(
        self,
        timeout_s: float = 600.0,
        *,
        init_method: str | None = None,
        rank: int | None = None,
        size: int | None = None,
        gpu: bool = False,
    ) -> None:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            init_method=init_method,
            rank=-1 if rank is None else rank,
            world_size=-1 if size is None else size,
            timeout=timedelta(seconds=timeout_s),
        )
        self._on_gpu = gpu
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()

    def close(self) -> None:
        """Leave the group; whoever still waits for this rank is released with an error."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def allreduce(self, x: Tensor) -> Tensor:
        """See `Collective.allreduce`; bfloat16 is summed in float32 and rounded once."""
        check_reducible(x)
        total = self._stage(x.detach().to(torch.float32 if x.dtype == torch.bfloat16 else x.dtype, copy=True))
        total = total.contiguous()
        if total.numel():
            self._call(lambda: dist.all_reduce(total))
        return total.to(x.device, x.dtype)

    def allgather(self, x: Tensor, rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.allgather`: an exchange in which every rank sends the same to all, so nothing is padded."""
        if x.dim() == 0:
            return [part.reshape(()) for part in self.allgather(x.reshape(1), rows=[1] * self.size)]
        rows = rows or self._exchange_ints([x.shape[0]] * self.size)
        own = as_bytes(x)
        return self._exchange(own.repeat(self.size), [own.numel()] * self.size, x, rows)

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.alltoall`."""
        check_chunks(chunks, self.size)
        rows = rows or self._exchange_ints([c.shape[0] for c in chunks])
        parts = [as_bytes(c) for c in chunks]
        return self._exchange(torch.cat(parts), [p.numel() for p in parts], chunks[0], rows)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """See `Collective.broadcast`."""
        check_root(root, self.size)
        raw = self._stage(as_bytes(x).clone())
        if raw.numel():
            self._call(lambda: dist.broadcast(raw, root))
        return from_bytes(raw.to(x.device), x)

    def barrier(self) -> None:
        """See `Collective.barrier`."""
        self._exchange_ints([0] * self.size)

    def allgather_object(self, value: Any) -> list[Any]:
        """See `Collective.allgather_object`."""
        return [decode_object(raw) for raw in self.allgather(encode_object(value))]

    def _exchange(self, raw: Tensor, sent: list[int], like: Tensor, rows: Sequence[int]) -> list[Tensor]:
        """Send `sent[j]` bytes of `raw` to rank j; `rows[j]` rows shaped as those of `like` come from rank j."""
        counts = [n * row_bytes(like) for n in rows]
        staged = self._stage(raw)
        received = staged.new_empty(sum(counts))
        self._call(lambda: dist.all_to_all_single(received, staged, counts, sent))
        parts = torch.split(received.to(like.device), counts)
        return [from_bytes(part.clone(), like, n) for part, n in zip(parts, rows, strict=True)]

    def _exchange_ints(self, numbers: list[int]) -> list[int]:
        received = torch.empty(self.size, dtype=torch.int64)
        self._call(lambda: dist.all_to_all_single(received, torch.tensor(numbers)))
        return [int(n) for n in received]

    def _stage(self, x: Tensor) -> Tensor:
        if not x.is_cuda or self._on_gpu:
            return x
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)

    def _call(self, operation: Callable[[], Any]) -> None:
        try:
            operation()
        except RuntimeError as error:
            raise CollectiveError(f"rank {self.rank} of {self.size} (torch.distributed): {error}") from error
