"""What a transfer costs on a simulated cluster.

Messages: with one bandwidth a rank, each rank has a line out and a line in, both first come, first served; a message of
B bytes from a to b that its sender begins at t reaches the line into b at t + latency, and is there at the later of

    t + B / bandwidth_a + latency    and    (when the line into b is free for it) + B / bandwidth_b.

With a bandwidth a pair every ordered pair has a line of its own. Messages to oneself take no time.

Operations of n ranks begin when the last rank has called, end for all at once, and do not share lines with messages.
With l and b the longest latency and the least bandwidth between neighbours r, r + 1, and B_r the bytes of rank r:

    allreduce          2 (n - 1) (l + B / (n b))                  ring
    allgather, object  (n - 1) (l + max_r B_r / b)                ring
    alltoall           (n - 1) l + max_r max(out_r, in_r) / b_r   own lines; by pairs max_r sum_j B_rj / b_rj instead
    broadcast          ceil(log2 n) (l + B / b)                   tree
    barrier            ceil(log2 n) l                             dissemination
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from headrace.comm.base import summed_bytes

ByPair = Callable[[int, int], float]


class Network:
    """The lines between ranks.

    Args:
        size: number of ranks.
        latency_s: seconds, of all or by (from, to).
        bandwidth: bytes/s of every rank's line, of each one's, or by (from, to); None: without end.
    """

    def __init__(
        self, size: int, latency_s: float | ByPair, bandwidth: float | Sequence[float] | ByPair | None
    ) -> None:
        self.size = size
        self._latency = latency_s
        self._by_pair = bandwidth if callable(bandwidth) else None
        if bandwidth is None or callable(bandwidth):
            self._lines = [math.inf] * size
        else:
            self._lines = [bandwidth] * size if isinstance(bandwidth, int | float) else list(bandwidth)
        if len(self._lines) != size or min(self._lines) <= 0:
            raise ValueError(f"a bandwidth over 0 for each of {size} ranks is needed; got {bandwidth}")
        self._free: defaultdict[tuple[str, int, int], float] = defaultdict(float)
        ring = [(r, (r + 1) % size) for r in range(size)]
        self.longest_latency = max(self.latency(a, b) for a, b in ring)
        self._ring_rate = min(self.rate(a, b) for a, b in ring)

    def latency(self, a: int, b: int) -> float:
        """Seconds from a to b."""
        if a == b:
            return 0.0
        return self._latency(a, b) if callable(self._latency) else self._latency

    def rate(self, a: int, b: int) -> float:
        """Bytes/s from a to b."""
        if a == b:
            return math.inf
        return self._by_pair(a, b) if self._by_pair else min(self._lines[a], self._lines[b])

    def depart(self, now: float, a: int, b: int, nbytes: int) -> tuple[float, float]:
        """When the first byte reaches b's line, and when the last one could; takes the line out."""
        line = ("pair", a, b) if self._by_pair else ("out", a, a)
        begin = max(now, self._free[line])
        end = begin + nbytes / (self.rate(a, b) if self._by_pair else self._lines[a])
        self._free[line] = end
        return begin + self.latency(a, b), end + self.latency(a, b)

    def arrive(self, now: float, b: int, nbytes: int, last: float) -> float:
        """When a message is there whose first byte is at b's line now; takes the line in."""
        if self._by_pair:
            return last
        begin = max(now, self._free["in", b, b])
        self._free["in", b, b] = begin + nbytes / self._lines[b]
        return max(last, self._free["in", b, b])

    def operation(self, kind: str, payloads: Sequence[Any]) -> float:
        """Seconds of an operation of all ranks; payloads as `LocalCollective` lays them down."""
        n, latency, rate = self.size, self.longest_latency, self._ring_rate
        if n == 1:
            return 0.0
        if kind == "alltoall":
            return (n - 1) * latency + self._alltoall(payloads)
        if kind == "allreduce":
            return 2 * (n - 1) * (latency + summed_bytes(payloads[0]) / (n * rate))
        nbytes = max(_nbytes(each) for each in payloads)
        if kind in ("allgather", "allgather_object"):
            return (n - 1) * (latency + nbytes / rate)
        assert kind in ("broadcast", "barrier"), kind
        return math.ceil(math.log2(n)) * (latency + nbytes / rate)

    def _alltoall(self, payloads: Sequence[Sequence[Tensor]]) -> float:
        sent = [[chunk.nbytes if a != b else 0 for b, chunk in enumerate(row)] for a, row in enumerate(payloads)]
        if self._by_pair:
            return max(sum(x / self.rate(a, b) for b, x in enumerate(row)) for a, row in enumerate(sent))
        out, into = [sum(row) for row in sent], [sum(column) for column in zip(*sent, strict=True)]
        return max(max(o, i) / line for o, i, line in zip(out, into, self._lines, strict=True))


def _nbytes(payload: Any) -> int:
    """Bytes of a tensor, a text, or nothing."""
    if isinstance(payload, Tensor):
        return payload.nbytes
    return len(payload) if isinstance(payload, str) else 0
