"""Crawl files into the lake: every record is in bronze, in quarantine or left out, once, and every byte is counted."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from headrace.ingest import generated_crawl
from headrace.pipelines import generate_crawl, ingest_commoncrawl
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
CRAWL = "CC-MAIN-2099-01"


def ingest(spark: SparkSession, lake: Path, **settings: Any) -> Report:
    report = Report("ingest-commoncrawl", progress="none", out=io.StringIO())
    return ingest_commoncrawl.run(spark, ingest_commoncrawl.Config(lake=str(lake), **settings), report)


def table(lake: Path, name: str) -> pl.DataFrame:
    return pl.read_delta(str(lake / name / "commoncrawl"))


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of each format, with damaged records and bombs, made without Spark."""
    dest = tmp_path_factory.mktemp("crawl")
    options: dict[str, Any] = {"pages": 120, "pages_per_file": 60, "formats": "warc,wet,wat", "bad": 0.2}
    made = generate_crawl.Config(dest=str(dest), hostile=0.1, bomb_bytes=80 << 20, **options).generation()
    generated_crawl.prepare(made, dest, False)
    for file in range(made.files):
        generated_crawl.write_file(made, file, dest)
    generated_crawl.finish(made, dest)
    return dest


@pytest.fixture(scope="module")
def truth(crawl: Path) -> pl.DataFrame:
    return pl.concat([pl.from_arrow(pq.read_table(path)) for path in sorted((crawl / "truth").iterdir())])


@pytest.fixture(scope="module")
def ingested(
    spark: SparkSession, no_quality_reports: None, crawl: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Report]]:
    """A lake with the three path lists, the first of them given twice."""
    lake = tmp_path_factory.mktemp("ingested")
    lists = [crawl / f"crawl-data/{CRAWL}/{form}.paths.gz" for form in ("warc", "wet", "wat", "warc")]
    return lake, [ingest(spark, lake, source=str(path)) for path in lists]


def test_every_planted_record_is_where_it_belongs(
    ingested: tuple[Path, list[Report]], crawl: Path, truth: pl.DataFrame
) -> None:
    lake, reports = ingested
    bronze, refused = table(lake, "bronze"), table(lake, "quarantine")
    main = truth.filter(pl.col("page").is_not_null())
    good = main.filter(pl.col("bad").is_null())
    place = ["file", "offset", "length", "type", "record_id"]
    expected = good.with_columns(file=pl.lit(f"{crawl}/") + pl.col("file")).select(*place, uri="uri").sort(place)
    found = bronze.select(*place, uri="target_uri").sort(place)
    assert found.equals(expected)
    bad = main.filter(pl.col("bad").is_not_null()).with_columns(file=pl.lit(f"{crawl}/") + pl.col("file"))
    assert set(refused.select("file", "offset").rows()) == set(bad.select("file", "offset").rows())
    assert bronze["key"].n_unique() == len(bronze) == sum(each.results["rows_committed"] for each in reports)
    assert len(refused) == sum(each.results["rows_quarantined"] for each in reports)
    assert reports[3].results["files_known"] == 2 and reports[3].results["rows_read"] == 0
    assert set(bronze["crawl"]) == {CRAWL}


def test_payloads_are_the_pages(ingested: tuple[Path, list[Report]], truth: pl.DataFrame) -> None:
    bronze = table(ingested[0], "bronze")
    wet = bronze.filter(pl.col("type") == "conversion").select("record_id", "payload")
    texts = dict(truth.filter(pl.col("type") == "conversion").select("record_id", "text").rows())
    assert all(payload.decode() == texts[own] for own, payload in wet.rows())
    responses = bronze.filter(pl.col("type") == "response")
    assert set(responses["http_status"]) == {200}
    assert responses["digest_ok"].all()
    assert all(payload.startswith((b"<!DOCTYPE", b"{")) for payload in responses["payload"])


def test_bytes_of_a_file_add_up(ingested: tuple[Path, list[Report]], crawl: Path) -> None:
    """Everything committed, refused or left out is the file; and what is kept of the refused is its beginning."""
    lake, _ = ingested
    lengths: Counter[str] = Counter()
    for name in ("bronze", "quarantine"):
        for file, length in table(lake, name).select("file", "length").rows():
            lengths[file] += length
    for file in lengths:
        if ".wet." in file:
            info = table(lake, "quarantine").filter(pl.col("file") == file)
            assert lengths[file] < Path(file).stat().st_size
            assert all(Path(file).read_bytes()[row["offset"] :].startswith(row["raw"]) for row in info.to_dicts())
