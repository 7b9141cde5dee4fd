"""Petastorm under our plan: complete, in order, silent, bounded, and refusing what would run code."""

from __future__ import annotations

import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.catalog.fingerprint import key_sum
from headrace.catalog.log import DataFile
from headrace.catalog.pinned import PinnedTable
from headrace.catalog.spec import Column, TableSpec, TensorSpec
from headrace.data.batch import PAD_KEY, layouts
from headrace.data.petastorm import CompletePool, IncompleteReadError, PlannedReader, Visit, read_groups
from headrace.data.stream import Audit, AuditError, DataConfig, Stream
from headrace.errors import UserError

SPEC = TableSpec(
    name="silver/rows",
    columns=(
        Column("key", "bigint", nullable=False),
        Column("label", "float", nullable=False),
        Column("a", "float", nullable=False),
        Column("b", "float", nullable=False),
        Column("c", "int", nullable=False),
        Column("d", "int", nullable=False),
    ),
    keys=("key",),
    tensors=(
        TensorSpec("dense", ("a", "b"), "float32"),
        TensorSpec("sparse", ("c", "d"), "int64"),
        TensorSpec("label", ("label",), "float32"),
        TensorSpec("key", ("key",), "int64"),
    ),
)


def rows_table(keys: np.ndarray[Any, Any]) -> pa.Table:
    """Every cell is a function of the key, so that a batch can be checked alone."""
    return pa.table(
        {
            "key": keys,
            "label": (keys % 3 == 0).astype(np.float32),
            "a": (keys % 97).astype(np.float32),
            "b": (keys % 89).astype(np.float32),
            "c": (keys % 83).astype(np.int32),
            "d": (keys % 79).astype(np.int32),
        }
    )


def make_table(folder: Path, files: Sequence[Sequence[int]], spec: TableSpec = SPEC) -> PinnedTable:
    """A pinned table of files with row groups of the sizes given; keys count up from 1 << 40."""
    folder.mkdir(parents=True, exist_ok=True)
    made, at = [], 1 << 40
    for number, groups in enumerate(files):
        path = folder / f"part-{number:05}.parquet"
        schema = rows_table(np.arange(0)).schema
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for rows in groups:
                writer.write_table(rows_table(np.arange(at, at + rows)))
                at += rows
        made.append(DataFile(str(path), sum(groups), {}))
    return PinnedTable(spec, str(folder), 3, tuple(made), at - (1 << 40), key_sum(np.arange(1 << 40, at)))


def check_rows(batch: Any) -> None:
    keys = batch["key"].numpy()
    real = np.ones(len(keys), bool) if batch.mask is None else batch.mask.numpy()
    for name, columns in {"dense": (97, 89), "sparse": (83, 79)}.items():
        for column, modulus in enumerate(columns):
            np.testing.assert_array_equal(batch[name].numpy()[real, column], (keys % modulus)[real])
    np.testing.assert_array_equal(batch["label"].numpy()[real], (keys % 3 == 0)[real])
    assert (keys[~real] == PAD_KEY).all() and not batch["sparse"].numpy()[~real].any()


def by_lane(batch: Any, stream: Stream) -> dict[int, list[int]]:
    """A rank's batch as keys by lane."""
    keys = batch["key"].reshape(len(stream.lanes), -1).tolist()
    return dict(zip(stream.lanes, keys, strict=True))


def streams(table: PinnedTable, size: int, batch_size: int, **cfg: Any) -> list[Stream]:
    return [Stream(table, DataConfig(**cfg), rank, size, batch_size=batch_size) for rank in range(size)]


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


# --- petastorm itself ---------------------------------------------------------------------------------------------


def visits(table: PinnedTable, groups: Sequence[tuple[int, int]]) -> list[Visit]:
    """Whole row groups (file, group), in their own order."""

    def rows(path: str, group: int) -> Callable[[], Any]:
        return lambda: np.arange(pq.ParquetFile(path).metadata.row_group(group).num_rows)

    return [Visit(table.files[f].path, g, rows(table.files[f].path, g)) for f, g in groups]


