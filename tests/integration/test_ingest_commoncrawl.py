"""Crawl files into the lake: every record is in bronze, in quarantine or left out, once, and every byte is counted."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from crawl_server import Server, serving
from integration.test_forget_text import published

from headrace.errors import UserError
from headrace.ingest import commoncrawl, commoncrawl_rows, generated_crawl
from headrace.ingest.commoncrawl_index import Capture, index_line
from headrace.ingest.commoncrawl_paths import safe_name
from headrace.pipelines import generate_crawl, ingest_commoncrawl, quarantine, rows
from headrace.pipelines.ingest_commoncrawl import FetchConfig, MatchConfig
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
CRAWL = "CC-MAIN-2099-01"


def ingest(spark: SparkSession, lake: Path, **settings: Any) -> Report:
    out = settings.pop("out", None)
    report = Report("ingest-commoncrawl", progress="none" if out is None else "auto", out=out or io.StringIO())
    fetch = FetchConfig(**({"requests_per_second": 0.0, "backoff_s": 0.01} | settings.pop("fetch", {})))
    return ingest_commoncrawl.run(spark, ingest_commoncrawl.Config(lake=str(lake), fetch=fetch, **settings), report)


def table(lake: Path, name: str) -> pl.DataFrame:
    return pl.read_delta(str(lake / name / "commoncrawl"))


def account(report: Report) -> tuple[int, int, int]:
    names = ("rows_read", "rows_committed", "rows_quarantined")
    read, committed, quarantined = (report.results[name] for name in names)
    return read, committed, quarantined


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of each format, with damaged records and bombs, made without Spark."""
    dest = tmp_path_factory.mktemp("crawl")
    options: dict[str, Any] = {"pages": 80, "pages_per_file": 40, "formats": "warc,wet,wat", "bad": 0.25}
    made = generate_crawl.Config(dest=str(dest), hostile=0.1, bomb_bytes=80 << 20, **options).generation()
    generated_crawl.prepare(made, dest, False)
    for file in range(made.files):
        generated_crawl.write_file(made, file, dest)
    generated_crawl.finish(made, dest)
    return dest


