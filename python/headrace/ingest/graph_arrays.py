"""Rows of arrays and Parquet files of a graph to record batches, by ranges of rows; what is no edge is refused.

    edges      npy [2, E] or [E, 2] of integers, or [E, 3] of triples (not [2, 3]: those are three pairs);
               Parquet columns for source, target, and weight or relation
    features   npy [N, D] of float16 or float32 (row i is node i); Parquet: a column of nodes, one of lists
    labels     npy [N] or [N, 1] of classes or years (row i is node i), or of nodes that make up a split;
               Parquet: columns for node, label, split, year

A range is checked against the CRC of the bytes it had when the file was scanned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.ingest.graph_parquet import LABELS, PARQUET, Bad, whole
from headrace.ingest.lines import REJECTED_SCHEMA, InputFile, Part
from headrace.ingest.npy import MAGIC, ArrayFile, open_array
from headrace.ingest.textfiles import BrokenFileError, ChangedFileError, FileRange, FileScan

CHUNK_ROWS = 1 << 16
_CHUNK_BYTES = 4 << 20
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class RowFormat:
    """What the rows of a file are.

    Args:
        kind: edges, features or labels.
        columns: what a row tells -> column of the Parquet file; of an array of triples: its column's number; of other
            arrays: what the array holds (label, year, or the name of the split whose nodes it lists).
        named: nodes have names (Parquet).
    """

    kind: str
    columns: tuple[tuple[str, str], ...] = ()
    named: bool = False

    @property
    def schema(self) -> pa.Schema:
        """key and the columns of the kind that these files have."""
        node = [("node", pa.int64()), ("name", pa.string())]
        if self.kind == "edges":
            optional = [("weight", pa.float64()), ("relation", pa.string())]
            names = [("src", pa.int64()), ("dst", pa.int64()), *(c for c in optional if c[0] in dict(self.columns))]
        elif self.kind == "features":
            names = [*node, ("dim", pa.int32()), ("dtype", pa.string()), ("values", pa.binary())]
        else:
            names = [*node, ("label", pa.int64()), ("split", pa.string()), ("year", pa.int32())]
        return pa.schema([("key", pa.int64()), *names])

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RowFormat:
        """The inverse of `to_json`."""
        return cls(value["kind"], tuple((a, b) for a, b in value["columns"]), value["named"])


def holds_rows(path: str) -> bool:
    """Whether a file begins like an array or a Parquet file; False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)).startswith((_PARQUET_MAGIC, MAGIC))
    except OSError:
        return False


def scan_rows(path: str, range_bytes: int, *, pairs: bool = False) -> FileScan | str:
    """One pass over an array or Parquet file: identity, and ranges of rows with their CRC; or why it cannot be read.

    Args:
        path: the file.
        range_bytes: about the size of a range of an array; in Parquet a range is a row group.
        pairs: an array of shape [2, E] is E pairs.
    """
    try:
        before = os.stat(path)
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        ranges = (
            _parquet_ranges(path) if magic == _PARQUET_MAGIC else _array_ranges(open_array(path), range_bytes, pairs)
        )
    except (BrokenFileError, pa.ArrowInvalid) as problem:
        return str(problem) if path in str(problem) else f"{path}: {problem}"
    except OSError as problem:
        return f"{path} cannot be read: {problem.strerror or problem}"
    if (after := os.stat(path)).st_size != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        return f"{path} was written to while it was read"
    rows = sum(piece.lines for piece in ranges)
    return FileScan(path, before.st_size, before.st_mtime_ns, digest.hexdigest(), rows, magic, False, tuple(ranges))