@pytest.mark.parametrize("workers", [1, 3])
def test_groups_come_in_the_order_asked_for_and_may_repeat(tmp_path: Path, workers: int) -> None:
    table = make_table(tmp_path / "t", [(4, 5, 6), (7, 8)])
    wanted = [(1, 0), (0, 2), (0, 0), (1, 1), (0, 2), (0, 1), (1, 0)] * 5
    sizes = {(0, 0): 4, (0, 1): 5, (0, 2): 6, (1, 0): 7, (1, 1): 8}
    for _ in range(5):
        groups = list(read_groups(visits(table, wanted), layouts(SPEC), prefetch=2, workers=workers))
        assert [len(group.arrays["key"]) for group in groups] == [sizes[place] for place in wanted]
        assert [group.index for group in groups] == list(range(len(wanted)))


class Preempted:
    """A pool whose thread is put aside between its two questions, until the ventilator's thread has run."""

    def all_workers_done(self) -> bool:
        done = super().all_workers_done()  # type: ignore[misc]
        self._ventilator.go.set()
        if done:
            self._ventilator._ventilation_thread.join(20)
        return done


def read_preempted(table: PinnedTable, pool: type) -> int:
    """Rows read through petastorm's own reader and ventilator with such a pool."""
    from petastorm.fs_utils import FilesystemResolver
    from petastorm.reader import Reader
    from petastorm.workers_pool.ventilator import ConcurrentVentilator

    class Late(ConcurrentVentilator):
        go = threading.Event()

        def _ventilate(self) -> None:
            self.go.wait(20)
            super()._ventilate()

    class LateReader(Reader):
        def _filter_row_groups(self, dataset: Any, row_groups: list[Any], *_: Any) -> tuple[list[int], None]:
            return list(range(len(row_groups))), None

        def _create_ventilator(self, indexes: list[int], *_: Any) -> Late:
            items = [
                {"piece_index": i, "worker_predicate": None, "shuffle_row_drop_partition": (0, 1)} for i in indexes
            ]
            return Late(self._workers_pool.ventilate, items, iterations=1)

    from petastorm.arrow_reader_worker import ArrowReaderWorker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = LateReader(
            FilesystemResolver("file:///").filesystem(),
            [file.path for file in table.files],
            reader_pool=pool(1),
            worker_class=ArrowReaderWorker,
            is_batched_reader=True,
        )
        rows = sum(len(batch.key) for batch in reader)
        reader.stop()
        reader.join()
    return rows


def test_petastorms_own_thread_pool_loses_rows(tmp_path: Path) -> None:
    """The fault that CompletePool is there for. When this fails, petastorm was mended and the pool can go."""
    from petastorm.workers_pool.thread_pool import ThreadPool

    table = make_table(tmp_path / "t", [(10, 10), (10,)])
    lossy = type("Lossy", (Preempted, ThreadPool), {})
    assert read_preempted(table, lossy) < table.rows
    complete = type("Complete", (Preempted, CompletePool), {})
    assert read_preempted(table, complete) == table.rows


