"""gold/graph_csr and gold/graph_features -> gold/graph_hops: propagated features (SGC, SIGN), one row a node.

The rows of a propagation are replaced as a whole, by the same rows where nothing has changed: a rerun is harmless.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from headrace.catalog.delta import WriteOptions, write
from headrace.catalog.scratch import kept, scratch
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import half_precision, hashing, layout, node_blocks
from headrace.features.graph_source import check_name
from headrace.features.neighbourhoods import file_column
from headrace.features.propagation import Options, node_rows, propagate
from headrace.pipelines import graph_inputs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.report import Report

TABLE = "gold/graph_hops"
_PARTITIONS = ("graph", "propagation", "split")


@dataclass(kw_only=True)
class Config:
    """Settings of propagate-graph.

    Args:
        lake: directory of the tables.
        graph: name of the graph.
        hops: powers of the adjacency beyond the features themselves.
        norm: none, row (mean over those that send) or symmetric (as in a graph convolutional network).
        self_loops: a node sends to itself too.
        precision: float16 rounds what is stored to half precision.
        edges: source-relation-target to follow, where the graph has several kinds; within one node type.
        propagation: name of the rows in the table; another one beside it keeps both.
        seed: of the order of rows.
        rows_per_file: about so many rows in a file.
        rows_per_group: rows of a Parquet row group.
    """

    lake: str
    graph: str
    hops: int = 2
    norm: str = "symmetric"
    self_loops: bool = True
    precision: str = "float32"
    edges: str = ""
    propagation: str = "default"
    seed: int = 0
    rows_per_file: int = 65_536
    rows_per_group: int = 2_048

    def options(self) -> Options:
        """What is propagated how."""
        return Options(self.hops, self.norm, self.self_loops, self.precision)


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no such graph.
    """
    cfg.options().check()
    check_name(cfg.propagation, "propagation")
    if cfg.rows_per_file < 1 or cfg.rows_per_group < layout.MIN_GROUP_ROWS:
        raise UserError(
            f"--rows_per_file is under 1, or --rows_per_group under {layout.MIN_GROUP_ROWS}", "leave them out"
        )
    graph_inputs.open_inputs(cfg.lake, cfg.graph, cfg.edges, "out")


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Propagate; see the module's docstring.

    Raises:
        UserError: as `early`; the graph has no features, its weights do not suit the norm, values overflow.
    """
    early(cfg)
    inputs = graph_inputs.open_inputs(cfg.lake, cfg.graph, cfg.edges, "out")
    shards = inputs.shards(spark, "features")
    dim = int(shards.select("dim").first()["dim"])  # type: ignore[index]
    report.paths["hops"] = load(TABLE).path(cfg.lake)
    with scratch(cfg.lake, "propagate-graph") as work, node_blocks.few_records_a_batch(spark):
        with report.stage("propagate") as stage:
            hops, blocks = propagate(spark, inputs.adjacency, shards, dim, work, cfg.options())
            stage.note = f"{cfg.hops} hops, {inputs.adjacency.num_edges:,} edges, {dim} features"
        with report.stage("write") as stage:
            stage.rows_in = inputs.adjacency.num_nodes
            # Rows are put down before they are joined: from here on they are small, and batches may hold many.
            rows = kept(node_rows(hops, blocks, cfg.precision), f"{work}/rows")
            _refuse_overflows(rows, cfg.precision)
            metadata = {"request": asdict(cfg) | {"lake": None}, "graph_csr": inputs.adjacency.version}
            with layout.row_groups(spark, cfg.rows_per_group):
                where = f"graph = '{cfg.graph}' AND propagation = '{cfg.propagation}'"
                options = WriteOptions(replace_where=where)
                laid = _laid(rows.drop("unfit"), inputs.seeds(spark, (0, 1, 2, 3)), cfg)
                commit = write(laid, load(TABLE), cfg.lake, mode="overwrite", metadata=metadata, options=options)
            stage.rows_out = commit.rows_added
            assert stage.rows_out == stage.rows_in, f"{stage.rows_in} nodes, {stage.rows_out} rows"
    report.results |= {"table": TABLE, "version": commit.version, "rows": stage.rows_out, "dim": dim}
    return report


def _refuse_overflows(rows: DataFrame, precision: str) -> None:
    """Nothing infinite goes into the table."""
    (found,) = rows.groupBy().sum("unfit").collect()
    if found[0]:
        largest = f"{half_precision.LARGEST:,}" if precision == "float16" else "3.4e38"
        wider = "--precision float32, " if precision == "float16" else ""
        raise UserError(
            f"{found[0]:,} propagated values are beyond {largest}, the largest of {precision}",
            f"{wider}--norm row or symmetric, fewer --hops, or scale the features",
        )


def _laid(rows: DataFrame, labels: DataFrame, cfg: Config) -> DataFrame:
    """Rows with label and split, in the files and the order of training."""
    from pyspark.sql import functions as F

    nodes = rows.withColumnRenamed("node", "key").join(labels.withColumnRenamed("seed", "key"), "key", "left")
    nodes = nodes.fillna({"split": 0, "label": -1})
    counts = graph_inputs.count_by_split(nodes)
    files = graph_inputs.files_by_split(counts, cfg.rows_per_file)
    placed = nodes.withColumn("_place", file_column(F.col("key"), F.col("split"), files, cfg.seed))
    named = graph_inputs.named_splits(hashing.place(placed, "_place", sum(files)))
    named = named.withColumn("graph", F.lit(cfg.graph)).withColumn("propagation", F.lit(cfg.propagation))
    return graph_inputs.in_order(graph_inputs.all_columns(named.drop("_place"), TABLE), cfg.seed, _PARTITIONS)