def _array_ranges(array: ArrayFile, range_bytes: int, pairs: bool) -> list[FileRange]:
    rows = array.shape[_row_axis(array, pairs)]
    row_bytes = max(1, np.dtype(array.dtype).itemsize * int(np.prod(array.shape)) // max(rows, 1))
    step = max(1, range_bytes // row_bytes)
    ranges = []
    for first in range(0, rows, step):
        count = min(step, rows - first)
        start, end = array.offset + first * row_bytes, array.offset + (first + count) * row_bytes
        ranges.append(FileRange(array.path, start, end, first, count, _array_crc(array, first, count, pairs), False))
    return ranges


def _row_axis(array: ArrayFile, pairs: bool) -> int:
    """Edges lie along the longer side of [2, E]; everything else by rows."""
    return 1 if pairs and len(array.shape) == 2 and array.shape[0] == 2 else 0


def _array_rows(array: ArrayFile, first: int, count: int, pairs: bool) -> npt.NDArray[Any]:
    """Rows as [count] or [count, width], a copy."""
    mapped = array.map()
    rows = mapped[:, first : first + count].T if _row_axis(array, pairs) else mapped[first : first + count]
    return np.ascontiguousarray(rows)


def _array_crc(array: ArrayFile, first: int, count: int, pairs: bool) -> int:
    crc = 0
    for start in range(first, first + count, CHUNK_ROWS):
        rows = _array_rows(array, start, min(CHUNK_ROWS, first + count - start), pairs)
        crc = zlib.crc32(rows.tobytes(), crc)
    return crc


def _parquet_ranges(path: str) -> list[FileRange]:
    """Row groups, each with the bytes from its first column's to its last's."""
    metadata = pq.read_metadata(path)
    ranges: list[FileRange] = []
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        start, end = _span(group)
        if group.num_rows:
            ranges.append(FileRange(path, start, end, first, group.num_rows, _bytes_crc(path, start, end), False))
        first += group.num_rows
    return ranges


def _span(group: Any) -> tuple[int, int]:
    starts, ends = [], []
    for number in range(group.num_columns):
        column = group.column(number)
        start = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset:
            start = min(start, column.dictionary_page_offset)
        starts.append(start)
        ends.append(start + column.total_compressed_size)
    return min(starts, default=0), max(ends, default=0)


def _bytes_crc(path: str, start: int, end: int) -> int:
    crc = 0
    with open(path, "rb") as file:
        file.seek(start)
        while start < end and (chunk := file.read(min(_CHUNK_BYTES, end - start))):
            crc = zlib.crc32(chunk, crc)
            start += len(chunk)
    return crc


def range_rows(file: InputFile, piece: FileRange, fmt: RowFormat, part: Part) -> Iterator[pa.RecordBatch]:
    """One range's accepted or refused rows.

    Raises:
        ChangedFileError: the bytes are not those that were scanned.
    """
    with open(file.scan.path, "rb") as stream:
        is_parquet = stream.read(4) == _PARQUET_MAGIC
    if is_parquet:
        crc, tables = _bytes_crc(piece.path, piece.start, piece.end), _parquet_tables(piece, fmt)
    else:
        array = open_array(piece.path)
        crc, tables = (
            _array_crc(array, piece.first_line, piece.lines, fmt.kind == "edges"),
            _array_tables(array, piece, fmt),
        )
    if crc != piece.crc32:
        raise ChangedFileError(f"{piece.path} is no longer what it was when its checksum was taken")
    for first, table, bad in tables:
        yield from _part_of(file, first, table, bad, fmt, part)


def _part_of(
    file: InputFile, first: int, table: pa.Table, bad: Bad, fmt: RowFormat, part: Part
) -> Iterator[pa.RecordBatch]:
    refused = np.zeros(table.num_rows, bool)
    for mask, _ in bad:
        refused |= mask
    if part == "rejected":
        if refused.any():
            yield _rejected(file, first, table, bad, np.flatnonzero(refused))
        return
    keys = pa.array(file.key(first + np.flatnonzero(~refused)))
    kept = table if not refused.any() else table.filter(pa.array(~refused))
    if kept.num_rows:
        yield from (
            kept.add_column(0, "key", keys).select(fmt.schema.names).cast(fmt.schema).combine_chunks().to_batches()
        )


def _rejected(file: InputFile, first: int, table: pa.Table, bad: Bad, rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    reasons = [next(reason for mask, reason in bad if mask[row]) for row in rows]
    raw = [str({k: _short(v) for k, v in table.slice(row, 1).to_pylist()[0].items()}).encode() for row in rows.tolist()]
    columns = [[file.scan.path] * len(rows), [file.ordinal] * len(rows), first + rows, [0] * len(rows)]
    columns += [raw, [len(text) for text in raw], reasons]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, REJECTED_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=REJECTED_SCHEMA)


def _short(value: Any) -> str:
    return str(value)[:200]


def _array_tables(array: ArrayFile, piece: FileRange, fmt: RowFormat) -> Iterator[tuple[int, pa.Table, Bad]]:
    make = {"edges": _edge_rows, "features": _feature_rows, "labels": _label_rows}[fmt.kind]
    for first in range(piece.first_line, piece.first_line + piece.lines, CHUNK_ROWS):
        count = min(CHUNK_ROWS, piece.first_line + piece.lines - first)
        rows = _array_rows(array, first, count, fmt.kind == "edges")
        yield first, *make(first, rows, fmt)


def check_array(array: ArrayFile, fmt: RowFormat) -> str:
    """Why an array cannot be what is asked for; empty if it can."""
    shape, kind = array.shape, array.kind
    width = shape[1] if len(shape) == 2 else 0
    fits = (shape[0] == 2 or width == 2) if not fmt.columns else (shape[0] != 2 and width == 3)
    if fmt.kind == "edges" and not (kind in "iu" and len(shape) == 2 and fits):
        wanted = "[2, E], [E, 2] or, of triples, [E, 3]"
        return f"{array.path}: edges are integers of shape {wanted}, this is {array.dtype} {list(shape)}"
    if fmt.kind == "features" and not (array.dtype[1:] in ("f2", "f4") and width):
        return f"{array.path}: features are float16 or float32 of shape [N, D], this is {array.dtype} {list(shape)}"
    if fmt.kind == "labels" and (kind == "b" or width > 1):
        return f"{array.path}: labels are numbers of shape [N], this is {array.dtype} {list(shape)}"
    return ""


def triple_columns(array: ArrayFile, order: str) -> tuple[tuple[str, str], ...]:
    """What the columns of an array of triples are, for RowFormat; nothing where the array is of pairs.

    Args:
        array: of edges.
        order: of the columns: hrt (head, relation, tail) or htr.
    """
    if len(array.shape) != 2 or array.shape[0] == 2 or array.shape[1] != 3:
        return ()
    return tuple(({"h": "src", "r": "relation", "t": "dst"}[letter], str(at)) for at, letter in enumerate(order))


_WORDS = {"src": "source", "dst": "target", "relation": "relation"}


def _edge_rows(first: int, rows: npt.NDArray[Any], fmt: RowFormat) -> tuple[pa.Table, Bad]:
    bad: Bad = []
    columns = {}
    for name, column in fmt.columns or (("src", "0"), ("dst", "1")):
        values, word = rows[:, int(column)], _WORDS[name]
        if values.dtype.kind == "u" and values.dtype.itemsize == 8:
            bad.append((values > np.iinfo(np.int64).max, f"{word} overflows 64 bits"))
        elif values.dtype.kind == "i":
            bad.append((values < 0, f"{word} is negative"))
        columns[name] = pa.array(values.astype(np.int64))
    if "relation" in columns:
        columns["relation"] = columns["relation"].dictionary_encode().cast(pa.string())  # few: written once each
    return pa.table(columns), bad


def _feature_rows(first: int, rows: npt.NDArray[Any], fmt: RowFormat) -> tuple[pa.Table, Bad]:
    little = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("<")))
    width = little.dtype.itemsize * little.shape[1]
    values = pa.array([bytes(row) for row in little.view(np.uint8).reshape(len(rows), width)], pa.binary())
    table = _nodes(first, len(rows)) | {
        "dim": pa.array(np.full(len(rows), rows.shape[1], np.int32)),
        "dtype": pa.array([f"float{8 * rows.dtype.itemsize}"] * len(rows)),
        "values": values,
    }
    return pa.table(table), [(~np.isfinite(rows).all(axis=1), "a feature's value is not a finite number")]


