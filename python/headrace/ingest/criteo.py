"""Criteo's click logs to DataFrames: accepted lines as bronze rows, refused ones with file, line, offset and reason.

The seam for a faster reader: `scan_files` and `read_lines`; nothing outside this module knows how lines are read.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from headrace.ingest.criteo_parse import COLUMNS, Format, Parsed, parse_block, too_long
from headrace.ingest.textfiles import (
    Block,
    BrokenFileError,
    ChangedFileError,
    FileRange,
    FileScan,
    LongLine,
    blocks,
    scan,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LINE_BITS = 40
MAX_LINES = 1 << LINE_BITS
MAX_FILES = 1 << (63 - LINE_BITS)
RANGE_BYTES = 32 << 20
_SCAN_HERE_BYTES = 16 << 20  # takes less time than to start a Python worker

ACCEPTED_DDL = "key bigint, day int, label int, " + ", ".join(f"{name} bigint" for name in COLUMNS[1:])
REJECTED_DDL = "file string, file_ordinal int, line bigint, offset bigint, raw binary, raw_length bigint, reason string"

_INT = pa.int32()
_LONG = pa.int64()
_ACCEPTED_SCHEMA = pa.schema([("key", _LONG), ("day", _INT), ("label", _INT), *((name, _LONG) for name in COLUMNS[1:])])
_REJECTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("file_ordinal", _INT),
        ("line", _LONG),
        ("offset", _LONG),
        ("raw", pa.binary()),
        ("raw_length", _LONG),
        ("reason", pa.string()),
    ]
)
Part = Literal["accepted", "rejected"]
Task = list[tuple["InputFile", FileRange]]


@dataclass(frozen=True)
class InputFile:
    """A scanned file and its place in the tables.

    Args:
        scan: what the pass over it told.
        ordinal: its number; a row's key is `ordinal << 40 | line`.
        day: the day all its rows get.
        header: its first line holds names and is no row.
    """

    scan: FileScan
    ordinal: int
    day: int
    header: bool

    @property
    def rows(self) -> int:
        """Rows read: every line but the header."""
        return self.scan.lines - int(self.header)


def scan_files(spark: SparkSession, paths: Sequence[str], range_bytes: int = RANGE_BYTES) -> dict[str, FileScan | str]:
    """One pass over each file, a task a file (little is read here): its scan, or in words why it cannot be read.

    Args:
        spark: the session.
        paths: the files, on a file system that every worker sees.
        range_bytes: about the size of the pieces that plain files are read in.
    """
    tasks = [(path, range_bytes) for path in paths]
    if sum(os.path.getsize(path) for path in paths if os.path.exists(path)) <= _SCAN_HERE_BYTES:
        found = {path: _scanned(path, range_bytes) for path in paths}
        return {path: scan or error for path, (scan, error) in found.items()}
    rows = _per_task(spark, len(tasks), _scan_task(tasks), "path string, scan string, error string").collect()
    return {row.path: FileScan.from_json(json.loads(row.scan)) if row.scan else row.error for row in rows}


def read_lines(spark: SparkSession, files: Sequence[InputFile], fmt: Format, part: Part = "accepted") -> DataFrame:
    """The files' accepted lines (`ACCEPTED_DDL`), or the refused ones (`REJECTED_DDL`).

    A job over it fails, with nothing written, where a file is no longer what was scanned.

    Args:
        spark: the session.
        files: what to read; a file may be given with only some of its ranges.
        fmt: what a line must be.
        part: which lines.
    """
    tasks = pack(files)
    ddl = ACCEPTED_DDL if part == "accepted" else REJECTED_DDL
    return _per_task(spark, len(tasks), _read_task(tasks, fmt, part), ddl)


def with_ranges(file: InputFile, first_lines: set[int]) -> InputFile:
    """The file with only the ranges that begin at these lines."""
    ranges = tuple(piece for piece in file.scan.ranges if piece.first_line in first_lines)
    return dataclasses.replace(file, scan=dataclasses.replace(file.scan, ranges=ranges))


def pack(files: Sequence[InputFile], task_bytes: int = RANGE_BYTES) -> list[Task]:
    """Ranges in tasks: small files share one, in order, up to about `task_bytes`."""
    tasks: list[Task] = []
    room = 0
    for file in files:
        for piece in file.scan.ranges:
            size = piece.end - piece.start
            if size > room or not tasks:
                tasks.append([])
                room = task_bytes
            tasks[-1].append((file, piece))
            room -= size
    return tasks


def range_batches(file: InputFile, piece: FileRange, fmt: Format, part: Part) -> Iterator[pa.RecordBatch]:
    """One range's accepted or refused lines."""
    for block in blocks(piece, fmt.max_line_bytes, fmt.raw_bytes):
        if isinstance(block, LongLine):
            if part == "rejected":
                yield _long_batch(file, block, fmt)
            continue
        parsed = parse_block(block.data, fmt, first=block.first_line == 0)
        if file.header and block.first_line == 0:
            parsed = _without_first(parsed)
        batch = _accepted_batch(file, block, parsed) if part == "accepted" else _rejected_batch(file, block, parsed)
        if batch.num_rows:
            yield batch


