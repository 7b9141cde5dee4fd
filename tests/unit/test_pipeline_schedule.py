"""Orders of passes in a pipeline: complete, possible, as idle and as large as the papers say."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.parallel.pipeline_schedule import (
    BOUNDED,
    FLUSHES,
    SCHEDULES,
    TRAITS,
    Action,
    Kind,
    actions,
    finish_times,
    held,
    idle_share,
    schedule,
    version,
)

GRID = list(itertools.product(sorted(SCHEDULES), range(1, 6), range(1, 9)))
sizes = st.tuples(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 12), st.integers(1, 40))


def numbers(done: list[Action], kind: Kind) -> list[int]:
    return [action.micro_batch for action in done if action.kind is kind]


def check_complete(name: str, stages: int, micro_batches: int, group: int = 1) -> None:
    """Every micro-batch forward and backward once in every stage, in order, updates where they belong."""
    flushes = FLUSHES in SCHEDULES[name].traits
    updates = [micro_batches - 1] if flushes else list(range(group - 1, micro_batches, group))
    for done in schedule(name, stages, micro_batches, group):
        assert numbers(done, Kind.FORWARD) == numbers(done, Kind.BACKWARD) == list(range(micro_batches))
        assert numbers(done, Kind.UPDATE) == updates
        for number in range(micro_batches):
            assert done.index(Action(Kind.FORWARD, number)) < done.index(Action(Kind.BACKWARD, number))
        for number in updates:
            assert done[done.index(Action(Kind.UPDATE, number)) - 1] == Action(Kind.BACKWARD, number)


def check_in_time(name: str, stages: int, micro_batches: int) -> None:
    """No stage is at a micro-batch before its neighbour was; messages are read in the order they are sent."""
    plan = schedule(name, stages, micro_batches)
    ends = finish_times(plan, 1.0, 2.0)
    assert len(ends) == sum(map(len, plan))
    for (stage, action), end in ends.items():
        if action.kind is Kind.FORWARD and stage:
            assert ends[stage - 1, action] <= end - 1.0
        if action.kind is Kind.BACKWARD and stage < stages - 1:
            assert ends[stage + 1, action] <= end - 2.0
    for one, two in itertools.pairwise(plan):
        assert numbers(one, Kind.FORWARD) == numbers(two, Kind.FORWARD)
        assert numbers(two, Kind.BACKWARD) == numbers(one, Kind.BACKWARD)


def check_memory(name: str, stages: int, micro_batches: int) -> None:
    for stage, done in enumerate(schedule(name, stages, micro_batches)):
        bound = stages - stage if BOUNDED in SCHEDULES[name].traits else micro_batches
        assert held(done) == min(bound, micro_batches)


@pytest.mark.parametrize(("name", "stages", "micro_batches"), GRID)
def test_every_size_of_a_grid(name: str, stages: int, micro_batches: int) -> None:
    check_complete(name, stages, micro_batches)
    check_in_time(name, stages, micro_batches)
    check_memory(name, stages, micro_batches)
    bubble = (stages - 1) / (micro_batches + stages - 1)
    for forward, backward in ((1.0, 1.0), (1.0, 2.0), (3.0, 1.0)):
        assert idle_share(schedule(name, stages, micro_batches), forward, backward) == pytest.approx(bubble)


@settings(max_examples=60)
@given(sizes, st.integers(1, 5))
def test_any_size(size: tuple[str, int, int], group: int) -> None:
    name, stages, micro_batches = size
    check_complete(name, stages, micro_batches * group, group)
    check_in_time(name, stages, micro_batches)
    check_memory(name, stages, micro_batches)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(name for name, spec in SCHEDULES.items() if FLUSHES not in spec.traits)),
    st.integers(1, 8), st.integers(1, 40), st.integers(1, 4),
)  # fmt: skip
def test_versions_are_the_updates_that_came_before(name: str, stages: int, groups: int, group: int) -> None:
    """Counted along the order; as many versions under way as the paper says, and as stale."""
    for stage, done in enumerate(schedule(name, stages, groups * group, group)):
        made, seen, most, delays = 0, dict[int, int](), 0, list[int]()
        for kind, number in done:
            if kind is Kind.FORWARD:
                seen[number] = made
                assert version(stages, stage, number, group) == made
            elif kind is Kind.BACKWARD:
                most = max(most, len(set(seen.values())))
                delays.append(made - seen.pop(number))
            else:
                made += 1
        assert most <= stages - stage
        if group == 1:
            assert delays == [min(number, stages - 1 - stage) for number in range(groups)]
        first = [version(stages, 0, number, group) for number in range(groups * group)]
        assert [version(stages, stage, n, group, vertical_sync=True) for n in range(groups * group)] == first


@settings(max_examples=40)
@given(st.integers(1, 7), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 3))
def test_a_long_run_in_calls_is_one_long_order(stages: int, calls: list[int], group: int) -> None:
    for stage in range(stages):
        done, first = [], 0
        for call, count in enumerate(calls):
            last = call == len(calls) - 1
            done += actions("1f1b", stages, stage, count, group, first=first, drain=last)
            first += count
        assert done == list(actions("1f1b", stages, stage, first, group))


def test_gpipe_of_the_paper() -> None:
    """Figure 2 c: 4 stages, 4 micro-batches; the last stage turns at once."""
    ends = finish_times(schedule("gpipe", 4, 4), 1.0, 1.0)
    assert [ends[3, Action(Kind.FORWARD, number)] for number in range(4)] == [4, 5, 6, 7]
    assert ends[0, Action(Kind.UPDATE, 3)] == 14


def test_pipedream_of_the_paper() -> None:
    """Figure 4: 4 stages, backward takes twice as long; in the steady state stages take turns."""
    first, *_, last = schedule("1f1b", 4, 6)
    start = ["forward"] * 4 + ["backward", "update", "forward", "backward", "update", "forward"]
    assert [action.kind for action in first][:10] == start
    assert [action.kind for action in last] == ["forward", "backward", "update"] * 6


def test_a_circle_is_found() -> None:
    plan = schedule("1f1b", 2, 2)
    plan[0] = [plan[0][2], *plan[0][:2], *plan[0][3:]]  # backward before forward
    with pytest.raises(ValueError, match="for ever"):
        finish_times(plan)


def test_specifications() -> None:
    assert all(spec.traits <= set(TRAITS) and spec.paper and spec.use for spec in SCHEDULES.values())
    with pytest.raises(UserError, match="gpipe"):
        schedule("gpipes", 2, 2)
