"""Criteo's line format to integers: an exact parser of one line, and the same for a block of lines with numpy.

A line is `label TAB i1 .. i13 TAB c1 .. c26` (Kaggle and Terabyte alike; test files lack the label). Empty is missing;
a label is 0 or 1; an integer is `-?[0-9]{1,19}` within int64; a category is 1 to 8 hex digits, read as unsigned 32 bit.
`\\r` before the newline belongs to the line end. Whatever the block parser does not accept goes to `parse_line`, which
accepts it or says why not: the two never disagree on values, and all reasons come from one place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headrace.ingest.textfiles import BOM, Reject, not_text, too_long

INTS = tuple(f"i{n}" for n in range(1, 14))
CATEGORIES = tuple(f"c{n}" for n in range(1, 27))
COLUMNS = ("label", *INTS, *CATEGORIES)

_INTEGER = re.compile(rb"-?[0-9]+")
_CATEGORY = re.compile(rb"[0-9a-fA-F]{1,8}")
_NAME = re.compile(rb"[A-Za-z_][\w .:-]*")
_NUM_INTS, _NUM_CATEGORIES = len(INTS), len(CATEGORIES)
_TAB, _NEWLINE, _RETURN, _MINUS = 9, 10, 13, 45
_PAD = 16  # bytes before the data, so that the eight bytes before any cell's end exist

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Format:
    """What a line must be.

    Args:
        labelled: 40 fields with a label first, else 39 without.
        max_line_bytes: longer lines are refused.
        raw_bytes: how much of a refused line is kept.
    """

    labelled: bool = True
    max_line_bytes: int = 1 << 20
    raw_bytes: int = 1 << 16

    @property
    def fields(self) -> int:
        """Fields of a good line."""
        return _NUM_INTS + _NUM_CATEGORIES + int(self.labelled)


@dataclass
class Parsed:
    """A block's lines: accepted ones as columns, the others with their reasons.

    Args:
        index: [n], the accepted lines, ascending, counted from the block's first.
        values: [40, n] in the order of `COLUMNS`; 0 where missing.
        missing: [40, n].
        rejects: the other lines, ascending.
    """

    index: I64
    values: I64
    missing: Mask
    rejects: list[Reject] = field(default_factory=list)


def parse_line(raw: bytes, fmt: Format, first: bool = False) -> list[int | None] | str:
    """One line without its newline, exactly: the 40 values of `COLUMNS`, or the reason why it is refused.

    Args:
        raw: the line; a `\\r` at its end is tolerated.
        fmt: what it must be.
        first: it is the file's first, where a byte-order mark is dropped.
    """
    if len(raw) > fmt.max_line_bytes:
        return too_long(fmt.max_line_bytes)
    line = raw[:-1] if raw.endswith(b"\r") else raw
    if first:
        line = line.removeprefix(BOM)
    if reason := not_text(line, blank=b" \r") or ("stray quote" if b'"' in line else ""):
        return reason
    cells = line.split(b"\t")
    if len(cells) != fmt.fields:
        return f"{len(cells)} columns instead of {fmt.fields}"
    return _values(cells if fmt.labelled else [b"", *cells], fmt.labelled)


def looks_like_header(line: bytes) -> bool:
    """A line of names: no data line has a name where the integers are.

    Args:
        line: the file's first, without byte-order mark.
    """
    cells = line.rstrip(b"\r").split(b"\t")
    numbers = cells[: _NUM_INTS + 1]
    return len(numbers) > _NUM_INTS and all(_NAME.fullmatch(cell) for cell in numbers)


def parse_block(data: bytes, fmt: Format, first: bool = False) -> Parsed:
    """Lines that each end in a newline, all at once.

    Args:
        data: the lines.
        fmt: what they must be.
        first: the block begins the file (a byte-order mark is dropped there).
    """
    padded = np.frombuffer(b"\0" * _PAD + data, np.uint8)
    delimiters = np.flatnonzero((padded == _TAB) | (padded == _NEWLINE))
    newlines = np.flatnonzero(padded[delimiters] == _NEWLINE)
    ends = delimiters[newlines]
    starts = np.concatenate([[_PAD], ends[:-1] + 1])
    plain = (np.diff(newlines, prepend=-1) == fmt.fields) & (ends - starts <= fmt.max_line_bytes)
    lines = np.flatnonzero(plain)
    cells = delimiters[(newlines[lines] - fmt.fields + 1) + np.arange(fmt.fields)[:, None]]
    accepted, values, missing = _parse_cells(padded, starts[lines], cells, fmt)
    good = np.zeros(len(ends), bool)
    good[lines[accepted]] = True
    if not accepted.all():
        lines, values, missing = lines[accepted], values[:, accepted], missing[:, accepted]
    if good.all():
        return Parsed(lines, values, missing)
    others = _one_by_one(data, starts - _PAD, ends - _PAD, np.flatnonzero(~good), fmt, first)
    return _merge(Parsed(lines, values, missing), list(others))


def _values(cells: list[bytes], labelled: bool) -> list[int | None] | str:
    values: list[int | None] = [int(cells[0]) if labelled and cells[0] in (b"0", b"1") else None]
    if labelled and values[0] is None:
        return "label is not 0 or 1"
    for name, cell in zip(INTS, cells[1:], strict=False):
        if cell and not _INTEGER.fullmatch(cell):
            return f"{name} is not an integer"
        if len(cell.lstrip(b"-")) > 19 or (cell and not -(1 << 63) <= int(cell) < 1 << 63):
            return f"{name} overflows 64 bits"
        values.append(int(cell) if cell else None)
    for name, cell in zip(CATEGORIES, cells[1 + _NUM_INTS :], strict=True):
        if cell and not _CATEGORY.fullmatch(cell):
            return f"{name} is not 1 to 8 hex digits"
        values.append(int(cell, 16) if cell else None)
    return values


def _one_by_one(
    data: bytes, starts: I64, ends: I64, lines: I64, fmt: Format, first: bool
) -> Iterator[Reject | tuple[int, list[int | None]]]:
    kept = min(fmt.raw_bytes, fmt.max_line_bytes)  # as of lines that were never held whole
    for line in lines.tolist():
        start, end = int(starts[line]), int(ends[line])
        raw = data[start:end]
        result = parse_line(raw, fmt, first and line == 0)
        if isinstance(result, str):
            yield Reject(line, start, raw[:kept], end - start, result)
        else:
            yield line, result


def _merge(parsed: Parsed, others: list[Reject | tuple[int, list[int | None]]]) -> Parsed:
    """Lines that only `parse_line` accepted, put where they belong."""
    rejects = [item for item in others if isinstance(item, Reject)]
    slow = [item for item in others if not isinstance(item, Reject)]
    if not slow:
        return Parsed(parsed.index, parsed.values, parsed.missing, rejects)
    index = np.concatenate([parsed.index, np.array([line for line, _ in slow], np.int64)])
    values = np.array([[value or 0 for value in row] for _, row in slow], np.int64).T
    missing = np.array([[value is None for value in row] for _, row in slow], bool).T
    order = np.argsort(index)
    return Parsed(
        index[order],
        np.concatenate([parsed.values, values], axis=1)[:, order],
        np.concatenate([parsed.missing, missing], axis=1)[:, order],
        rejects,
    )


def _parse_cells(padded: npt.NDArray[np.uint8], starts: I64, ends: I64, fmt: Format) -> tuple[Mask, I64, Mask]:
    """Cells by their ends [fields, n] and the lines' starts [n] -> accepted [n], values [40, n], missing [40, n]."""
    begins = np.concatenate([starts[None], ends[:-1] + 1])
    ends = np.concatenate([ends[:-1], (ends[-1] - (padded[ends[-1] - 1] == _RETURN))[None]])
    lengths = ends - begins
    words: U64 = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))
    shift = int(fmt.labelled)
    ints, hexes = slice(shift, shift + _NUM_INTS), slice(shift + _NUM_INTS, None)
    values = np.zeros((len(COLUMNS), len(starts)), np.int64)
    missing = np.ones(values.shape, bool)
    missing[1:] = lengths[shift:] == 0
    values[1 : 1 + _NUM_INTS], int_ok = _integers(padded, words, begins[ints], ends[ints])
    values[1 + _NUM_INTS :], hex_ok = _categories(words, ends[hexes], lengths[hexes])
    accepted = int_ok.all(axis=0) & hex_ok.all(axis=0)
    if fmt.labelled:
        digit = padded[begins[0]].astype(np.int64) - ord("0")
        accepted &= (lengths[0] == 1) & ((digit == 0) | (digit == 1))
        values[0], missing[0] = digit, False
    return accepted, values, missing


