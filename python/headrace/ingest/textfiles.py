"""Text files by (file, byte range): line and offset of every byte, plain or gzip, in bounded memory.

A file is first scanned once (checksum, number of lines, ranges that begin at line starts); readers then take ranges and
find out, by the range's CRC, whether they read what was scanned. `\\n` ends a line; the last one may lack it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

CHUNK_BYTES = 4 << 20
MAX_BLOCK_LINES = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WBITS = 31
_PIECE_BYTES = 1 << 14
_HEAD_BYTES = 1 << 16
BOM = b"\xef\xbb\xbf"


class BrokenFileError(Exception):
    """A file that cannot be read to its end as what it claims to be (a truncated or damaged gzip)."""


class ChangedFileError(Exception):
    """A file whose bytes are not those that were scanned."""


@dataclass(frozen=True)
class FileRange:
    """Whole lines of a file: bytes [start, end) of the file, or, where `gzip`, of what it inflates to.

    Args:
        path: the file.
        start: offset of the first byte; a line begins there.
        end: offset behind the last byte.
        first_line: number of the first line, counted from 0 over the file.
        lines: number of lines in the range.
        crc32: of the range's bytes, as scanned.
        gzip: the file is compressed; its only range is the whole of it.
    """

    path: str
    start: int
    end: int
    first_line: int
    lines: int
    crc32: int
    gzip: bool


@dataclass(frozen=True)
class FileScan:
    """What one pass over a file tells: its identity, and where its lines are.

    Args:
        path: the file.
        size: bytes on disk.
        mtime_ns: modification time in ns since 1970.
        sha256: of the bytes on disk, in hex.
        lines: number of lines.
        head: the first line, at most 64 KiB of it, without byte-order mark.
        bom: the file begins with UTF-8's byte-order mark.
        ranges: the file in pieces of whole lines.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    lines: int
    head: bytes
    bom: bool
    ranges: tuple[FileRange, ...]

    @property
    def empty(self) -> bool:
        """No line in it."""
        return not self.lines

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the way from a worker to the driver."""
        return dataclasses.asdict(self) | {"head": self.head.hex()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FileScan:
        """The inverse of `to_json`."""
        ranges = tuple(FileRange(**item) for item in value["ranges"])
        return cls(**(value | {"head": bytes.fromhex(value["head"]), "ranges": ranges}))


@dataclass(frozen=True)
class Block:
    """Complete lines, each ended by a newline (added where the file's last line lacks it)."""

    data: bytes
    first_line: int
    offset: int


@dataclass(frozen=True)
class LongLine:
    """A line too long to hold: its first bytes and its length without the newline."""

    line: int
    offset: int
    head: bytes
    length: int


@dataclass(frozen=True)
class Reject:
    """A line that was not accepted; `index` counts lines from the block's first, `offset` bytes from its start."""

    index: int
    offset: int
    raw: bytes
    length: int
    reason: str


def scan(path: str, range_bytes: int) -> FileScan:
    """Read a file once: checksum, line count, ranges of about `range_bytes`.

    Raises:
        BrokenFileError: a gzip that is truncated or damaged anywhere.
        ChangedFileError: the file was written to meanwhile.
        OSError: it cannot be read.
    """
    before = os.stat(path)
    digest = hashlib.sha256()
    gzip = is_gzip(path)
    with open(path, "rb") as file:
        chunks = inflate(file, path, digest) if gzip else _raw_chunks(file, digest)
        ranges, head = _cut(chunks, path, None if gzip else range_bytes)
    if (after := os.stat(path)).st_size != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise ChangedFileError(f"{path} was written to while it was read")
    lines = sum(piece.lines for piece in ranges)
    ranges = [dataclasses.replace(piece, gzip=gzip) for piece in ranges]
    bom = head.startswith(BOM)
    head = head.removeprefix(BOM).split(b"\n", 1)[0][:_HEAD_BYTES]
    return FileScan(path, before.st_size, before.st_mtime_ns, digest.hexdigest(), lines, head, bom, tuple(ranges))


def is_gzip(path: str) -> bool:
    """By the first two bytes, not by the name: no text line begins with them. A `.gz` that lacks them is broken."""
    with open(path, "rb") as file:
        magic = file.read(2)
    if path.endswith(".gz") and magic != _GZIP_MAGIC:
        raise BrokenFileError(f"{path} is named .gz but is not a gzip file")
    return magic == _GZIP_MAGIC


def not_text(line: bytes, blank: bytes = b" \t\r") -> str:
    """Why a line is no text; empty if it is.

    Args:
        line: without its newline, and without the byte-order mark that a file may begin with.
        blank: a line of nothing but these bytes is blank.
    """
    if b"\0" in line:
        return "NUL byte"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    if BOM in line:
        return "byte-order mark inside the file"
    return "" if line.strip(blank) else "blank line"


def too_long(max_line_bytes: int) -> str:
    """The reason for a line over the limit."""
    return f"line longer than {max_line_bytes} bytes"


def blocks(piece: FileRange, max_line_bytes: int, head_bytes: int) -> Iterator[Block | LongLine]:
    """The lines of a range, in order, in blocks of some MB and at most `MAX_BLOCK_LINES` lines.

    Lines that do not fit a block and are longer than `max_line_bytes` come as `LongLine`.

    Raises:
        ChangedFileError: the bytes are not those that were scanned.
    """
    with open(piece.path, "rb") as file:
        if piece.gzip:
            chunks = inflate(file, piece.path)
        else:
            file.seek(piece.start)
            chunks = _raw_chunks(file, limit=piece.end - piece.start)
        yield from _blocks(_checked(chunks, piece), piece, max_line_bytes, head_bytes)


def inflate(file: BinaryIO, path: str, digest: Any = None) -> Iterator[bytes]:
    """A gzip file's content, all members, at most `CHUNK_BYTES` at a time whatever the ratio.

    Zero padding behind the last member is allowed, as gzip does; anything else there is damage.

    Raises:
        BrokenFileError: truncated inside a member, a wrong CRC or length, or bytes that are no gzip member.
    """
    held: list[bytes] = []
    size = 0
    for data in _pieces(file, path, digest):
        if size + len(data) > CHUNK_BYTES and held:
            yield b"".join(held)
            held, size = [], 0
        held.append(data)
        size += len(data)
    if held:
        yield b"".join(held)


def _pieces(file: BinaryIO, path: str, digest: Any) -> Iterator[bytes]:
    """Small pieces of the file, because zlib copies what is left of one at the end of every member."""
    engine = None  # within a member, its decompressor
    for pending in itertools.chain(_raw_chunks(file, digest, size=_PIECE_BYTES), [b""]):
        at_end = not pending
        while pending or at_end:
            if engine is None:
                pending = pending.lstrip(b"\0")
                if not pending:
                    break
                engine = zlib.decompressobj(_GZIP_WBITS)
            data, pending, ended = _inflate(engine, pending, path)
            if at_end and not data and not ended:
                raise BrokenFileError(f"{path} is truncated: its last gzip member is not complete")
            engine = None if ended else engine
            if data:
                yield data


def _inflate(engine: Any, pending: bytes, path: str) -> tuple[bytes, bytes, bool]:
    """At most a chunk of content, the input that is left, and whether the member ended."""
    try:
        data = engine.decompress(pending, CHUNK_BYTES)
    except zlib.error as error:
        raise BrokenFileError(f"{path} is a damaged gzip file: {error}") from error
    return data, engine.unused_data if engine.eof else engine.unconsumed_tail, engine.eof


def _raw_chunks(
    file: BinaryIO, digest: Any = None, limit: int | None = None, size: int = CHUNK_BYTES
) -> Iterator[bytes]:
    while chunk := file.read(size if limit is None else min(size, limit)):
        if digest is not None:
            digest.update(chunk)
        if limit is not None:
            limit -= len(chunk)
        yield chunk


def _cut(chunks: Iterator[bytes], path: str, range_bytes: int | None) -> tuple[list[FileRange], bytes]:
    """Ranges of whole lines, and the first bytes."""
    ranges: list[FileRange] = []
    head, start, position, first_line, lines, crc, last = b"", 0, 0, 0, 0, 0, b"\n"
    for chunk in chunks:
        head = head if position >= _HEAD_BYTES else (head + chunk)[: _HEAD_BYTES + len(BOM)]
        cut = chunk.rfind(b"\n") + 1 if range_bytes and position + len(chunk) - start >= range_bytes else 0
        if cut:
            done = chunk[:cut]
            lines += done.count(b"\n")
            end = position + cut
            ranges.append(FileRange(path, start, end, first_line, lines, zlib.crc32(done, crc), False))
            start, first_line, lines, crc = end, first_line + lines, 0, 0
        rest = chunk[cut:]
        lines, crc, last = lines + rest.count(b"\n"), zlib.crc32(rest, crc), chunk[-1:]
        position += len(chunk)
    if position > start:
        lines += last != b"\n"
        ranges.append(FileRange(path, start, position, first_line, lines, crc, False))
    return ranges, head


def _checked(chunks: Iterator[bytes], piece: FileRange) -> Iterator[bytes]:
    """Pass the chunks on; at the end, were they what was scanned?"""
    crc, length = 0, 0
    for chunk in chunks:
        crc, length = zlib.crc32(chunk, crc), length + len(chunk)
        yield chunk
    if crc != piece.crc32 or length != piece.end - piece.start:
        raise ChangedFileError(f"{piece.path} is no longer what it was when its checksum was taken")


def _blocks(
    chunks: Iterator[bytes], piece: FileRange, max_line_bytes: int, head_bytes: int
) -> Iterator[Block | LongLine]:
    carry, line, offset = b"", piece.first_line, piece.start
    head_bytes = min(head_bytes, max_line_bytes)
    skipped = 0  # bytes of a long line that were dropped; `carry` then holds its head
    for chunk in chunks:
        if skipped:
            cut = chunk.find(b"\n")
            if cut < 0:
                skipped += len(chunk)
                continue
            length = len(carry) + skipped + cut
            yield LongLine(line, offset, carry, length)
            line, offset, carry, skipped, chunk = line + 1, offset + length + 1, b"", 0, chunk[cut + 1 :]
        data = carry + chunk
        cut = data.rfind(b"\n") + 1
        for block in _split(data[:cut], line, offset):
            yield block
            line += block.data.count(b"\n")
        offset, carry = offset + cut, data[cut:]
        if len(carry) > max_line_bytes:
            carry, skipped = carry[:head_bytes], len(carry) - head_bytes
    if skipped:
        yield LongLine(line, offset, carry, len(carry) + skipped)
    elif carry:
        yield Block(carry + b"\n", line, offset)


def _split(data: bytes, line: int, offset: int) -> Iterator[Block]:
    """At most `MAX_BLOCK_LINES` lines a block, so that a file of newlines costs no more memory than one of rows."""
    if not data:
        return
    if data.count(b"\n") <= MAX_BLOCK_LINES:
        yield Block(data, line, offset)
        return
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    start = 0
    for first in range(0, len(ends), MAX_BLOCK_LINES):
        end = int(ends[min(first + MAX_BLOCK_LINES, len(ends)) - 1])
        yield Block(data[start:end], line + first, offset + start)
        start = end
