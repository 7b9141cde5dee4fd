"""A cluster on one machine with a virtual clock: ranks have speeds, lines have bandwidths, every run repeats exactly.

    cluster = SimulatedCluster(4, speeds=[1, 1, 1, 0.25], latency_s=1e-4, bandwidth=1e9 / 8)
    results = cluster.run(lambda rank: train(cluster.collective(rank), cluster.mailbox(rank), cluster.clock(rank)))
    cluster.seconds, cluster.digest

Ranks are threads of which one runs at a time (see `virtual_time`). Computing takes the time that `Clock.spend` says, by
the speed of the rank; messages and operations take the time that `simulated_network` says; nothing else takes any. Two
runs of the same program with the same arguments have the same messages at the same times with the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from headrace.comm.base import CollectiveError, as_bytes, check_reducible, check_root
from headrace.comm.local import LocalCollective
from headrace.comm.simulated_mailbox import SimulatedMailbox, SimulatedPost
from headrace.comm.simulated_network import ByPair, Network
from headrace.comm.virtual_time import Fiber, Scheduler

Speeds = Sequence[float] | Callable[[int, int], float]


class SimulatedCluster:
    """The ranks and what is between them; runs once.

    Args:
        size: number of ranks.
        speeds: a factor for every rank, 1 where nothing is said; or a function of (rank, n) for what a thread of the
            rank spends the n-th time.
        jitter: deviation of the logarithm of a factor, drawn for every rank, thread and n by the seed.
        latency_s: seconds, of all or by (from, to).
        bandwidth: bytes/s of every rank's line, of each one's, or by (from, to); None: without end.
        seed: of the jitter.
        stall_s: real seconds one thread may run on end before the run is given up.
    """

    def __init__(
        self,
        size: int,
        *,
        speeds: Speeds | None = None,
        jitter: float = 0.0,
        latency_s: float | ByPair = 0.0,
        bandwidth: float | Sequence[float] | ByPair | None = None,
        seed: int = 0,
        stall_s: float = 600.0,
    ) -> None:
        if size < 1:
            raise ValueError(f"a cluster needs at least one rank; got {size}")
        if speeds is not None and not callable(speeds) and (len(speeds) != size or min(speeds) <= 0):
            raise ValueError(f"a speed over 0 for each of {size} ranks is needed; got {speeds}")
        self.size = size
        self._speeds, self._jitter, self._seed = speeds, jitter, seed
        self._network = Network(size, latency_s, bandwidth)
        self._scheduler = Scheduler(stall_s)
        self._post = SimulatedPost(self._scheduler, self._network)
        self._meeting = _Meeting(self._post)
        self._begun, self._spawned = False, 0
        self._ended = [0.0] * size
        self._results: list[Any] = [None] * size

    @property
    def seconds(self) -> float:
        """Virtual time."""
        return self._scheduler.now

    @property
    def digest(self) -> str:
        """SHA-256 of all that was sent, when and in which order; equal for equal runs."""
        return self._scheduler.digest.hexdigest()

    def collective(self, rank: int) -> SimulatedCollective:
        """The end of the group that `rank` holds."""
        return SimulatedCollective(self._meeting, rank)

    def mailbox(self, rank: int) -> SimulatedMailbox:
        """The mailbox of `rank`; asked for again, it is the same one."""
        return SimulatedMailbox(self._post, rank)

    def clock(self, rank: int) -> SimulatedClock:
        """The time of the thread of `rank` that asks; after the run the time at which the rank ended."""
        check_root(rank, self.size)
        return SimulatedClock(self, rank)

    def spawn(self, rank: int, fn: Callable[[], Any]) -> None:
        """Start a further thread of a rank, from the time of the one that asks; it ends with the run."""
        self._spawned += 1
        self._scheduler.spawn(rank, f"thread {self._spawned}", fn)

    def run(self, fn: Callable[[int], Any]) -> list[Any]:
        """`fn(rank)` of every rank, in rank order.

        Raises:
            Deadlock: nobody can go on; says who waits for what.
            BaseException: what the first rank or service that failed raised, with a note that says which and when.
        """
        assert not self._begun, "a simulated cluster runs once"
        self._begun = True
        for rank in range(self.size):
            self._scheduler.spawn(rank, "main", functools.partial(self._main, rank, fn), main=True)
        self._scheduler.run()
        return self._results

    def speed(self, fiber: Fiber) -> float:
        """The factor for what a thread spends next."""
        rank, speeds = fiber.rank, self._speeds
        factor = 1.0 if speeds is None else speeds(rank, fiber.spends) if callable(speeds) else speeds[rank]
        if self._jitter:
            draw = random.Random(f"{self._seed} {rank} {fiber.name} {fiber.spends}")
            factor *= draw.lognormvariate(0.0, self._jitter)
        return factor

    def _main(self, rank: int, fn: Callable[[int], Any]) -> None:
        self._results[rank] = fn(rank)
        self._ended[rank] = self.seconds
        self._meeting.leave(rank)
        self._post.leave(rank, "this rank has ended", f"rank {rank} ended")


class SimulatedClock:
    """See `SimulatedCluster.clock`."""

    def __init__(self, cluster: SimulatedCluster, rank: int) -> None:
        self._cluster, self._rank = cluster, rank

    def now(self) -> float:
        """See `Clock.now`."""
        fiber = self._cluster._scheduler.here
        return self._cluster._ended[self._rank] if fiber is None else fiber.time

    def spend(self, seconds: float) -> None:
        """Seconds a rank of speed 1 would compute; this thread's time goes on by as much as its rank takes."""
        fiber = self._cluster._scheduler.current
        assert fiber.rank == self._rank, "a clock belongs to the threads of its rank"
        if not seconds >= 0:
            raise ValueError(f"time goes forward; got {seconds} s")
        seconds /= self._cluster.speed(fiber)
        fiber.spends += 1
        self._cluster._scheduler.spend(seconds)


