"""Write a power-law graph with planted communities, features and labels; what is known of it lies beside the files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import UserError
from headrace.ingest import generated_graph_folder as folder
from headrace.ingest.generated_graph import GraphModel, truth
from headrace.ingest.generated_graph_files import Layout, Writer, settings_of
from headrace.report import Report

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession


@dataclass(kw_only=True)
class Config:
    """A generated graph: edges, features, labels, splits and truth.json.

    Args:
        dest: folder to write to; executors on other machines must see it too.
        scale: log2 of the number of nodes.
        edge_factor: directed edges a node, duplicates and self-loops included.
        quadrants: a,b,c of R-MAT; d is the rest of 1.
        noise: the largest shift of the quadrants by level: against oscillating degrees.
        communities: planted communities, a power of two.
        within: share of edges inside communities.
        feature_dim: columns of the features; 0 writes none, else at least as many as communities.
        separation: length of a community's mean feature, in standard deviations of the noise.
        label_noise: share of nodes whose label is another than their community.
        split: shares of train, validation and test nodes.
        format: snap (text), parquet, or npy (OGB's arrays).
        sparse_ids: ids of 62 bits rather than 0 .. nodes-1 (not with npy).
        gzip: compress SNAP text.
        bad_lines: lines of SNAP text to plant that an ingest must refuse; counted in truth.json.
        feature_dtype: float32 or float16.
        edges_a_file: edges of a file.
        nodes_a_file: nodes of a file.
        seed: of everything; the same settings give the same bytes on any number of cores.
        parts: Spark tasks; 0 = one a file.
        overwrite: replace another generation in `dest`.
    """

    dest: str
    scale: int = 16
    edge_factor: float = 16.0
    quadrants: str = "0.57,0.19,0.19"
    noise: float = 0.1
    communities: int = 16
    within: float = 0.8
    feature_dim: int = 32
    separation: float = 2.0
    label_noise: float = 0.05
    split: str = "0.6,0.2,0.2"
    format: str = "snap"
    sparse_ids: bool = False
    gzip: bool = False
    bad_lines: int = 0
    feature_dtype: str = "float32"
    edges_a_file: int = 1 << 22
    nodes_a_file: int = 1 << 20
    seed: int = 1
    parts: int = 0
    overwrite: bool = False

    def model(self) -> GraphModel:
        """The graph that the settings name.

        Raises:
            UserError: settings that make no sense.
        """
        model = GraphModel(
            seed=self.seed,
            scale=self.scale,
            num_edges=round(self.edge_factor * 2.0 ** min(self.scale, 60)),
            quadrants=_shares(self.quadrants, "quadrants"),
            noise=self.noise,
            communities=self.communities,
            within=self.within,
            feature_dim=self.feature_dim,
            separation=self.separation,
            label_noise=self.label_noise,
            split=_shares(self.split, "split"),
            sparse_ids=self.sparse_ids,
        )
        model.check()
        return model

    def layout(self) -> Layout:
        """How it is written."""
        return Layout(
            format=self.format,
            edges_a_file=self.edges_a_file,
            nodes_a_file=self.nodes_a_file,
            feature_dtype=self.feature_dtype,
            gzip=self.gzip,
            bad_lines=self.bad_lines,
        )


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: settings that make no sense.
    """
    cfg.layout().check(cfg.model())
    if cfg.parts < 0:
        raise UserError(f"--parts {cfg.parts} is negative", "give 0 for one task a file")


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Generate, and write the truth; nothing where all is there already.

    Raises:
        UserError: settings that make no sense, or `dest` holds something else.
    """
    early(cfg)
    model, layout, dest = cfg.model(), cfg.layout(), Path(cfg.dest).absolute()
    report.paths |= {"dest": str(dest), "truth": str(dest / folder.TRUTH_FILE)}
    settings = settings_of(model, layout)
    if folder.claim(settings, dest, cfg.overwrite):
        report.say(f"{dest} is complete: nothing to do")
    else:
        writer = Writer(model, layout, dest)
        _write(spark, writer, cfg.parts, report)
        body = {"settings": settings, "nodes": model.num_nodes, "edges": model.num_edges, **truth(model)}
        folder.replace_file(dest / folder.TRUTH_FILE, json.dumps(body | writer.finish(), indent=1).encode())
        shutil.rmtree(dest / folder.RECORDS_DIR)
    found = json.loads((dest / folder.TRUTH_FILE).read_bytes())
    report.results |= {name: found[name] for name in ("nodes", "edges", "counts", "label_accuracy_of_features")}
    return report


def _write(spark: SparkSession, writer: Writer, parts: int, report: Report) -> None:
    """Make the units that are missing, on Spark."""
    writer.prepare()
    units = writer.layout.units(writer.model)

    def make(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        import pyarrow

        for batch in batches:
            made = [writer.write(units[i]) for i in batch.column(0).to_pylist()]
            yield pyarrow.RecordBatch.from_arrays([pyarrow.array(made, pyarrow.int64())], ["made"])

    total = writer.model.num_edges + writer.model.num_nodes
    with report.stage("generate") as stage:
        tasks = min(parts or len(units), len(units))
        made = spark.range(0, len(units), 1, tasks).mapInArrow(make, "made long").groupBy().sum("made").collect()[0][0]
        stage.rows_out = total
        stage.note = f"{writer.model.num_edges:,} edges, {writer.model.num_nodes:,} nodes"
        stage.note += "" if made == total else f"; {total - made:,} were there already"


def _shares(text: str, setting: str) -> tuple[float, float, float]:
    try:
        a, b, c = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--{setting} {text!r} is not three numbers", "for example 0.6,0.2,0.2") from None
    return a, b, c
