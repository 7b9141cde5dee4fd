"""Blocks of edges from the tasks of one step to those of the next: files in the lake's scratch folder.

    a file: arrays of its blocks | index, sorted by part | where each part's entries begin, parts + 1 numbers

A task writes one file, under a name no other attempt has, and the name comes back as the task's result: of attempts
that were repeated, or run twice at the same time, only the one whose result Spark takes is ever read. The driver holds
a name a task; a task of the next step reads, of each file, its part's entries and arrays.
Spark's own shuffle would take every block out of a worker through a socket, sort it and hand it back: as much work
again as numpy has with it (decisions/0017).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.catalog import storage
from headrace.features.graph_blocks import Arrays
from headrace.features.worker_memory import keep_freed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

T = TypeVar("T")

DTYPES = (np.dtype("<i8"), np.dtype("<i8"), np.dtype("<f8"), np.dtype("<i8"))
"""Of a block's arrays, in their places; of edges: source, target, weight, place in the input."""
_FIELDS = ("part", "type", "at", "length", "arrays")
_ENTRY = np.dtype([(name, "<i8") for name in _FIELDS])
_NUMBER = np.dtype("<i8")


class Written(NamedTuple):
    """A task's file: where it is, its first part and their number, and where it says at which entry each begins."""

    path: str
    first: int
    parts: int
    starts: int


WRITTEN_DDL = "path string, first int, parts int, starts bigint"
_WRITTEN_TYPES = {"path": pa.string(), "first": pa.int32(), "parts": pa.int32(), "starts": pa.int64()}


class BlockWriter:
    """A task's file; close it and hand on what it says.

    Args:
        folder: of the step; made where it is not there.
    """

    def __init__(self, folder: str) -> None:
        self._path = f"{folder}/{uuid.uuid4().hex}"
        store, path = storage.locate(self._path)
        self._stream: BinaryIO = store.create(path)
        self._at = 0
        self._entries: list[tuple[int, ...]] = []

    def add(self, part: int, type_: int, arrays: Arrays) -> None:
        """A block: parallel arrays of DTYPES, of which some may be None and the last may be left out."""
        start, present = self._at, 0
        for place, (array, dtype) in enumerate(zip(arrays, DTYPES, strict=False)):
            if array is not None:
                present |= 1 << place
                self._put(np.ascontiguousarray(array, dtype))
        self._entries.append((part, type_, start, len(arrays[0]), present))

    def close(self) -> Written:
        """End the file with its index."""
        with self._stream:
            entries = np.array(self._entries, _NUMBER).reshape(-1, len(_FIELDS))
            entries = entries[np.argsort(entries[:, 0], kind="stable")]
            first = int(entries[0, 0]) if len(entries) else 0
            parts = int(entries[-1, 0]) + 1 - first if len(entries) else 0
            begin = self._at
            self._put(entries)
            starts = np.searchsorted(entries[:, 0], np.arange(first, first + parts + 1), side="left")
            at = self._at
            self._put(begin + _ENTRY.itemsize * starts)
        return Written(self._path, first, parts, at)

    def _put(self, array: npt.NDArray[Any]) -> None:
        if array.size:
            self._stream.write(np.ascontiguousarray(array).data.cast("B"))
        self._at += array.nbytes


def written_batch(written: Written, more: dict[str, pa.Array] | None = None) -> pa.RecordBatch:
    """A task's result: a row of WRITTEN_DDL, and what the step has besides."""
    columns = {name: pa.array([getattr(written, name)], type_) for name, type_ in _WRITTEN_TYPES.items()}
    return pa.RecordBatch.from_pydict(columns | (more or {}))


@dataclass(frozen=True)
class Exchange:
    """All files of a step: small, whatever they hold."""

    files: tuple[Written, ...]

    @classmethod
    def of(cls, results: pa.Table) -> Exchange:
        """From the results of a step's tasks."""
        rows = results.select(Written._fields).to_pylist()
        return cls(tuple(sorted(Written(**row) for row in rows)))

    def read(self, part: int, types: Iterable[int] | None = None) -> dict[int, Arrays]:
        """A part's blocks by type, those of one type laid end to end: all have the same arrays, the others are None.

        Args:
            part: whose.
            types: only these.

        Raises:
            OSError: a file ends early.
        """
        found = [(file, entries) for file in self.files if len(entries := _entries(file, part, types))]
        arrays: dict[int, list[Any]] = {}
        for type_ in sorted({int(number) for _, entries in found for number in entries["type"]}):
            mine = [entries[entries["type"] == type_] for _, entries in found]
            length = sum(int(entries["length"].sum()) for entries in mine)
            (present,) = {int(number) for entries in mine for number in entries["arrays"]}
            arrays[type_] = [np.empty(length, d) if present >> at & 1 else None for at, d in enumerate(DTYPES)]
        filled = dict.fromkeys(arrays, 0)
        for file, entries in found:
            _fill(file, entries, arrays, filled)
        return {type_: tuple(columns) for type_, columns in arrays.items()}


def _entries(file: Written, part: int, types: Iterable[int] | None) -> npt.NDArray[Any]:
    """A part's entries of a file's index."""
    if not file.first <= part < file.first + file.parts:
        return np.empty(0, _ENTRY)
    with _opened(file) as stream:
        start, end = _take(stream, file.starts + (part - file.first) * _NUMBER.itemsize, np.empty(2, _NUMBER)).tolist()
        entries = _take(stream, start, np.empty((end - start) // _ENTRY.itemsize, _ENTRY))
    return entries if types is None else entries[np.isin(entries["type"], list(types))]


def _fill(file: Written, entries: npt.NDArray[Any], arrays: dict[int, list[Any]], filled: dict[int, int]) -> None:
    with _opened(file) as stream:
        for entry in entries:
            type_, at, length = int(entry["type"]), int(entry["at"]), int(entry["length"])
            mine = slice(filled[type_], filled[type_] + length)
            for place, dtype in enumerate(DTYPES):
                if int(entry["arrays"]) >> place & 1:
                    _take(stream, at, arrays[type_][place][mine])
                    at += length * dtype.itemsize
            filled[type_] += length


def _opened(file: Written) -> BinaryIO:
    store, path = storage.locate(file.path)
    return store.open_for_pieces(path)  # fetched ahead, every part would read most of every file


def _take(stream: BinaryIO, at: int, into: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if into.size:
        stream.seek(at)
        got = stream.readinto(into.view(np.uint8).data)  # type: ignore[attr-defined]
        if got != into.nbytes:
            raise OSError(f"a file of blocks ends early: {into.nbytes} bytes at {at}, got {got}")
    return into


def over(spark: SparkSession, items: Sequence[T], act: Callable[[T], Iterator[pa.RecordBatch]], ddl: str) -> DataFrame:
    """What `act` makes of each item, an item a task, in the order they come in.

    Args:
        spark: the session.
        items: small, picklable.
        act: from an item to batches.
        ddl: of the batches.
    """

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        keep_freed()
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from act(items[number])

    return spark.range(0, len(items), 1, max(1, len(items))).mapInArrow(run, ddl)
