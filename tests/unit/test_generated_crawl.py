"""The generated crawl without Spark: what is planted is there, measured by other code than that which planted it."""

from __future__ import annotations

import gzip
import io
import itertools
import re
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from warcio.archiveiterator import ArchiveIterator

from headrace.errors import UserError
from headrace.ingest import generated_crawl as files
from headrace.ingest.commoncrawl_index import Capture, IndexLines, Match, captures
from headrace.ingest.generated_crawl_pages import Mix, page, shingles
from headrace.ingest.generated_crawl_records import BAD_KINDS
from headrace.ingest.generated_crawl_spam import SPAM
from headrace.pipelines.generate_crawl import Config

PAGES, FILES = 240, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of each format, with everything planted."""
    dest = tmp_path_factory.mktemp("crawl")
    generation = config(dest).generation()
    files.prepare(generation, dest, False)
    assert [files.write_file(generation, n, dest) for n in range(FILES)] == [80] * FILES
    files.finish(generation, dest)
    return dest


def config(dest: Path, **settings: Any) -> Config:
    options = {"pages": PAGES, "pages_per_file": PAGES // FILES, "formats": "warc,wet,wat", "spam": 0.2, "bad": 0.15}
    return Config(dest=str(dest), **(options | {"hostile": 0.05, "bomb_bytes": 3 << 20} | settings))


def truth(dest: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((dest / "truth").iterdir()) for row in pq.read_table(path).to_pylist()]


def records(data: bytes) -> list[tuple[str, str, bytes]]:
    """Type, id and block of the records of a WARC file, read by warcio."""
    found = ArchiveIterator(io.BytesIO(data), no_record_parse=True)
    return [
        (each.rec_type, each.rec_headers.get_header("WARC-Record-ID"), each.content_stream().read()) for each in found
    ]


def test_intact_members_are_what_the_truth_says(made: Path) -> None:
    rows = truth(made)
    for name, of_file in itertools.groupby(rows, key=lambda row: row["file"]):
        data = (made / name).read_bytes()
        end = 0
        for row in of_file:
            assert row["offset"] == end
            end += row["length"]
            if row["bad"] is None:
                ((kind, own, block),) = records(data[row["offset"] : end])
                assert (kind, own) == (row["type"], row["record_id"])
                if kind == "conversion":
                    assert block.decode() == row["text"]
        assert end == len(data)


def test_bad_members_are_bad(made: Path) -> None:
    seen = set()
    for row in truth(made):
        if row["bad"] is None:
            continue
        seen.add(row["bad"])
        assert row["fate"] == "quarantined"
        member = (made / row["file"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
        try:
            content = gzip.decompress(member)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            assert row["bad"] in ("truncated_member", "flipped_crc", "bad_deflate")
            continue
        head, block = content.split(b"\r\n\r\n", 1)
        stated = int(re.findall(rb"Content-Length: (\d+)", head)[0])
        assert {
            "wrong_length": stated == len(block) - 4 + 1000,
            "no_version": not head.startswith(b"WARC/"),
            "bad_digest": head.count(b"sha1:3I42H3S6NNFQ2MSVX7XZKYAYSCX5QBYJ") == 2,
            "bomb": stated > 3 << 20 and len(member) < 20_000,
        }[row["bad"]]
    assert seen == {*BAD_KINDS, "bomb"}


def test_index_lines_lead_to_their_records(made: Path) -> None:
    found = []
    for path in sorted(made.glob("cc-index/collections/*/indexes/*.gz")):
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
        assert lines == sorted(lines)
        found += [IndexLines().parse(line) for line in lines]
    responses = [row for row in truth(made) if row["type"] == "response"]
    assert {(c.uri, c.filename, c.offset, c.length) for c in found if isinstance(c, Capture)} == {
        (row["uri"], row["file"], row["offset"], row["length"]) for row in responses
    }
    assert len(found) == PAGES
    german = [row["uri"] for row in responses if row["language"] == "de" and row["kind"] != "other"]
    lines = itertools.chain.from_iterable(
        gzip.decompress(path.read_bytes()).splitlines() for path in made.glob("cc-index/collections/*/indexes/*.gz")
    )
    wanted = list(captures(lines, Match(languages=("deu",), mimes=("text/html",))))
    assert sorted(each.uri for each in wanted if isinstance(each, Capture)) == sorted(german)


def test_duplicates_are_as_similar_as_the_truth_says(made: Path) -> None:
    by_page = {row["page"]: row for row in truth(made) if row["type"] == "conversion"}
    kinds = {row["kind"] for row in by_page.values()}
    assert kinds == {"page", "spam", "exact_duplicate", "near_duplicate"}
    found = []
    for row in by_page.values():
        original = by_page[row["original"]]
        assert original["original"] == row["original"] <= row["page"]
        if row["kind"] == "exact_duplicate":
            assert row["text"] == original["text"]
        if row["kind"] == "near_duplicate":
            first, second = grams(row["text"]), grams(original["text"])
            assert row["jaccard"] == pytest.approx(len(first & second) / len(first | second))
            found.append(min(abs(row["jaccard"] - target) for target in Mix().jaccards))
    assert len(found) > 15
    assert max(found) < 0.03


def grams(text: str) -> set[str]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}


def test_unrelated_pages_are_not_similar() -> None:
    texts = [shingles(page(Mix(near=0, exact=0, languages=("en",)), n).text) for n in range(80)]
    assert max(len(a & b) / len(a | b) for a, b in itertools.combinations(texts, 2)) < 0.1


def test_every_rule_is_broken_by_its_pages() -> None:
    """The measures of some rules, written again."""
    pages = [page(Mix(spam=1, exact=0, near=0, other=0), n) for n in range(2 * len(SPAM))]
    assert sorted(each.rule or "" for each in pages) == sorted([*SPAM, *SPAM])
    for each in pages:
        words, lines = each.text.split(), each.text.split("\n")
        measure = {
            "gopher_too_few_words": len(words) < 50,
            "gopher_long_words": sum(map(len, words)) / len(words) > 10,
            "gopher_hash_signs": each.text.count("#") / len(words) > 0.1,
            "gopher_bullets": sum(line.startswith("•") for line in lines) / len(lines) > 0.9,
            "gopher_ellipses": sum(line.endswith("...") for line in lines) / len(lines) > 0.3,
            "gopher_few_alphabetic": sum(any(c.isalpha() for c in w) for w in words) / len(words) < 0.8,
            "gopher_few_stop_words": len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words)) < 2,
            "gopher_repeated_lines": 1 - len(set(lines)) / len(lines) > 0.3,
            "c4_curly_bracket": "{" in each.text,
            "c4_lorem_ipsum": "lorem ipsum" in each.text.lower(),
            "fineweb_no_punctuation": sum(line.endswith(".") for line in lines) / len(lines) < 0.12,
            "fineweb_short_lines": sum(len(line) <= 30 for line in lines) / len(lines) > 0.67,
            "fineweb_many_line_breaks": each.text.count("\n") / len(words) > 0.3,
            "fineweb_duplicated_characters": len(set(lines)) < len(lines),
        }
        assert measure.get(each.rule or "", True), each.rule


def test_a_later_crawl_repeats_pages_of_an_earlier_one(tmp_path: Path) -> None:
    mix = config(tmp_path).generation().mix
    later = [page(mix, n) for n in range(PAGES, 2 * PAGES)]
    assert any(each.original < PAGES for each in later)
    assert [page(mix, n) for n in range(5)] == [page(mix, n) for n in range(5)]


def test_languages_and_addresses(made: Path) -> None:
    rows = [row for row in truth(made) if row["type"] == "conversion"]
    assert {row["language"] for row in rows} == set(Mix().languages)
    assert sum(row["emails"] for row in rows) >= 5
    assert all(row["public_ips"] == row["text"].count(" 8.8.") for row in rows)


def test_senseless_settings_are_refused(tmp_path: Path) -> None:
    for settings, message in (
        ({"spam": 0.9}, "add up to more than 1"),
        ({"languages": "tlh"}, "known are en"),
        ({"formats": "arc"}, "give some of warc"),
        ({"jaccards": "0.8,x"}, "are not numbers"),
        ({"jaccards": "0.1"}, "0.3 to below 1"),
        ({"crawl": "../x"}, "no crawl's name"),
        ({"pages": 0}, "at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            config(tmp_path, **{"exact": 0.05, "near": 0.1} | settings).generation()
