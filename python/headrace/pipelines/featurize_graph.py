"""bronze/edges or bronze/triples, node features and labels -> dense ids, CSR shards, aligned rows, and a manifest.

Nodes are committed first, then adjacency, features, labels; the manifest names their versions and is committed last,
so a reader never sees parts of two runs. A run with the same input and settings does nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import WriteOptions, ensure, exists, files_at, latest_version, read, write
from headrace.catalog.scratch import remove, scratch
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import (
    graph,
    graph_degrees,
    graph_ids,
    graph_manifest,
    graph_names,
    graph_rows,
    graph_source,
    layout,
)
from headrace.features.csr import open_row
from headrace.features.graph import Emit
from headrace.features.graph_blocks import Merge
from headrace.features.graph_edges import EdgeRows, Edges, Sample, adjacencies, sample
from headrace.features.graph_exchange import Exchange
from headrace.features.graph_source import GraphSource

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from headrace.catalog.delta import Commit
    from headrace.report import Report, Stage

CHOICES = {
    "ids": ("renumber", "dense"),
    "nodes": ("grow", "rebuild"),
    "duplicates": ("drop", "keep", "sum", "min", "max"),
    "self_loops": ("keep", "drop"),
    "direction": ("out", "in", "both"),
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
    weights: bool = True
    degrees: bool = False
    feature_dtype: str = "keep"
    shard_edges: int = 2_000_000
    shard_nodes: int = 2_000_000
    shard_bytes: int = 16 << 20


@dataclass
class _Run:
    """One run: what it reads, what it has found and committed so far, and a folder for what lies between its steps."""

    spark: SparkSession
    cfg: Config
    report: Report
    source: GraphSource
    request: dict[str, Any]
    nodes: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    folder: str = ""


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
    work = _Run(spark, cfg, report, source, settings | {"versions": source.versions})
    if _done(work):
        return report
    with report.stage("edges") as stage:
        edges, largest = graph_source.edges_of(source, cfg.weights)
        stage.rows_in = stage.rows_out = sum(edges.counts)
        stage.note = f"{len(edges.types)} edge types, {sum(edges.loops):,} self-loops"
    number = _named if source.named else _dense if cfg.ids == "dense" else _renumbered
    with contextlib.ExitStack() as held:
        work.folder = held.enter_context(scratch(cfg.lake, "featurize-graph"))
        _write_csr(work, number(work, edges, largest, held))
        _write_features(work)
        _write_labels(work)
    if cfg.degrees:
        _write_degrees(work)
    graph_manifest.commit(spark, cfg.lake, cfg.graph, work.rows, work.request)
    report.results |= {"graph": cfg.graph} | graph_manifest.summary(work.rows)
    report.paths |= {row["table"]: load(row["table"]).path(cfg.lake) for row in work.rows}
    report.paths["gold/graph_manifest"] = load("gold/graph_manifest").path(cfg.lake)
    return report


def _done(work: _Run) -> bool:
    """Does the newest manifest stand for the same input and settings?"""
    made = graph_manifest.find(work.cfg.lake, work.cfg.graph)
    if not made or made[0]["options"] != json.loads(json.dumps(work.request)):
        return False
    work.report.say(f"nothing to do: graph {work.cfg.graph} was made from the same input with the same settings")
    work.report.results |= {"graph": work.cfg.graph, "nothing_to_do": True}
    work.report.results |= graph_manifest.summary(made)
    return True


@dataclass(frozen=True)
class _Numbered:
    """Edges, of which it is known how their ends get dense ids.

    Args:
        edges: the edges.
        sampled: some of them, with dense ids.
        keys: makes blocks of their keys in a folder, once it is known how shards are cut.
    """

    edges: Edges
    sampled: Sample
    keys: Callable[[Emit, str], Exchange]


def _dense(work: _Run, edges: Edges, largest: Mapping[str, int], held: contextlib.ExitStack) -> _Numbered:
    """Ids are dense as they are: no rows in gold/graph_nodes."""
    every = dict(largest)
    for name, node in graph_source.largest_rows(work.source).items():
        every[name] = max(every.get(name, -1), node)
    work.nodes = graph_source.dense_nodes(every, graph_source.node_counts(work.cfg.num_nodes))
    work.rows += [_nodes_row(name, number, 0, 0) for name, number in sorted(work.nodes.items())]
    return _Numbered(edges, sample(edges, _parts(work, edges)), partial(graph.dense_keys, edges))


def _renumbered(work: _Run, edges: Edges, largest: Mapping[str, int], held: contextlib.ExitStack) -> _Numbered:
    """Ids in the order of the original ones; what is known of earlier runs stays."""
    spark = work.spark
    with work.report.stage("nodes") as stage:
        sampled = sample(edges, _parts(work, edges))
        ranges = graph_ids.id_ranges(edges, sampled, graph_source.row_counts(work.source), work.cfg.shard_edges)
        known = _known_nodes(work)
        before = None if known.frame is None else known.frame.select("node_type", "original", "id")
        found, numbered = f"{work.folder}/found", f"{work.folder}/numbered"
        scattered = graph_ids.scatter(edges, graph_source.row_nodes(work.source), before, ranges, found)
        nodes, dense = graph_ids.number_nodes(spark, edges, scattered, ranges, known.counts, sampled, numbered)
        remove(found)
        work.nodes = nodes.totals
        _write_nodes(work, graph_ids.new_nodes(spark, nodes).withColumn("name", _null("string")), known)
        stage.rows_out = sum(work.nodes.values())
    return _Numbered(edges, dense, partial(graph.renumber, spark, nodes))


def _named(work: _Run, edges: Edges, largest: Mapping[str, int], held: contextlib.ExitStack) -> _Numbered:
    """Ids in the order of the names."""
    with work.report.stage("nodes") as stage:
        assert isinstance(edges.source, EdgeRows)
        names = graph_names.ends(edges.source.frame)
        rows = graph_source.row_nodes(work.source)
        known = _known_nodes(work)
        new = _hold(graph_names.new_names(names if rows is None else names.unionAll(rows), known.frame), held)
        numbered, work.nodes = graph_names.number(new, known.counts)
        _write_nodes(work, numbered.withColumn("original", _null("bigint")), known)
        stage.rows_out = sum(work.nodes.values())
    dense = replace(edges, source=EdgeRows(_hold(graph_names.renumber(edges.source.frame, _nodes(work)), held)))
    return _Numbered(dense, sample(dense, _parts(work, edges)), partial(graph.dense_keys, dense))


@dataclass(frozen=True)
class _Known:
    """The nodes that have ids already: rows of gold/graph_nodes (None: there are none), how many by type."""

    frame: DataFrame | None
    counts: dict[str, int]
    generation: int
    version: int


def _known_nodes(work: _Run) -> _Known:
    from pyspark.sql import functions as F

    spec = load("gold/graph_nodes")
    ensure(work.spark, spec, work.cfg.lake)
    version = latest_version(spec.path(work.cfg.lake))
    files = files_at(spec, work.cfg.lake, version, {"graph": work.cfg.graph})
    if work.cfg.nodes == "rebuild" or not files:
        return _Known(None, {}, 0, version)
    frame = read(work.spark, spec, work.cfg.lake, version).where(F.col("graph") == work.cfg.graph)
    if not frame.where("name IS NULL" if work.source.named else "original IS NULL").isEmpty():
        raise UserError(f"the nodes of graph {work.cfg.graph} were numbered by other keys", "--nodes rebuild")
    found = frame.groupBy("node_type").agg(F.count("id").alias("nodes"), F.max("generation").alias("last")).collect()
    generation = 1 + max(row["last"] for row in found)
    return _Known(frame, {row["node_type"]: row["nodes"] for row in found}, generation, version)


def _write_nodes(work: _Run, new: DataFrame, known: _Known) -> None:
    """Append the new nodes, if there are any; a graph that is numbered anew replaces its rows."""
    from pyspark.sql import functions as F

    added = {name: number - known.counts.get(name, 0) for name, number in work.nodes.items()}
    version = known.version
    if sum(added.values()) or known.frame is None:
        rows = new.withColumn("graph", F.lit(work.cfg.graph)).withColumn("generation", F.lit(known.generation))
        if known.frame is None:
            commit = _commit(work, "gold/graph_nodes", rows)
        else:
            # Two appends do not conflict by themselves, and would give one node two ids: this lets one of them in.
            options = WriteOptions(txn=(f"featurize-graph nodes {work.cfg.graph}", known.version + 1))
            commit = write(rows, load("gold/graph_nodes"), work.cfg.lake, options=options)
            if commit.skipped:
                raise UserError("another featurize-graph added nodes to this graph at the same time", "run it again")
        version = commit.version
    work.rows += [_nodes_row(name, work.nodes[name], version, added[name]) for name in sorted(work.nodes)]


def _nodes_row(name: str, nodes: int, version: int, added: int) -> dict[str, Any]:
    row = {"part": "nodes", "nodes": nodes, "shards": 0, "node_type": name}
    return row | {"table": "gold/graph_nodes", "version": version, "counts": {"new": added}}


def _nodes(work: _Run) -> DataFrame:
    """The rows of gold/graph_nodes this run has made or found."""
    version = next(row["version"] for row in work.rows if row["part"] == "nodes")
    rows = read(work.spark, load("gold/graph_nodes"), work.cfg.lake, version)
    return rows.where(f"graph = '{work.cfg.graph}'")


def _write_csr(work: _Run, numbered: _Numbered) -> None:
    """All adjacencies in one commit, then their rows of the manifest, counted in the table."""
    cfg, edges = work.cfg, numbered.edges
    directions = ("out", "in") if cfg.direction == "both" else (cfg.direction,)
    made = adjacencies(edges.types, directions, symmetrize=cfg.symmetrize, loops=cfg.self_loops == "keep")
    with work.report.stage("csr") as stage:
        plans = graph.plans(edges, made, work.nodes, numbered.sampled, cfg.shard_edges, cfg.shard_nodes)
        emit = Emit(made, plans)
        keys = numbered.keys(emit, f"{work.folder}/keys")
        shards = graph.csr(work.spark, keys, emit, Merge(cfg.duplicates, edges.weighted))
        commit = _commit(work, "gold/graph_csr", shards)
        _describe_csr(work, numbered, emit, commit.version)
        stage.rows_in = sum(edges.counts)
        stage.rows_out = sum(row["edges"] for row in work.rows if row["part"] == "csr")
        stage.note = f"{len(made)} adjacencies, {sum(plan.count for plan in plans)} shards"


_SMALL = (*graph.NAMES, "num_nodes", "num_edges", "piece", "key_sum")


def _describe_csr(work: _Run, numbered: _Numbered, emit: Emit, version: int) -> None:
    shards: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in graph_manifest.small_rows(work.cfg.lake, "gold/graph_csr", version, work.cfg.graph, _SMALL):
        shards.setdefault(tuple(row[name] for name in _SMALL[:5]), []).append(row)
    weighted = numbered.edges.weighted or work.cfg.duplicates == "sum"
    for made, plan in zip(emit.adjacencies, emit.plans, strict=True):
        edge = made.edge
        mine = shards.get((edge.source, edge.relation, edge.target, edge.split, made.direction), [])
        assert len(mine) == plan.count, f"{edge}: {plan.count} shards were planned, {len(mine)} are in the table"
        row = graph_manifest.csr_row(edge, made.direction, mine, plan.columns if plan.rows else 0, version)
        read_, loops = numbered.edges.counts[made.type], numbered.edges.loops[made.type]
        expected = made.expected(read_, loops)
        counts = {"read": read_, "self_loops": loops, "self_loops_dropped": 0 if made.loops else loops}
        counts |= {"mirrored": expected - read_ + counts["self_loops_dropped"], "merged": expected - row["edges"]}
        work.rows.append(row | {"dtype": "float64" if weighted else "none", "counts": counts})


def _write_features(work: _Run) -> None:
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


def _write_labels(work: _Run) -> None:
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


def _write_shards(work: _Run, table: str, shards: DataFrame, names: list[str]) -> dict[str, dict[str, Any]]:
    """Commit shards of rows; a row of the manifest by node type."""
    from pyspark.sql import functions as F

    rows = shards.withColumn("node_type", _choose(names, F.col("type"))).drop("type")
    commit = _commit(work, table, rows)
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


def _with_ids(work: _Run, rows: DataFrame) -> DataFrame:
    """Feature or label rows with the dense ids of their nodes."""
    if work.cfg.ids == "dense" and not work.source.named:
        return rows.withColumnRenamed("node", "id")
    if work.source.named:
        return rows.join(_nodes(work).select("node_type", "name", "id"), ["node_type", "name"])
    ids = _nodes(work).selectExpr("node_type", "original AS node", "id")
    return rows.join(ids, ["node_type", "node"])


def _write_degrees(work: _Run) -> None:
    with work.report.stage("degrees") as stage:
        tables = [open_row(work.cfg.lake, work.cfg.graph, row) for row in work.rows if row["part"] == "csr"]
        rows = graph_degrees.degrees(work.spark, tables)
        commit = _commit(work, "gold/graph_degrees", rows)
        stage.rows_out = commit.rows_added


def _commit(work: _Run, table: str, rows: DataFrame) -> Commit:
    """Replace the graph's rows in a table; shards get a Parquet row group each, so that one can be read alone."""
    from pyspark.sql import functions as F

    spec = load(table)
    rows = rows.withColumn("graph", F.lit(work.cfg.graph))
    alone = contextlib.nullcontext() if table in _FLAT else layout.row_groups(work.spark, 1)
    with alone:
        options = graph_manifest.of_graph(work.cfg.graph, quality=table in _FLAT)
        return write(rows, spec, work.cfg.lake, mode="overwrite", options=options)


_FLAT = ("gold/graph_nodes", "gold/graph_degrees")


def _parts(work: _Run, edges: Edges) -> int:
    """Tasks' worth of edges."""
    return -(-sum(edges.counts) * (2 if work.cfg.symmetrize else 1) // work.cfg.shard_edges)


def _choose(values: Sequence[str], place: Column) -> Column:
    from pyspark.sql import functions as F

    return F.element_at(F.array(*[F.lit(value) for value in values]), place + 1)


def _null(type_: str) -> Column:
    from pyspark.sql import functions as F

    return F.lit(None).cast(type_)


def _hold(frame: DataFrame, held: contextlib.ExitStack) -> DataFrame:
    """Kept on disk until the graph is made: used several times."""
    from pyspark import StorageLevel

    kept = frame.persist(StorageLevel.DISK_ONLY)
    held.callback(kept.unpersist)
    return kept
