"""What the verbs over a featurized graph share: which edges, features and labels of nodes, at pinned versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import read
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import csr, hashing, layout, neighbourhoods, node_blocks
from headrace.features.csr import CsrTable, EdgeType
from headrace.features.graph_source import check_name
from headrace.features.neighbourhoods import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

_LABEL_DDL = "seed bigint, split int, label bigint"


@dataclass(frozen=True)
class Inputs:
    """A graph as its manifest names it.

    Args:
        lake: folder of the tables.
        graph: its name.
        adjacency: the edges that are followed.
        node_type: of the rows of the adjacency.
        parts: the manifest's rows.
    """

    lake: str
    graph: str
    adjacency: CsrTable
    node_type: str
    parts: Sequence[Mapping[str, Any]]

    def part(self, name: str, node_type: str | None = None) -> Mapping[str, Any] | None:
        """The manifest's row of the features or labels of a node type (default: that of the rows), if there is one."""
        wanted = (name, node_type or self.node_type)
        return next((row for row in self.parts if (row["part"], row["node_type"]) == wanted), None)

    def shards(self, spark: SparkSession, name: str, node_type: str | None = None) -> DataFrame:
        """The shards of features or labels.

        Raises:
            UserError: the graph has none.
        """
        row = self.part(name, node_type)
        if row is None:
            raise UserError(
                f"graph {self.graph!r} has no {name} of node type {node_type or self.node_type!r}",
                f"ingest-graph takes them with --node_{name}",
            )
        rows = read(spark, load(f"gold/graph_{name}"), self.lake, int(row["version"]))
        return rows.where((rows["graph"] == self.graph) & (rows["node_type"] == (node_type or self.node_type)))

    def seeds(self, spark: SparkSession, splits: Sequence[int]) -> DataFrame:
        """Nodes of these split codes: seed, split, label; all nodes, without label, where the graph has no labels.

        Args:
            spark: the session.
            splits: codes of SPLITS.
        """
        if self.part("labels") is None:
            nodes = spark.range(0, self.adjacency.num_nodes)
            return nodes.selectExpr("id AS seed", "0 AS split", "-1L AS label")
        wanted = tuple(splits)

        def seeds(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                yield from neighbourhoods.seed_rows(node_blocks.shard_rows(batch), wanted)

        return self.shards(spark, "labels").select("first_node", "splits", "labels").mapInArrow(seeds, _LABEL_DDL)


def open_inputs(lake: str, graph: str, edges: str, direction: str, version: int | None = None) -> Inputs:
    """Find a graph and the edges to follow.

    Args:
        lake: folder of the tables.
        graph: its name.
        edges: source-relation-target, with :split where edges are split; empty where the graph has one kind.
        direction: out or in.
        version: of gold/graph_manifest.

    Raises:
        UserError: no such graph or edges; those that are there are named.
    """
    check_name(graph)
    parts = csr.manifest(lake, graph, version)
    edge_type = _edge_type(edges) if edges else _only(parts, direction, graph)
    adjacency = csr.open_csr(lake, graph, edge_type, direction, version)
    node_type = edge_type.source if direction == "out" else edge_type.target
    return Inputs(lake, graph, adjacency, node_type, parts)


def sql_text(value: str) -> str:
    """A string of the data's as a literal of Spark SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def split_codes(text: str, setting: str = "splits") -> tuple[int, ...]:
    """Read `train,test`, the value of a setting, as codes.

    Raises:
        UserError: no such split.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SPLITS:
            raise UserError(
                f"--{setting}: {name!r} is not one of {', '.join(SPLITS)}", "for example train,validation,test"
            )
    return tuple(sorted({SPLITS.index(name) for name in names}))


def count_by_split(seeds: DataFrame) -> dict[int, int]:
    """Seeds by split code."""
    return {row["split"]: row["count"] for row in seeds.groupBy("split").count().collect()}


def files_by_split(counts: Mapping[int, int], rows_per_file: int) -> tuple[int, ...]:
    """Files by split code, from rows alone; a code without rows keeps one place."""
    named = {SPLITS[code]: rows for code, rows in counts.items()}
    files = layout.files_for(named, rows_per_file)
    return tuple(files.get(name, 1) for name in SPLITS)


def named_splits(rows: DataFrame) -> DataFrame:
    """`split` by name rather than code."""
    from pyspark.sql import functions as F

    names = F.array(*[F.lit(name) for name in SPLITS])
    return rows.withColumn("split", F.element_at(names, F.col("split") + 1))


def all_columns(rows: DataFrame, table: str) -> DataFrame:
    """With nulls for the columns that were not made: hops beyond those asked for."""
    from pyspark.sql import functions as F

    lacking = [field for field in load(table).to_spark() if field.name not in rows.columns]
    return rows.withColumns({field.name: F.lit(None).cast(field.dataType) for field in lacking})


def in_order(rows: DataFrame, seed: int, partitions: Sequence[str]) -> DataFrame:
    """Sort what a partition writes by the order of training.

    The table's partition columns lead, though a partition has one value of each: or Delta's writer would sort again.
    """
    ordered = rows.withColumn("_order", hashing.order_column(rows["key"], seed))
    return ordered.sortWithinPartitions(*partitions, "_order", "key").drop("_order")


def _edge_type(text: str) -> EdgeType:
    names, _, split = text.partition(":")
    parts = names.split("-")
    if len(parts) == 1:
        return EdgeType(relation=parts[0], split=split or "all")
    if len(parts) != 3:
        raise UserError(
            f"--edges {text!r} is no edge type", "write source-relation-target, for example paper-cites-paper"
        )
    return EdgeType(parts[0], parts[1], parts[2], split or "all")


def _only(parts: Sequence[Mapping[str, Any]], direction: str, graph: str) -> EdgeType:
    names = ("source_type", "relation", "target_type", "split")
    found = [
        EdgeType(*(row[n] for n in names)) for row in parts if (row["part"], row["direction"]) == ("csr", direction)
    ]
    if len(found) != 1:
        have = ", ".join(str(edge) for edge in sorted(found)[:20]) or "none"
        remedy = "name one: --edges source-relation-target" if found else "featurize-graph --direction both makes them"
        raise UserError(f"graph {graph!r} has {len(found)} kinds of edges {direction}: {have}", remedy)
    return found[0]
