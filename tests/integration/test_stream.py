"""Batches of a pinned table: the same at any number of ranks, resumed anywhere, every row once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.streamed_table import check_rows, make_table, streams

from headrace.catalog.fingerprint import key_sum
from headrace.data.stream import Audit, AuditError, Stream


def by_lane(batch: Any, stream: Stream) -> dict[int, list[int]]:
    """A rank's batch as keys by lane."""
    keys = batch["key"].reshape(len(stream.lanes), -1).tolist()
    return dict(zip(stream.lanes, keys, strict=True))


UNEVEN = ((784, 31, 0, 2000), (), (5,), (1203, 1, 640))


@pytest.mark.parametrize("remainder", ["drop", "pad", "wrap"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_same_global_batches_at_any_number_of_ranks(tmp_path: Path, remainder: str, shuffle: bool) -> None:
    table = make_table(tmp_path / "t", UNEVEN)
    seen = {}
    for size in (1, 2, 3, 4):
        ranks = streams(table, size, 256, lanes=8, remainder=remainder, shuffle=shuffle, seed=4)
        assert {rank.steps(1) for rank in ranks} == {table.rows // 256 + (remainder != "drop")}
        epochs = [list(rank.epoch(1)) for rank in ranks]
        for batches in epochs:
            for batch in batches:
                check_rows(batch)
        merged = []
        for step in zip(*epochs, strict=True):
            lanes = {k: v for rank, batch in zip(ranks, step, strict=True) for k, v in by_lane(batch, rank).items()}
            merged.append(([lanes[i] for i in range(8)], sum(batch.fingerprint for batch in step) % 2**64))
        audit = sum((rank.audit(1) for rank in ranks[1:]), ranks[0].audit(1))
        assert "every row of silver/rows@3 once: proved" in audit.prove(table)
        assert audit.step == ranks[0].steps(1)
        assert (audit.dropped, audit.repeated) == (ranks[0].spec.dropped, ranks[0].spec.filled * (remainder == "wrap"))
        seen[size] = (merged, audit)
    assert seen[1] == seen[2] == seen[3] == seen[4]
    assert len({mark for _, mark in seen[1][0]}) == len(seen[1][0])


@pytest.mark.parametrize("remainder", ["drop", "pad", "wrap"])
def test_resume_from_every_step(tmp_path: Path, remainder: str) -> None:
    table = make_table(tmp_path / "t", UNEVEN)
    whole = streams(table, 1, 512, lanes=4, remainder=remainder)[0]
    batches, first = [], []
    for batch in whole.epoch(2):
        batches.append(batch["key"].tolist())
        first.append(whole.audit(2))
    for step in range(whole.steps() + 1):
        rest = streams(table, 1, 512, lanes=4, remainder=remainder)[0]
        assert [batch["key"].tolist() for batch in rest.epoch(2, step)] == batches[step:]
        before = first[step - 1] if 0 < step < whole.steps() else Audit(2)
        if step < whole.steps():
            assert (before + rest.audit(2)) == whole.audit(2)
            (before + rest.audit(2)).prove(table)


def test_epochs_differ_and_are_proved_on_one_stream(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t", [(300, 300), (300,)])
    stream = streams(table, 1, 64, lanes=4, workers=2, prefetch=3)[0]
    orders = set()
    for epoch in range(3):
        orders.add(tuple(key for batch in stream.epoch(epoch) for key in batch["key"].tolist()))
        stream.audit(epoch).prove(table)
    assert len(orders) == 3
    iterator = stream.epoch(7)
    next(iterator)
    stream.close()
    assert list(iterator) == []
    with pytest.raises(ValueError, match="in epoch 7, not 2"):
        stream.audit(2)


def test_complete_over_many_runs_on_many_tiny_groups(tmp_path: Path) -> None:
    """Where the plain thread pool loses rows in half of the runs."""
    table = make_table(tmp_path / "t", [(7, 5, 3)] * 8)
    stream = streams(table, 1, 16, lanes=4, remainder="pad")[0]
    for epoch in range(60):
        assert sum(batch.rows for batch in stream.epoch(epoch)) == table.rows
        stream.audit(epoch).prove(table)


@pytest.mark.parametrize("files", [(), ((),), ((), ()), ((0,),)])
@pytest.mark.parametrize("remainder", ["drop", "pad", "wrap"])
def test_no_rows(tmp_path: Path, files: tuple[tuple[int, ...], ...], remainder: str) -> None:
    table = make_table(tmp_path / "t", files)
    for stream in streams(table, 2, 16, lanes=4, remainder=remainder):
        assert list(stream.epoch(0)) == []
        stream.audit(0).prove(table)


def test_one_row_on_three_ranks(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t", ((), (1,)))
    ranks = streams(table, 3, 16, lanes=4, remainder="pad")
    batches = [list(rank.epoch(0)) for rank in ranks]
    assert [len(steps) for steps in batches] == [1, 1, 1]
    assert sum(steps[0].rows for steps in batches) == 1
    sum((rank.audit(0) for rank in ranks[1:]), ranks[0].audit(0)).prove(table)


def test_odd_characters_in_paths(tmp_path: Path) -> None:
    table = make_table(tmp_path / "a b%20#?&=+é'\"", [(40,), (40,)])
    assert sum(batch.rows for batch in streams(table, 1, 16, lanes=4, remainder="pad")[0].epoch(0)) == 80


def test_an_audit_sees_a_row_that_is_missing_or_twice(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t", [(100,)])
    stream = streams(table, 1, 16, lanes=4)[0]
    list(stream.epoch(0))
    audit = stream.audit(0)
    one = key_sum(np.array([1 << 40]))
    for wrong in (Audit(0, seen=-1, key_sum=2**64 - one), Audit(0, seen=1, key_sum=one), Audit(0, key_sum=1)):
        with pytest.raises(AuditError, match="committed were 100"):
            (audit + wrong).prove(table)
