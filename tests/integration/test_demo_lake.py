"""The other sources from generated files to tables for training, in one run: what was planted is what is found."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headrace.pipelines import demo_lake
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("no_quality_reports")
def test_what_was_planted_is_found(spark: SparkSession, lake: Path) -> None:
    cfg = demo_lake.Config(lake=str(lake), pages=300, scale=6, ratings=1000)
    screen = io.StringIO()
    report = demo_lake.run(spark, cfg, Report("demo-lake", progress="log", out=screen))
    near = report.results.pop("crawl: near-duplicates of Jaccard 0.8 removed")
    assert near["found"] >= 0.9 * near["planted"] > 0
    assert {what: fact["found"] for what, fact in report.results.items()} == {
        what: fact["planted"] for what, fact in report.results.items()
    }
    assert report.results["crawl: records in quarantine"]["planted"] > 0
    assert "crawl: exact duplicates removed" in screen.getvalue()
