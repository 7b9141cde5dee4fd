"""gold/graph_csr -> gold/graph_neighbourhoods: sampled neighbourhoods of seed nodes as rows that training streams.

An epoch's rows are replaced as a whole, by the same rows where nothing has changed: a rerun is harmless.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from headrace.catalog.delta import WriteOptions, write
from headrace.catalog.scratch import kept, scratch
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import layout, node_blocks, propagation
from headrace.features.edge_weights import refuse_unfit
from headrace.features.graph_source import check_name
from headrace.features.neighbourhoods import SPLITS, TABLE, Plan, neighbourhoods
from headrace.features.sampling import parse_fanouts
from headrace.features.split import parse_days
from headrace.pipelines import graph_inputs
from headrace.pipelines.graph_inputs import Inputs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.catalog.delta import Commit
    from headrace.features.csr import CsrTable
    from headrace.report import Report

DIRECTIONS = ("out", "in")
_PARTITIONS = ("graph", "sampling", "epoch", "split")


@dataclass(kw_only=True)
class Config:
    """Settings of sample-graph.

    Args:
        lake: directory of the tables.
        graph: name of the graph.
        fanouts: neighbours by hop, for example 15,10.
        edges: source-relation-target to follow, where the graph has several kinds.
        direction: out (neighbours are targets) or in (neighbours are sources).
        sampling: name of the rows in the table; another one beside it keeps both.
        epochs: an epoch's neighbours are drawn afresh: 0-4 writes the rows of five.
        splits: seeds are the nodes of these splits (train,validation,test,none); all nodes where there are no labels.
        replace: draw with replacement.
        weighted: draw by the edges' weights, without replacement.
        means: write mean features of every hop (x0, x1, ...) beside the ids.
        seed: of the draws and of the order of rows.
        rows_per_file: about so many rows in a file.
        rows_per_group: rows of a Parquet row group.
    """

    lake: str
    graph: str
    fanouts: str = "15,10"
    edges: str = ""
    direction: str = "out"
    sampling: str = "default"
    epochs: str = "0"
    splits: str = "train,validation,test"
    replace: bool = False
    weighted: bool = False
    means: bool = False
    seed: int = 0
    rows_per_file: int = 65_536
    rows_per_group: int = 4_096


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no such graph.
    """
    if cfg.direction not in DIRECTIONS:
        raise UserError(f"--direction {cfg.direction!r} is not one of {', '.join(DIRECTIONS)}")
    check_name(cfg.sampling, "sampling")
    graph_inputs.split_codes(cfg.splits)
    parse_days(cfg.epochs, "epochs")
    Plan(parse_fanouts(cfg.fanouts), replace=cfg.replace, weighted=cfg.weighted).check()
    if cfg.rows_per_file < 1 or cfg.rows_per_group < layout.MIN_GROUP_ROWS:
        raise UserError(
            f"--rows_per_file is under 1, or --rows_per_group under {layout.MIN_GROUP_ROWS}", "leave them out"
        )
    adjacency = graph_inputs.open_inputs(cfg.lake, cfg.graph, cfg.edges, cfg.direction).adjacency
    edge = adjacency.edge_type
    if cfg.weighted and not adjacency.weighted:
        raise UserError(f"--weighted: edges {edge} of graph {cfg.graph!r} have no weights", "--weighted false")
    if edge.source != edge.target and ("," in cfg.fanouts or cfg.means):
        raise UserError(
            f"edges {edge} lead to nodes of another type, which have no such edges, nor the seeds' features",
            "take one hop, and ids only: --fanouts 15 --means false",
        )


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Sample every epoch asked for; see the module's docstring.

    Raises:
        UserError: as `early`; mean features of a graph without features; weights below 0.
    """
    early(cfg)
    report.paths["neighbourhoods"] = load(TABLE).path(cfg.lake)
    inputs = graph_inputs.open_inputs(cfg.lake, cfg.graph, cfg.edges, cfg.direction)
    if cfg.weighted:
        refuse_unfit(spark, inputs.adjacency, "edges are drawn with probabilities in proportion to their weights")
    with scratch(cfg.lake, "sample-graph") as work:
        with report.stage("seeds") as stage:
            source = _prepare(spark, cfg, inputs, work)
            stage.rows_out = source.rows
        for epoch in parse_days(cfg.epochs, "epochs"):
            with report.stage(f"sample epoch {epoch}") as stage:
                stage.rows_in = source.rows
                commit = _sample(spark, cfg, source, epoch, f"{work}/epoch-{epoch}")
                stage.rows_out = commit.rows_added
                assert stage.rows_out == stage.rows_in, f"{stage.rows_in} seeds, {stage.rows_out} rows committed"
                stage.note = f"version {commit.version}"
    rows = {SPLITS[code]: n for code, n in sorted(source.counts.items())}
    report.results |= {"table": TABLE, "version": commit.version, "rows_by_split": rows}
    return report


@dataclass(frozen=True)
class _Source:
    """What every epoch reads; seeds and features are put down once, as rows rather than shards."""

    adjacency: CsrTable
    seeds: DataFrame
    counts: dict[int, int]
    features: DataFrame | None
    dim: int

    @property
    def rows(self) -> int:
        """Seeds."""
        return sum(self.counts.values())


def _prepare(spark: SparkSession, cfg: Config, inputs: Inputs, work: str) -> _Source:
    features, dim = None, 0
    with node_blocks.few_records_a_batch(spark):
        seeds = kept(inputs.seeds(spark, graph_inputs.split_codes(cfg.splits)), f"{work}/seeds")
        if cfg.means:
            shards = inputs.shards(spark, "features")
            dim = int(shards.select("dim").first()["dim"])  # type: ignore[index]
            features = kept(propagation.feature_rows(shards), f"{work}/features")
    counts = graph_inputs.count_by_split(seeds)
    if not counts:
        raise UserError(f"graph {cfg.graph!r} has no node of --splits {cfg.splits}", "name other splits")
    return _Source(inputs.adjacency, seeds, counts, features, dim)


def _sample(spark: SparkSession, cfg: Config, source: _Source, epoch: int, work: str) -> Commit:
    """One epoch's rows, committed."""
    from pyspark.sql import functions as F

    files = graph_inputs.files_by_split(source.counts, cfg.rows_per_file)
    plan = Plan(parse_fanouts(cfg.fanouts), cfg.seed, epoch, 0, cfg.replace, cfg.weighted, source.dim, files)
    rows = neighbourhoods(source.seeds, source.adjacency, plan, work, source.features)
    names = {"graph": F.lit(cfg.graph), "sampling": F.lit(cfg.sampling), "epoch": F.lit(epoch)}
    rows = graph_inputs.all_columns(graph_inputs.named_splits(rows).withColumns(names), TABLE)
    metadata = {"request": asdict(cfg) | {"lake": None}, "graph_csr": source.adjacency.version, "epoch": epoch}
    where = f"graph = '{cfg.graph}' AND sampling = '{cfg.sampling}' AND epoch = {epoch}"
    options = WriteOptions(replace_where=where)
    with layout.row_groups(spark, cfg.rows_per_group):
        ordered = graph_inputs.in_order(rows, cfg.seed, _PARTITIONS)
        return write(ordered, load(TABLE), cfg.lake, mode="overwrite", metadata=metadata, options=options)
