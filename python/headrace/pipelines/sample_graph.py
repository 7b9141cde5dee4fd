"""gold/graph_csr -> gold/graph_neighbourhoods: sampled neighbourhoods of seed nodes as rows that training streams.

An epoch's rows are replaced as a whole, by the same rows where nothing has changed: a rerun is harmless.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from headrace.catalog.delta import WriteOptions, write
from headrace.catalog.scratch import scratch
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import layout, node_blocks, propagation
from headrace.features.neighbourhoods import SPLITS, TABLE, Plan, neighbourhoods
from headrace.features.sampling import parse_fanouts
from headrace.features.split import parse_days
from headrace.pipelines import graph_inputs
from headrace.pipelines.graph_inputs import Inputs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.report import Report, Stage

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
    means: bool = False
    seed: int = 0
    rows_per_file: int = 262_144
    rows_per_group: int = 4_096


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no such graph.
    """
    if cfg.direction not in DIRECTIONS:
        raise UserError(f"--direction {cfg.direction!r} is not one of {', '.join(DIRECTIONS)}")
    graph_inputs.check_name(cfg.sampling, "sampling")
    graph_inputs.split_codes(cfg.splits)
    parse_days(cfg.epochs, "epochs")
    Plan(parse_fanouts(cfg.fanouts)).check()
    if cfg.rows_per_file < 1 or cfg.rows_per_group < layout.MIN_GROUP_ROWS:
        raise UserError(
            f"--rows_per_file is under 1, or --rows_per_group under {layout.MIN_GROUP_ROWS}", "leave them out"
        )
    graph_inputs.open_inputs(cfg.lake, cfg.graph, cfg.edges, cfg.direction)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Sample every epoch asked for; see the module's docstring.

    Raises:
        UserError: as `early`; mean features of a graph without features.
    """
    early(cfg)
    spec = load(TABLE)
    report.paths["neighbourhoods"] = spec.path(cfg.lake)
    inputs = graph_inputs.open_inputs(cfg.lake, cfg.graph, cfg.edges, cfg.direction)
    seeds = inputs.seeds(spark, graph_inputs.split_codes(cfg.splits))
    counts = graph_inputs.count_by_split(seeds)
    if not counts:
        raise UserError(f"graph {cfg.graph!r} has no node of --splits {cfg.splits}", "name other splits")
    for epoch in parse_days(cfg.epochs, "epochs"):
        with report.stage(f"sample epoch {epoch}") as stage:
            stage.rows_in = sum(counts.values())
            _sample(spark, cfg, inputs, seeds, counts, epoch, stage, report)
    report.results |= {"table": spec.name, "rows_by_split": {SPLITS[code]: n for code, n in sorted(counts.items())}}
    return report


def _sample(
    spark: SparkSession,
    cfg: Config,
    inputs: Inputs,
    seeds: DataFrame,
    counts: dict[int, int],
    epoch: int,
    stage: Stage,
    report: Report,
) -> None:
    """One epoch's rows, committed."""
    from pyspark.sql import functions as F

    features, dim = (_features(spark, inputs)) if cfg.means else (None, 0)
    files = graph_inputs.files_by_split(counts, cfg.rows_per_file)
    plan = Plan(parse_fanouts(cfg.fanouts), cfg.seed, epoch, 0, cfg.replace, dim, files)
    where = f"graph = '{cfg.graph}' AND sampling = '{cfg.sampling}' AND epoch = {epoch}"
    metadata = {"request": asdict(cfg) | {"lake": None}, "graph_csr": inputs.adjacency.version, "epoch": epoch}
    with scratch(cfg.lake, "sample-graph") as work, layout.row_groups(spark, cfg.rows_per_group):
        rows = graph_inputs.named_splits(neighbourhoods(seeds, inputs.adjacency, plan, work, features))
        rows = rows.withColumn("graph", F.lit(cfg.graph)).withColumn("sampling", F.lit(cfg.sampling))
        rows = _all_columns(rows.withColumn("epoch", F.lit(epoch)))
        rows = graph_inputs.in_order(rows, cfg.seed, _PARTITIONS)
        commit = write(
            rows, load(TABLE), cfg.lake, mode="overwrite", metadata=metadata, options=WriteOptions(replace_where=where)
        )
    stage.rows_out = commit.rows_added
    assert stage.rows_out == stage.rows_in, f"{stage.rows_in} seeds went in, {stage.rows_out} rows were committed"
    stage.note = f"version {commit.version}, {sum(plan.widths)} slots a row"
    report.results |= {"version": commit.version, "widths": list(plan.widths)}


def _all_columns(rows: DataFrame) -> DataFrame:
    """With nulls for hops that were not sampled."""
    from pyspark.sql import functions as F

    for field in load(TABLE).to_spark():
        if field.name not in rows.columns:
            rows = rows.withColumn(field.name, F.lit(None).cast(field.dataType))
    return rows


def _features(spark: SparkSession, inputs: Inputs) -> tuple[DataFrame, int]:
    """Features by node, and their width."""
    shards = inputs.shards(spark, "features")
    dim = int(shards.select("dim").first()["dim"])  # type: ignore[index]
    with node_blocks.few_records_a_batch(spark):
        return propagation.feature_rows(shards), dim
