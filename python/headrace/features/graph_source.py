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
from headrace.features.graph_edges import EdgeRows, Edges
from headrace.features.graph_files import TYPE, EdgeFiles, Unit, tally, units_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TABLES = ("bronze/edges", "bronze/triples", "bronze/node_features", "bronze/node_labels")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MAX_TYPES = 1 << 16


@dataclass(frozen=True)
class GraphSource:
    """A graph's rows in bronze.

    Args:
        graph: its name.
        versions: of every bronze table that has rows of it.
        frames: those tables' rows, by table.
        units: of the edges by id, for tasks that read files.
    """

    graph: str
    versions: dict[str, int]
    frames: dict[str, DataFrame] = field(repr=False)
    units: tuple[Unit, ...] = field(repr=False)

    @property
    def named(self) -> bool:
        """Have nodes names rather than ids?"""
        return "bronze/triples" in self.frames

    @property
    def rows(self) -> list[DataFrame]:
        """Feature and label rows."""
        return [self.frames[name] for name in TABLES[2:] if name in self.frames]


def check_name(name: str, setting: str = "graph") -> None:
    """The name of a graph, or of rows made from it, becomes a folder and stands in SQL.

    Args:
        name: as the user has it.
        setting: where.

    Raises:
        UserError: it holds anything but letters, digits, `_`, `.` and `-`, or begins with none of the first two.
    """
    if not _NAME.fullmatch(name):
        remedy = "letters, digits, _ . - (at most 100), a letter or digit first"
        raise UserError(f"--{setting} {name!r} is no name", remedy)


def open_source(spark: SparkSession, lake: str, graph: str) -> GraphSource:
    """Pin the bronze tables that have rows of a graph.

    Raises:
        UserError: none has, or nodes have ids in some rows and names in others.
    """
    versions, frames = {}, {}
    units: tuple[Unit, ...] = ()
    for name in TABLES:
        spec = load(name)
        if exists(spec.path(lake)):
            version = latest_version(spec.path(lake))
            files = files_at(spec, lake, version, {"graph": graph})
            if sum(file.rows for file in files):
                versions[name] = version
                frames[name] = read(spark, spec, lake, version).where(f"graph = '{graph}'")
                units = units_of(files) if name == "bronze/edges" else units
    if not frames:
        command = f"headrace ingest-graph --lake {lake} --graph {graph} --source ..."
        raise UserError(f"the lake holds no row of graph {graph!r}", command)
    source = GraphSource(graph, versions, frames, units)
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

    Args:
        source: the graph.
        weights: read them, where there are any.

    Raises:
        UserError: some edges have weights and others none, or there are too many edge types.
    """
    name = "bronze/triples" if source.named else "bronze/edges"
    if name not in source.frames:
        return _no_edges(source.rows), {}
    frame = source.frames[name]
    spark = frame.sparkSession
    found = _count_triples(frame) if source.named else _count_edges(spark, source.units)
    weighted = weights and sum(row.weighted for row in found) > 0
    if weighted and any(row.weighted != row.edges for row in found):
        raise UserError(
            f"some edges of graph {source.graph} have weights, others none", "--weights false leaves them out"
        )
    names = {tuple(row[name] for name in TYPE): number for number, row in enumerate(found)}
    types = tuple(EdgeType(*name) for name in names)
    rows = EdgeRows(_triples(frame, types)) if source.named else EdgeFiles(spark, source.units, names)
    counts, loops = tuple(row.edges for row in found), tuple(row.loops for row in found)
    return Edges(rows, types, counts, loops, weighted), {} if source.named else _largest(found)


def _count_edges(spark: SparkSession, units: tuple[Unit, ...]) -> list[Any]:
    from pyspark.sql import functions as F

    sums = [F.sum(name).alias(name) for name in ("edges", "loops", "weighted")]
    return _few(tally(spark, units).groupBy(*TYPE).agg(*sums, F.max("src").alias("src"), F.max("dst").alias("dst")))


def _count_triples(frame: DataFrame) -> list[Any]:
    from pyspark.sql import functions as F

    same = (F.col("head") == F.col("tail")) & (F.col("source_type") == F.col("target_type"))
    loops = F.sum(same.cast("bigint")).alias("loops")
    return _few(frame.groupBy(*TYPE).agg(F.count(F.lit(1)).alias("edges"), loops, F.lit(0).alias("weighted")))


def _few(counts: DataFrame) -> list[Any]:
    """A row a type, in the order of their names."""
    rows = counts.limit(_MAX_TYPES + 1).collect()
    if len(rows) > _MAX_TYPES:
        raise UserError(f"more than {_MAX_TYPES:,} edge types", "is the relation's column the right one?")
    return sorted(rows, key=lambda row: tuple(row[name] for name in TYPE))


def _largest(rows: Sequence[Any]) -> dict[str, int]:
    largest: dict[str, int] = {}
    for row in rows:
        for name, node in ((row.source_type, row.src), (row.target_type, row.dst)):
            largest[name] = max(largest.get(name, -1), node)
    return largest


def _triples(frame: DataFrame, types: Sequence[EdgeType]) -> DataFrame:
    """TYPE, src, dst (names), and `type`, the number of the row's edge type."""
    from pyspark.sql import functions as F

    rows = [(edge.source, edge.relation, edge.target, edge.split, number) for number, edge in enumerate(types)]
    ddl = ", ".join(f"{name} string" for name in TYPE)
    table = F.broadcast(frame.sparkSession.createDataFrame(rows, f"{ddl}, type int"))
    return frame.join(table, list(TYPE)).selectExpr("type", "head AS src", "tail AS dst", *TYPE)


def _no_edges(rows: Sequence[DataFrame]) -> Edges:
    """Nodes alone: one adjacency without edges, where they are of one type."""
    names = sorted({row.node_type for frame in rows for row in frame.select("node_type").distinct().collect()})
    types = tuple(EdgeType(name, "edge", name) for name in names[:1] if len(names) == 1)
    return Edges(EdgeFiles(rows[0].sparkSession, (), {}), types, (0,) * len(types), (0,) * len(types), False)


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
