"""Lines of ratings to columns: an exact parser of one line, and the same for a block of lines with Arrow and numpy.

A line is user, item, rating, timestamp and perhaps more, in an order that `Layout` says, between tabs, `::`, commas or
semicolons (quoted in the last two as in RFC 4180, within one line). Whatever the block parser does not accept goes to
`parse_line`, which accepts it or says why not: the two never disagree on values, and all reasons come from one place.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import UserError
from headrace.ingest.textfiles import BOM, Reject, not_text, too_long

DELIMITERS = {"tab": "\t", "::": "::", ",": ",", ";": ";"}
FIELDS = ("user", "item", "rating", "timestamp")
MAX_ID_BYTES = 256
_KNOWN_NAMES = {
    "user": ("user", "userid", "user_id", "uid", "reviewerid", "user-id"),
    "item": ("item", "itemid", "item_id", "iid", "movieid", "movie_id", "asin", "isbn", "product_id", "productid"),
    "rating": ("rating", "score", "overall", "stars", "book-rating"),
    "timestamp": ("timestamp", "time", "unixreviewtime", "ts"),
}
# What the block parser reads by itself; a subset of what `parse_line` accepts, with the same values.
_PLAIN_NUMBER = r"^-?[0-9]{1,15}(\.[0-9]{1,15})?$"
_PLAIN_INTEGER = r"^-?[0-9]{1,18}$"
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_COLON, _NEWLINE = ord(":"), ord("\n")

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Where in a line things are.

    Args:
        delimiter: between fields.
        fields: how many fields a line has.
        user: place of the user, from 0.
        item: likewise.
        rating: likewise; None where lines have none: every line counts 1.
        timestamp: likewise; None where lines have none.
    """

    delimiter: str = ","
    fields: int = 4
    user: int = 0
    item: int = 1
    rating: int | None = 2
    timestamp: int | None = 3

    @property
    def quoted(self) -> bool:
        """A field may stand in quotation marks."""
        return self.delimiter in ",;"


@dataclass(frozen=True)
class Format:
    """What a line must be.

    Args:
        layout: where in it things are.
        dataset: name given to all rows.
        min_rating: lower ratings are refused; None for no limit.
        max_rating: higher ones likewise.
        milliseconds: timestamps count milliseconds, not seconds.
        max_line_bytes: longer lines are refused.
        raw_bytes: how much of a refused line is kept.
    """

    layout: Layout = Layout()
    dataset: str = "ratings"
    min_rating: float | None = None
    max_rating: float | None = None
    milliseconds: bool = False
    max_line_bytes: int = 1 << 16
    raw_bytes: int = 1 << 16


class Rating(NamedTuple):
    """One line's values; the timestamp in seconds since 1970, None where there is none."""

    user: str
    item: str
    rating: float
    timestamp: int | None


@dataclass
class Parsed:
    """A block's lines: accepted ones as columns, the others with their reasons.

    Args:
        index: [n], the accepted lines, ascending, counted from the block's first.
        user: [n] string.
        item: [n] string.
        rating: [n] double.
        timestamp: [n] int64, may hold nulls.
        rejects: the other lines, ascending.
    """

    index: I64
    user: pa.Array
    item: pa.Array
    rating: pa.Array
    timestamp: pa.Array
    rejects: list[Reject]


def layout_of(head: bytes, delimiter: str = "auto", columns: str = "") -> tuple[Layout, bool]:
    """The layout of a file, and whether its first line is a header.

    Args:
        head: the file's first line, without byte-order mark.
        delimiter: a key of DELIMITERS, or auto: the first of `::`, tab, comma, semicolon that occurs.
        columns: names in the file's order (user,item,rating,timestamp; others are left alone), or, for files with a
            header, which of its names is what (user=reviewerID,item=asin); empty: known names, or that order.

    Raises:
        UserError: no delimiter, or no place for user and item.
    """
    text = head.rstrip(b"\r\n").decode("utf-8", "replace")
    mark = _delimiter(text, delimiter)
    cells = [cell.strip() for cell in _split(text, mark) or text.split(mark)]
    if "=" in columns:
        wanted = _wanted(columns)
        return _by_names(cells, mark, wanted, [field for field, names in wanted.items() if names]), True
    if columns:
        layout = _by_names([name.strip() for name in columns.split(",")], mark, {field: (field,) for field in FIELDS})
        return layout, _is_header(cells, layout)
    known = {field: tuple(names) for field, names in _KNOWN_NAMES.items()}
    lowered = [cell.lower() for cell in cells]
    if any(cell in names for cell in lowered for names in known.values()):
        return _by_names(lowered, mark, known), True
    if len(cells) < 3:
        raise UserError(f"its first line has {len(cells)} fields: {text[:80]!r}", "say --columns user,item")
    return Layout(mark, len(cells), timestamp=3 if len(cells) > 3 else None), _is_header(cells, Layout())


