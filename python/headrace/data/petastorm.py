"""Petastorm, made to read a plan: the only import of petastorm.

What is changed, and why:

- Its thread pool asks "are all workers done?" before "has everything been handed out?", so the end can be declared with
  row groups still to come, without an error. `CompletePool` asks in the other order; `WindowVentilator` hands items out
  from the consumer's own thread, so that there is nothing left to race with; and what arrives is counted against the
  plan: a missing or misplaced group is an error.
- Every epoch has one order, and shards are row groups modulo ranks. `PlannedReader` reads exactly the list it is
  given, in that order, any group as often as the list says.
- Tables become named tuples of arrays, column by column, in the consumer. `GroupWorker` picks, permutes and stacks the
  rows in the worker thread, which reads ahead: at most `prefetch` groups, whatever their number.
- It warns on every row group and prints on leaving: neither reaches the screen.

Footers are checked before (headrace.data.footers): Petastorm unpickles what it finds there.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from petastorm.fs_utils import FilesystemResolver
from petastorm.reader import Reader
from petastorm.workers_pool import EmptyResultError
from petastorm.workers_pool.thread_pool import ThreadPool
from petastorm.workers_pool.ventilator import Ventilator
from petastorm.workers_pool.worker_base import WorkerBase

from headrace.data.batch import Array, TensorLayout
from headrace.errors import UserError

_OPEN_FILES = 16


class IncompleteReadError(RuntimeError):
    """Petastorm gave other row groups than it was asked for: nothing read can be trusted."""


@dataclass(frozen=True)
class Visit:
    """One reading of a row group.

    Args:
        path: absolute path of the Parquet file, any characters.
        row_group: index in the file.
        rows: gives the rows to take, [n] int64, in order; called in the worker.
    """

    path: str
    row_group: int
    rows: Callable[[], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class HeldGroup:
    """The chosen rows of one visit, by tensor name, as TensorLayout.hold left them."""

    index: int
    arrays: dict[str, Array]


@dataclass(frozen=True)
class _Failure:
    error: Exception


def read_groups(
    visits: Sequence[Visit], tensors: Sequence[TensorLayout], *, prefetch: int = 4, workers: int = 1
) -> Iterator[HeldGroup]:
    """Read row groups in the order given; the caller should close() the generator if it leaves early.

    Args:
        visits: what to read; the same group may occur again.
        tensors: what to make of it.
        prefetch: groups read ahead at most, also the ones being decoded.
        workers: decoding threads; the order is the same with any number.

    Raises:
        UserError: a file cannot be read.
        IncompleteReadError: Petastorm ended early or changed the order.
    """
    if not visits:
        return
    with _SILENCE:
        reader = PlannedReader(visits, tensors, prefetch, workers)
    try:
        count = 0
        for held in reader:
            if held.index != count:
                raise IncompleteReadError(f"row group {held.index} of the plan came in place of {count}")
            yield held
            count += 1
        if count != len(visits):
            raise IncompleteReadError(f"{count} of {len(visits)} row groups were read")
    finally:
        reader.stop()
        reader.join()


class PlannedReader(Reader):
    """A petastorm Reader over exactly the visits given, in their order."""

    def __init__(self, visits: Sequence[Visit], tensors: Sequence[TensorLayout], prefetch: int, workers: int) -> None:
        self._visits, self._tensors, self._prefetch = visits, tuple(tensors), max(prefetch, workers)
        super().__init__(
            FilesystemResolver("file:///").filesystem(),
            list(dict.fromkeys(visit.path for visit in visits)),
            reader_pool=CompletePool(workers, results_queue_size=2 * self._prefetch),
            worker_class=GroupWorker,
            shuffle_row_groups=False,
            num_epochs=1,
            is_batched_reader=True,
        )

    def _filter_row_groups(self, dataset: Any, row_groups: list[Any], *_: Any) -> tuple[list[int], None]:
        found = {(piece.path, piece.row_group): i for i, piece in enumerate(row_groups)}
        return [found[visit.path, visit.row_group] for visit in self._visits], None

    def _create_ventilator(self, row_group_indexes: list[int], *_: Any) -> WindowVentilator:
        items = zip(row_group_indexes, self._visits, strict=True)
        jobs = [
            {"piece_index": piece, "index": i, "rows": visit.rows, "tensors": self._tensors}
            for i, (piece, visit) in enumerate(items)
        ]
        return WindowVentilator(self._workers_pool.ventilate, jobs, self._prefetch)


class CompletePool(ThreadPool):
    """petastorm's thread pool that ends only when everything was handed out before all workers were found done."""

    def all_workers_done(self) -> bool:
        handed_out = self._ventilator is None or self._ventilator.completed()
        return handed_out and super().all_workers_done()


