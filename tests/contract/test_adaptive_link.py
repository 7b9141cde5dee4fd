"""Compression that goes off and on by what is measured, on a simulated link: all ranks alike, and never to and fro."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from contract.collective_exam import good, on_ranks
from torch import Tensor

from headrace.comm import Collective, LocalCollective, Metered
from headrace.compress.base import Codec, State
from headrace.compress.feedback import Feedback
from headrace.compress.ladder import ladder
from headrace.strategies.adaptive import Adaptive, AdaptiveConfig
from headrace.strategies.compressed import CompressedConfig
from headrace.strategies.reducers import ordered

pytestmark = pytest.mark.usefixtures("one_thread")


class Slow(Codec):
    """A codec that takes so long a number, by a clock of its own rank."""

    def __init__(self, inner: Codec, clock: Clock) -> None:
        self.inner, self.clock = inner, clock

    def init(self, like: Tensor, key: int = 0) -> State:
        return self.inner.init(like, key)

    def encode(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        self.clock.spend(1e-9 * x.numel())
        return self.inner.encode(x, state)

    def decode(self, data: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        self.clock.spend(1e-9 * n)
        return self.inner.decode(data, n, dtype)

    def nbytes(self, n: int, dtype: torch.dtype) -> int | None:
        return self.inner.nbytes(n, dtype)


class Clock:
    """One rank's time, which goes on by what is spent."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def spend(self, seconds: float) -> None:
        self.time += seconds


class Link(Metered):
    """Spends the time that what is sent takes, of late so many bytes a second."""

    def __init__(self, inner: Collective, clock: Clock, rate: Callable[[], float]) -> None:
        super().__init__(inner)
        self.clock, self.rate = clock, rate

    def _count(self, kind: str, nbytes: int) -> None:
        super()._count(kind, nbytes)
        self.clock.spend(nbytes / self.rate())


def simulated(
    c: LocalCollective, rates: Sequence[float], turns: int, computing: Callable[[bool], float] = lambda compressed: 0.0
) -> tuple[list[bool], list[dict[str, Any]]]:
    """Ways that turns went over a link whose rate changes at equal parts of the run; the rest of a step takes so long,
    after a turn that was compressed or not."""
    clock, events, ways = Clock(), list[dict[str, Any]](), list[bool]()
    slow = Link(c, clock, lambda: rates[min(len(ways) * len(rates) // turns, len(rates) - 1)])
    rungs = [replace(r, codec=Slow(r.codec, clock)) for r in ladder(("onebit", "none"), feedback=True)]
    adaptive = AdaptiveConfig(budget=0.1, interval=8, switch=True, error="absolute")
    cfg = CompressedConfig(min_numel=100)
    made = Adaptive(rungs, Feedback(rungs[0].codec), ordered(), cfg, adaptive, None, events.append, clock)
    x = {"a": torch.randn(3000, generator=torch.Generator().manual_seed(c.rank))}
    for _ in range(turns):
        clock.spend(computing(bool(ways) and ways[-1]))
        ways.append(made.engaged)
        made.reduce(x, slow)
        made.settle(True)
    return ways, [e for e in events if "changed" in e]


@pytest.mark.parametrize("size", [2, 3])
def test_a_slow_link_is_compressed_for_and_a_fast_one_is_not(size: int) -> None:
    """Encoding takes 1 ns a number: 4 bytes take as long at 4 GB/s, and much longer at 100 MB/s."""
    slow, fast = 1e8, 1e11
    for rates, expected in (([fast], [False]), ([slow, fast, slow], [False, True])):
        results = good(on_ranks(size, lambda c, rates=rates: simulated(c, rates, 80 * len(rates))))
        ways, told = results[0]
        assert all(r == results[0] for r in results), "all ranks go the same way at the same turn"
        assert [e["compress"] for e in told if e["changed"]] == expected
        assert all(e["compress"] == (e["compressed"] < e["as_is"]) for e in told)
        changes = [e["turn"] for e in told if e["changed"]]
        assert [t // 80 for t in changes] == ([0] if rates == [fast] else list(range(1, len(rates))))
        assert (sum(ways[-20:]) > 10) == (rates[-1] == slow)


def test_what_encoding_takes_from_the_rest_of_a_step_counts() -> None:
    """As is, 3,000 numbers take 0.12 ms at 100 MB/s; a core that encodes for another rank is missing for longer."""
    for lost, expected in ((1e-3, False), (1e-5, True)):
        results = good(on_ranks(2, lambda c, lost=lost: simulated(c, [1e8], 160, lambda on: 2e-4 + lost * on)))
        ways, told = results[0]
        assert results[1] == results[0]
        assert (sum(ways[-40:]) > 20) == expected
        assert len([e for e in told if e["changed"]]) == (not expected)
