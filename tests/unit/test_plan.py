"""The order of samples: every row once, equal steps, the same batches at any number of ranks, resume from anywhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.catalog.fingerprint import splitmix64
from headrace.data.plan import EpochPlan, PlanSpec, Read, fingerprint, permutation, row_order
from headrace.errors import UserError

Row = tuple[int, int]
PERMUTATION_8 = [4, 1, 2, 0, 5, 3, 7, 6]
PERMUTATION_31201_DOT = 7595550413990

GROUP_ROWS = st.lists(st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 784, 2_000])), min_size=0, max_size=12).map(
    tuple
)


@st.composite
def specs(draw: st.DrawFn) -> PlanSpec:
    lanes = draw(st.sampled_from([1, 2, 4, 8, 16, 64]))
    return PlanSpec(
        group_rows=draw(GROUP_ROWS),
        batch_size=lanes * draw(st.integers(1, 9)),
        lanes=lanes,
        seed=draw(st.integers(0, 2**63)),
        remainder=draw(st.sampled_from(["drop", "pad", "wrap"])),
        shuffle=draw(st.booleans()),
    )


def lane_stream(plan: EpochPlan, reads: list[Read], lane: int) -> list[Row]:
    """The rows that a lane's visits give, in order."""
    return [
        (read.group, int(row))
        for read in reads
        if read.lane == lane
        for row in plan.row_order(read.group)[read.start : read.stop]
    ]


def batches(plan: EpochPlan, rank: int, size: int, start: int = 0) -> list[dict[int, list[Row]]]:
    """Every batch of a rank from `start` on, lane by lane, by walking through its visits."""
    spec, reads = plan.spec, plan.reads(rank, size, start)
    streams = {lane: iter(lane_stream(plan, reads, lane)) for lane in spec.lanes_of(rank, size)}
    return [
        {lane: [next(stream) for _ in range(plan.taken(lane, step))] for lane, stream in streams.items()}
        for step in range(start, spec.steps)
    ]


def global_batches(plan: EpochPlan, size: int, start: int = 0) -> list[list[list[Row]]]:
    """The global batches that `size` ranks make together, in lane order."""
    by_rank = [batches(plan, rank, size, start) for rank in range(size)]
    merged = []
    for step in range(plan.spec.steps - start):
        lanes = {lane: rows for ranks in by_rank for lane, rows in ranks[step].items()}
        merged.append([lanes[lane] for lane in range(plan.spec.lanes)])
    return merged


def slow_sequence(plan: EpochPlan) -> list[Row]:
    """The epoch's row sequence written out, from the permutations alone."""
    spec = plan.spec
    count = len(spec.group_rows)
    order = permutation(count, spec.seed, plan.epoch, 1) if spec.shuffle else np.arange(count)
    return [(int(g), int(row)) for g in order for row in row_order(spec, plan.epoch, int(g))]


@settings(max_examples=150, deadline=None)
@given(specs(), st.integers(0, 3))
def test_every_row_is_visited_exactly_once(spec: PlanSpec, epoch: int) -> None:
    plan = EpochPlan(spec, epoch)
    everything = Counter((g, row) for g, rows in enumerate(spec.group_rows) for row in range(rows))
    visited = Counter(row for lane in range(spec.lanes) for row in lane_stream(plan, plan.reads(0, 1), lane))
    repeats = visited - everything
    assert visited - repeats == everything
    assert repeats.total() == (spec.filled if spec.remainder == "wrap" else 0)

    trained = Counter(row for batch in global_batches(plan, 1) for lane in batch for row in lane)
    assert trained.total() - repeats.total() == spec.rows - spec.dropped
    assert spec.dropped < spec.batch_size and spec.filled < spec.batch_size


@settings(max_examples=100, deadline=None)
@given(specs(), st.integers(0, 2))
def test_batches_are_those_of_the_slow_definition(spec: PlanSpec, epoch: int) -> None:
    """Lanes are consecutive ranges of the written-out sequence; a batch takes the next rows of each."""
    plan, sequence = EpochPlan(spec, epoch), slow_sequence(EpochPlan(spec, epoch))
    lanes = [[sequence[i] for i in plan.lane_rows(lane)] for lane in range(spec.lanes)]
    assert [row for lane in lanes for row in lane] == sequence
    assert max(map(len, lanes)) - min(map(len, lanes)) <= 1
    if spec.remainder == "wrap":
        for lane in range(spec.lanes):
            lanes[lane] += [sequence[i % spec.rows] for i in plan.lane_wrap(lane)]
    for step, batch in enumerate(global_batches(plan, 1)):
        take = slice(step * spec.lane_batch, (step + 1) * spec.lane_batch)
        assert batch == [rows[take] for rows in lanes]


@settings(max_examples=80, deadline=None)
@given(specs(), st.integers(1, 7))
def test_order_and_steps_do_not_depend_on_the_number_of_ranks(spec: PlanSpec, size: int) -> None:
    size = min(size, spec.lanes)
    plan = EpochPlan(spec, 1)
    assert {len(batches(plan, rank, size)) for rank in range(size)} == {spec.steps}
    assert global_batches(plan, size) == global_batches(plan, 1)


@settings(max_examples=80, deadline=None)
@given(specs(), st.data())
def test_resume_from_any_cursor_gives_the_rest(spec: PlanSpec, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, spec.steps))
    plan = EpochPlan(spec, 2)
    assert global_batches(plan, 1, start) == global_batches(plan, 1)[start:]


