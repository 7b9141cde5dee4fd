"""gold/graph_csr -> gold/graph_ranks: PageRank with a bound on its error, and the connected component of every node.

The rows of a graph's edge type are replaced as a whole, by the same rows where nothing has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from headrace.catalog.delta import WriteOptions, write
from headrace.catalog.scratch import scratch
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.components import components
from headrace.features.pagerank import Certificate, Options, pagerank
from headrace.pipelines import graph_inputs

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from headrace.features.csr import CsrTable
    from headrace.report import Report

TABLE = "gold/graph_ranks"


@dataclass(kw_only=True)
class Config:
    """Settings of rank-graph.

    Args:
        lake: directory of the tables.
        graph: name of the graph.
        damping: probability to follow an edge rather than to jump.
        tolerance: the sum of all ranks' errors may be up to it.
        max_iterations: then it ends all the same, and says how near it is.
        personal: jump to these nodes instead of all: 17 or 17,23 or 17=0.7,23=0.3 (dense ids).
        edges: source-relation-target to follow, where the graph has several kinds; within one node type.
    """

    lake: str
    graph: str
    damping: float = 0.85
    tolerance: float = 1e-6
    max_iterations: int = 200
    personal: str = ""
    edges: str = ""

    def options(self) -> Options:
        """How ranks are computed."""
        return Options(self.damping, self.tolerance, self.max_iterations, parse_personal(self.personal))


def parse_personal(text: str) -> dict[int, float]:
    """Read `17=0.7,23` as weights by node.

    Raises:
        UserError: not of that form.
    """
    found: dict[int, float] = {}
    for part in filter(None, text.split(",")):
        node, _, weight = part.partition("=")
        try:
            found[int(node)] = float(weight or 1)
        except ValueError:
            raise UserError(f"--personal: {part!r} is no node", "write dense ids as 17,23 or 17=0.7,23=0.3") from None
    return found


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no such graph.
    """
    found = graph_inputs.open_inputs(cfg.lake, cfg.graph, cfg.edges, "out")
    cfg.options().check(found.adjacency.num_nodes)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Rank and connect; see the module's docstring.

    Raises:
        UserError: as `early`.
    """
    early(cfg)
    adjacency = graph_inputs.open_inputs(cfg.lake, cfg.graph, cfg.edges, "out").adjacency
    spec = load(TABLE)
    report.paths["ranks"] = spec.path(cfg.lake)
    with scratch(cfg.lake, "rank-graph") as work:
        with report.stage("pagerank") as stage:
            ranks, done = pagerank(spark, adjacency, f"{work}/ranks", cfg.options())
            stage.rows_in, stage.rows_out = adjacency.num_edges, adjacency.num_nodes
            stage.note = say(done)
        if not done.converged:
            report.warn(f"PageRank ended before --tolerance {cfg.tolerance}: {say(done)}; raise --max_iterations")
        with report.stage("components") as stage:
            stage.rows_in = adjacency.num_edges
            named = components(edge_rows(spark, adjacency), f"{work}/components")
            rows = _joined(ranks, named, adjacency, cfg)
            commit = write(
                rows,
                spec,
                cfg.lake,
                mode="overwrite",
                metadata=_metadata(cfg, adjacency, done),
                options=_where(adjacency),
            )
            stage.rows_out = commit.rows_added
            assert stage.rows_out == adjacency.num_nodes, f"{adjacency.num_nodes} nodes, {stage.rows_out} rows"
    report.results |= {"table": TABLE, "version": commit.version, "nodes": adjacency.num_nodes} | asdict(done)
    return report


def say(done: Certificate) -> str:
    """The certificate in words."""
    return f"{done.iterations} iterations, |x - exact| <= {done.error_bound:.2e}, sum {done.total:.12f}"


def edge_rows(spark: SparkSession, adjacency: CsrTable) -> DataFrame:
    """The edges of an adjacency, one row each: src, dst."""
    import numpy as np

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow

        for batch in batches:
            for number in batch.column(0).to_pylist():
                shard = adjacency.shard(number)
                nodes = np.arange(len(shard.indptr) - 1, dtype=np.int64) + shard.first_node
                src = pyarrow.array(np.repeat(nodes, np.diff(shard.indptr)))
                edges = pyarrow.RecordBatch.from_arrays([src, pyarrow.array(shard.indices)], ["src", "dst"])
                yield from (edges.slice(at, 1 << 16) for at in range(0, edges.num_rows, 1 << 16))

    count = len(adjacency.shards)
    return spark.range(0, count, 1, max(1, count)).mapInArrow(read, "src bigint, dst bigint")


def _joined(ranks: DataFrame, named: DataFrame, adjacency: CsrTable, cfg: Config) -> DataFrame:
    """A row a node; one without edges is a component of its own."""
    from pyspark.sql import functions as F

    rows = ranks.join(named, "node", "left").select(
        F.col("node").alias("key"),
        F.lit(cfg.graph).alias("graph"),
        F.lit(str(adjacency.edge_type)).alias("edges"),
        "rank",
        F.coalesce("component", "node").alias("component"),
    )
    return rows.repartition("graph", "edges", F.floor(F.col("key") / (1 << 22))).sortWithinPartitions(
        "graph", "edges", "key"
    )


def _metadata(cfg: Config, adjacency: CsrTable, done: Certificate) -> dict[str, object]:
    return {"request": asdict(cfg) | {"lake": None}, "graph_csr": adjacency.version, "certificate": asdict(done)}


def _where(adjacency: CsrTable) -> WriteOptions:
    edges = graph_inputs.sql_text(str(adjacency.edge_type))
    return WriteOptions(replace_where=f"graph = '{adjacency.graph}' AND edges = {edges}")
