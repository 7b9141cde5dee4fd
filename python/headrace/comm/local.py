"""N ranks as threads of one process: the reference every other transport is compared with."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from headrace.comm.base import CollectiveError, check_chunks, check_reducible, check_root
from headrace.comm.local_mailbox import LocalMailbox, LocalPost
from headrace.comm.mailbox import Mailbox


class LocalGroup:
    """Where the threads meet.

    Args:
        size: number of ranks.
        timeout_s: how long a rank waits for the others before all of them fail; None waits for ever.
    """

    def __init__(self, size: int, timeout_s: float | None = 600.0) -> None:
        if size < 1:
            raise ValueError(f"a group needs at least one rank; got {size}")
        self.size = size
        self.timeout_s = timeout_s
        self._barrier = threading.Barrier(size)
        self._slots: list[tuple[str, Any]] = [("", None)] * size
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._left: set[int] = set()
        self._calls = [0] * size
        self._post = LocalPost(size, self.abort)

    def collective(self, rank: int) -> LocalCollective:
        """The end of the group that `rank` holds."""
        return LocalCollective(self, rank)

    def mailbox(self, rank: int) -> LocalMailbox:
        """The mailbox of `rank`; asked for again, it is the same one."""
        return LocalMailbox(self._post, rank)

    def abort(self, reason: str) -> None:
        """Release every rank that waits, now and later, with `CollectiveError(reason)`; the first reason stays."""
        with self._lock:
            self._reason = self._reason or reason
        self._barrier.abort()
        self._post.fail(self._reason)

    @property
    def aborted(self) -> bool:
        """Whether the group can no longer be used."""
        return self._barrier.broken

    def leave(self, rank: int) -> None:
        """`rank` is done: whoever waits for it, now or later, is released with an error."""
        with self._lock:
            self._left.add(rank)
            missed = max(self._calls) > self._calls[rank]
        self._post.fail(f"rank {rank} ended")
        if missed:
            self.abort(f"rank {rank} ended while others wait for it")

    def _enter(self, rank: int) -> None:
        with self._lock:
            self._calls[rank] += 1
            gone = [r for r in sorted(self._left) if self._calls[r] < self._calls[rank]]
        if gone:
            self.abort(f"rank {gone[0]} ended while others wait for it")

    @contextlib.contextmanager
    def exchange(self, rank: int, op: str, payload: Any) -> Iterator[list[Any]]:
        """Lay down `payload`, see everyone's; nobody leaves before all have read, so payloads need no copy."""
        self._enter(rank)
        self._slots[rank] = (op, payload)
        self._wait(op)
        ops = {o for o, _ in self._slots}
        if len(ops) > 1:
            self.abort(f"ranks called different operations: {', '.join(sorted(ops))}")
            raise CollectiveError(str(self._reason))
        try:
            yield [p for _, p in self._slots]
        except BaseException as error:
            self.abort(f"rank {rank} failed in {op}: {error!r}")
            raise
        self._wait(op)

    def _wait(self, op: str) -> None:
        try:
            self._barrier.wait(self.timeout_s)
        except threading.BrokenBarrierError:
            with self._lock:
                self._reason = self._reason or f"no answer from every rank within {self.timeout_s} s in {op}"
            raise CollectiveError(str(self._reason)) from None


class Meeting(Protocol):
    """Where all ranks lay down what they bring to an operation."""

    @property
    def size(self) -> int: ...

    def exchange(self, rank: int, op: str, payload: Any) -> contextlib.AbstractContextManager[list[Any]]:
        """What all ranks laid down, in rank order; it does not change within the context.

        Args:
            rank: who calls.
            op: the name of the operation, then what must be equal on all ranks.
            payload: what it brings.
        """

    def mailbox(self, rank: int) -> Mailbox:
        """The mailbox of `rank`."""


class LocalCollective:
    """One thread's end of a `LocalGroup`, or of another meeting. Sums are taken in rank order."""

    name = "local"

    def __init__(self, group: Meeting, rank: int) -> None:
        check_root(rank, group.size)
        self._group = group
        self.rank = rank
        self.size = group.size

    def allreduce(self, x: Tensor) -> Tensor:
        """Sum in rank order; bfloat16 is summed in float32 and rounded once."""
        check_reducible(x)
        with self._group.exchange(self.rank, f"allreduce {x.dtype} {list(x.shape)}", x.detach()) as parts:
            return self._total(parts, x)

    def allgather(self, x: Tensor, rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.allgather`."""
        with self._group.exchange(self.rank, f"allgather {x.dtype} {list(x.shape[1:])}", x.detach()) as parts:
            _check_rows(parts, rows)
            return [part.to(x.device, copy=True) for part in parts]

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.alltoall`."""
        check_chunks(chunks, self.size)
        op = f"alltoall {chunks[0].dtype} {list(chunks[0].shape[1:])}"
        with self._group.exchange(self.rank, op, [c.detach() for c in chunks]) as parts:
            mine = [part[self.rank] for part in parts]
            _check_rows(mine, rows)
            return [part.to(chunks[0].device, copy=True) for part in mine]

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """See `Collective.broadcast`."""
        check_root(root, self.size)
        op = f"broadcast from {root} {x.dtype} {list(x.shape)}"
        with self._group.exchange(self.rank, op, x.detach()) as parts:
            result: Tensor = parts[root].to(x.device, copy=True)
        return result

    def barrier(self) -> None:
        """See `Collective.barrier`."""
        with self._group.exchange(self.rank, "barrier", None):
            pass

    def allgather_object(self, value: Any) -> list[Any]:
        """See `Collective.allgather_object`; passes through JSON as on any other transport."""
        with self._group.exchange(self.rank, "allgather_object", json.dumps(value)) as parts:
            return [json.loads(part) for part in parts]

    def mailbox(self) -> Mailbox:
        """This rank's mailbox."""
        return self._group.mailbox(self.rank)

    def _total(self, parts: list[Any], x: Tensor) -> Tensor:
        wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        total: Tensor = parts[0].to(x.device, wide, copy=True)
        for part in parts[1:]:
            total += part.to(x.device)
        return total.to(x.dtype)


def _check_rows(parts: Sequence[Tensor], rows: Sequence[int] | None) -> None:
    """Nothing is cut by `rows` here; transports that do would hang, or cut in the wrong places."""
    found = [part.shape[0] if part.dim() else 1 for part in parts]
    if rows is not None and list(rows) != found:
        raise CollectiveError(f"{found} rows came, where the caller said it knew of {list(rows)}")
