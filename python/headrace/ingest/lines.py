"""Text files line by line to DataFrames: accepted lines as rows, refused ones with file, line, offset and reason.

What a line means is a `LineFormat`'s business; files, ranges, line numbers, headers, over-long lines are this module's.
"""

from __future__ import annotations

import dataclasses
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import pyarrow as pa

from headrace.catalog.ledger import FileAccount, LedgerBatch, LedgerFile
from headrace.errors import UserError
from headrace.ingest.textfiles import (
    Block,
    BrokenFileError,
    ChangedFileError,
    FileRange,
    FileScan,
    LongLine,
    Reject,
    blocks,
    scan,
    too_long,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LINE_BITS = 40
MAX_LINES = 1 << LINE_BITS
MAX_FILES = 1 << (63 - LINE_BITS)
RANGE_BYTES = 32 << 20
_SCAN_HERE_BYTES = 16 << 20  # takes less time than to start a Python worker

REJECTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("file_ordinal", pa.int32()),
        ("line", pa.int64()),
        ("offset", pa.int64()),
        ("raw", pa.binary()),
        ("raw_length", pa.int64()),
        ("reason", pa.string()),
    ]
)
_DDL = {
    "int64": "bigint",
    "int32": "int",
    "int16": "smallint",
    "int8": "tinyint",
    "float": "float",
    "double": "double",
    "string": "string",
    "binary": "binary",
    "bool": "boolean",
}
FormatT = TypeVar("FormatT", bound="LineFormat")
Part = Literal["accepted", "rejected"]
Task = list[tuple["InputFile", FileRange]]


@dataclass(frozen=True)
class InputFile:
    """A scanned file and its place in the tables.

    Args:
        scan: what the pass over it told.
        ordinal: its number; a row's key is `ordinal << 40 | line`.
        day: the day all its rows get; None where rows have none.
        header: so many of its first lines are no rows: names of columns, comments.
    """

    scan: FileScan
    ordinal: int
    day: int | None
    header: int = 0

    @property
    def rows(self) -> int:
        """Rows read: every line but the header."""
        return self.scan.lines - self.header

    def key(self, line: Any) -> Any:
        """The key of a line, or of an array of lines."""
        return (self.ordinal << LINE_BITS) + line


class LineFormat(Protocol):
    """What a line must be; travels to the workers.

    Args:
        max_line_bytes: longer lines are refused.
        raw_bytes: how much of a refused line is kept.
    """

    @property
    def max_line_bytes(self) -> int: ...
    @property
    def raw_bytes(self) -> int: ...
    @property
    def schema(self) -> pa.Schema:
        """Of accepted rows: `key` and the table's other columns, without `batch_id`."""
        ...

    def parse(self, file: InputFile, block: Block) -> tuple[pa.RecordBatch, Sequence[Reject]]:
        """Every line of a block, either as a row of `schema` or as a reject; a header is not among them."""
        ...

    def detail(self) -> dict[str, Any]:
        """This format as JSON values."""
        ...


class LineSource(ABC):
    """A `Source` of text lines.

    Args:
        fmt: the format that new files are read with.
        range_bytes: about how much of a plain file one task reads.
    """

    name: str

    def __init__(self, fmt: LineFormat, range_bytes: int = RANGE_BYTES) -> None:
        self.fmt, self.range_bytes = fmt, range_bytes

    @abstractmethod
    def restore(self, detail: dict[str, Any]) -> LineFormat:
        """The format that `LineFormat.detail` described."""

    def has_header(self, scan: FileScan) -> int:
        """How many of the file's first lines are no rows (all in its first range)."""
        return 0

    def check(self, scans: Sequence[FileScan]) -> None:
        """Refuse files with more lines than a key can number."""
        for found in scans:
            if found.lines >= MAX_LINES:
                raise UserError(f"{found.path} has {MAX_LINES} lines or more", "split it")

    def scan(self, spark: SparkSession, paths: Sequence[str]) -> dict[str, FileScan | str]:
        """One pass over each file."""
        return scan_files(spark, paths, self.range_bytes)

    def detail(self, scan: FileScan) -> dict[str, Any]:
        """Lines, header, format."""
        found = {"lines": scan.lines, "header": self.has_header(scan), "byte_order_mark": scan.bom}
        return found | self.fmt.detail()

    def commit(
        self, spark: SparkSession, lake: str, batch: LedgerBatch, scans: Mapping[str, FileScan]
    ) -> dict[str, FileAccount]:
        """See `Source.commit`."""
        from headrace.ingest.commit import commit_batch

        return commit_batch(spark, lake, batch.batch_id, inputs(batch, scans), LineRows(self.name, self._format(batch)))

    def describe(self, file: LedgerFile, account: FileAccount) -> str:
        """Path, day, rows."""
        day = "" if file.day is None else f"day {file.day}, "
        header = ", header left out" if file.detail.get("header") else ""
        return (
            f"{file.path}: {day}{account.read:,} rows = {account.committed:,} committed"
            f" + {account.quarantined:,} in quarantine{header}"
        )

    def _format(self, batch: LedgerBatch) -> LineFormat:
        return self.restore(batch.files[0].detail)


