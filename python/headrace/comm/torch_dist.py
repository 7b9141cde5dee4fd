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
from headrace.comm.fresh import fresh

_TAGS = 1 << 31  # messages of an exchange have its number: those of ranks that are an exchange apart do not mix


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
        self._on_gpu, self._turn = gpu, 0
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
        return self._exchange([self._stage(as_bytes(x))] * self.size, x, rows)

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.alltoall`."""
        check_chunks(chunks, self.size)
        rows = rows or self._exchange_ints([c.shape[0] for c in chunks])
        return self._exchange([self._stage(as_bytes(c)) for c in chunks], chunks[0], rows)

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

    def _exchange(self, sent: list[Tensor], like: Tensor, rows: Sequence[int]) -> list[Tensor]:
        """Send bytes `sent[j]` to rank j; `rows[j]` rows shaped as those of `like` come from rank j."""
        counts = [n * row_bytes(like) for n in rows]
        if len(counts) != self.size or counts[self.rank] != sent[self.rank].numel():
            raise CollectiveError(f"rank {self.rank} of {self.size}: rows {list(rows)} are not those that come")
        if like.is_cuda and self._on_gpu:
            whole, sizes = torch.cat(sent), [part.numel() for part in sent]
            received = whole.new_empty(sum(counts))
            self._call(lambda: dist.all_to_all_single(received, whole, counts, sizes))
            arrived = [part.clone() for part in torch.split(received, counts)]
        else:
            arrived = [part.to(like.device) for part in self._messages(sent, counts)]
        return [from_bytes(part, like, n) for part, n in zip(arrived, rows, strict=True)]

    def _exchange_ints(self, numbers: list[int]) -> list[int]:
        parts = self._messages([as_bytes(torch.tensor([n])) for n in numbers], [8] * self.size)
        return [int(part.view(torch.int64)) for part in parts]

    def _messages(self, sent: list[Tensor], counts: list[int]) -> list[Tensor]:
        """Send bytes `sent[j]` in memory to rank j; `counts[j]` bytes come from rank j, in new memory.

        What is to come is asked for before anything is sent. Gloo's own alltoall sends first: then the rank that comes
        last has its data queued on the connection before its readiness to receive, and the two directions of a link
        carry data one after the other.
        """
        self._turn = (self._turn + 1) % _TAGS
        arrived = [fresh(count, torch.uint8, torch.device("cpu")) for count in counts]
        arrived[self.rank].copy_(sent[self.rank])
        others = [(self.rank + far) % self.size for far in range(1, self.size)]

        def exchange() -> None:
            works = [dist.irecv(arrived[j], j, tag=self._turn) for j in others[::-1] if counts[j]]
            works += [dist.isend(sent[j], j, tag=self._turn) for j in others if sent[j].numel()]
            for work in works:
                assert work is not None  # as for a process that is not of the group
                work.wait()

        self._call(exchange)
        return arrived

    def _stage(self, x: Tensor) -> Tensor:
        if not x.is_cuda or self._on_gpu:
            return x
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)

    def _call(self, operation: Callable[[], Any]) -> None:
        try:
            operation()
        except RuntimeError as error:
            raise CollectiveError(f"rank {self.rank} of {self.size} (torch.distributed): {error}") from error
