"""The tuned bound: its forecast against a simulation event by event, what it chooses, and that it resumes."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.strategies.bound import HORIZON, Decision, Limits, TunedBound, finish_times

N = 4


def simulated(seconds: Sequence[Sequence[float]], s: int) -> float:
    """When the last of H pushes of every worker comes, event by event."""
    pushes = min(map(len, seconds))
    made, waiting, now = [0] * len(seconds), set[int](), 0.0
    events = [(each[-pushes], m) for m, each in enumerate(seconds)]
    heapq.heapify(events)
    while events:
        now, m = heapq.heappop(events)
        made[m] += 1
        if made[m] < pushes:
            waiting.add(m)
        for w in [w for w in waiting if made[w] - min(made) <= s]:
            waiting.remove(w)
            heapq.heappush(events, (now + seconds[w][made[w] - pushes], w))
    assert made == [pushes] * len(seconds)
    return now


@given(
    seconds=st.lists(st.lists(st.sampled_from([0.25, 1.0, 1.5, 4.0]), min_size=3, max_size=12), min_size=1, max_size=5),
    s=st.integers(0, 6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_forecast_is_what_happens(seconds: list[list[float]], s: int) -> None:
    assert finish_times(seconds, [s])[s] == simulated(seconds, s)


def fed(bound: TunedBound, seconds: Sequence[Sequence[float]], losses: Sequence[float]) -> list[Decision]:
    """Push by push, all workers in turn."""
    found = []
    for turn, (each, loss) in enumerate(zip(seconds, losses, strict=True)):
        for m, value in enumerate(each):
            decision = bound.pushed(m, value, loss, 10.0 * turn + m)
            found += [decision] if decision is not None else []
    return found


def slow_now_and_then(turns: int) -> list[list[float]]:
    """Two pushes of four seconds in every eight, each worker at its own time: the lag is six."""
    return [[4.0 if (turn // 2 + m) % 4 == 0 else 1.0 for m in range(N)] for turn in range(turns)]


def test_for_a_worker_that_is_always_slow_the_bound_is_the_least() -> None:
    bound = TunedBound(5, Limits(low=1, high=12, window=8), N, 0.0)
    decisions = fed(bound, [[1.0, 1.0, 1.0, 3.0]] * 80, [1.0] * 80)
    assert [d.bound for d in decisions] == [1] and decisions[0].seconds == 1.0


def test_for_workers_that_are_slow_now_and_then_it_is_what_they_need() -> None:
    bound = TunedBound(0, Limits(low=0, high=12, window=8), N, 0.0)
    seconds = slow_now_and_then(HORIZON * 12)
    fed(bound, seconds, [1.0] * len(seconds))
    took = finish_times([list(each) for each in zip(*seconds, strict=True)], range(13))
    assert 1 < bound.value < 12 and took[0] > 1.5 * took[12]
    assert took[bound.value] <= 1.02 * took[12] < took[bound.value - 1]


def test_a_loss_that_rises_halves_it_and_it_comes_back_by_ones() -> None:
    bound = TunedBound(0, Limits(low=0, high=12, window=8), N, 0.0)
    seconds = slow_now_and_then(HORIZON * 12)
    fed(bound, seconds, [1.0] * len(seconds))
    at = bound.value
    noise = [0.01 * (-1) ** turn for turn in range(40)]
    decisions = fed(bound, seconds[:40], [2.0 + e for e in noise])
    assert (decisions[0].bound, decisions[0].why) == (at // 2, "loss")
    assert [d.bound for d in decisions[1:]] == [at // 2 + k for k in range(1, len(decisions))] and len(decisions) > 1


@pytest.mark.parametrize("cut", [3, 8, 21])
def test_it_resumes(cut: int) -> None:
    """Through JSON, at another time."""
    limits, seconds = Limits(high=12, window=5), slow_now_and_then(60)
    losses = [1.0 + 0.2 * ((7 * turn) % 11) for turn in range(60)]
    whole = TunedBound(3, limits, N, 0.0)
    expected = fed(whole, seconds, losses)
    first = TunedBound(3, limits, N, 0.0)
    before = fed(first, seconds[:cut], losses[:cut])
    second = TunedBound(3, limits, N, 0.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(10.0 * cut))), 0.0)
    after = fed(second, seconds[cut:], losses[cut:])
    assert [*before, *after] == expected and len(expected) > 2


def test_nothing_grows_while_a_worker_makes_no_steps() -> None:
    """One that has left, or that does something else after every push."""
    bound = TunedBound(3, Limits(high=4, window=5), 2, 0.0)
    for k in range(1000):
        assert bound.pushed(0, 1.0, 1.0, float(k)) is None
    assert len(bound.state_dict(1000.0)["losses"]) < 10