class WindowVentilator(Ventilator):
    """Hands out items in order, never more than `window` that the consumer has not taken, without a thread."""

    def __init__(self, ventilate: Callable[..., None], items: Sequence[dict[str, Any]], window: int) -> None:
        super().__init__(ventilate)
        self._items, self._window, self._next = items, window, 0

    def start(self) -> None:
        for _ in range(min(self._window, len(self._items))):
            self.processed_item()

    def processed_item(self) -> None:
        if not self.completed():
            self._next += 1
            self._ventilate_fn(**self._items[self._next - 1])

    def completed(self) -> bool:
        return self._next >= len(self._items)

    def stop(self) -> None:
        self._next = len(self._items)


class GroupWorker(WorkerBase):
    """Decodes a row group, takes the planned rows in the planned order, and stacks them into tensors' arrays."""

    def __init__(self, worker_id: int, publish_func: Callable[[Any], None], args: tuple[Any, ...]) -> None:
        super().__init__(worker_id, publish_func, args)
        self._pieces = args[4]
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    @staticmethod
    def new_results_queue_reader() -> _HeldGroups:
        """What turns a result of the pool into what the Reader gives."""
        return _HeldGroups()

    def process(
        self,
        piece_index: int,
        index: int,
        rows: Callable[[], npt.NDArray[np.int64]],
        tensors: Sequence[TensorLayout],
    ) -> None:
        """Read one row group and publish it, or publish why not (petastorm would print the error's traceback)."""
        piece = self._pieces[piece_index]
        try:
            result: HeldGroup | _Failure = HeldGroup(index, self._read(piece, rows(), tensors))
        except (UserError, pa.ArrowException, OSError) as error:
            where = f"{piece.path}, row group {piece.row_group}"
            result = _Failure(UserError(f"{where}: {error}", "restore the file, or rewrite the table"))
        self.publish_func(result)

    def _read(self, piece: Any, rows: npt.NDArray[np.int64], tensors: Sequence[TensorLayout]) -> dict[str, Array]:
        columns = list(dict.fromkeys(name for tensor in tensors for name in tensor.columns))
        table = self._file(piece.path).read_row_group(piece.row_group, columns=columns)
        return {tensor.name: tensor.hold(table, rows) for tensor in tensors}

    def _file(self, path: str) -> pq.ParquetFile:
        if path not in self._files:
            self._files[path] = pq.ParquetFile(path)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        return self._files[path]


class _HeldGroups:
    batched_output = True

    def read_next(self, pool: ThreadPool, schema: object, ngram: object) -> HeldGroup:
        try:
            result = pool.get_results()
        except EmptyResultError:
            raise StopIteration from None
        if isinstance(result, _Failure):
            raise result.error
        assert isinstance(result, HeldGroup)
        return result


class _Silence:
    """Drops the deprecation warnings that petastorm causes. Filters by module: safe with several readers at once."""

    _SOURCES = r"petastorm\.|pyarrow\.parquet|concurrent\.futures"

    def __enter__(self) -> None:
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=self._SOURCES)

    def __exit__(self, *exc: object) -> None:
        """The filters stay: petastorm's threads may warn later."""


_SILENCE = _Silence()
