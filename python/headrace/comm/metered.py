"""A Collective that counts what this rank puts on the wire.

Bytes sent by rank r of n, for the algorithms the transports use (payload; packet headers and the size exchange of 8
bytes a rank are left out), with B_r the bytes of rank r's own tensor:

    allreduce   2 (n - 1) / n * B      ring: reduce-scatter and all-gather (what the CPU transports and NCCL do at size)
    allgather   (n - 1) * B_r          every rank's piece reaches n - 1 others; a ring forwards as much in the mean
    alltoall    sum over j != r of the bytes of chunk j
    broadcast   (n - 1) * B at the root, 0 elsewhere: what enters the network, however a tree spreads it
    object      as allgather, of the value's JSON

The in-process transport moves nothing over a wire and is counted alike, so that strategies can be compared without one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from headrace.comm.base import Collective, summed_bytes
from headrace.comm.clock import Clock, WallClock

TABLES, EVALUATION = "tables", "evaluation"  # parts


class Metered:
    """Wraps any Collective; results are those of the wrapped one.

    Attributes:
        sent: bytes by kind of operation, on this rank.
        calls: operations by kind.
        parts: bytes by what they are of, as far as `part` said it.
        seconds: in operations, waiting for other ranks included.
        clock: of the seconds.
    """

    clock: Clock = WallClock()

    def __init__(self, inner: Collective) -> None:
        self.inner = inner
        self.seconds = 0.0
        self.sent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def sent_bytes(self) -> int:
        """Bytes of all kinds together."""
        return self.sent.total()

    def allreduce(self, x: Tensor) -> Tensor:
        """See `Collective.allreduce`."""
        with self._counted("allreduce", 2 * (self.size - 1) * summed_bytes(x) // self.size):
            return self.inner.allreduce(x)

    def allgather(self, x: Tensor, rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.allgather`."""
        with self._counted("allgather", (self.size - 1) * x.nbytes):
            return self.inner.allgather(x, rows)

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        """See `Collective.alltoall`."""
        with self._counted("alltoall", sum(c.nbytes for j, c in enumerate(chunks) if j != self.rank)):
            return self.inner.alltoall(chunks, rows)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """See `Collective.broadcast`."""
        with self._counted("broadcast", (self.size - 1) * x.nbytes if self.rank == root else 0):
            return self.inner.broadcast(x, root)

    def barrier(self) -> None:
        """See `Collective.barrier`."""
        with self._counted("barrier", 0):
            self.inner.barrier()

    def allgather_object(self, value: Any) -> list[Any]:
        """See `Collective.allgather_object`."""
        with self._counted("object", (self.size - 1) * len(json.dumps(value))):
            return self.inner.allgather_object(value)

    def _count(self, kind: str, nbytes: int) -> None:
        self.sent[kind] += nbytes
        self.calls[kind] += 1

    @contextmanager
    def _counted(self, kind: str, nbytes: int) -> Iterator[None]:
        self._count(kind, nbytes)
        start = self.clock.now()
        try:
            yield
        finally:
            self.seconds += self.clock.now() - start


@contextmanager
def part(collective: Collective, name: str) -> Iterator[None]:
    """What is sent inside is of this part, where a `Metered` counts it."""
    before = collective.sent_bytes if isinstance(collective, Metered) else 0
    try:
        yield
    finally:
        if isinstance(collective, Metered):
            collective.parts[name] += collective.sent_bytes - before