def _per_task(spark: SparkSession, count: int, run: Callable[[int], Iterator[pa.RecordBatch]], ddl: str) -> DataFrame:
    """A DataFrame of what `run(i)` yields for i in [0, count), one partition each."""

    def of_partition(ids: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in ids:
            for task in batch.column(0).to_pylist():
                yield from run(task)

    return spark.range(0, count, 1, max(count, 1)).mapInArrow(of_partition, ddl)


def _scanned(path: str, range_bytes: int) -> tuple[FileScan | None, str]:
    """The scan, or why there is none."""
    try:
        return scan(path, range_bytes), ""
    except (BrokenFileError, ChangedFileError) as problem:
        return None, str(problem)
    except OSError as problem:
        return None, f"{path} cannot be read: {problem.strerror}"


def _scan_task(tasks: list[tuple[str, int]]) -> Callable[[int], Iterator[pa.RecordBatch]]:
    def run(task: int) -> Iterator[pa.RecordBatch]:
        path, range_bytes = tasks[task]
        found, error = _scanned(path, range_bytes)
        values = (path, json.dumps(found.to_json()) if found else None, error)
        columns = [pa.array([value], pa.string()) for value in values]
        yield pa.RecordBatch.from_arrays(columns, names=["path", "scan", "error"])

    return run


def _read_task(tasks: list[Task], fmt: Format, part: Part) -> Callable[[int], Iterator[pa.RecordBatch]]:
    def run(task: int) -> Iterator[pa.RecordBatch]:
        for file, piece in tasks[task]:
            yield from range_batches(file, piece, fmt, part)

    return run


def _without_first(parsed: Parsed) -> Parsed:
    keep = parsed.index != 0
    rejects = [reject for reject in parsed.rejects if reject.index]
    return Parsed(parsed.index[keep], parsed.values[:, keep], parsed.missing[:, keep], rejects)


def _accepted_batch(file: InputFile, block: Block, parsed: Parsed) -> pa.RecordBatch:
    keys = (file.ordinal << LINE_BITS) + block.first_line + parsed.index
    days = np.full(len(keys), file.day, np.int32)
    label = pa.array(parsed.values[0].astype(np.int32), _INT, mask=parsed.missing[0])
    cells = [
        pa.array(values, _LONG, mask=missing)
        for values, missing in zip(parsed.values[1:], parsed.missing[1:], strict=True)
    ]
    return pa.RecordBatch.from_arrays([pa.array(keys), pa.array(days), label, *cells], schema=_ACCEPTED_SCHEMA)


def _rejected_batch(file: InputFile, block: Block, parsed: Parsed) -> pa.RecordBatch:
    rows = [
        (block.first_line + reject.index, block.offset + reject.offset, reject.raw, reject.length, reject.reason)
        for reject in parsed.rejects
    ]
    return _rejected(file, rows)


def _long_batch(file: InputFile, long: LongLine, fmt: Format) -> pa.RecordBatch:
    return _rejected(file, [(long.line, long.offset, long.head, long.length, too_long(fmt))])


def _rejected(file: InputFile, rows: list[tuple[int, int, bytes, int, str]]) -> pa.RecordBatch:
    where = [[file.scan.path] * len(rows), [file.ordinal] * len(rows)]
    columns = where + [[row[i] for row in rows] for i in range(5)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _REJECTED_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_REJECTED_SCHEMA)