@settings(max_examples=80, deadline=None)
@given(specs(), st.data())
def test_visits_come_in_the_order_the_batches_need_them(spec: PlanSpec, data: st.DataObject) -> None:
    """A reader that hands over one visit after another never has to look ahead: each is for the lane that runs dry."""
    size = data.draw(st.integers(1, min(5, spec.lanes)))
    start = data.draw(st.integers(0, spec.steps))
    plan = EpochPlan(spec, 0)
    reads = iter(plan.reads(size - 1, size, start))
    held = dict.fromkeys(spec.lanes_of(size - 1, size), 0)
    for step in range(start, spec.steps):
        for lane in held:
            while held[lane] < plan.taken(lane, step):
                read = next(reads)
                assert (read.lane, read.step) == (lane, step)
                held[lane] += read.stop - read.start
            held[lane] -= plan.taken(lane, step)
    assert sum(held.values()) + sum(read.stop - read.start for read in reads) == sum(
        len(plan.lane_rows(lane)) - spec.steps * spec.lane_batch for lane in held if spec.remainder == "drop"
    )


def test_a_cursor_reads_only_what_is_left() -> None:
    spec = PlanSpec(group_rows=(1000,) * 64, batch_size=64, lanes=4, seed=5)
    whole, rest = (EpochPlan(spec, 0).reads(0, 1, start) for start in (0, spec.steps * 9 // 10))
    assert len(whole) == 64
    assert len(rest) <= 4 * 3


def test_unequal_groups_of_a_real_table() -> None:
    rows = tuple(784 + (7919 * i) % (31_201 - 784 + 1) for i in range(60))
    spec = PlanSpec(group_rows=rows, batch_size=4096, lanes=64, seed=3)
    plan = EpochPlan(spec, 0)
    visited = np.zeros(spec.rows, dtype=np.int64)
    first = np.concatenate([[0], np.cumsum(rows)])
    for rank in range(3):
        for read in plan.reads(rank, 3):
            visited[first[read.group] + plan.row_order(read.group)[read.start : read.stop]] += 1
    assert (visited == 1).all()
    assert spec.steps == spec.rows // 4096


@pytest.mark.parametrize("rows", [(), (0, 0), (0,)])
@pytest.mark.parametrize("remainder", ["drop", "pad", "wrap"])
def test_an_empty_table_has_no_steps(rows: tuple[int, ...], remainder: str) -> None:
    plan = EpochPlan(PlanSpec(group_rows=rows, batch_size=16, lanes=4, remainder=remainder), 0)
    assert plan.spec.steps == 0
    assert plan.reads(1, 3) == []


@pytest.mark.parametrize(
    ("remainder", "steps", "dropped", "filled"), [("drop", 0, 1, 0), ("pad", 1, 0, 15), ("wrap", 1, 0, 15)]
)
def test_one_row(remainder: str, steps: int, dropped: int, filled: int) -> None:
    plan = EpochPlan(PlanSpec(group_rows=(1,), batch_size=16, lanes=4, remainder=remainder), 0)
    assert (plan.spec.steps, plan.spec.dropped, plan.spec.filled) == (steps, dropped, filled)
    assert sum(read.stop - read.start for rank in range(2) for read in plan.reads(rank, 2)) == (
        16 if remainder == "wrap" else 1
    )


def test_epochs_and_seeds_give_other_orders() -> None:
    orders = set()
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        plan = EpochPlan(PlanSpec(group_rows=(50, 60, 70), batch_size=8, lanes=8, seed=seed), epoch)
        orders.add(tuple(lane_stream(plan, plan.reads(0, 1), 0)))
    assert len(orders) == 4


def test_permutations_stay_the_same() -> None:
    """Written down once: another numpy or machine must give these, or a resumed run is another experiment."""
    assert permutation(8, 42, 0, 1).tolist() == PERMUTATION_8
    assert int(np.dot(permutation(31_201, 7, 3, 2, 11), np.arange(31_201))) == PERMUTATION_31201_DOT


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1024, 1025])
def test_permutation_is_one(n: int) -> None:
    assert sorted(permutation(n, 9).tolist()) == list(range(n))


def test_permutations_of_three_are_equally_likely() -> None:
    counts = Counter(tuple(permutation(3, seed).tolist()) for seed in range(6000))
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 150  # 5 standard deviations


def test_refusals_name_numbers_and_remedy() -> None:
    with pytest.raises(UserError, match=r"(?s)100 rows .* 16 lanes.*batch size to 96, or data.lanes to 4"):
        PlanSpec(group_rows=(1,), batch_size=100, lanes=16)
    with pytest.raises(UserError, match=r"(?s)data.lanes is 12, not a power of two.*set data.lanes to 8"):
        PlanSpec(group_rows=(1,), batch_size=12, lanes=12)
    with pytest.raises(UserError, match=r"(?s)5 ranks cannot share 4 lanes.*set data.lanes to 8"):
        PlanSpec(group_rows=(1,), batch_size=4, lanes=4).lanes_of(0, 5)
    with pytest.raises(UserError, match="data.remainder is 'keep'"):
        PlanSpec(group_rows=(1,), batch_size=4, lanes=4, remainder="keep")


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=50, unique=True), st.integers(0, 49))
def test_fingerprints_add_up_and_see_the_order(keys: list[int], cut: int) -> None:
    array, places = splitmix64(np.array(keys, dtype=np.int64)), np.arange(len(keys), dtype=np.int64)
    parts = [slice(0, cut), slice(cut, None)]
    assert sum(fingerprint(array[part], places[part]) for part in parts) % 2**64 == fingerprint(array, places)
    if len(keys) > 1:
        assert fingerprint(array[::-1].copy(), places) != fingerprint(array, places)
