"""The block parser equals the line parser, line by line, on real-looking and on hostile lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from criteo_lines import good_lines, hostile, line
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.ingest import textfiles
from headrace.ingest.criteo_parse import Format, looks_like_header, parse_block, parse_line

LABELLED, UNLABELLED = Format(), Format(labelled=False)
SMALL = Format(max_line_bytes=120, raw_bytes=10)


def of_block(lines: list[bytes], fmt: Format, first: bool = True) -> list[list[int | None] | str]:
    """The block parser's answer in the line parser's form."""
    parsed = parse_block(b"".join(each + b"\n" for each in lines), fmt, first)
    answer: list[list[int | None] | str | None] = [None] * len(lines)
    for column, at in enumerate(parsed.index.tolist()):
        values, missing = parsed.values[:, column].tolist(), parsed.missing[:, column].tolist()
        answer[at] = [None if gone else value for value, gone in zip(values, missing, strict=True)]
    offset = 0
    starts = [offset := offset + len(each) + 1 for each in [b"", *lines[:-1]]]
    for reject in parsed.rejects:
        assert answer[reject.index] is None, "a line is both accepted and refused"
        assert reject.offset == starts[reject.index] - 1
        assert reject.length == len(lines[reject.index])
        assert reject.raw == lines[reject.index][: fmt.raw_bytes]
        answer[reject.index] = reject.reason
    assert all(each is not None for each in answer), "a line without an account"
    return answer  # type: ignore[return-value]


@settings(max_examples=150, deadline=None)
@given(st.lists(hostile, min_size=1, max_size=12), st.sampled_from([LABELLED, UNLABELLED, SMALL]), st.booleans())
def test_block_equals_line_by_line(lines: list[bytes], fmt: Format, first: bool) -> None:
    expected = [parse_line(raw, fmt, first and at == 0) for at, raw in enumerate(lines)]
    assert of_block(lines, fmt, first) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(good_lines, min_size=1, max_size=8))
def test_good_lines_keep_their_values(lines: list[bytes]) -> None:
    cells = [raw.decode().split("\t") for raw in lines]
    expected = [[int(cell, 16 if at > 13 else 10) if cell else None for at, cell in enumerate(row)] for row in cells]
    assert of_block(lines, LABELLED) == expected
    assert of_block([raw + b"\r" for raw in lines], LABELLED) == expected


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "blank line"),
        (b"  \r", "blank line"),
        (b"1\t2", "2 columns instead of 40"),
        (line("2"), "label is not 0 or 1"),
        (line(""), "label is not 0 or 1"),
        (line(ints=("1.5", *("",) * 12)), "i1 is not an integer"),
        (line(ints=("", "9223372036854775808", *("",) * 11)), "i2 overflows 64 bits"),
        (line(ints=("", "1" * 5000, *("",) * 11)), "i2 overflows 64 bits"),
        (line(cats=("xyz", *("",) * 25)), "c1 is not 1 to 8 hex digits"),
        (line(cats=(*("",) * 25, "123456789")), "c26 is not 1 to 8 hex digits"),
        (line(cats=(*("",) * 25, '"68fd1e64"')), "stray quote"),
        (line() + b"\0", "NUL byte"),
        (line() + b"\xff", "not UTF-8"),
        (line() + b"\xef\xbb\xbf", "byte-order mark inside the file"),
        (b"1" * 2_000_000, "line longer than 1048576 bytes"),
    ],
)
def test_every_refusal_has_its_reason(raw: bytes, reason: str) -> None:
    assert parse_line(raw, LABELLED) == reason
    assert of_block([line(), raw, line()], LABELLED)[1] == reason


def test_byte_order_mark_is_dropped_at_the_start_of_a_file_only() -> None:
    marked = b"\xef\xbb\xbf" + line()
    assert of_block([marked, line()], LABELLED, first=True) == [[1, *[None] * 39]] * 2
    assert of_block([marked], LABELLED, first=False) == ["byte-order mark inside the file"]


def test_headers_are_told_from_rows() -> None:
    names = ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    assert looks_like_header("\t".join(names).encode())
    assert not looks_like_header(line(cats=("abcdef12",) * 26))
    assert not looks_like_header(b"")
    assert not looks_like_header(line(ints=("abcdef12",) * 13))


def read_back(path: Path, range_bytes: int, max_line: int = 1 << 20) -> list[tuple[int, int, bytes, int]]:
    """(line, offset, first 16 bytes, length) of every line, through scan and blocks."""
    found = []
    for piece in textfiles.scan(str(path), range_bytes).ranges:
        for block in textfiles.blocks(piece, max_line, 16):
            if isinstance(block, textfiles.LongLine):
                found.append((block.line, block.offset, block.head, block.length))
                continue
            offset = block.offset
            for at, raw in enumerate(block.data.split(b"\n")[:-1]):
                found.append((block.first_line + at, offset, raw[:16], len(raw)))
                offset += len(raw) + 1
    return found


def by_hand(content: bytes) -> list[tuple[int, int, bytes, int]]:
    lines = content.split(b"\n")
    lines = lines[:-1] if lines[-1] == b"" else lines
    found, offset = [], 0
    for at, raw in enumerate(lines):
        found.append((at, offset, raw[:16], len(raw)))
        offset += len(raw) + 1
    return found


@settings(max_examples=80, deadline=None)
@given(
    content=st.lists(st.sampled_from([b"a", b"bc\n", b"\n", b"d" * 70, b"\r\n", b"e" * 23 + b"\n"])).map(b"".join),
    range_bytes=st.integers(1, 200),
    chunk=st.integers(1, 90),
    compressed=st.booleans(),
)
def test_lines_and_offsets_survive_any_cut(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, range_bytes: int, chunk: int, compressed: bool
) -> None:
    path = tmp_path_factory.mktemp("cut") / "file"
    half = len(content) // 2
    path.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]) if compressed else content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfiles, "CHUNK_BYTES", chunk)
        patch.setattr(textfiles, "MAX_BLOCK_LINES", 3)
        assert read_back(path, range_bytes, max_line=40) == by_hand(content)
        assert textfiles.scan(str(path), range_bytes).lines == len(by_hand(content))


def test_gzip_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"one\ntwo\n" * 50) + gzip.compress(b"three\n")
    border = len(gzip.compress(b"one\ntwo\n" * 50))
    path = tmp_path / "day_0.gz"
    for length in range(1, len(whole)):
        if length == border:  # two whole members and one whole member look alike: this cut cannot be seen
            continue
        path.write_bytes(whole[:length])
        with pytest.raises(textfiles.BrokenFileError, match="day_0.gz"):
            textfiles.scan(str(path), 1 << 20)
    path.write_bytes(whole + b"\0" * 100)
    assert textfiles.scan(str(path), 1 << 20).lines == 101


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(bytes(range(256)) * 40))
    content[-6] ^= 1  # in the CRC
    path = tmp_path / "day_0.gz"
    path.write_bytes(content)
    with pytest.raises(textfiles.BrokenFileError, match="damaged"):
        textfiles.scan(str(path), 1 << 20)
    path.write_bytes(b"plain text")
    with pytest.raises(textfiles.BrokenFileError, match="not a gzip"):
        textfiles.scan(str(path), 1 << 20)


def test_gzip_bomb_is_read_in_small_pieces(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\0" * (64 << 20)))
    with open(path, "rb") as file:
        assert max(map(len, textfiles.inflate(file, str(path)))) <= textfiles.CHUNK_BYTES
    (piece,) = textfiles.scan(str(path), 1 << 20).ranges
    (long,) = textfiles.blocks(piece, 1 << 20, 100)
    assert long == textfiles.LongLine(0, 0, b"\0" * 100, 64 << 20)


def test_very_many_tiny_gzip_members_are_read(tmp_path: Path) -> None:
    """Copying the rest of a chunk at the end of every member took half a minute for 4 MB of such."""
    path = tmp_path / "tiny.gz"
    path.write_bytes(gzip.compress(b"a\n") * 20_000)
    assert textfiles.scan(str(path), 1 << 20).lines == 20_000


def test_a_file_changed_after_its_scan_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "day_0"
    path.write_bytes(b"1\n2\n3\n")
    (piece,) = textfiles.scan(str(path), 1 << 20).ranges
    path.write_bytes(b"1\n2\n4\n")
    with pytest.raises(textfiles.ChangedFileError, match="day_0"):
        list(textfiles.blocks(piece, 100, 100))


def test_golden_lines_are_as_kept() -> None:
    """The same file is read by the JVM's LineFormatSuite."""
    golden = json.loads((Path(__file__).parents[1] / "golden/criteo_lines.json").read_text())["lines"]
    for each in golden:
        fmt = Format(each["labelled"], 400, 64)
        assert parse_line(bytes.fromhex(each["line"]), fmt, each["first"]) == (each["values"] or each["reason"])