def _nodes(first: int, count: int) -> dict[str, Any]:
    return {"node": pa.array(np.arange(first, first + count)), "name": pa.nulls(count, pa.string())}


def _label_rows(first: int, rows: npt.NDArray[Any], fmt: RowFormat) -> tuple[pa.Table, Bad]:
    what = fmt.columns[0][0]
    values = rows.reshape(len(rows))
    nothing = {name: pa.nulls(len(values), type_) for name, type_ in LABELS.items()}
    numbers, missing, bad = whole(values, "label" if what == "label" else what)
    if what == "label":
        missing |= numbers < 0  # papers without a subject are -1 in OGB
        return pa.table(_nodes(first, len(rows)) | nothing | {"label": pa.array(numbers, mask=missing)}), bad
    if what == "year":
        bad.append(((numbers < -(1 << 31)) | (numbers >= 1 << 31), "year is out of range"))
        years = pa.array(np.where(bad[-1][0], 0, numbers).astype(np.int32), mask=missing)
        return pa.table(_nodes(first, len(rows)) | nothing | {"year": years}), bad
    bad.append((missing | (numbers < 0), "node is negative"))
    nodes = {"node": pa.array(numbers), "name": pa.nulls(len(numbers), pa.string())}
    return pa.table(nodes | nothing | {"split": pa.array([what] * len(numbers))}), bad


def _parquet_tables(piece: FileRange, fmt: RowFormat) -> Iterator[tuple[int, pa.Table, Bad]]:
    reader = pq.ParquetFile(piece.path)
    firsts = np.cumsum([0, *(reader.metadata.row_group(n).num_rows for n in range(reader.num_row_groups))])
    group = int(np.searchsorted(firsts, piece.first_line, side="right")) - 1
    wanted = [column for _, column in fmt.columns]
    first = piece.first_line
    for batch in reader.iter_batches(CHUNK_ROWS, [group], wanted):
        named = {name: batch.column(column) for name, column in fmt.columns}
        yield first, *PARQUET[fmt.kind](named, batch.num_rows, fmt.named)
        first += batch.num_rows