@pytest.fixture(scope="module")
def web(crawl: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, serving(crawl) as server:
        patch.setenv("NO_PROXY", "*")
        yield server


@pytest.fixture(scope="module")
def ingested(
    spark: SparkSession, no_quality_reports: None, crawl: Path, web: Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Report]:
    """A lake with all formats: WARC from the web, which fails as it can, WET and WAT from where they lie."""
    lake = tmp_path_factory.mktemp("ingested")
    lists = [f"{crawl}/crawl-data/{CRAWL}/{form}.paths.gz" for form in ("wet", "wat")]
    web.faults[f"crawl-data/{CRAWL}/warc.paths.gz"] = ["503 0"]
    web.faults[f"crawl-data/{CRAWL}/segments/0/warc/{CRAWL}-00000.warc.gz"] = ["cut 5000", "429 0", "plain"]
    source = ",".join([f"{web.url}/crawl-data/{CRAWL}/warc.paths.gz", *lists])
    return lake, ingest(spark, lake, source=source, fetch={"remove": True})


@pytest.fixture(scope="module")
def expected(crawl: Path, web: Server) -> pl.DataFrame:
    """The truth on the records that carry a page, files as the tables call them."""
    found = pl.concat([pl.from_arrow(pq.read_table(path)) for path in sorted((crawl / "truth").iterdir())])
    base = pl.when(pl.col("format") == "warc").then(pl.lit(f"{web.url}/")).otherwise(pl.lit(f"{crawl}/"))
    return found.filter(pl.col("page").is_not_null()).with_columns(file=base + pl.col("file"))


def test_every_planted_record_is_where_it_belongs(ingested: tuple[Path, Report], expected: pl.DataFrame) -> None:
    lake, report = ingested
    bronze, refused = table(lake, "bronze"), table(lake, "quarantine")
    place = ["file", "offset", "length", "type", "record_id"]
    good, bad = expected.filter(pl.col("bad").is_null()), expected.filter(pl.col("bad").is_not_null())
    found = bronze.select(*place, uri="target_uri").sort(place)
    assert found.rows() == good.select(*place, "uri").sort(place).rows()
    assert refused.select("file", "offset", "length").sort("file", "offset").rows() == (
        bad.select("file", "offset", "length").sort("file", "offset").rows()
    )
    assert account(report) == (len(good) + len(bad), len(good), len(bad))
    assert bronze["key"].n_unique() == len(good)
    assert set(bronze["crawl"]) == {CRAWL}
    assert not any((lake / "landing/commoncrawl").glob("*.warc.gz"))


def test_payloads_are_the_pages(ingested: tuple[Path, Report], expected: pl.DataFrame) -> None:
    bronze = table(ingested[0], "bronze")
    texts = dict(expected.filter(pl.col("type") == "conversion").select("record_id", "text").rows())
    wet = bronze.filter(pl.col("type") == "conversion").select("record_id", "payload")
    assert all(payload.decode() == texts[own] for own, payload in wet.rows())
    responses = bronze.filter(pl.col("type") == "response")
    assert set(responses["http_status"]) == {200}
    assert responses["digest_ok"].all()
    assert all(payload.startswith((b"<!DOCTYPE", b"{")) for payload in responses["payload"])
    first = responses.row(0, named=True)
    headers = dict(zip(first["http_header_names"], first["http_header_values"], strict=True))
    assert headers["Server"] == "made" and int(headers["Content-Length"]) == first["payload_length"]
    assert "WARC-Target-URI" in first["warc_header_names"]


def test_payloads_are_not_compared_when_they_are_written(ingested: tuple[Path, Report]) -> None:
    files = list((ingested[0] / "bronze" / "commoncrawl").glob("*.parquet"))
    assert files
    for file in files:
        group = pq.ParquetFile(file).metadata.row_group(0)
        columns = {(one := group.column(i)).path_in_schema: one for i in range(group.num_columns)}
        for name in ("payload", "body"):
            assert "DICTIONARY" not in str(columns[name].encodings) and not columns[name].is_stats_set
        assert columns["crawl"].is_stats_set and "DICTIONARY" in str(columns["crawl"].encodings)


def test_what_was_refused_is_kept_and_told(
    spark: SparkSession, ingested: tuple[Path, Report], expected: pl.DataFrame, web: Server, crawl: Path
) -> None:
    lake, _ = ingested
    for row in table(lake, "quarantine").to_dicts():
        content = (crawl / row["file"].removeprefix(f"{web.url}/")).read_bytes()
        assert content[row["offset"] : row["offset"] + row["length"]].startswith(row["raw"])
        assert row["raw_length"] == row["length"]
    said = io.StringIO()
    config = quarantine.Config(lake=str(lake), source="commoncrawl", examples=1)
    told = quarantine.run(spark, config, Report("quarantine", out=said)).results
    bad = expected.filter(pl.col("bad").is_not_null())
    assert told["rows_quarantined"] == len(bad)
    spoilt = bad.filter(pl.col("bad") == "bad_digest")
    assert told["reasons"][commoncrawl_rows.DIGEST_REASON] == len(spoilt)
    name = f"{CRAWL}-00001.warc.gz"
    found = rows.run(spark, rows.Config(lake=str(lake), file=name, source="commoncrawl"), Report("rows", out=said))
    of_file = expected.filter(pl.col("file").str.ends_with(name))
    assert found.results["rows_read"] == len(of_file) == 40
    assert found.results["rows_now"] == len(of_file.filter(pl.col("bad").is_null()))
    assert "81 records of types that were not asked for are left out" in said.getvalue()


def test_what_is_known_is_not_fetched_again(spark: SparkSession, ingested: tuple[Path, Report], web: Server) -> None:
    before = len(web.requests)
    left = (
        ingested[0]
        / "landing/commoncrawl"
        / safe_name(f"{web.url}/crawl-data/{CRAWL}/segments/0/warc/{CRAWL}-00000.warc.gz")
    )
    left.write_bytes(b"of a run that was killed when its batch was closed")
    again = ingest(spark, ingested[0], source=f"{web.url}/crawl-data/{CRAWL}/warc.paths.gz")
    assert account(again) == (0, 0, 0) and again.results["files_known"] == 2
    assert len(web.requests) == before and left.exists()
    ingest(spark, ingested[0], source=f"{web.url}/crawl-data/{CRAWL}/warc.paths.gz", fetch={"remove": True})
    assert len(web.requests) == before and not left.exists()


def test_single_records_by_the_url_index(
    spark: SparkSession, ingested: tuple[Path, Report], expected: pl.DataFrame, web: Server, crawl: Path, tmp_path: Path
) -> None:
    """German pages by their index lines, local and by ranges; a line that lies about the address is found out."""
    lake, _ = ingested
    index = crawl / f"cc-index/collections/{CRAWL}/indexes/cdx-00000.gz"
    content = gzip.decompress(index.read_bytes()) + b"not a line\n"
    lines = [line for line in content.splitlines() if b'"languages": "rus"' in line]
    lie = json.loads(lines[0].split(b" ", 2)[2])
    liar = Capture("https://liar.example/x", "20240101000000", lie["filename"], int(lie["offset"]), int(lie["length"]))
    wanted = [json.loads(line.split(b" ", 2)[2]) for line in lines[1:]]
    lying = tmp_path / "cdx-00000.gz"
    kept = [line for line in content.splitlines() if line != lines[0]]
    lying.write_bytes(gzip.compress(b"\n".join([*kept, index_line(liar).encode()])))
    common: dict[str, Any] = {"index": str(lying), "types": "all", "crawl": "picked", "base": web.url}
    report = ingest(spark, lake, match=MatchConfig(languages="rus"), **common)
    bronze = table(lake, "bronze").filter(pl.col("crawl") == "picked")
    good = expected.filter(pl.col("bad").is_null())["record_id"].to_list()
    here = {(each["url"], int(each["offset"])) for each in wanted}
    assert {(uri, at) for uri, at in bronze.select("target_uri", "offset").rows()} <= here
    assert set(bronze["record_id"]) <= set(good)
    assert set(bronze["file"]) == {f"{web.url}/{wanted[0]['filename']}"}
    assert account(report)[0] == len(wanted) and account(report)[1] == len(bronze) > 0
    assert report.warnings and "1 lines of the index are none" in report.warnings[0]
    report = ingest(spark, lake, match=MatchConfig(domains="liar.example"), **(common | {"base": str(crawl)}))
    assert account(report) == (1, 0, 1)
    reasons = table(lake, "quarantine").filter(pl.col("reason") == commoncrawl_rows.INDEX_REASON)
    assert reasons["offset"].to_list() == [liar.offset]
    again = ingest(spark, lake, match=MatchConfig(domains="liar.example"), **(common | {"base": str(crawl)}))
    assert account(again) == (0, 0, 0)
    with pytest.raises(UserError, match="none of 41 lines of the index matches"):
        ingest(spark, lake, match=MatchConfig(prefixes="nowhere.example/"), **common)
    with pytest.raises(UserError, match="more than 1 captures match"):
        ingest(spark, lake, max_records=1, match=MatchConfig(mimes="text/*"), **common)


def test_lines_beyond_their_files_end_do_not_stop_the_others(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    """They are counted and named; where all lines are of that kind, the index is not of these files."""
    file = published(tmp_path / "a.warc.wet", "one", "two", "three")
    ends = [0, *(found.end() for found in re.finditer(b"(one|two|three)\r\n\r\n", file.read_bytes()))]
    lines = [
        index_line(Capture(f"https://site{n}.example/{file.name}", "20240501000000", file.name, at, end - at))
        for n, (at, end) in enumerate(itertools.pairwise(ends))
    ]
    beyond = [(ends[2], 1000), (ends[3] + 7, 50), (1 << 62, 9)]
    wrong = [index_line(Capture("https://wrong.example/x", "20240501000000", file.name, *place)) for place in beyond]
    index = tmp_path / "cdx"
    index.write_text("".join([wrong[2], *lines[:2], wrong[1], wrong[0]]))
    common: dict[str, Any] = {"index": str(index), "base": str(tmp_path)}
    report = ingest(spark, lake, **common)
    assert account(report) == (2, 2, 0) and report.results["records_beyond_file"] == 3
    rows = table(lake, "bronze").sort("offset")
    assert rows["offset"].to_list() == ends[:2] and rows["file"].to_list() == [str(file)] * 2
    (warning,) = report.warnings
    assert "names 3 records beyond the ends of their files" in warning and f"at {beyond[1][0]:,}, 50 bytes" in warning
    again = ingest(spark, lake, **common)
    assert account(again) == (0, 0, 0) and again.results["files_known"] == 1
    with pytest.raises(UserError, match="all 3 records lie beyond"):
        ingest(spark, lake, match=MatchConfig(domains="wrong.example"), **common)


def test_two_runs_at_once_fetch_and_read_a_file_once(
    spark: SparkSession, tmp_path: Path, crawl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while the first one's file arrives, and finds it closed, though removed, when it may begin."""
    monkeypatch.setenv("NO_PROXY", "*")
    lake, said = tmp_path / "lake", io.StringIO()
    name = f"crawl-data/{CRAWL}/segments/0/wet/{CRAWL}-00000.warc.wet.gz"
    with serving(crawl) as server, ThreadPoolExecutor(2) as pool:
        server.faults[name] = ["stall 5000"]

        def run(out: io.StringIO) -> Report:
            return ingest(spark, lake, source=f"{server.url}/{name}", fetch={"remove": True}, out=out)

        first = pool.submit(run, io.StringIO())
        assert server.stalled.wait(60)
        second = pool.submit(run, said)
        while "waiting for it" not in said.getvalue() and len(server.requests) == 1 and not second.done():
            time.sleep(0.05)
        server.go.set()
        reports = [first.result(), second.result()]
        assert server.requests == [(name, None)]
    (read, committed, refused), nothing = map(account, reports)
    assert read == committed + refused > 0 and nothing == (0, 0, 0) and reports[1].results["files_known"] == 1
    assert len(table(lake, "bronze")) == committed == table(lake, "bronze")["key"].n_unique()


def test_real_files_and_a_cut_one(
    spark: SparkSession, ingested: tuple[Path, Report], cc_whirlwind: Path, warc_resiliparse: Path, tmp_path: Path
) -> None:
    """The counts of the data's README; of the cut file complete records once, the cut with its offset.

    A run that fails between its two commits is finished once; a file that changed or is there twice is refused.
    """
    lake, source = ingested[0], tmp_path / "in"
    source.mkdir()
    for form in ("gz", "wet.gz", "wat.gz"):
        shutil.copy(cc_whirlwind / f"whirlwind.warc.{form}", source)
    cut = source / "'; rm -rf $HOME; [x]* %2e.warc.gz"
    cut.write_bytes((warc_resiliparse / "warcfile.warc.gz").read_bytes()[:70_000])

    def fails(*_: object) -> None:
        raise OSError("power cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commoncrawl_rows, "rejected", fails)
        with pytest.raises(OSError, match="power cut"):
            ingest(spark, lake, source=str(source), types="all")
    cut.write_bytes((warc_resiliparse / "warcfile.warc.gz").read_bytes()[:70_001])
    with pytest.raises(UserError, match="was changed after batch"):
        ingest(spark, lake, source=str(source), types="all")
    cut.write_bytes((warc_resiliparse / "warcfile.warc.gz").read_bytes()[:70_000])
    ingest(spark, lake, source=str(source), types="request")  # the batch keeps its own settings
    bronze = table(lake, "bronze").filter(pl.col("file").str.starts_with(str(source)))
    counts = dict(bronze.group_by("file").len().rows())
    whole = {Path(name).name: count for name, count in counts.items()}
    assert [whole[f"whirlwind.warc.{form}"] for form in ("gz", "wet.gz", "wat.gz")] == [4, 2, 2]
    assert bronze.filter(pl.col("file").str.contains("whirlwind"))["digest_ok"].all()
    (refused,) = table(lake, "quarantine").filter(pl.col("file") == str(cut)).to_dicts()
    of_cut = bronze.filter(pl.col("file") == str(cut)).sort("offset")
    assert refused["offset"] == of_cut["length"].sum() == (of_cut["offset"] + of_cut["length"]).max()
    assert refused["offset"] + refused["length"] == 70_000
    shutil.copy(source / "whirlwind.warc.gz", tmp_path / "again.warc.gz")
    with pytest.raises(UserError, match=r"again.warc.gz has the same content as .*whirlwind.warc.gz"):
        ingest(spark, lake, source=str(tmp_path / "again.warc.gz"))
    (source / "whirlwind.warc.gz").write_bytes(b"other")
    with pytest.raises(UserError, match="was changed after it was ingested"):
        ingest(spark, lake, source=str(source))


def test_a_reader_that_loses_bytes_is_found_out(spark: SparkSession, lake: Path, crawl: Path) -> None:
    source = commoncrawl.CommonCrawlSource()
    path = str(crawl / f"crawl-data/{CRAWL}/segments/0/wet/{CRAWL}-00000.warc.wet.gz")
    with pytest.MonkeyPatch.context() as patch:
        lost = commoncrawl_rows.Census({"conversion": commoncrawl_rows.Count(1, 5)})
        patch.setattr(commoncrawl_rows, "take_census", lambda *_: {path: lost})
        with pytest.raises(RuntimeError, match="the account of .* does not close: its rows have 5 bytes"):
            source.scan(spark, [path])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "either --source or --index"),
        ({"source": "x", "bad_digest": "drop"}, "one of quarantine, keep"),
        ({"source": "x", "match": MatchConfig(domains="a.example")}, "give --index"),
        ({"source": "x", "crawl": "../x"}, "no crawl's name"),
        ({"source": "x", "limit": -1}, "at least 0"),
        ({"source": "x", "fetch": FetchConfig(downloads=0)}, "downloads must be at least 1"),
        ({"source": "x", "lake": "s3://lake"}, "cannot land"),
        ({"source": "nowhere.warc.gz"}, "names no file"),
        ({"index": "x", "match": MatchConfig(statuses="ok")}, "are not numbers"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ingest_commoncrawl.early(ingest_commoncrawl.Config(**settings))
