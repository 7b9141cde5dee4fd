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
from integration.streamed_table import SPEC, make_table, rows_table, streams

from headrace.catalog.pinned import PinnedTable
from headrace.data.batch import layouts
from headrace.data.petastorm import CompletePool, IncompleteReadError, PlannedReader, Visit, read_groups
from headrace.data.stream import DataConfig, Stream
from headrace.errors import UserError


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
    before = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = streams(table, 1, 16, lanes=4)[0]
        list(stream.epoch(0))
        next(stream.epoch(1))
        stream.close()
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert set(threading.enumerate()) <= before


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
