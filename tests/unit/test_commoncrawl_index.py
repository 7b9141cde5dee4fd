"""Lines of URL indexes, real in form and hostile; the account that a census asks for."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.ingest.commoncrawl_index import Capture, IndexLines, Match, captures, index_line, urlkey
from headrace.ingest.commoncrawl_rows import Account, Census, Count, Reading, types_of
from headrace.ingest.commoncrawl_singles import SELECTION_RECORDS, by_place, selections

CDXJ = (
    b'org,wikipedia,an)/wiki/escopete 20240518015810 {"url": "https://an.wikipedia.org/wiki/Escopete", '
    b'"mime": "text/html", "mime-detected": "text/html", "status": "200", "digest": '
    b'"RY7PLBUFQNI2FFV5FTUQK72W6SNPXLQU", "length": "17423", "offset": "80610731", "filename": '
    b'"crawl-data/CC-MAIN-2024-22/segments/1/warc/CC-MAIN-1.warc.gz", "charset": "UTF-8", "languages": "spa,cat"}'
)
CDX = b"org,wikipedia,an)/ 20240518015810 http://an.wikipedia.org/ text/html 200 ABC - - 500 1000 a/b.warc.gz"


def parsed(line: bytes, *before: bytes) -> Capture | str | None:
    parser = IndexLines()
    for each in before:
        parser.parse(each)
    return parser.parse(line)


def test_a_line_of_common_crawl() -> None:
    found = parsed(CDXJ)
    assert isinstance(found, Capture)
    assert (found.uri, found.offset, found.length) == ("https://an.wikipedia.org/wiki/Escopete", 80610731, 17423)
    assert (found.status, found.mime, found.languages) == (200, "text/html", "spa,cat")
    assert index_line(found).encode().rstrip() == CDXJ


def test_columns_by_legend_and_by_number() -> None:
    found = parsed(CDX)
    assert isinstance(found, Capture)
    assert (found.uri, found.length, found.offset, found.filename) == (
        "http://an.wikipedia.org/", 500, 1000, "a/b.warc.gz"
    )  # fmt: skip
    nine = parsed(b"k 2024 http://x/ text/html - D - 7 f.warc", b" CDX N b a m s k r V g\n")
    assert isinstance(nine, Capture)
    assert (nine.status, nine.length, nine.offset) == (None, None, 7)
    other = parsed(b"f.warc 7 http://x/ 2024", b" CDX g V a b")
    assert isinstance(other, Capture) and other.filename == "f.warc"


@pytest.mark.parametrize(
    "line",
    [
        b"not a line",
        b"k 2024 {}",
        b'k 2024 {"url": "http://x", "filename": "f", "offset": "-1"}',
        b'k 2024 {"url": "http://x", "filename": "f", "offset": "99999999999999999999"}',
        b'k 2024 {"url": "http://x", "filename": "f", "offset": true}',
        b'k 2024 {"url": ["http://x"], "filename": "f", "offset": "1"}',
        b'k 2024 {"url": "http://x", "filename": "", "offset": "1"}',
        b'k 2024 {"url": "http://x", "filename": "f", "offset": "1", "length": "0"}',
        b'k 2024 {"url": "http://x", "filename": "f", "offset": "1", "length": "1073741825"}',
        b"k 2024 " + b'{"a":' * 10_000,
        b"k 2024 [1]",
        b"x" * 70_000,
        CDX + b" more",
    ],
)
def test_lines_that_are_none_say_why(line: bytes) -> None:
    found = parsed(line)
    assert isinstance(found, str) and found.startswith("index line")


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: b'k 2024 {"url": "http://x' + tail))
def test_no_line_raises(line: bytes) -> None:
    found = parsed(line)
    assert found is None or isinstance(found, str | Capture)


@given(st.text(max_size=100))
def test_no_address_raises(uri: str) -> None:
    key = urlkey(uri)
    assert " " not in key and "\n" not in key
    Match(domains=("x.example",), prefixes=("x.example/",)).accepts(Capture(uri, "", "f", 0, 1))


def test_a_lone_surrogate_makes_a_bad_line() -> None:
    fields = '{"url": "http://a.org/\\ud800", "filename": "a.warc.gz", "offset": "0", "length": "9"}'
    assert parsed(b"org,a)/ 20240101000000 " + fields.encode()) == "index line with characters that are none"


def test_keys_of_addresses() -> None:
    assert urlkey("https://www2.Sub.Example.COM:8080/A/B/?b=2&a=1#x") == "com,example,sub)/a/b?a=1&b=2"
    assert urlkey("http://example.com") == "com,example)/"
    assert urlkey("http://192.0.2.1/x y") == "192.0.2.1)/x%20y"


@pytest.mark.parametrize(
    ("match", "wanted"),
    [
        ({}, True),
        ({"domains": ("wikipedia.org",)}, True),
        ({"domains": ("pedia.org",)}, False),
        ({"prefixes": ("AN.wikipedia.org/wiki/",)}, True),
        ({"prefixes": ("https://an.wikipedia.org/WIKI/",)}, False),
        ({"mimes": ("text/*",)}, True),
        ({"mimes": ("application/pdf",)}, False),
        ({"statuses": (200, 304)}, True),
        ({"statuses": (404,)}, False),
        ({"languages": ("cat",)}, True),
        ({"languages": ("spa",), "statuses": (404,)}, False),
    ],
)
def test_what_is_wanted(match: dict[str, Any], wanted: bool) -> None:
    assert len(list(captures([CDXJ], Match(**match)))) == wanted


def test_selections_are_bounded_named_and_checked() -> None:
    many = [Capture(f"http://x/{n}", "2024", "a/b.warc.gz", n * 10, 10) for n in range(SELECTION_RECORDS + 1)]
    first, second = selections(many, "/data")
    assert len(first.places) == SELECTION_RECORDS and len(second.places) == 1
    assert [place.at for place in first.places[:3]] == [0, 10, 20]
    assert first.places[0].file == "/data/a/b.warc.gz" and first.urls[0] is None
    assert first.name == next(selections(many[:SELECTION_RECORDS], "/data")).name != second.name
    for bad in ("../b", "/etc/passwd"):
        with pytest.raises(UserError):
            list(selections([Capture("http://x", "2024", bad, 0, 10)], "/data"))
    with pytest.raises(UserError, match="no length"):
        list(selections([Capture("http://x", "2024", "f", 0, None)], "/data"))


def test_lines_that_disagree_on_a_place_are_told_and_decided_in_any_order() -> None:
    def line(uri: str, offset: int, length: int | None, mime: str = "") -> Capture:
        return Capture(uri, "2024", "f", offset, length, mime=mime)

    agreed = [line("http://a", 0, 10, "text/html"), line("http://a", 0, 10, "text/plain"), line("http://a", 0, None)]
    addresses = [line("http://liar", 10, 10), line("http://b", 10, 10)]
    lengths = [line("http://c", 20, 90), line("http://c", 20, 10), line("http://c", 20, 9)]
    lines = [*agreed, *addresses, *lengths]
    for seed in range(200):
        random.Random(seed).shuffle(lines)
        taken, disputed = by_place(lines)
        assert taken == (agreed[0], addresses[1], lengths[2]) and disputed == taken[1:]
    assert by_place([]) == ((), ())


def test_the_account_of_a_census() -> None:
    census = Census({"response": Count(10, 1000, 2, 150), "request": Count(10, 100, 1, 10)}, Count(3, 30))
    assert (census.rows, census.bytes) == (23, 1130)
    assert census.account(("response",), "quarantine") == Account(8, 850, 5, 180, 10, 100)
    assert census.account(("response",), "keep") == Account(10, 1000, 3, 30, 10, 100)
    assert census.account((), "quarantine") == Account(17, 940, 6, 190, 0, 0)


def test_types_by_what_a_file_is_for() -> None:
    def of(*types: str, asked: tuple[str, ...] = ()) -> tuple[str, ...]:
        return types_of(Census({name: Count(1, 1) for name in types}), asked)

    usual = ("response", "resource", "conversion")
    assert of("warcinfo", "request", "response", "metadata") == usual
    assert of("warcinfo", "conversion") == usual
    assert of("warcinfo", "metadata") == ("metadata",)
    assert of("warcinfo", "revisit") == ()
    assert of("response", asked=("request",)) == ("request",)
    assert of("response", asked=("all",)) == ()


def test_readings_come_back_from_the_ledger() -> None:
    reading = Reading(types=("response",), bad_digest="keep", max_ratio=7)
    assert Reading.of(json.loads(json.dumps({**reading.detail(), "origin": "x"}))) == reading
    assert not reading.same_census(Reading())
