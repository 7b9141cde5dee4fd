"""What the bronze tables hold of one graph: versions, edge types with their counts, and frames to read.

A graph's nodes have ids (bronze/edges) or names (bronze/triples), never both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import exists, files_at, latest_version, read
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.csr import EdgeType
from headrace.features.graph_edges import Edges

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TABLES = ("bronze/edges", "bronze/triples", "bronze/node_features", "bronze/node_labels")
_TYPE = ("source_type", "relation", "target_type", "split")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MAX_TYPES = 1 << 16


@dataclass(frozen=True)
class GraphSource:
    """A graph's rows in bronze.

    Args:
        graph: its name.
        versions: of every bronze table that has rows of it.
        frames: those tables' rows, by table.
    """

    graph: str
    versions: dict[str, int]
    frames: dict[str, DataFrame] = field(repr=False)

    @property
    def named(self) -> bool:
        """Have nodes names rather than ids?"""
        return "bronze/triples" in self.frames

    @property
    def rows(self) -> list[DataFrame]:
        """Feature and label rows."""
        return [self.frames[name] for name in TABLES[2:] if name in self.frames]


def check_name(graph: str) -> None:
    """A graph's name becomes a folder and stands in SQL.

    Raises:
        UserError: it holds anything but letters, digits, `_`, `.` and `-`.
    """
    if not _NAME.fullmatch(graph):
        raise UserError(f"--graph {graph!r} is no name for a graph", "letters, digits, _ . - (at most 100)")


def open_source(spark: SparkSession, lake: str, graph: str) -> GraphSource:
    """Pin the bronze tables that have rows of a graph.

    Raises:
        UserError: none has, or nodes have ids in some rows and names in others.
    """
    versions, frames = {}, {}
    for name in TABLES:
        spec = load(name)
        if exists(spec.path(lake)):
            version = latest_version(spec.path(lake))
            if sum(file.rows for file in files_at(spec, lake, version, {"graph": graph})):
                versions[name] = version
                frames[name] = read(spark, spec, lake, version).where(f"graph = '{graph}'")
    if not frames:
        command = f"headrace ingest-graph --lake {lake} --graph {graph} --source ..."
        raise UserError(f"the lake holds no row of graph {graph!r}", command)
    source = GraphSource(graph, versions, frames)
    _check_ids(source)
    return source


def _check_ids(source: GraphSource) -> None:
    if source.named and "bronze/edges" in source.frames:
        raise UserError(f"graph {source.graph} has edges by id and by name", "ingest them as two graphs")
    wrong = "name IS NULL" if source.named else "name IS NOT NULL"
    for frame in source.rows:
        if not frame.where(wrong).isEmpty():
            kinds = ("ids", "names") if source.named else ("names", "ids")
            problem = f"graph {source.graph}: features or labels have {kinds[0]}, nodes have {kinds[1]}"
            raise UserError(problem, "ingest features and labels with the keys that the edges use")


def edges_of(source: GraphSource, weights: bool) -> tuple[Edges, dict[str, int]]:
    """The graph's edges with their types numbered, and the largest id of every node type (-1 where names are used).

    The frame has `src` and `dst`, or `head` and `tail` where nodes have names.

    Args:
        source: the graph.
        weights: read them, where there are any.

    Raises:
        UserError: some edges have weights and others none, or there are too many edge types.
    """
    name = "bronze/triples" if source.named else "bronze/edges"
    ends = ("head", "tail") if source.named else ("src", "dst")
    if name not in source.frames:
        return _no_edges(source.rows), {}
    frame = source.frames[name]
    found = _count(frame, ends, source.named)
    weighted = weights and not source.named and sum(row.weighted for row in found) > 0
    if weighted and any(row.weighted != row.edges for row in found):
        raise UserError(
            f"some edges of graph {source.graph} have weights, others none", "--weights false leaves them out"
        )
    types = [EdgeType(*(row[name] for name in _TYPE)) for row in found]
    columns = ["type", *(f"{end} AS {as_}" for end, as_ in zip(ends, ("src", "dst"), strict=True))]
    if source.named:
        columns += list(_TYPE)
    if weighted:
        columns += ["weight", "key AS place"]
    edges = Edges(
        _numbered(frame, types).selectExpr(*columns),
        tuple(types),
        tuple(row.edges for row in found),
        tuple(row.loops for row in found),
        weighted,
    )
    return edges, {} if source.named else _largest(found)


def _count(frame: DataFrame, ends: tuple[str, str], named: bool) -> list[Any]:
    from pyspark.sql import functions as F

    same = (F.col(ends[0]) == F.col(ends[1])) & (F.col("source_type") == F.col("target_type"))
    columns = [F.count(F.lit(1)).alias("edges"), F.sum(same.cast("bigint")).alias("loops")]
    if named:
        columns.append(F.lit(0).alias("weighted"))
    else:
        columns += [F.count("weight").alias("weighted"), F.max("src").alias("src"), F.max("dst").alias("dst")]
    rows = frame.groupBy(*_TYPE).agg(*columns).limit(_MAX_TYPES + 1).collect()
    if len(rows) > _MAX_TYPES:
        raise UserError(f"more than {_MAX_TYPES:,} edge types", "is the relation's column the right one?")
    return sorted(rows, key=lambda row: tuple(row[name] for name in _TYPE))


def _largest(rows: Sequence[Any]) -> dict[str, int]:
    largest: dict[str, int] = {}
    for row in rows:
        for name, node in ((row.source_type, row.src), (row.target_type, row.dst)):
            largest[name] = max(largest.get(name, -1), node)
    return largest


def _numbered(frame: DataFrame, types: Sequence[EdgeType]) -> DataFrame:
    """With `type`, the number of the row's edge type."""
    from pyspark.sql import functions as F

    if len(types) == 1:
        return frame.withColumn("type", F.lit(0))
    rows = [(edge.source, edge.relation, edge.target, edge.split, number) for number, edge in enumerate(types)]
    ddl = ", ".join(f"{name} string" for name in _TYPE)
    table = frame.sparkSession.createDataFrame(rows, f"{ddl}, type int")
    return frame.join(F.broadcast(table), list(_TYPE))