def _table(digits: bytes, values: list[int]) -> npt.NDArray[np.uint8]:
    table = np.full(256, 255, np.uint8)
    table[np.frombuffer(digits, np.uint8)] = values
    return table


_DECIMAL = _table(b"0123456789", list(range(10)))
_HEX = _table(b"0123456789abcdefABCDEF", [*range(16), *range(10, 16)])
_ZEROS = np.uint64(int.from_bytes(b"0" * 8, "little"))
# _KEEP[k]: the last k of a little-endian word's eight bytes
_KEEP = np.array([(1 << 64) - (1 << 8 * (8 - k)) if k else 0 for k in range(9)], np.uint64)


def _digits(words: U64, ends: I64, counts: I64, table: npt.NDArray[np.uint8], base: int) -> tuple[I64, Mask]:
    """Numbers of `counts` (0 to 8) digits that end before `ends`, and whether they are digits at all.

    Eight digits at a time: pairs, then fours, then the whole, by one multiplication each, as every byte of the word
    holds one digit, the most significant in the lowest.
    """
    keep = _KEEP[counts]
    word = (words[ends - 8] & keep) | (_ZEROS & ~keep)
    value = table[word.view(np.uint8)].view(np.uint64)
    valid = (value & np.uint64(0xF0F0F0F0F0F0F0F0)) == 0
    value = (value * np.uint64((base << 8) + 1)) >> np.uint64(8) & np.uint64(0x00FF00FF00FF00FF)
    value = (value * np.uint64((base**2 << 16) + 1)) >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF)
    value = (value * np.uint64((base**4 << 32) + 1)) >> np.uint64(32)
    return value.view(np.int64), valid


def _categories(words: U64, ends: I64, lengths: I64) -> tuple[I64, Mask]:
    short = lengths <= 8
    values, valid = _digits(words, ends, np.minimum(lengths, 8), _HEX, 16)
    return values, valid & short


def _integers(padded: npt.NDArray[np.uint8], words: U64, begins: I64, ends: I64) -> tuple[I64, Mask]:
    """Up to 16 digits; longer ones are left to `parse_line`."""
    negative = (padded[begins] == _MINUS) & (ends > begins)
    counts = ends - begins - negative
    values, valid = _digits(words, ends, np.minimum(counts, 8), _DECIMAL, 10)
    valid &= (counts <= 16) & ((counts > 0) | ~negative)
    long = np.nonzero((counts > 8) & (counts <= 16))
    if len(long[0]):
        high, high_valid = _digits(words, ends[long] - 8, counts[long] - 8, _DECIMAL, 10)
        values[long] += high * 10**8
        valid[long] &= high_valid
    return np.where(negative, -values, values), valid
