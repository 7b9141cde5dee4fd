"""A folder with a graph's edges as text, array and Parquet: finished after a failure, and refused as what it is not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from power_cuts import fails

from headrace.errors import UserError
from headrace.ingest.batch import Batch
from headrace.pipelines import ingest_files, ingest_graph
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def ingest(spark: SparkSession, lake: Path, source: Path, **settings: Any) -> dict[str, Any]:
    config = ingest_graph.Config(lake=str(lake), graph="g", source=str(source), **settings)
    return ingest_graph.run(spark, config, Report("ingest-graph", out=io.StringIO())).results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    (made / "a_edges.csv").write_text("1,2\n3,4\n")
    np.save(made / "edge_index.npy", np.array([[5, 6, -1], [7, 8, 9]]))
    pq.write_table(pa.table({"src": [10, None], "dst": [11, 12]}), made / "more_edges.parquet")
    return made


@pytest.mark.campaign
@pytest.mark.parametrize("broken", ["edge_index.npy", "more_edges.parquet"])
def test_an_open_batch_of_arrays_is_finished_before_text(
    spark: SparkSession, lake: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """It is read as what it is, though the run that finishes it begins with text."""
    monkeypatch.setattr(ingest_files, "record_quality", lambda *_: None)
    aside = folder.parent / "a_edges.csv"
    (folder / "a_edges.csv").rename(aside)

    with monkeypatch.context() as patch:
        fails(patch, Batch, "write", lambda batch, spec, rows: spec.layer == "quarantine")
        with pytest.raises(OSError, match="power cut"):
            ingest(spark, lake, folder / broken)
    aside.rename(folder / "a_edges.csv")
    text_only = ingest(spark, lake, folder / "a_edges.csv")
    assert text_only["files"] == 2 and text_only["rows_quarantined"] == 1
    assert ingest(spark, lake, folder)["files"] == 1
    edges = pl.read_delta(str(lake / "bronze/edges"))
    assert sorted(edges.select("src", "dst").rows()) == [(1, 2), (3, 4), (5, 7), (6, 8), (10, 11)]


def test_an_array_is_no_text(spark: SparkSession, lake: Path, folder: Path) -> None:
    for name in ("edge_index.npy", "more_edges.parquet"):
        with pytest.raises(UserError, match=f"{name} is an array or Parquet file, no text"):
            ingest(spark, lake, folder / name, format="csv")
