"""gold/graph_csr -> gold/graph_negatives: negatives of a knowledge graph's triples as rows that training streams.

An epoch's rows are replaced as a whole, by the same rows where nothing has changed: a rerun is harmless.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from headrace.catalog.delta import WriteOptions, write
from headrace.catalog.scratch import scratch
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import hashing, layout, triple_negatives
from headrace.features.graph_source import check_name
from headrace.features.graph_triples import TripleTables, open_triples
from headrace.features.negatives import Options
from headrace.features.neighbourhoods import SPLITS, file_column
from headrace.features.split import parse_days
from headrace.features.triple_negatives import TABLE, Prepared
from headrace.pipelines import graph_inputs

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.catalog.delta import Commit
    from headrace.report import Report

_PARTITIONS = ("graph", "negatives", "epoch", "split")


@dataclass(kw_only=True)
class Config:
    """Settings of sample-negatives.

    Args:
        lake: directory of the tables.
        graph: name of the graph.
        node_type: of heads and tails.
        splits: triples of these splits get negatives (train,validation,test); all where edges are not split.
        per_triple: negatives of each triple.
        sides: bernoulli (head with probability tph / (tph + hpt) of the relation), uniform, head or tail is replaced.
        entities: uniform, or degree (in proportion to degree ^ 0.75 in the training triples).
        filtered: never a known triple.
        known: triples of these splits are known; to evaluate by, all: train,validation,test.
        negatives: name of the rows in the table; another one beside it keeps both.
        epochs: an epoch's negatives are drawn afresh: 0-4 writes the rows of five.
        seed: of the draws and of the order of rows.
        rows_per_file: about so many rows in a file.
        rows_per_group: rows of a Parquet row group.
    """

    lake: str
    graph: str
    node_type: str = "node"
    splits: str = "train"
    per_triple: int = 8
    sides: str = "bernoulli"
    entities: str = "uniform"
    filtered: bool = True
    known: str = "train"
    negatives: str = "default"
    epochs: str = "0"
    seed: int = 0
    rows_per_file: int = 1_000_000
    rows_per_group: int = 16_384

    def options(self, tables: TripleTables) -> Options:
        """How negatives are drawn."""
        sizes = (tables.num_entities, len(tables.relations))
        return Options(*sizes, self.per_triple, self.sides, self.entities, self.filtered)


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no such graph, no triples of the splits.
    """
    check_name(cfg.graph)
    check_name(cfg.negatives, "negatives")
    parse_days(cfg.epochs, "epochs")
    if cfg.rows_per_file < 1 or cfg.rows_per_group < layout.MIN_GROUP_ROWS:
        raise UserError(
            f"--rows_per_file is under 1, or --rows_per_group under {layout.MIN_GROUP_ROWS}", "leave them out"
        )
    tables = open_triples(cfg.lake, cfg.graph, cfg.node_type)
    cfg.options(tables).check()
    graph_inputs.split_codes(cfg.known, "known")
    if not tables.of_splits(_names(cfg.splits)).count:
        raise UserError(f"graph {cfg.graph!r} has no triple of --splits {cfg.splits}", "name other splits")


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Draw every epoch asked for; see the module's docstring.

    Raises:
        UserError: as `early`; more triples than can be counted at once.
    """
    early(cfg)
    report.paths["negatives"] = load(TABLE).path(cfg.lake)
    every = open_triples(cfg.lake, cfg.graph, cfg.node_type)
    mine = every.of_splits(_names(cfg.splits))
    with scratch(cfg.lake, "sample-negatives") as work:
        with report.stage("count") as stage:
            stage.rows_in = mine.count
            known, training = every.of_splits(_names(cfg.known)), every.of_splits(("train",))
            prepared = triple_negatives.prepare(training, known, cfg.options(every), work)
            stage.note = f"{every.num_entities:,} entities, {len(every.relations):,} relations"
        for epoch in parse_days(cfg.epochs, "epochs"):
            with report.stage(f"draw epoch {epoch}") as stage:
                stage.rows_in = mine.count
                commit = _draw(spark, cfg, mine, prepared, epoch)
                stage.rows_out = commit.rows_added
                assert stage.rows_out == stage.rows_in, f"{stage.rows_in} triples, {stage.rows_out} rows committed"
                stage.note = f"version {commit.version}"
    report.results |= {"table": TABLE, "version": commit.version, "triples": mine.count}
    return report


def _names(splits: str) -> tuple[str, ...]:
    return tuple(SPLITS[code] for code in graph_inputs.split_codes(splits))


def _draw(spark: SparkSession, cfg: Config, mine: TripleTables, prepared: Prepared, epoch: int) -> Commit:
    """One epoch's rows, committed."""
    rows = _laid(triple_negatives.rows(spark, mine, prepared, cfg.seed, epoch), cfg, mine, epoch)
    version = mine.tables[0].version
    metadata = {"request": asdict(cfg) | {"lake": None}, "graph_csr": version, "epoch": epoch}
    metadata["relations"] = list(mine.relations)
    where = f"graph = '{cfg.graph}' AND negatives = '{cfg.negatives}' AND epoch = {epoch}"
    with layout.row_groups(spark, cfg.rows_per_group):
        options = WriteOptions(replace_where=where)
        return write(rows, load(TABLE), cfg.lake, mode="overwrite", metadata=metadata, options=options)


def _laid(rows: DataFrame, cfg: Config, mine: TripleTables, epoch: int) -> DataFrame:
    """In the files and the order of training."""
    from pyspark.sql import functions as F

    counts: dict[int, int] = {}
    for table in mine.tables:
        code = triple_negatives.split_code(table.edge_type.split)
        counts[code] = counts.get(code, 0) + table.num_edges
    files = graph_inputs.files_by_split(counts, cfg.rows_per_file)
    placed = rows.withColumn("_place", file_column(F.col("key"), F.col("split"), files, cfg.seed))
    named = graph_inputs.named_splits(hashing.place(placed, "_place", sum(files))).drop("_place")
    names = {"graph": F.lit(cfg.graph), "negatives": F.lit(cfg.negatives), "epoch": F.lit(epoch)}
    return graph_inputs.in_order(named.withColumns(names), cfg.seed, _PARTITIONS)
