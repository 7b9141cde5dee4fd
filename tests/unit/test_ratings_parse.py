"""Lines of ratings: MovieLens's formats, and anything a file may hold; the block parser against the one-line parser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.ingest.ratings import RatingsFormat, RatingsSource, first_line
from headrace.ingest.ratings_parse import Format, Layout, Rating, layout_of, parse_block, parse_line

CSV, TSV, COLONS = Layout(), Layout("\t"), Layout("::")


@pytest.mark.parametrize(
    ("head", "columns", "layout", "header"),
    [
        (b"196\t242\t3\t881250949", "", TSV, False),
        (b"1::1193::5::978300760", "", COLONS, False),
        (b"userId,movieId,rating,timestamp\r", "", CSV, True),
        (b"A2SUAM1J3GNN3B,0000013714,5.0,1354060800", "", CSV, False),
        (b"0000013714,A2SUAM1J3GNN3B,5.0,1354060800", "item,user,rating,timestamp", Layout(user=1, item=0), False),
        (b"asin;n;reviewerID;overall", "user=reviewerID,item=asin,rating=overall", Layout(";", 4, 2, 0, 3, None), True),
        (b'"User-ID";"ISBN";"Book-Rating"', "", Layout(";", 3, 0, 1, 2, None), True),
        (b"u1,i1,77", "user,item,timestamp", Layout(",", 3, 0, 1, None, 2), False),
        (b"u1,i1,4", "", Layout(",", 3, 0, 1, 2, None), False),
    ],
)
def test_layouts(head: bytes, columns: str, layout: Layout, header: bool) -> None:
    assert layout_of(head, "auto", columns) == (layout, header)


@pytest.mark.parametrize(
    ("head", "columns", "says"),
    [
        (b"no delimiter here", "", "no tab, ::, comma or semicolon"),
        (b"movieId,title,genres", "", "no column for the user"),
        (b"userId,user_id,movieId,rating", "", "more than one column for the user"),
        (b"a,b,c,d", "user=x,item=b", "no column for the user"),
        (b"a,b,c,d", "user=a,item=b,rating=x", "no column for the rating"),
        (b"user,item,c,d", "user=user,item=item,rating=rating", "no column for the rating"),
        (b"a,b,c,d", "who=a", "is not FIELD=NAME"),
        (b"a,b", "", "2 fields"),
    ],
)
def test_layouts_that_are_refused(head: bytes, columns: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        layout_of(head, "auto", columns)


REASONS = [
    (b"1,2,3", "3 columns instead of 4"),
    (b"1,2,3,4,5", "5 columns instead of 4"),
    (b"", "blank line"),
    (b"  \r", "blank line"),
    (b",2,3,4", "user is empty"),
    (b"1, ,3,4", "item is empty"),
    (b"x" * 257 + b",2,3,4", "user is longer than 256 bytes"),
    (b"1,2,,4", "rating is not a number"),
    (b"1,2,0x3,4", "rating is not a number"),
    (b"1,2,1_0,4", "rating is not a number"),
    (b"1,2,nan,4", "rating is not finite"),
    (b"1,2,-Infinity,4", "rating is not finite"),
    (b"1,2,1e999,4", "rating is not finite"),
    (b"1,2,5.5,4", "rating is outside 0.5 to 5"),
    (b"1,2,3,4.0", "timestamp is not a whole number"),
    (b"1,2,3,9223372036854775808", "timestamp overflows 64 bits"),
    (b"1,2,3,\0", "NUL byte"),
    (b"\xff,2,3,4", "not UTF-8"),
    (b"1,\xef\xbb\xbf2,3,4", "byte-order mark inside the file"),
    (b'1,"2,3,4', "quotation marks do not pair within the line"),
]


def test_every_reason_and_its_place() -> None:
    fmt = Format(min_rating=0.5, max_rating=5.0, max_line_bytes=300)
    lines = [line for line, _ in REASONS] + [b"y" * 301]
    parsed = parse_block(b"".join(line + b"\n" + b"1,2,3,4\n" for line in lines), fmt)
    assert parsed.index.tolist() == list(range(1, 2 * len(lines), 2))
    found = [reject.reason for reject in parsed.rejects]
    assert found == [reason for _, reason in REASONS] + ["line longer than 300 bytes"]
    offset = 0
    for reject, line in zip(parsed.rejects, lines, strict=True):
        assert (reject.offset, reject.length, reject.raw) == (offset, len(line), line)
        offset += len(line) + 9


def test_accepted_values() -> None:
    lines = b'1,2,3.5,4\r\n" u,1 ",i2,+.5e1,-7\nu,i,4,\nb\xc3\xbc,\xe6\xb0\xb4,0,0\n'
    parsed = parse_block(lines, Format())
    assert parsed.rejects == []
    assert parsed.user.to_pylist() == ["1", "u,1", "u", "bü"]
    assert parsed.item.to_pylist() == ["2", "i2", "i", "水"]
    assert parsed.rating.to_pylist() == [3.5, 5.0, 4.0, 0.0]
    assert parsed.timestamp.to_pylist() == [4, -7, None, 0]
    late = parse_block(b"\xef\xbb\xbf1::2::3::-1500\n1:::2::3::4\n", Format(COLONS, milliseconds=True), first=True)
    assert late.user.to_pylist() == ["1", "1"] and late.item.to_pylist() == ["2", ":2"]
    assert late.timestamp.to_pylist() == [-2, 0]
    bare = parse_block(b"a\tb\n", Format(Layout("\t", 2, 0, 1, None, None)))
    assert bare.rating.to_pylist() == [1.0] and bare.timestamp.to_pylist() == [None]


CELL = st.one_of(
    st.sampled_from(
        ["1", "2.5", "-3", "+4", "1e3", "nan", "", " 5 ", '"6"', "7.", ".8", "9" * 20, "u1", "é", "0.1234567890123456"]
    ),
    st.text(alphabet='ab:,;\t "\r\0.0', max_size=6),
)
LINE = st.one_of(
    st.tuples(st.lists(CELL, min_size=3, max_size=5), st.sampled_from([",", "\t", "::", ":", ";"])).map(
        lambda parts: parts[1].join(parts[0]).encode()
    ),
    st.binary(max_size=12),
)


@given(st.lists(LINE, max_size=8), st.sampled_from([CSV, TSV, COLONS, Layout(";", 5, 4, 0, 2, None)]), st.booleans())
@settings(max_examples=300)
def test_block_and_line_agree_on_anything(lines: list[bytes], layout: Layout, first: bool) -> None:
    fmt = Format(layout, min_rating=-100, max_line_bytes=40, milliseconds=first)
    lines = [line.replace(b"\n", b"") for line in lines]
    expected = [parse_line(line, fmt, first and at == 0) for at, line in enumerate(lines)]
    parsed = parse_block(b"".join(line + b"\n" for line in lines), fmt, first)
    assert {reject.index: reject.reason for reject in parsed.rejects} == {
        at: answer for at, answer in enumerate(expected) if isinstance(answer, str)
    }
    columns = (each.to_pylist() for each in (parsed.user, parsed.item, parsed.rating, parsed.timestamp))
    assert dict(zip(parsed.index.tolist(), map(Rating, *columns), strict=True)) == {
        at: answer for at, answer in enumerate(expected) if not isinstance(answer, str)
    }
    assert (np.diff(parsed.index) > 0).all()


def test_a_format_comes_back_from_the_ledger() -> None:
    fmt = RatingsFormat(COLONS, "ml-1m", 1.0, 5.0, False, 999, 99)
    assert RatingsSource(fmt).restore({"lines": 3, "header": False, **fmt.detail()}) == fmt


def test_first_line_of_files_that_are_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("heads")
    (folder / "bad.gz").write_bytes(b"\x1f\x8b\x08broken")
    (folder / "marked").write_bytes(b"\xef\xbb\xbfa,b,c\nd")
    assert [first_line(str(folder / name)) for name in ("bad.gz", "marked", "absent")] == [b"", b"a,b,c", b""]