@dataclass(frozen=True)
class LineRows:
    """The rows of a batch's lines, for `commit_batch`."""

    name: str
    fmt: LineFormat

    def read(self, spark: SparkSession, files: Sequence[InputFile], part: Part) -> DataFrame:
        """Accepted or refused lines."""
        return read_lines(spark, files, self.fmt, part)


def inputs(batch: LedgerBatch, scans: Mapping[str, FileScan]) -> list[InputFile]:
    """A batch's files as they are read."""
    return [
        InputFile(scans[file.path], file.ordinal, file.day, int(file.detail.get("header", 0))) for file in batch.files
    ]


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
    rows = per_task(spark, len(tasks), _scan_task(tasks), "path string, scan string, error string").collect()
    return {row.path: FileScan.from_json(json.loads(row.scan)) if row.scan else row.error for row in rows}


def read_lines(spark: SparkSession, files: Sequence[InputFile], fmt: LineFormat, part: Part = "accepted") -> DataFrame:
    """The files' accepted lines (`fmt.schema`), or the refused ones (`REJECTED_SCHEMA`).

    A job over it fails, with nothing written, where a file is no longer what was scanned.

    Args:
        spark: the session.
        files: what to read; a file may be given with only some of its ranges.
        fmt: what a line must be.
        part: which lines.
    """
    tasks = pack(files)
    schema = fmt.schema if part == "accepted" else REJECTED_SCHEMA
    return per_task(spark, len(tasks), _read_task(tasks, fmt, part), ddl(schema))


def parse_lines(
    fmt: FormatT, parse_line: Callable[[bytes, FormatT, bool], tuple[Any, ...] | str], file: InputFile, block: Block
) -> tuple[pa.RecordBatch, Sequence[Reject]]:
    """A block line by line: the way of formats that have no faster one, and of blocks that it does not take.

    Args:
        fmt: what a line must be.
        parse_line: (line, fmt, is it the file's first) to the values behind `key`, or to the reason why it is refused.
        file: where the block is from.
        block: whole lines.
    """
    rows: list[tuple[Any, ...]] = []
    rejects = []
    offset = 0
    for index, raw in enumerate(block.data[:-1].split(b"\n")):
        found = parse_line(raw, fmt, block.first_line + index == 0)
        if isinstance(found, str):
            rejects.append(Reject(index, offset, raw[: fmt.raw_bytes], len(raw), found))
        else:
            rows.append((file.key(block.first_line + index), *found))
        offset += len(raw) + 1
    schema = fmt.schema
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema), rejects


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


def range_batches(file: InputFile, piece: FileRange, fmt: LineFormat, part: Part) -> Iterator[pa.RecordBatch]:
    """One range's accepted or refused lines."""
    for block in blocks(piece, fmt.max_line_bytes, fmt.raw_bytes):
        if isinstance(block, LongLine):
            if part == "rejected" and block.line >= file.header:
                yield _rejected(
                    file, [(block.line, block.offset, block.head, block.length, too_long(fmt.max_line_bytes))]
                )
            continue
        if block.first_line < file.header:
            block = _without_first(block, file.header - block.first_line)
        if not block.data:
            continue
        accepted, rejects = fmt.parse(file, block)
        batch = accepted if part == "accepted" else _rejected_batch(file, block, rejects)
        if batch.num_rows:
            yield batch


def per_task(spark: SparkSession, count: int, run: Callable[[int], Iterator[pa.RecordBatch]], ddl: str) -> DataFrame:
    """A DataFrame of what `run(i)` yields for i in [0, count), one partition each."""

    def of_partition(ids: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in ids:
            for task in batch.column(0).to_pylist():
                yield from run(task)

    return spark.range(0, count, 1, max(count, 1)).mapInArrow(of_partition, ddl)


def ddl(schema: pa.Schema) -> str:
    """The schema in Spark's words (plain types, and lists of them)."""
    return ", ".join(f"`{field.name}` {_spark_type(field.type)}" for field in schema)


def _spark_type(type_: pa.DataType) -> str:
    return f"array<{_DDL[str(type_.value_type)]}>" if pa.types.is_list(type_) else _DDL[str(type_)]


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


def _read_task(tasks: list[Task], fmt: LineFormat, part: Part) -> Callable[[int], Iterator[pa.RecordBatch]]:
    def run(task: int) -> Iterator[pa.RecordBatch]:
        for file, piece in tasks[task]:
            yield from range_batches(file, piece, fmt, part)

    return run


def _without_first(block: Block, lines: int) -> Block:
    """A block without so many of its first lines, or all of them where it has no more."""
    cut = 0
    lines = min(lines, block.data.count(b"\n"))
    for _ in range(lines):
        cut = block.data.index(b"\n", cut) + 1
    return Block(block.data[cut:], block.first_line + lines, block.offset + cut)


def _rejected_batch(file: InputFile, block: Block, rejects: Sequence[Reject]) -> pa.RecordBatch:
    rows = [
        (block.first_line + reject.index, block.offset + reject.offset, reject.raw, reject.length, reject.reason)
        for reject in rejects
    ]
    return _rejected(file, rows)


def _rejected(file: InputFile, rows: list[tuple[int, int, bytes, int, str]]) -> pa.RecordBatch:
    where = [[file.scan.path] * len(rows), [file.ordinal] * len(rows)]
    columns = where + [[row[i] for row in rows] for i in range(5)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, REJECTED_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=REJECTED_SCHEMA)
