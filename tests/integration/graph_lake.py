"""A featurized graph put into a lake straight from scipy matrices: what the verbs over graphs read."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from unit.graph_shards import cut

from headrace.catalog.delta import small_frame, write
from headrace.catalog.fingerprint import key_sum
from headrace.catalog.spec import load
from headrace.features.csr import checksum
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_EDGE = {"source_type": "node", "relation": "edge", "target_type": "node", "split": "all", "direction": "out"}


@dataclass
class Lake:
    """Graphs to be written at once: rows by table."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, graph: str, matrix: Any, max_edges: int, x: Any = None, labels: Any = None) -> None:
        """CSR shards, and features [nodes, width] and (labels, split codes) where given."""
        n = matrix.shape[0]
        rows = csr_rows(matrix, max_edges)
        total = sum(row["key_sum"] for row in rows) % (1 << 64)
        facts = _EDGE | {"targets": n, "edges": matrix.nnz, "fingerprint": str(total), "dtype": "none"}
        self._add(graph, "csr", n, [row | _EDGE for row in rows], facts)
        if x is not None:
            self._add(graph, "features", n, feature_rows(x), {"node_type": "node", "dtype": "float32"})
        if labels is not None:
            row = {"first_node": 0, "num_nodes": n, "num_missing": 0, "shard": 0, "years": [0] * n, "node_type": "node"}
            row |= {"labels": labels[0].tolist(), "splits": labels[1].tolist()}
            self._add(graph, "labels", n, [row], {"node_type": "node"})

    def write(self, spark: SparkSession, folder: Path) -> None:
        """Each table as version 1, the manifest last."""
        for name in sorted(self.rows, key=lambda name: name == "gold/graph_manifest"):
            spec = load(name)
            write(small_frame(spark, spec, self.rows[name]), spec, folder)

    def _add(self, graph: str, part: str, nodes: int, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        table = f"gold/graph_{part}"
        self.rows.setdefault(table, []).extend(row | {"graph": graph} for row in rows)
        blank = dict.fromkeys(column.name for column in load("gold/graph_manifest").columns)
        row = {"part": part, "table": table, "version": 1, "shards": len(rows), "nodes": nodes}
        made = blank | {"graph": graph, "counts": "{}", "options": "{}"} | row | facts
        self.rows.setdefault("gold/graph_manifest", []).append(made)


def run(module: Any, spark: SparkSession, lake: Path, **settings: Any) -> Report:
    """A verb over graphs, silently."""
    cfg = module.Config(lake=str(lake), **settings)
    found: Report = module.run(spark, cfg, Report("test", progress="none", out=io.StringIO()))
    return found


def results(module: Any, spark: SparkSession, lake: Path, **settings: Any) -> dict[str, Any]:
    """What a verb over graphs says it did."""
    return run(module, spark, lake, **settings).results


def csr_rows(matrix: Any, max_edges: int) -> list[dict[str, Any]]:
    """Rows of gold/graph_csr but for their names."""
    shards, rows = cut(matrix, max_edges), []
    for number, (info, shard) in enumerate(zip(shards.shards, shards.arrays, strict=True)):
        sources = np.repeat(np.arange(info.num_nodes) + info.first_node, np.diff(shard.indptr))
        keys = key_sum(sources.astype(np.int64) * matrix.shape[1] + shard.indices)
        row = {"shard": number, "crc32": checksum(shard.indptr, shard.indices, None)}
        row |= {"key_sum": keys - (1 << 64) if keys >= 1 << 63 else keys, "weights": None}
        rows.append(row | vars(info) | {"indptr": shard.indptr.tolist(), "indices": shard.indices.tolist()})
    return rows


def feature_rows(x: Any) -> list[dict[str, Any]]:
    """Rows of gold/graph_features: sparse where x is, in three shards."""
    rows = []
    for shard, part in enumerate(np.array_split(np.arange(x.shape[0]), 3)):
        row: dict[str, Any] = {"first_node": int(part[0]), "num_nodes": len(part), "num_missing": 0, "shard": shard}
        row |= {"node_type": "node", "dim": x.shape[1], "dtype": "float32", "crc32": 0, "missing": []}
        rows_here = x[part]
        if sp.issparse(x):
            row |= {"layout": "csr", "indptr": rows_here.indptr.tolist(), "indices": rows_here.indices.tolist()}
            row["values"] = rows_here.data.astype("<f4").tobytes()
        else:
            row |= {"layout": "dense", "indptr": None, "indices": None, "values": rows_here.astype("<f4").tobytes()}
        rows.append(row)
    return rows


def cora(folder: Path) -> tuple[Any, Any, tuple[Any, Any]]:
    """Symmetric adjacency, features, (labels, split codes) of the real Cora, read the slow way."""
    edges = np.loadtxt(folder / "cora_edges.tsv", dtype=int)
    n = 2_708
    half = sp.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (n, n))
    matrix = sp.csr_matrix(half + half.T)
    matrix.data[:] = 1
    x = sp.lil_matrix((n, 1_433), dtype=np.float32)
    for line in (folder / "cora_features.libsvm.tsv").read_text().splitlines():
        node, _, pairs = line.partition("\t")
        for pair in pairs.split():
            place, value = pair.split(":")
            x[int(node), int(place) - 1] = float(value)
    labels, splits = np.full(n, -1), np.zeros(n, int)
    codes = {"train": 1, "valid": 2, "val": 2, "validation": 2, "test": 3}
    for line in (folder / "cora_labels.tsv").read_text().splitlines():
        node, label, split = line.split("\t")
        labels[int(node)], splits[int(node)] = int(label), codes.get(split, 0)
    return matrix, x.tocsr(), (labels, splits)


def wiki_vote(folder: Path) -> Any:
    """The directed adjacency of the real WikiVote."""
    edges = np.loadtxt(folder / "WikiVote.txt", dtype=int)
    return sp.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (7_115, 7_115))
