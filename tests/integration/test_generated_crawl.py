"""The crawl generator on Spark: the same bytes however it is cut, reruns, refusals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headrace.errors import UserError
from headrace.pipelines.generate_crawl import Config, run
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def generate(spark: SparkSession, dest: Path, **settings: Any) -> Report:
    options = {"pages": 60, "pages_per_file": 20, "seed": 3, "bad": 0.1} | settings
    return run(spark, Config(dest=str(dest), **options), Report("generate-crawl", progress="none", out=io.StringIO()))


def contents(dest: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dest)): path.read_bytes() for path in dest.rglob("*") if path.is_file()}


def test_bytes_depend_on_the_settings_alone(spark: SparkSession, tmp_path: Path) -> None:
    """Not on partitions, nor on a run that ended early; a rerun changes nothing, another generation is refused."""
    dest = tmp_path / "three"
    report = generate(spark, dest)
    whole = contents(dest)
    assert report.results["bytes"] == sum(len(data) for name, data in whole.items() if ".warc." in name)
    generate(spark, tmp_path / "one", parts=1)
    assert contents(tmp_path / "one") == whole
    for name in ("truth.json", "truth/CC-MAIN-2099-01-00001.parquet"):
        (dest / name).unlink()
    (dest / "crawl-data/CC-MAIN-2099-01/segments/0/warc/CC-MAIN-2099-01-00001.warc.gz").write_bytes(b"half")
    report = generate(spark, dest)
    assert report.stages[0].note == "40 pages were there already"
    assert contents(dest) == whole
    assert not generate(spark, dest).stages
    with pytest.raises(UserError, match="seed 3 there, 4 asked for"):
        generate(spark, dest, seed=4)
    assert contents(dest) == whole