def parse_line(raw: bytes, fmt: Format, first: bool = False) -> Rating | str:
    """One line without its newline, exactly, or the reason why it is refused.

    Args:
        raw: the line; a `\\r` at its end is tolerated.
        fmt: what it must be.
        first: it is the file's first, where a byte-order mark is dropped.
    """
    if len(raw) > fmt.max_line_bytes:
        return too_long(fmt.max_line_bytes)
    line = raw[:-1] if raw.endswith(b"\r") else raw
    line = line.removeprefix(BOM) if first else line
    if reason := not_text(line, blank=b" \r"):
        return reason
    cells = _split(line.decode(), fmt.layout.delimiter)
    if cells is None:
        return "quotation marks do not pair within the line"
    if len(cells) != fmt.layout.fields:
        return f"{len(cells)} columns instead of {fmt.layout.fields}"
    return _rating(cells, fmt)


def parse_block(data: bytes, fmt: Format, first: bool = False) -> Parsed:
    """Lines that each end in a newline, all at once.

    Args:
        data: the lines.
        fmt: what they must be.
        first: the block begins the file (a byte-order mark is dropped there).
    """
    array = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(array == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    plain = ~_odd_lines(data, array, ends, fmt) & (ends - starts <= fmt.max_line_bytes)
    index, columns = _parse_cells(data, array, ends, plain, fmt)
    others = np.ones(len(ends), bool)
    others[index] = False
    return _complete(index, columns, _one_by_one(data, starts, ends, np.flatnonzero(others), fmt, first))


def _delimiter(text: str, delimiter: str) -> str:
    if delimiter != "auto":
        return DELIMITERS[delimiter]
    for mark in ("::", "\t", ",", ";"):
        if mark in text:
            return mark
    raise UserError(f"no tab, ::, comma or semicolon in its first line: {text[:80]!r}", "is it a file of ratings?")


def _split(text: str, delimiter: str) -> list[str] | None:
    """Fields of a line; None where its quotation marks make no sense."""
    if '"' not in text or delimiter not in ",;":
        return text.split(delimiter)
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _wanted(columns: str) -> dict[str, tuple[str, ...]]:
    wanted: dict[str, tuple[str, ...]] = dict.fromkeys(FIELDS, ())
    for part in columns.split(","):
        field, _, name = (word.strip() for word in part.partition("="))
        if field not in FIELDS or not name:
            raise UserError(f"--columns: {part!r} is not FIELD=NAME", f"FIELD is one of {', '.join(FIELDS)}")
        wanted[field] = (name,)
    return wanted


def _by_names(
    names: Sequence[str], delimiter: str, wanted: dict[str, tuple[str, ...]], asked: Collection[str] = ()
) -> Layout:
    """The places of the wanted names; those in `asked` must be there, and user and item always."""
    found = {field: [i for i, name in enumerate(names) if name in wanted[field]] for field in FIELDS}
    for field in FIELDS:
        missing = not found[field] and (field in ("user", "item") or field in asked)
        if missing or len(found[field]) > 1:
            what = "no" if missing else "more than one"
            raise UserError(
                f"{what} column for the {field} among {', '.join(names)[:200]}",
                "say which is what: --columns user=reviewerID,item=asin,rating=overall,timestamp=unixReviewTime",
            )
    places = {field: (at[0] if at else None) for field, at in found.items()}
    assert places["user"] is not None and places["item"] is not None
    return Layout(delimiter, len(names), places["user"], places["item"], places["rating"], places["timestamp"])


def _is_header(cells: Sequence[str], layout: Layout) -> bool:
    """Words where numbers should be."""
    numbers = [place for place in (layout.rating, layout.timestamp) if place is not None and place < len(cells)]
    return bool(numbers) and all(re.fullmatch(r"[A-Za-z_][\w .-]*", cells[place]) for place in numbers)


def _rating(cells: list[str], fmt: Format) -> Rating | str:
    layout, ids = fmt.layout, []
    for field, place in (("user", layout.user), ("item", layout.item)):
        text = cells[place].strip(" ")
        if not text:
            return f"{field} is empty"
        if len(text.encode()) > MAX_ID_BYTES:
            return f"{field} is longer than {MAX_ID_BYTES} bytes"
        ids.append(text)
    rating = _number(cells[layout.rating].strip(" "), fmt) if layout.rating is not None else 1.0
    if isinstance(rating, str):
        return rating
    text = cells[layout.timestamp].strip(" ") if layout.timestamp is not None else ""
    if not text:
        return Rating(ids[0], ids[1], rating, None)
    if not _INTEGER.fullmatch(text):
        return "timestamp is not a whole number"
    seconds = int(text) // 1000 if fmt.milliseconds else int(text)
    if not -(1 << 63) <= seconds < 1 << 63:
        return "timestamp overflows 64 bits"
    return Rating(ids[0], ids[1], rating, seconds)


def _number(text: str, fmt: Format) -> float | str:
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return "rating is not finite"
    if not _NUMBER.fullmatch(text):
        return "rating is not a number"
    value = float(text)
    if not math.isfinite(value):
        return "rating is not finite"
    low, high = _limits(fmt)
    return value if low <= value <= high else f"rating is outside {low:g} to {high:g}"


def _limits(fmt: Format) -> tuple[float, float]:
    low = -math.inf if fmt.min_rating is None else fmt.min_rating
    return low, math.inf if fmt.max_rating is None else fmt.max_rating


def _odd_lines(data: bytes, array: npt.NDArray[np.uint8], ends: I64, fmt: Format) -> npt.NDArray[np.bool_]:
    """Lines that `parse_line` had better look at: blanks, quotes, CR, NUL, marks, a third colon, bytes not UTF-8."""
    table = np.zeros(256, bool)
    table[[0, ord("\r"), ord(" "), *([ord('"')] if fmt.layout.quoted else [])]] = True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        table[128:] = True
    table[BOM[0]] = True
    odd = table[array]
    if fmt.layout.delimiter == "::":
        colon = array == _COLON
        odd[2:] |= colon[2:] & colon[1:-1] & colon[:-2]
    lines = np.zeros(len(ends), bool)
    lines[np.searchsorted(ends, np.flatnonzero(odd))] = True
    return lines


def _parse_cells(
    data: bytes, array: npt.NDArray[np.uint8], ends: I64, plain: npt.NDArray[np.bool_], fmt: Format
) -> tuple[I64, list[pa.Array]]:
    """The plain lines that are good: their index, and user, item, rating, timestamp."""
    layout, width = fmt.layout, len(fmt.layout.delimiter)
    marks = array == ord(layout.delimiter[0])
    if width == 2:
        marks[:-1] &= marks[1:]
        marks[-1:] = False
    stops = np.flatnonzero(marks | (array == _NEWLINE))  # where cells end
    newlines = np.flatnonzero(array[stops] == _NEWLINE)
    lines = np.flatnonzero(plain & (np.diff(newlines, prepend=-1) == layout.fields))
    begins = np.concatenate([[0], stops[:-1] + np.where(array[stops[:-1]] == _NEWLINE, 1, width)])
    offsets = np.empty(2 * len(stops) + 1, np.int32)  # cell, delimiter, cell, delimiter, ...
    offsets[:-1:2], offsets[1::2], offsets[-1] = begins, stops, len(data)
    cells = pa.StringArray.from_buffers(2 * len(stops), pa.py_buffer(offsets), pa.py_buffer(data))
    firsts = newlines[lines] - layout.fields + 1

    def column(place: int) -> pa.Array:
        return cells.take(pa.array(2 * (firsts + place)))

    columns, good = _checked([column(layout.user), column(layout.item)], fmt, column, len(lines))
    return lines[good], [each.filter(pa.array(good)) for each in columns]


def _checked(ids: list[pa.Array], fmt: Format, column: Any, count: int) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
    good = np.ones(count, bool)
    for each in ids:
        sizes = pc.binary_length(each).to_numpy(zero_copy_only=False)
        good &= (sizes > 0) & (sizes <= MAX_ID_BYTES)
    ratings = np.ones(count)
    if fmt.layout.rating is not None:
        text = column(fmt.layout.rating)
        number = pc.match_substring_regex(text, _PLAIN_NUMBER)
        ratings = pc.if_else(number, text, "nan").cast(pa.float64()).to_numpy(zero_copy_only=False)
        low, high = _limits(fmt)
        good &= (ratings >= low) & (ratings <= high)
    times = pa.nulls(count, pa.int64())
    if fmt.layout.timestamp is not None:
        text = column(fmt.layout.timestamp)
        whole = pc.match_substring_regex(text, _PLAIN_INTEGER)
        empty = pc.equal(text, "")
        good &= pc.or_(whole, empty).to_numpy(zero_copy_only=False)
        times = pc.if_else(whole, text, None).cast(pa.int64())
        if fmt.milliseconds:
            filled = times.fill_null(0).to_numpy() // 1000
            times = pa.array(filled, mask=times.is_null().to_numpy(zero_copy_only=False))
    return [*ids, pa.array(ratings), times], good


def _one_by_one(
    data: bytes, starts: I64, ends: I64, lines: I64, fmt: Format, first: bool
) -> list[Reject | tuple[int, Rating]]:
    found: list[Reject | tuple[int, Rating]] = []
    for line in lines.tolist():
        start, end = int(starts[line]), int(ends[line])
        raw = data[start:end]
        result = parse_line(raw, fmt, first and line == 0)
        if isinstance(result, str):
            found.append(Reject(line, start, raw[: fmt.raw_bytes], end - start, result))
        else:
            found.append((line, result))
    return found


def _complete(index: I64, columns: list[pa.Array], others: list[Reject | tuple[int, Rating]]) -> Parsed:
    """Lines that only `parse_line` accepted, put where they belong."""
    rejects = [item for item in others if isinstance(item, Reject)]
    slow = [item for item in others if not isinstance(item, Reject)]
    if slow:
        added = [pa.array([rating[i] for _, rating in slow], columns[i].type) for i in range(4)]
        index = np.concatenate([index, np.array([line for line, _ in slow], np.int64)])
        order = np.argsort(index)
        index = index[order]
        columns = [pa.concat_arrays(pair).take(pa.array(order)) for pair in zip(columns, added, strict=True)]
    user, item, rating, timestamp = columns
    return Parsed(index, user, item, rating, timestamp, rejects)