class SimulatedCollective(LocalCollective):
    """One rank's end of the group; what it computes is what threads of a `LocalGroup` compute."""

    name = "simulated"

    def allreduce(self, x: Tensor) -> Tensor:
        """See `LocalCollective.allreduce`; added up once for all ranks."""
        check_reducible(x)
        with self._group.exchange(self.rank, f"allreduce {x.dtype} {list(x.shape)}", x.detach()) as parts:
            assert isinstance(parts, _Round)
            if parts.total is None:
                parts.total = self._total(parts, x)
            return parts.total.clone()


class _Round(list[Any]):
    """What ranks have laid down for one operation."""

    def __init__(self, size: int) -> None:
        super().__init__([None] * size)
        self.ops: dict[int, str] = {}
        self.waiting: list[Fiber] = []
        self.total: Tensor | None = None

    def missing(self) -> str:
        """Whom the others wait for."""
        ranks = [str(rank) for rank in range(len(self)) if rank not in self.ops]
        return f"rank {', '.join(ranks[:5])}" + (f" and {len(ranks) - 5} more" if len(ranks) > 5 else "")


class _Meeting:
    """Where ranks meet: the last to come sets the time at which all go on."""

    def __init__(self, post: SimulatedPost) -> None:
        self.size = post.network.size
        self._post, self._scheduler, self._network = post, post.scheduler, post.network
        self._round = _Round(self.size)
        self._left: int | None = None

    @contextlib.contextmanager
    def exchange(self, rank: int, op: str, payload: Any) -> Iterator[list[Any]]:
        """See `Meeting.exchange`; payloads are copied, so nobody waits until all have read."""
        fiber, this = self._scheduler.current, self._round
        assert fiber.rank == rank, "a collective belongs to the threads of its rank"
        assert rank not in this.ops, f"rank {rank} is in {this.ops.get(rank)} already"
        this.ops[rank] = op
        this[rank] = _copied(payload)
        if self._left is not None:
            self._scheduler.abort(f"rank {self._left} ended while others wait for it")
        end = self._complete(this) if len(this.ops) == self.size else None
        this.waiting.append(fiber)
        self._scheduler.wait(lambda: f"{this.missing()} in {op}", end)
        yield this

    def mailbox(self, rank: int) -> SimulatedMailbox:
        """See `Meeting.mailbox`."""
        return SimulatedMailbox(self._post, rank)

    def leave(self, rank: int) -> None:
        """`rank` has ended."""
        self._left = rank if self._left is None else self._left
        if self._round.ops:
            self._scheduler.abort(f"rank {rank} ended while others wait for it")

    def _complete(self, this: _Round) -> float:
        ops = set(this.ops.values())
        if len(ops) > 1:
            self._scheduler.abort(f"ranks called different operations: {', '.join(sorted(ops))}")
            raise CollectiveError(str(self._scheduler.reason))
        op = this.ops[0]
        self._scheduler.trace(op, *map(_crc, this))
        end = self._scheduler.now + self._network.operation(op.split()[0], this)
        self._round = _Round(self.size)
        for fiber in this.waiting:
            self._scheduler.wake(fiber, end)
        return end


def _copied(payload: Any) -> Any:
    """What its rank may change meanwhile."""
    if isinstance(payload, Tensor):
        return payload.clone()
    return [_copied(each) for each in payload] if isinstance(payload, list) else payload


def _crc(payload: Any) -> int:
    """A checksum of what a rank laid down."""
    if isinstance(payload, Tensor):
        return zlib.crc32(as_bytes(payload).numpy().data)
    if isinstance(payload, list):
        payload = [_crc(each) for each in payload]
    return zlib.crc32(repr(payload).encode())
