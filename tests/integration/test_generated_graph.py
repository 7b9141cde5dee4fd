"""The verb generate-graph on Spark: the same bytes whatever the number of tasks, and as made without Spark."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.ingest import generated_graph_files as files
from headrace.pipelines.generate_graph import Config, run
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def contents(dest: Path) -> dict[str, bytes]:
    return {str(file.relative_to(dest)): file.read_bytes() for file in sorted(dest.rglob("*")) if file.is_file()}


def test_bytes_depend_on_the_settings_alone(spark: SparkSession, tmp_path: Path) -> None:
    made = {}
    for parts in (1, 4):
        dest = tmp_path / str(parts)
        cfg = Config(dest=str(dest), scale=9, edges_a_file=1_000, nodes_a_file=100, format="npy", parts=parts)
        report = run(spark, cfg, Report("generate-graph", progress="none", out=io.StringIO()))
        made[parts] = contents(dest)
    assert made[1] == made[4]
    truth = json.loads(made[1]["truth.json"])
    assert report.results["edges"] == truth["edges"] == 16 << 9
    alone = files.Writer(cfg.model(), cfg.layout(), tmp_path / "alone")
    files.generate(alone)
    assert alone.finish()["files"] == truth["files"]
    again = run(spark, cfg, Report("generate-graph", progress="none", out=io.StringIO()))
    assert again.stages == []
    assert contents(dest) == made[4]