def test_a_short_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever petastorm does: groups that do not come, or come in another order, are noticed."""
    table = make_table(tmp_path / "t", [(10, 10, 10)])
    original = PlannedReader._create_ventilator

    def altered(keep: slice) -> Any:
        def create(self: PlannedReader, indexes: list[int], *rest: Any) -> Any:
            ventilator = original(self, indexes, *rest)
            ventilator._items = ventilator._items[keep]
            return ventilator

        return create

    for keep, message in [(slice(0, 2), "2 of 3 row groups"), (slice(None, None, -1), "row group 2 of the plan")]:
        monkeypatch.setattr(PlannedReader, "_create_ventilator", altered(keep))
        with pytest.raises(IncompleteReadError, match=message):
            list(read_groups(visits(table, [(0, 0), (0, 1), (0, 2)]), layouts(SPEC)))


def test_reading_ahead_is_bounded(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t", [(10,) * 60])
    asked = []

    def rows(number: int) -> Callable[[], Any]:
        def chosen() -> Any:
            asked.append(number)
            return np.arange(10)

        return chosen

    wanted = [Visit(table.files[0].path, i, rows(i)) for i in range(60)]
    groups = read_groups(wanted, layouts(SPEC), prefetch=3)
    for taken in range(60):
        next(groups)
        assert len(asked) <= taken + 1 + 3
    groups.close()


def test_nothing_reaches_the_screen_and_no_thread_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = make_table(tmp_path / "t", [(50, 50), (50,)])
    before = threading.active_count()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = streams(table, 1, 16, lanes=4)[0]
        list(stream.epoch(0))
        next(stream.epoch(1))
        stream.close()
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() == before


# --- hostile and damaged input ------------------------------------------------------------------------------------


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.path)!r}, 'w').close()",)  # `builtins.eval` passes petastorm's own restriction


@pytest.mark.parametrize("key", [b"dataset-toolkit.unischema.v1", b"dataset-toolkit.rowgroups_index.v1"])
def test_a_pickle_in_a_footer_is_refused_and_not_loaded(tmp_path: Path, key: bytes) -> None:
    table, trap = make_table(tmp_path / "t", [(10,), (10,)]), tmp_path / "sprung"
    path = table.files[1].path
    data = pq.read_table(path)
    pq.write_table(data.replace_schema_metadata({key: pickle.dumps(Hostile(trap))}), path)
    with pytest.raises(UserError, match="pickled objects in its footer") as caught:
        Stream(table, DataConfig(lanes=4), batch_size=16)
    assert path in str(caught.value)
    assert not trap.exists()
    pickle.loads(pq.read_metadata(path).metadata[key])
    assert trap.exists()  # the trap works: it was not sprung because nothing loaded it


def test_missing_damaged_and_exchanged_files_are_named(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t", [(10,), (10,)])
    path = Path(table.files[1].path)
    whole = path.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            Stream(table, DataConfig(lanes=4), batch_size=16)
        assert str(path) in str(caught.value) and caught.value.remedy

    path.unlink()
    refused("version 3 is not there")
    path.write_bytes(whole[:-20])
    refused("not a readable Parquet file")
    pq.write_table(rows_table(np.arange(11)), path)
    refused("holds 11 rows, 10 were committed")
    pq.write_table(rows_table(np.arange(10)).drop(["d"]), path)
    refused("has no column d")
    wrong = rows_table(np.arange(10)).set_column(4, "c", pa.array(np.arange(10.0)))
    pq.write_table(wrong, path)
    refused(r"column c of .* is double, tensor 'sparse' is int64")
    nulls = rows_table(np.arange(10)).set_column(5, "d", pa.array([None] + [1] * 9, pa.int32()))
    pq.write_table(nulls, path)
    with pytest.raises(UserError, match="column d holds 1 nulls") as caught:
        list(Stream(table, DataConfig(lanes=4), batch_size=16).epoch(0))
    assert str(path) in str(caught.value)


def test_a_page_damaged_after_the_start_is_an_error_with_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = make_table(tmp_path / "t", [(2000,)])
    path = Path(table.files[0].path)
    stream = Stream(table, DataConfig(lanes=4), batch_size=16)
    data = bytearray(path.read_bytes())
    data[4:3000] = b"\x5a" * 2996
    path.write_bytes(data)
    with pytest.raises(UserError, match="row group 0") as caught:
        list(stream.epoch(0))
    assert str(path) in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_training_says_that_petastorm_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(tmp_path / "t", [(10,)])
    monkeypatch.delitem(sys.modules, "headrace.data.petastorm")
    monkeypatch.setitem(sys.modules, "petastorm.reader", None)
    with pytest.raises(UserError, match=r"(?s)petastorm cannot be imported.*make setup"):
        Stream(table, DataConfig(lanes=4), batch_size=16)


def test_refusals_before_anything_is_read(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t", [(10,)])
    with pytest.raises(UserError, match="5 ranks cannot share 4 lanes"):
        Stream(table, DataConfig(lanes=4), 0, 5, batch_size=16)
    with pytest.raises(UserError, match="cannot be shared equally by 4 lanes"):
        Stream(table, DataConfig(lanes=4), batch_size=18)
    with pytest.raises(UserError, match="step 9 is not one of the epoch's 0"):
        Stream(table, DataConfig(lanes=4), batch_size=16).epoch(0, 9)
