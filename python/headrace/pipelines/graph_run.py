"""One run of featurize-graph: what it reads, where it works, and what it has found and committed so far."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import write
from headrace.catalog.spec import load
from headrace.features import graph_manifest, layout
from headrace.features.graph_source import GraphSource

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.catalog.delta import Commit
    from headrace.pipelines.featurize_graph import Config
    from headrace.report import Report

_FLAT = ("gold/graph_nodes", "gold/graph_degrees")


@dataclass
class Run:
    """One run.

    Attributes:
        spark: the session.
        cfg: the settings.
        report: for stages.
        source: the graph's rows in bronze.
        folder: of the lake, for what lies between steps.
        held: ends what is cached when the graph is made.
        nodes: number of nodes by type, once they are numbered.
        rows: of the manifest, for what has been committed.
    """

    spark: SparkSession
    cfg: Config
    report: Report
    source: GraphSource
    folder: str
    held: contextlib.ExitStack
    nodes: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def hold(self, frame: DataFrame) -> DataFrame:
        """Cached on disk until the graph is made: used several times."""
        from pyspark import StorageLevel

        cached = frame.persist(StorageLevel.DISK_ONLY)
        self.held.callback(cached.unpersist)
        return cached

    def commit(self, table: str, rows: DataFrame) -> Commit:
        """Replace the graph's rows in a table; shards get a Parquet row group each, so that one can be read alone."""
        from pyspark.sql import functions as F

        rows = rows.withColumn("graph", F.lit(self.cfg.graph))
        alone = contextlib.nullcontext() if table in _FLAT else layout.row_groups(self.spark, 1)
        with alone:
            options = graph_manifest.of_graph(self.cfg.graph, quality=table in _FLAT)
            return write(rows, load(table), self.cfg.lake, mode="overwrite", options=options)
