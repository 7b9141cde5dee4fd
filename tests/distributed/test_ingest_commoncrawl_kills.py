"""Ingest of a crawl killed between its two commits, what had landed lost; and, long, killed anywhere."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow.parquet as pq
import pytest
from crawl_server import serving
from distributed import ingest_campaign

from headrace.ingest import generated_crawl
from headrace.pipelines import generate_crawl, ingest_commoncrawl
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CRAWL = "CC-MAIN-2099-01"

# Dies when the batch is in bronze and nothing of it in quarantine.
KILLED = """
import os, signal, sys
from headrace.ingest.batch import Batch
from headrace.pipelines import ingest_commoncrawl
from headrace.report import Report
from headrace.session import build_session

lake, source = sys.argv[1:]
write = Batch.write

def dies(self, spec, rows):
    if spec.layer == "quarantine":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    return write(self, spec, rows)

Batch.write = dies
conf = {"spark.sql.shuffle.partitions": "2", "spark.driver.memory": "1g"}
conf["spark.driver.extraJavaOptions"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
spark = build_session("to be killed", master="local[2]", conf=conf)
ingest_commoncrawl.run(spark, ingest_commoncrawl.Config(lake=lake, source=source), Report("ingest-commoncrawl"))
"""


def make(dest: Path) -> generated_crawl.Generation:
    made = generate_crawl.Config(dest=str(dest), pages=30, formats="warc", bad=0.3).generation()
    generated_crawl.write_file(made, 0, dest)
    generated_crawl.finish(made, dest)
    return made


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_killed_between_two_commits(
    spark: SparkSession, no_quality_reports: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run fetches what the open batch needs, finishes exactly that, and fetches nothing for a third."""
    monkeypatch.setenv("NO_PROXY", "*")
    crawl, lake, script = tmp_path / "crawl", tmp_path / "lake", tmp_path / "killed.py"
    made = make(crawl)
    script.write_text(KILLED)
    with serving(crawl) as server:
        source = f"{server.url}/crawl-data/{CRAWL}/warc.paths.gz"
        command = [sys.executable, str(script), str(lake), source]
        died = subprocess.run(command, capture_output=True, text=True, timeout=500, start_new_session=True)
        assert died.returncode == -9, died.stderr[-3000:]
        assert len(pl.read_delta(str(lake / "bronze/commoncrawl"))) > 0
        events = pl.read_delta(str(lake / "meta/ledger"))["event"].to_list()
        assert events == ["open"] and not (lake / "quarantine").exists()
        (landed,) = (lake / "landing/commoncrawl").glob("*-00000.warc.gz")
        landed.unlink()
        config = ingest_commoncrawl.Config(lake=str(lake), source=source)
        report = Report("ingest-commoncrawl", progress="none", out=io.StringIO())
        results = ingest_commoncrawl.run(spark, config, report).results
        asked = len(server.requests)
        again = ingest_commoncrawl.run(spark, config, Report("again", progress="none", out=io.StringIO())).results
        assert len(server.requests) == asked and again["rows_read"] == 0
    truth = pl.from_arrow(pq.read_table(crawl / made.truth_name(0))).filter(pl.col("page").is_not_null())
    good = truth.filter(pl.col("bad").is_null())["offset"].to_list()
    bad = truth.filter(pl.col("bad").is_not_null())["offset"].to_list()
    assert sorted(pl.read_delta(str(lake / "bronze/commoncrawl"))["offset"]) == good
    assert sorted(pl.read_delta(str(lake / "quarantine/commoncrawl"))["offset"]) == bad
    assert results["files_known"] == 1


@pytest.mark.campaign
@pytest.mark.timeout(3000)
def test_killed_anywhere_and_started_again(tmp_path: Path) -> None:
    """Chains of kills at moments nobody chose, a new file before every second restart; `--kind commoncrawl`."""
    campaign = ingest_campaign.load()
    setting = campaign.Setting(tmp_path, files=3, rows=40, late=2, seed=5, kind="commoncrawl")
    campaign.write_files(setting)
    duration = campaign.undisturbed(setting)
    for number in range(3):
        kills = campaign.chain(setting, number, duration, 4)
        assert [kill.difference for kill in kills] == [""] * len(kills)