def _no_edges(rows: Sequence[DataFrame]) -> Edges:
    """Nodes alone: one adjacency without edges, where they are of one type."""
    names = sorted({row.node_type for frame in rows for row in frame.select("node_type").distinct().collect()})
    types = tuple(EdgeType(name, "edge", name) for name in names[:1] if len(names) == 1)
    frame = rows[0].sparkSession.createDataFrame([], "type int, src bigint, dst bigint")
    return Edges(frame, types, (0,) * len(types), (0,) * len(types), False)


def row_nodes(source: GraphSource) -> DataFrame | None:
    """node_type and id, or name, of every feature and label row."""
    column = "name" if source.named else "node AS id"
    frames = [frame.selectExpr("node_type", column) for frame in source.rows]
    if not frames:
        return None
    return frames[0] if len(frames) == 1 else frames[0].unionAll(frames[1])


def row_counts(source: GraphSource) -> dict[str, int]:
    """Feature and label rows by node type."""
    counts: dict[str, int] = {}
    for frame in source.rows:
        for row in frame.groupBy("node_type").count().collect():
            counts[row["node_type"]] = counts.get(row["node_type"], 0) + row["count"]
    return counts


def largest_rows(source: GraphSource) -> dict[str, int]:
    """The largest id in feature and label rows by node type."""
    largest: dict[str, int] = {}
    for frame in source.rows:
        for row in frame.groupBy("node_type").agg({"node": "max"}).collect():
            largest[row["node_type"]] = max(largest.get(row["node_type"], -1), row["max(node)"])
    return largest


def node_counts(text: str) -> dict[str, int]:
    """`1000` (of type node) or `paper=1000,author=50`.

    Raises:
        UserError: not of that form.
    """
    found = {}
    for item in filter(None, text.split(",")):
        name, _, number = item.rpartition("=")
        if not number.strip().isdecimal():
            raise UserError(f"--num_nodes {text!r} is no number of nodes", "1000, or paper=1000,author=50")
        found[name.strip() or "node"] = int(number)
    return found


def dense_nodes(largest: dict[str, int], stated: dict[str, int]) -> dict[str, int]:
    """Nodes by type where ids are dense already.

    Raises:
        UserError: an id is not below the stated number.
    """
    nodes = {name: node + 1 for name, node in largest.items()} | {k: v for k, v in stated.items() if k not in largest}
    for name, number in stated.items():
        if nodes[name] > number:
            problem = f"--num_nodes {name}={number}: the input has node {nodes[name] - 1} of that type"
            raise UserError(problem, "state more nodes, or --ids renumber")
        nodes[name] = number
    return nodes
