"""Edge lists as text: SNAP's, CSV, triples by id; exact line by line, and the same for a block at a time with Arrow.

A line has as many columns as the file's first; source and target are `[0-9]{1,19}` below 2^63, a weight is a finite
decimal number, a relation any text. Columns are parted by one character, or by runs of blanks and tabs (SNAP). `\\r`
before the newline belongs to the line end. A block of nothing but digits and separators is Arrow's; any other, and any
that Arrow does not take whole, goes line by line to `parse_line`, from which all reasons come.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from headrace.ingest.lines import InputFile, parse_lines
from headrace.ingest.textfiles import BOM, Block, Reject, not_text, too_long

BLANKS = "blanks"
_ID = re.compile(rb"[0-9]{1,19}")
_WEIGHT = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MAX_ID = (1 << 63) - 1
_MAX_RELATION_BYTES = 1000


@dataclass(frozen=True)
class EdgeFormat:
    """What a line of an edge list must be; columns count from 0.

    Args:
        fields: columns of every line.
        delimiter: one character, or BLANKS.
        src: column of the source.
        dst: column of the target.
        weight: column of the weight; None: edges have none.
        relation: column of the relation; None: it is not in the lines.
        max_line_bytes: longer lines are refused.
        raw_bytes: how much of a refused line is kept.
    """

    fields: int = 2
    delimiter: str = BLANKS
    src: int = 0
    dst: int = 1
    weight: int | None = None
    relation: int | None = None
    max_line_bytes: int = 1 << 20
    raw_bytes: int = 1 << 16

    @property
    def schema(self) -> pa.Schema:
        """key, src, dst, and weight and relation where lines have them."""
        names = [("key", pa.int64()), ("src", pa.int64()), ("dst", pa.int64())]
        names += [] if self.weight is None else [("weight", pa.float64())]
        return pa.schema(names + ([] if self.relation is None else [("relation", pa.string())]))

    def detail(self) -> dict[str, Any]:
        """This format as JSON values."""
        return {"format": dataclasses.asdict(self)}

    def parse(self, file: InputFile, block: Block) -> tuple[pa.RecordBatch, Sequence[Reject]]:
        """A block's edges, and the lines that are none."""
        columns = self._fast(block.data)
        if columns is None:
            return parse_lines(self, parse_line, file, block)
        keys = file.key(block.first_line + np.arange(len(columns[0])))
        return pa.RecordBatch.from_arrays([pa.array(keys), *columns], schema=self.schema), ()

    def _fast(self, data: bytes) -> list[pa.Array] | None:
        """The columns of a block that is whole and plain; None for any other."""
        delimiter = self.delimiter if self.delimiter != BLANKS else "\t" if b"\t" in data[:4096] else " "
        plain = b"0123456789\r\n" + delimiter.encode() + (b"" if self.weight is None else b".eE+-")
        if len(delimiter) != 1 or data.translate(None, plain) or data.count(b"\r") != data.count(b"\r\n"):
            return None
        names = [str(number) for number in range(self.fields)]
        types = dict.fromkeys((names[self.src], names[self.dst]), pa.int64())
        types |= {} if self.weight is None else {names[self.weight]: pa.float64()}
        types |= {} if self.relation is None else {names[self.relation]: pa.string()}
        try:
            table = pc.read_csv(
                io.BytesIO(data),
                pc.ReadOptions(use_threads=False, column_names=names, block_size=max(len(data), 1)),
                pc.ParseOptions(delimiter=delimiter, quote_char=False, ignore_empty_lines=False),
                pc.ConvertOptions(column_types=types, include_columns=list(types), null_values=[""], check_utf8=False),
            )
        except pa.ArrowInvalid:
            return None
        columns = [table.column(name).combine_chunks() for name in types]
        whole = all(column.null_count == 0 for column in columns) and table.num_rows == data.count(b"\n")
        return columns if whole and self._in_bounds(columns) else None

    def _in_bounds(self, columns: list[pa.Array]) -> bool:
        """What Arrow takes and `parse_line` does not: 20 digits, an overflowing weight, an empty or long relation."""
        if self.weight is not None and not np.isfinite(columns[2].to_numpy()).all():
            return False
        if any(len(column) and min(column.to_numpy().min(), 0) < 0 for column in columns[:2]):
            return False
        if self.relation is None:
            return True
        lengths = [len(text) for text in set(columns[-1].dictionary_encode().dictionary.to_pylist())]
        return all(0 < length <= _MAX_RELATION_BYTES for length in lengths)


def parse_line(raw: bytes, fmt: EdgeFormat, first: bool = False) -> tuple[Any, ...] | str:
    """One line without its newline, exactly: source, target, weight and relation where lines have them; or why not.

    Args:
        raw: the line; a `\\r` at its end is tolerated.
        fmt: what it must be.
        first: it is the file's first, where a byte-order mark is dropped.
    """
    if len(raw) > fmt.max_line_bytes:
        return too_long(fmt.max_line_bytes)
    line = raw.removesuffix(b"\r")
    line = line.removeprefix(BOM) if first else line
    if reason := not_text(line):
        return reason
    if line.lstrip(b" \t")[:1] in (b"#", b"%"):
        return "comment inside the file"
    cells = fields_of(line, fmt.delimiter)
    if len(cells) != fmt.fields:
        return f"{len(cells)} columns instead of {fmt.fields}"
    ends = [parse_id(cells[column], name) for column, name in ((fmt.src, "source"), (fmt.dst, "target"))]
    if wrong := [end for end in ends if isinstance(end, str)]:
        return wrong[0]
    return _rest(ends, cells, fmt)


def _rest(ends: list[int | str], cells: list[bytes], fmt: EdgeFormat) -> tuple[Any, ...] | str:
    found: tuple[Any, ...] = tuple(ends)
    if fmt.weight is not None:
        text = cells[fmt.weight]
        if not _WEIGHT.fullmatch(text):
            return "weight is not a number"
        if not math.isfinite(float(text)):
            return "weight overflows"
        found += (float(text),)
    if fmt.relation is not None:
        name = cells[fmt.relation]
        if not 0 < len(name) <= _MAX_RELATION_BYTES:
            return "relation is empty" if not name else f"relation longer than {_MAX_RELATION_BYTES} bytes"
        found += (name.decode(),)
    return found


def fields_of(line: bytes, delimiter: str) -> list[bytes]:
    """The cells of a line."""
    return line.split() if delimiter == BLANKS else line.split(delimiter.encode())


def parse_id(cell: bytes, name: str) -> int | str:
    """An id, or why it is none."""
    if not _ID.fullmatch(cell):
        if cell[:1] == b"-" and cell[1:].isdigit():
            return f"{name} is negative"
        return f"{name} overflows 64 bits" if cell.isdigit() else f"{name} is not an integer"
    number = int(cell)
    return number if number <= _MAX_ID else f"{name} overflows 64 bits"
