"""gold/graph_manifest: what a graph consists of, which versions of the tables hold it, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from headrace.catalog import delta, storage
from headrace.catalog.delta import WriteOptions, exists, files_at, latest_version, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.csr import EdgeType, manifest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.catalog.delta import Commit


def of_graph(graph: str, *, quality: bool = False) -> WriteOptions:
    """Replace one graph's rows of a table, and leave the others'.

    Without a quality report where rows are shards: their columns are summed up in the manifest, and 65,536 rows at a
    time, as a report reads them, would be the whole graph.
    """
    # Tables that were made before relations could be joined lack that column.
    return WriteOptions(replace_where=f"graph = '{graph}'", quality=quality, merge_schema=True)


def find(lake: str | Path, graph: str) -> list[dict[str, Any]]:
    """The newest manifest of a graph; empty where there is none."""
    if not exists(load("gold/graph_manifest").path(lake)):
        return []
    try:
        return manifest(lake, graph)
    except UserError:
        return []


def small_rows(lake: str | Path, table: str, version: int, graph: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of a graph's rows in a table of shards, read from the files without their arrays."""
    found: list[dict[str, Any]] = []
    for file in files_at(load(table), lake, version, {"graph": graph}):
        store, _ = storage.locate(file.path)
        with store.open(file.path) as stream:
            found += pq.ParquetFile(stream).read(columns=list(columns)).to_pylist()
    return found


def csr_row(
    edge: EdgeType, direction: str, shards: Sequence[Mapping[str, Any]], targets: int, version: int
) -> dict[str, Any]:
    """The row of an adjacency, summed up over its shards as they are in the table."""
    key_sum = sum(shard["key_sum"] for shard in shards) % (1 << 64)
    return {
        "part": "csr",
        "nodes": sum(shard["num_nodes"] for shard in shards if shard["piece"] == 0),
        "targets": targets,
        "edges": sum(shard["num_edges"] for shard in shards),
        "shards": len(shards),
        "source_type": edge.source,
        "relation": edge.relation,
        "target_type": edge.target,
        "split": edge.split,
        "direction": direction,
        "table": "gold/graph_csr",
        "version": version,
        "fingerprint": str(key_sum),
    }


def commit(
    spark: SparkSession, lake: str, graph: str, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> Commit:
    """Replace the manifest of a graph."""
    spec = load("gold/graph_manifest")
    told = json.dumps(options, sort_keys=True)
    empty = dict.fromkeys(column.name for column in spec.columns)
    full = [
        empty
        | {"graph": graph, "options": told}
        | dict(row)
        | {"counts": json.dumps(row.get("counts", {}), sort_keys=True)}
        for row in rows
    ]
    return write(delta.small_frame(spark, spec, full), spec, lake, mode="overwrite", options=of_graph(graph))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures for a run's last line."""
    csr = [row for row in rows if row["part"] == "csr"]
    return {
        "nodes": {row["node_type"]: row["nodes"] for row in rows if row["part"] == "nodes"},
        "edges": sum(row["edges"] for row in csr),
        "adjacencies": len(csr),
        "shards": sum(row["shards"] for row in csr),
        "versions": {row["table"]: row["version"] for row in rows},
    }


def version_of(lake: str, table: str) -> int:
    """The newest version of a table, which is created as version 0 where it is not there."""
    path = load(table).path(lake)
    return latest_version(path) if exists(path) else 0
