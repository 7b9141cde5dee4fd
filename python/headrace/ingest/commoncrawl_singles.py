"""Single records that a URL index names, fetched and laid end to end as WARC files of their own.

A selection is a run of captures in the order of (file, offset); its name is the SHA-256 of what it names, so the same
choice from the same index is the same file and is ingested once. Beside the file lies where each record came from, and
which could not be had because the index is wrong about where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from headrace.errors import UserError
from headrace.ingest.commoncrawl_fetch import BeyondEndError, Fetcher, FetchError
from headrace.ingest.commoncrawl_index import MAX_LINE_BYTES, Capture, IndexLines, Match
from headrace.ingest.commoncrawl_paths import Origin, bounded_lines, under
from headrace.ingest.commoncrawl_rows import Place
from headrace.ingest.lines import per_task

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SELECTION = "index:"
SELECTION_RECORDS = 2_000
SELECTION_BYTES = 256 << 20
_BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Found:
    """What an index holds of what was wanted.

    Args:
        captures: in the order of file and offset, each place once.
        lines: lines read.
        refused: lines that are none.
        example: why, for the first of them in the order of their texts.
        disputed: places that lines give different addresses or lengths.
    """

    captures: tuple[Capture, ...]
    lines: int
    refused: int
    example: str
    disputed: tuple[Capture, ...] = ()


@dataclass(frozen=True)
class Selection:
    """Single records that become one file.

    Args:
        name: `index:` and a hash of what is in it.
        urls: where each record is fetched from; None for a local file.
        places: where each stands in the file to be, and where it came from.
        lengths: bytes of each.
        beyond: once it has landed, in words, the records that it is without: those beyond their files' ends.
    """

    name: str
    urls: tuple[str | None, ...]
    places: tuple[Place, ...]
    lengths: tuple[int, ...]
    beyond: tuple[str, ...] = ()


def select(spark: SparkSession, indexes: Sequence[str], match: Match, max_records: int) -> Found:
    """The wanted captures of index files; a task a file.

    Args:
        spark: the session.
        indexes: local paths.
        match: what is wanted.
        max_records: more are refused.

    Raises:
        UserError: too many, none, or an index without lengths.
    """
    from pyspark.sql import functions as F

    rows = per_task(spark, len(indexes), _search(list(indexes), match), "capture string, problem string, lines bigint")
    rows = rows.persist()
    try:
        wanted = rows.where("capture IS NOT NULL").select("capture").distinct().limit(max_records + 1).collect()
        found = rows.agg(
            F.sum("lines").alias("lines"), F.count("problem").alias("refused"), F.min("problem").alias("example")
        )
        sums = found.collect()[0]
    finally:
        rows.unpersist()
    if len(wanted) > max_records:
        raise UserError(f"more than {max_records:,} captures match", "narrow --match, or raise --max_records")
    if not wanted:
        raise UserError(
            f"none of {sums.lines or 0:,} lines of the index matches", "widen --match; see docs/commoncrawl.md"
        )
    ordered, disputed = by_place(Capture(**json.loads(row.capture)) for row in wanted)
    return Found(ordered, sums.lines, sums.refused, sums.example or "", disputed)


def by_place(captures: Iterable[Capture]) -> tuple[tuple[Capture, ...], tuple[Capture, ...]]:
    """One capture a place, whatever order they come in; and those of places that others describe differently.

    A place holds one record. Of lines that disagree on its address or length the first in the order of address, then
    length, is taken (a line without a length disagrees with none, and comes last): if that is not whose record it is,
    the reader finds out.
    """
    first: dict[tuple[str, int], Capture] = {}
    disputed: dict[tuple[str, int], Capture] = {}
    for each in sorted(captures, key=_order):
        taken = first.setdefault((each.filename, each.offset), each)
        if each.uri != taken.uri or each.length not in (None, taken.length):
            disputed[each.filename, each.offset] = taken
    return tuple(first.values()), tuple(disputed.values())


def _order(capture: Capture) -> tuple[Any, ...]:
    length = capture.length
    return capture.filename, capture.offset, capture.uri, length is None, length or 0, json.dumps(asdict(capture))


def _search(indexes: Sequence[str], match: Match) -> Callable[[int], Iterator[pa.RecordBatch]]:
    def run(task: int) -> Iterator[pa.RecordBatch]:
        path, parser, lines = indexes[task], IndexLines(), 0
        rows: list[tuple[str | None, str | None, int]] = []
        for line in bounded_lines(path, MAX_LINE_BYTES):
            lines += 1
            found = parser.parse(line)
            if isinstance(found, str):
                rows.append((None, f"{path} line {lines - 1}: {found}", 0))
            elif found is not None and match.accepts(found):
                rows.append((json.dumps(asdict(found)), None, 0))
            if len(rows) >= _BATCH_ROWS:
                yield _batch(rows)
                rows = []
        yield _batch([*rows, (None, None, lines)])

    return run


def _batch(rows: Sequence[tuple[str | None, str | None, int]]) -> pa.RecordBatch:
    types = (pa.string(), pa.string(), pa.int64())
    arrays = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=["capture", "problem", "lines"])


def selections(captures: Iterable[Capture], base: str, s3_endpoint: str = "") -> Iterator[Selection]:
    """Captures in files of bounded size.

    Args:
        captures: in order.
        base: what their file names stand under.
        s3_endpoint: see `commoncrawl_paths.web_address`.

    Raises:
        UserError: a file name that leaves the base, or a record without a length.
    """
    part: list[tuple[Capture, Origin, int]] = []
    size = 0
    for capture in captures:
        if capture.length is None:
            raise UserError(
                f"the index says no length of record {capture.offset} of {capture.filename[:200]!a}",
                "use an index with lengths (CDX with S, or CDXJ)",
            )
        if part and (len(part) >= SELECTION_RECORDS or size + capture.length > SELECTION_BYTES):
            yield _selection(part)
            part, size = [], 0
        part.append((capture, under(base, capture.filename, s3_endpoint), capture.length))
        size += capture.length
    if part:
        yield _selection(part)


def _selection(part: Sequence[tuple[Capture, Origin, int]]) -> Selection:
    identity = [[origin.name, capture.offset, length, capture.uri] for capture, origin, length in part]
    name = SELECTION + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    places, at = [], 0
    for capture, origin, length in part:
        places.append(Place(at, origin.name, capture.offset, capture.uri))
        at += length
    return Selection(
        name, tuple(origin.url for _, origin, _ in part), tuple(places), tuple(length for *_, length in part)
    )


def land_selection(selection: Selection, path: Path, fetcher: Fetcher, *, begun: bool = False) -> Selection:
    """Fetch the records, unless they are there; one that lies beyond its file's end is left out and named.

    Args:
        selection: what is wanted.
        path: where it lands.
        fetcher: fetches what is on the web.
        begun: a batch is made of exactly these records: none may be left out.

    Returns:
        What has landed. Where it has no places nothing has.

    Raises:
        UserError: one cannot be had for another reason.
    """
    if path.exists() and _beside(path).exists():
        return selection_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = fetcher.arriving(path)
    with part.open("wb") as out:
        landed = _fetched(selection, out, fetcher)
        out.flush()
        os.fsync(out.fileno())
    if begun and landed.beyond != selection.beyond:
        raise UserError(f"no longer to be had: {landed.beyond[-1]}", "put back the file as it was")
    if landed.places:
        beside = fetcher.arriving(_beside(path))
        beside.write_text(json.dumps(asdict(landed)))
        os.replace(beside, _beside(path))
        os.replace(part, path)
    else:
        part.unlink()
    return landed


def _fetched(selection: Selection, out: IO[bytes], fetcher: Fetcher) -> Selection:
    """Write the records that can be had; the selection of those, at the places where they now stand."""
    kept: list[tuple[str | None, Place, int]] = []
    beyond, at = list(selection.beyond), 0
    for url, place, length in zip(selection.urls, selection.places, selection.lengths, strict=True):
        try:
            out.write(_record(url, place, length, fetcher))
        except BeyondEndError:
            beyond.append(f"{place.uri[:200]!a} at {place.offset:,}, {length:,} bytes, of {place.file[:200]!a}")
            continue
        kept.append((url, replace(place, at=at), length))
        at += length
    urls, places, lengths = zip(*kept, strict=True) if kept else ((), (), ())
    return Selection(selection.name, urls, places, lengths, tuple(beyond))


def selection_of(path: Path) -> Selection:
    """What a landed file was to hold.

    Raises:
        UserError: the file beside it is gone.
    """
    beside = _beside(path)
    if not beside.exists():
        raise UserError(f"{beside} is gone, which says what a begun batch is made of", "put it back")
    values = json.loads(beside.read_bytes())
    places = tuple(Place(**each) for each in values["places"])
    return Selection(
        values["name"], tuple(values["urls"]), places, tuple(values["lengths"]), tuple(values.get("beyond", ()))
    )


def _record(url: str | None, place: Place, length: int, fetcher: Fetcher) -> bytes:
    """The record's bytes.

    Raises:
        BeyondEndError: the file ends before it does.
        UserError: the file cannot be read or fetched.
    """
    try:
        if url is not None:
            return fetcher.bytes_at(url, place.offset, length)
        with open(place.file, "rb") as file:
            if place.offset + length > os.fstat(file.fileno()).st_size:  # no system seeks as far as an index may say
                raise BeyondEndError(f"{place.file} ends before the record at {place.offset} does")
            file.seek(place.offset)
            return file.read(length)
    except BeyondEndError:
        raise
    except FetchError as error:
        raise UserError(str(error), "is this index of these files? (--base)") from error
    except OSError as error:
        raise UserError(f"{place.file} cannot be read: {error.strerror}", "is --base right?") from error


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".places")
