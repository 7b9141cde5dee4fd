"""Which dense id every node of a graph gets, kept in gold/graph_nodes: ids as they are, by id, or by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import WriteOptions, ensure, files_at, latest_version, read, write
from headrace.catalog.scratch import kept, remove
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import graph, graph_ids, graph_names, graph_source
from headrace.features.graph import Emit
from headrace.features.graph_edges import EdgeRows, Edges, Sample, sample
from headrace.features.graph_exchange import Exchange
from headrace.pipelines.graph_run import Run

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


@dataclass(frozen=True)
class Numbered:
    """Edges, of which it is known how their ends get dense ids.

    Args:
        edges: the edges.
        sampled: some of them, with dense ids.
        keys: makes blocks of their keys in a folder, once it is known how shards are cut.
    """

    edges: Edges
    sampled: Sample
    keys: Callable[[Emit, str], Exchange]


def number(work: Run, edges: Edges, largest: Mapping[str, int]) -> Numbered:
    """Number the nodes as the settings and the kind of ids have it, and keep what is new.

    Args:
        work: the run; its `nodes` and `rows` are filled.
        edges: of the graph.
        largest: id by node type.

    Raises:
        UserError: ids that are not dense, nodes numbered by other keys before, another run at the same time.
    """
    act = _by_name if work.source.named else _as_they_are if work.cfg.ids == "dense" else _by_id
    return act(work, edges, largest)


def _as_they_are(work: Run, edges: Edges, largest: Mapping[str, int]) -> Numbered:
    """Ids are dense as they are: no rows in gold/graph_nodes."""
    every = dict(largest)
    for name, node in graph_source.largest_rows(work.source).items():
        every[name] = max(every.get(name, -1), node)
    work.nodes = graph_source.dense_nodes(every, graph_source.node_counts(work.cfg.num_nodes))
    work.rows += [_nodes_row(name, number, 0, 0) for name, number in sorted(work.nodes.items())]
    return Numbered(edges, sample(edges, _parts(work, edges)), partial(graph.dense_keys, edges))


def _by_id(work: Run, edges: Edges, largest: Mapping[str, int]) -> Numbered:
    """Ids in the order of the original ones; what is known of earlier runs stays."""
    with work.report.stage("nodes") as stage:
        sampled = sample(edges, _parts(work, edges))
        ranges = graph_ids.id_ranges(edges, sampled, graph_source.row_counts(work.source), work.cfg.shard_edges)
        known = _known_nodes(work)
        before = None if known.frame is None else known.frame.select("node_type", "original", "id")
        found, numbered = f"{work.folder}/found", f"{work.folder}/numbered"
        scattered = graph_ids.scatter(edges, graph_source.row_nodes(work.source), before, ranges, found)
        nodes, dense = graph_ids.number_nodes(work.spark, edges, scattered, ranges, known.counts, sampled, numbered)
        remove(found)
        work.nodes = nodes.totals
        _write_nodes(work, graph_ids.new_nodes(work.spark, nodes).withColumn("name", _null("string")), known)
        stage.rows_out = sum(work.nodes.values())
    return Numbered(edges, dense, partial(graph.renumber, work.spark, nodes))


def _by_name(work: Run, edges: Edges, largest: Mapping[str, int]) -> Numbered:
    """Ids in the order of the names."""
    with work.report.stage("nodes") as stage:
        assert isinstance(edges.source, EdgeRows)
        names = graph_names.ends(edges.source.frame)
        rows = graph_source.row_nodes(work.source)
        known = _known_nodes(work)
        # Numbered from storage: sorted a second time, as after a lost executor, they could be cut at other names.
        new = graph_names.new_names(names if rows is None else names.unionAll(rows), known.frame)
        new = kept(new, f"{work.folder}/names")
        numbered, work.nodes = graph_names.number(new, known.counts)
        _write_nodes(work, numbered.withColumn("original", _null("bigint")), known)
        stage.rows_out = sum(work.nodes.values())
    dense = replace(edges, source=EdgeRows(work.hold(graph_names.renumber(edges.source.frame, nodes_of(work)))))
    return Numbered(dense, sample(dense, _parts(work, edges)), partial(graph.dense_keys, dense))


@dataclass(frozen=True)
class _Known:
    """The nodes that have ids already: rows of gold/graph_nodes (None: there are none), how many by type."""

    frame: DataFrame | None
    counts: dict[str, int]
    generation: int
    version: int


def _known_nodes(work: Run) -> _Known:
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


def _write_nodes(work: Run, new: DataFrame, known: _Known) -> None:
    """Append the new nodes, if there are any; a graph that is numbered anew replaces its rows."""
    from pyspark.sql import functions as F

    added = {name: number - known.counts.get(name, 0) for name, number in work.nodes.items()}
    version = known.version
    if sum(added.values()) or known.frame is None:
        rows = new.withColumn("graph", F.lit(work.cfg.graph)).withColumn("generation", F.lit(known.generation))
        if known.frame is None:
            commit = work.commit("gold/graph_nodes", rows)
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


def nodes_of(work: Run) -> DataFrame:
    """The rows of gold/graph_nodes this run has made or found."""
    version = next(row["version"] for row in work.rows if row["part"] == "nodes")
    rows = read(work.spark, load("gold/graph_nodes"), work.cfg.lake, version)
    return rows.where(f"graph = '{work.cfg.graph}'")


def _parts(work: Run, edges: Edges) -> int:
    """Tasks' worth of edges."""
    return -(-sum(edges.counts) * (2 if work.cfg.symmetrize else 1) // work.cfg.shard_edges)


def _null(type_: str) -> Column:
    from pyspark.sql import functions as F

    return F.lit(None).cast(type_)
