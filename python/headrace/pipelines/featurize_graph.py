"""bronze/edges or bronze/triples, node features and labels -> dense ids, CSR shards, aligned rows, and a manifest.

Nodes are committed first, then adjacency, features, labels; the manifest names their versions and is committed last,
so a reader never sees parts of two runs. A run with the same input and settings does nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import exists
from headrace.catalog.scratch import scratch
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import (
    graph,
    graph_degrees,
    graph_manifest,
    graph_relations,
    graph_rows,
    graph_source,
)
from headrace.features.csr import open_row
from headrace.features.graph import Emit
from headrace.features.graph_blocks import Merge
from headrace.features.graph_edges import adjacencies
from headrace.pipelines.graph_numbering import Numbered, nodes_of, number
from headrace.pipelines.graph_run import Run

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from headrace.report import Report, Stage

CHOICES = {
    "ids": ("renumber", "dense"),
    "nodes": ("grow", "rebuild"),
    "duplicates": ("drop", "keep", "sum", "min", "max"),
    "self_loops": ("keep", "drop"),
    "direction": ("out", "in", "both"),
    "relations": graph_relations.CHOICES,
    "feature_dtype": ("keep", "float16", "float32"),
}


@dataclass(kw_only=True)
class Config:
    """Settings of featurize-graph.

    Args:
        lake: directory of the tables.
        graph: name of the graph.
        ids: renumber (dense ids by the order of the original ones) or dense (the input's ids are 0 .. n-1 already, as
            OGB's are).
        num_nodes: with dense ids, the number of nodes where not every one has an edge: 1000, or paper=1000,author=50.
        nodes: grow (nodes keep their ids, new ones come behind) or rebuild (number all again).
        duplicates: several edges between the same nodes: drop (the first stays), keep, sum, min or max of their weights
            (edges without weights count 1 each under sum).
        self_loops: keep or drop.
        symmetrize: every edge in both directions; between two node types as a second relation, rev_NAME.
        direction: out (rows are sources), in (rows are targets) or both.
        relations: separate (an adjacency each), joined (one over all relations between two node types, with the
            relation's number beside each neighbour) or auto (joined above 64 of them).
        weights: false leaves the input's weights out.
        degrees: write gold/graph_degrees too.
        feature_dtype: keep, float16 or float32.
        shard_edges: about so many edges in a shard; what a task holds.
        shard_nodes: at most so many nodes in a shard.
        shard_bytes: about the size of a shard of features.
    """

    lake: str
    graph: str
    ids: str = "renumber"
    num_nodes: str = ""
    nodes: str = "grow"
    duplicates: str = "drop"
    self_loops: str = "keep"
    symmetrize: bool = False
    direction: str = "out"
    relations: str = "auto"
    weights: bool = True
    degrees: bool = False
    feature_dtype: str = "keep"
    shard_edges: int = 2_000_000
    shard_nodes: int = 2_000_000
    shard_bytes: int = 16 << 20


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, or no table of edges.
    """
    for name, allowed in CHOICES.items():
        if getattr(cfg, name) not in allowed:
            raise UserError(f"--{name} {getattr(cfg, name)!r} is not one of {', '.join(allowed)}")
    for name in ("shard_edges", "shard_nodes", "shard_bytes"):
        if getattr(cfg, name) < 1:
            raise UserError(f"--{name} must be at least 1", f"leave --{name} out")
    graph_source.check_name(cfg.graph)
    graph_source.node_counts(cfg.num_nodes)
    if cfg.num_nodes and cfg.ids != "dense":
        raise UserError("--num_nodes is for dense ids", "--ids dense, or leave --num_nodes out")
    if not any(exists(load(name).path(cfg.lake)) for name in graph_source.TABLES):
        command = f"headrace ingest-graph --lake {cfg.lake} --graph {cfg.graph} --source ..."
        raise UserError(f"there are no edges in --lake {cfg.lake}", command)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Make the graph; see the module.

    Raises:
        UserError: a setting out of range, no such graph, edges by id and by name, ids that are not dense, too many
            nodes, feature rows of different length.
    """
    early(cfg)
    source = graph_source.open_source(spark, cfg.lake, cfg.graph)
    settings = {name: value for name, value in asdict(cfg).items() if name not in ("lake", "graph")}
    request = settings | {"versions": source.versions}
    if _done(cfg, request, report):
        return report
    with scratch(cfg.lake, "featurize-graph") as place, contextlib.ExitStack() as held:
        work = Run(spark, cfg, report, source, place, held)
        _make(work)
    graph_manifest.commit(spark, cfg.lake, cfg.graph, work.rows, request)
    report.results |= {"graph": cfg.graph} | graph_manifest.summary(work.rows)
    report.paths |= {row["table"]: load(row["table"]).path(cfg.lake) for row in work.rows}
    report.paths["gold/graph_manifest"] = load("gold/graph_manifest").path(cfg.lake)
    return report


def _done(cfg: Config, request: dict[str, Any], report: Report) -> bool:
    """Does the newest manifest stand for the same input and settings?"""
    made = graph_manifest.find(cfg.lake, cfg.graph)
    if not made or made[0]["options"] != json.loads(json.dumps(request)):
        return False
    report.say(f"nothing to do: graph {cfg.graph} was made from the same input with the same settings")
    report.results |= {"graph": cfg.graph, "nothing_to_do": True} | graph_manifest.summary(made)
    return True


def _make(work: Run) -> None:
    """All tables but the manifest."""
    with work.report.stage("edges") as stage:
        edges, largest = graph_source.edges_of(work.source, work.cfg.weights)
        stage.rows_in = stage.rows_out = sum(edges.counts)
        stage.note = f"{len(edges.types)} edge types, {sum(edges.loops):,} self-loops"
    _write_csr(work, number(work, edges, largest))
    _write_features(work)
    _write_labels(work)
    if work.cfg.degrees:
        _write_degrees(work)


def _write_csr(work: Run, numbered: Numbered) -> None:
    """All adjacencies in one commit, then their rows of the manifest, counted in the table."""
    cfg, edges = work.cfg, numbered.edges
    directions = ("out", "in") if cfg.direction == "both" else (cfg.direction,)
    made = adjacencies(edges.types, directions, symmetrize=cfg.symmetrize, loops=cfg.self_loops == "keep")
    with work.report.stage("csr") as stage:
        kept = graph_relations.stored(made, edges.types, cfg.relations)
        plans = graph.plans(edges, kept, work.nodes, numbered.sampled, cfg.shard_edges, cfg.shard_nodes)
        emit = Emit(kept, plans)
        keys = numbered.keys(emit, f"{work.folder}/keys")
        shards = graph.csr(work.spark, keys, emit, Merge(cfg.duplicates, edges.weighted))
        commit = work.commit("gold/graph_csr", shards)
        _describe_csr(work, numbered, emit, commit.version)
        stage.rows_in = sum(edges.counts)
        stage.rows_out = sum(row["edges"] for row in work.rows if row["part"] == "csr")
        stage.note = f"{len(kept)} adjacencies, {sum(plan.count for plan in plans)} shards"


_SMALL = (*graph.NAMES, "num_nodes", "num_edges", "piece", "key_sum")


def _describe_csr(work: Run, numbered: Numbered, emit: Emit, version: int) -> None:
    shards: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in graph_manifest.small_rows(work.cfg.lake, "gold/graph_csr", version, work.cfg.graph, _SMALL):
        shards.setdefault(tuple(row[name] for name in _SMALL[:5]), []).append(row)
    weighted = numbered.edges.weighted or work.cfg.duplicates == "sum"
    for made, plan in zip(emit.stored, emit.plans, strict=True):
        edge = made.edge
        mine = shards.get((edge.source, edge.relation, edge.target, edge.split, made.direction), [])
        assert len(mine) == plan.count, f"{edge}: {plan.count} shards were planned, {len(mine)} are in the table"
        targets = plan.columns // made.width if plan.rows else 0
        row = graph_manifest.csr_row(edge, made.direction, mine, targets, version)
        edges = numbered.edges
        read_, loops = (sum(of[part.type] for part in made.parts) for of in (edges.counts, edges.loops))
        expected = made.expected(edges.counts, edges.loops)
        counts = {"read": read_, "self_loops": loops, "self_loops_dropped": 0 if made.parts[0].loops else loops}
        counts |= {"mirrored": expected - read_ + counts["self_loops_dropped"], "merged": expected - row["edges"]}
        row |= {"dtype": "float64" if weighted else "none", "counts": counts}
        work.rows.append(row | {"relations": list(made.relations) or None})


def _write_features(work: Run) -> None:
    if "bronze/node_features" not in work.source.frames:
        return
    rows = work.source.frames["bronze/node_features"]
    with work.report.stage("features") as stage:
        of_type = graph_rows.layouts(rows, work.nodes, work.cfg.shard_bytes, work.cfg.feature_dtype)
        shards = graph_rows.feature_shards(work.spark, _with_ids(work, rows), of_type)
        made = _write_shards(work, "gold/graph_features", shards, sorted(of_type))
        for name, layout_ in of_type.items():
            row = made[name]
            row["counts"]["repeated"] = layout_.rows - (row["nodes"] - row["counts"]["missing"])
            row["counts"]["read"] = layout_.rows
            row["dtype"] = layout_.dtype
            work.rows.append(row)
        _count_rows(stage, [made[name] for name in of_type])


def _write_labels(work: Run) -> None:
    if "bronze/node_labels" not in work.source.frames:
        return
    rows = work.source.frames["bronze/node_labels"]
    with work.report.stage("labels") as stage:
        read_ = {row["node_type"]: row["count"] for row in rows.groupBy("node_type").count().collect()}
        nodes = {name: work.nodes[name] for name in read_}
        shards = graph_rows.label_shards(work.spark, _with_ids(work, rows), nodes)
        made = _write_shards(work, "gold/graph_labels", shards, sorted(nodes))
        for name, row in made.items():
            row["counts"]["read"] = read_[name]
            work.rows.append(row)
        _count_rows(stage, list(made.values()))


def _count_rows(stage: Stage, rows: list[dict[str, Any]]) -> None:
    stage.rows_in = sum(row["counts"]["read"] for row in rows)
    stage.rows_out = sum(row["nodes"] for row in rows)
    stage.note = f"{sum(row['counts']['missing'] for row in rows):,} nodes have none"


def _write_shards(work: Run, table: str, shards: DataFrame, names: list[str]) -> dict[str, dict[str, Any]]:
    """Commit shards of rows; a row of the manifest by node type."""
    from pyspark.sql import functions as F

    rows = shards.withColumn("node_type", _choose(names, F.col("type"))).drop("type")
    commit = work.commit(table, rows)
    columns = ("node_type", "num_nodes", "num_missing")
    found: dict[str, dict[str, Any]] = {}
    for row in graph_manifest.small_rows(work.cfg.lake, table, commit.version, work.cfg.graph, columns):
        empty = {"part": table.removeprefix("gold/graph_"), "nodes": 0, "shards": 0, "table": table}
        made = found.setdefault(
            row["node_type"],
            empty | {"node_type": row["node_type"], "version": commit.version, "counts": {"missing": 0}},
        )
        made["nodes"] += row["num_nodes"]
        made["shards"] += 1
        made["counts"]["missing"] += row["num_missing"]
    for name in names:
        assert found[name]["nodes"] == work.nodes[name], f"{table}: rows of {name} are not aligned with its nodes"
    return found


def _with_ids(work: Run, rows: DataFrame) -> DataFrame:
    """Feature or label rows with the dense ids of their nodes."""
    if work.cfg.ids == "dense" and not work.source.named:
        return rows.withColumnRenamed("node", "id")
    if work.source.named:
        return rows.join(nodes_of(work).select("node_type", "name", "id"), ["node_type", "name"])
    ids = nodes_of(work).selectExpr("node_type", "original AS node", "id")
    return rows.join(ids, ["node_type", "node"])


def _write_degrees(work: Run) -> None:
    with work.report.stage("degrees") as stage:
        tables = [open_row(work.cfg.lake, work.cfg.graph, row) for row in work.rows if row["part"] == "csr"]
        rows = graph_degrees.degrees(work.spark, tables)
        commit = work.commit("gold/graph_degrees", rows)
        stage.rows_out = commit.rows_added


def _choose(values: Sequence[str], place: Column) -> Column:
    from pyspark.sql import functions as F

    return F.element_at(F.array(*[F.lit(value) for value in values]), place + 1)
