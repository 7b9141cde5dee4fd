"""The lake in minutes: a generated crawl, graph and set of ratings from raw files to tables that training streams.

What is in the files is known because it was planted; beside every result stands what it should be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.catalog import delta
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.pipelines import (
    featurize_graph,
    featurize_ratings,
    featurize_text,
    generate_crawl,
    generate_graph,
    generate_ratings,
    ingest_commoncrawl,
    ingest_graph,
    ingest_ratings,
    sample_graph,
)
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

CRAWL, GRAPH, RATINGS = "CC-MAIN-2099-01", "communities", "planted"


@dataclass(kw_only=True)
class Config:
    """Common Crawl, graphs and ratings on generated data.

    Args:
        lake: folder for the data and the tables; a second demo there goes on where the first ended.
        pages: pages of the crawl; half of them English.
        scale: log2 of the graph's nodes; 16 edges a node.
        ratings: rows of ratings.
        seed: of the data.
    """

    lake: str = "demo-lake"
    pages: int = 1500
    scale: int = 12
    ratings: int = 20_000
    seed: int = 1


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: too little for every kind of page or rating to be there.
    """
    for name, least in (("pages", 200), ("scale", 6), ("ratings", 1000)):
        if getattr(cfg, name) < least:
            raise UserError(f"--{name} {getattr(cfg, name)} is too little for a demo", f"--{name} {least} or more")


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Generate, ingest, featurize each source; print what was found beside what was planted."""
    early(cfg)
    data, lake = str(Path(cfg.lake) / "data"), str(Path(cfg.lake) / "lake")
    text = _text(spark, cfg, data, lake, report)
    graph = _graph(spark, cfg, data, lake, report)
    ratings = _ratings(spark, cfg, data, lake, report)
    report.say(_table(text + graph + ratings))
    report.results |= {what: {"found": found, "planted": planted} for what, found, planted in text + graph + ratings}
    report.say(
        f"headrace catalog show gold/token_sequences\nheadrace quarantine --lake {lake} --source commoncrawl"
        f"\nheadrace maintain --lake {lake}"
    )
    report.paths |= {"data": data, "lake": lake}
    return report


Fact = tuple[str, Any, Any]


def _text(spark: SparkSession, cfg: Config, data: str, lake: str, report: Report) -> list[Fact]:
    dest = f"{data}/crawl"
    made = generate_crawl.Config(
        dest=dest, pages=cfg.pages, pages_per_file=500, seed=cfg.seed, crawl=CRAWL, formats="warc", bad=0.01
    )
    generate_crawl.run(spark, made, report.part("generate-crawl"))
    source = f"{dest}/crawl-data/{CRAWL}/warc.paths.gz"
    ingest = report.part("ingest-commoncrawl")
    ingest_commoncrawl.run(spark, ingest_commoncrawl.Config(lake=lake, source=source), ingest)
    features = report.part("featurize-text")
    featurize_text.run(spark, _text_settings(lake), features)
    return _text_facts(spark, dest, lake)


def _text_settings(lake: str) -> featurize_text.Config:
    cfg = featurize_text.Config(lake=lake)
    cfg.tokenizer.vocab_size = 2000
    cfg.pack.length = 256
    return cfg


def _text_facts(spark: SparkSession, dest: str, lake: str) -> list[Fact]:
    """Fates of records and English pages, against the truth."""
    from pyspark.sql import functions as F

    truth = spark.read.parquet(f"{dest}/truth").where("format = 'warc'")
    pages = _fates(spark, truth, lake).where("language = 'en' AND bad IS NULL").persist()
    english = pages.agg(
        *[F.count_if(F.expr(expression)).alias(name) for name, expression in _TEXT_COUNTS.items()]
    ).collect()[0]
    damaged = truth.where("bad IS NOT NULL").count()
    refused = delta.read(spark, load("quarantine/commoncrawl"), lake).count()
    pages.unpersist()
    return [
        ("crawl: records in quarantine", refused, damaged),
        ("crawl: exact duplicates removed", english["exact"], english["exact_planted"]),
        ("crawl: near-duplicates of Jaccard 0.8 removed", english["near"], english["near_planted"]),
        ("crawl: pages under 0.8 taken for duplicates", english["mistaken"], 0),
        ("crawl: spam removed by a rule", english["spam"], english["spam_planted"]),
        ("crawl: ordinary pages kept", english["kept"], english["kept_planted"]),
    ]


# A duplicate of a page that is not in the lake (damaged, or of another language) is none.
_TEXT_COUNTS = {
    "exact_planted": "kind = 'exact_duplicate' AND original_there",
    "exact": "kind = 'exact_duplicate' AND original_there AND duplicate IS NOT NULL",
    "near_planted": "kind = 'near_duplicate' AND jaccard >= 0.8 AND original_there",
    "near": "kind = 'near_duplicate' AND jaccard >= 0.8 AND original_there AND duplicate IS NOT NULL",
    "mistaken": "kind = 'page' AND duplicate IS NOT NULL OR jaccard < 0.75 AND duplicate IS NOT NULL",
    "spam_planted": "kind = 'spam'",
    "spam": "kind = 'spam' AND removed_by IS NOT NULL",
    "kept_planted": "kind = 'page'",
    "kept": "kind = 'page' AND removed_by IS NULL AND duplicate IS NULL",
}


def _fates(spark: SparkSession, truth: DataFrame, lake: str) -> DataFrame:
    """The truth's pages with what became of them."""
    documents = delta.read(spark, load("silver/documents"), lake)
    duplicates = delta.read(spark, load("silver/duplicates"), lake)
    fates = documents.join(duplicates.selectExpr("key", "kind AS duplicate"), "key", "left")
    found = truth.where("page IS NOT NULL").join(
        fates.selectExpr("url AS uri", "removed_by", "duplicate", "key"), "uri", "left"
    )
    whole = found.where("bad IS NULL AND removed_by IS NULL AND key IS NOT NULL")
    originals = whole.selectExpr("page AS original", "true AS original_there").distinct()
    return found.join(originals, "original", "left").fillna(False, ["original_there"])


def _graph(spark: SparkSession, cfg: Config, data: str, lake: str, report: Report) -> list[Fact]:
    dest = f"{data}/graph"
    made = report.part("generate-graph")
    generate = generate_graph.Config(dest=dest, scale=cfg.scale, seed=cfg.seed, bad_lines=5)
    generate_graph.run(spark, generate, made)
    ingest = report.part("ingest-graph")
    ingest_graph.run(spark, ingest_graph.Config(lake=lake, graph=GRAPH, source=dest), ingest)
    features = report.part("featurize-graph")
    featurize_graph.run(spark, featurize_graph.Config(lake=lake, graph=GRAPH), features)
    sampled = report.part("sample-graph")
    sample_graph.run(spark, sample_graph.Config(lake=lake, graph=GRAPH, fanouts="10,5", means=True), sampled)
    refused = delta.read(spark, load("quarantine/edges"), lake).count()
    seeds = sum(sampled.results["rows_by_split"].values())
    return [
        ("graph: bad lines in quarantine", refused, 5),
        ("graph: nodes in CSR", features.results["nodes"]["node"], made.results["nodes"]),
        ("graph: sampled neighbourhoods", seeds, made.results["nodes"]),
    ]


def _ratings(spark: SparkSession, cfg: Config, data: str, lake: str, report: Report) -> list[Fact]:
    dest = f"{data}/ratings"
    generate = generate_ratings.Config(dest=dest, rows=cfg.ratings, seed=cfg.seed, bad_rows=7, duplicates=11)
    generate_ratings.run(spark, generate, report.part("generate-ratings"))
    ingest = report.part("ingest-ratings")
    ingest_ratings.run(spark, ingest_ratings.Config(lake=lake, source=f"{dest}/*.csv", dataset=RATINGS), ingest)
    features = report.part("featurize-ratings")
    featurize_ratings.run(spark, featurize_ratings.Config(lake=lake, dataset=RATINGS), features)
    refused = delta.read(spark, load("quarantine/ratings"), lake).count()
    return [
        ("ratings: bad lines in quarantine", refused, 7),
        ("ratings: pairs of user and item", features.results["rows"], cfg.ratings),
    ]


def _table(facts: list[Fact]) -> str:
    width = max(len(what) for what, _, _ in facts)
    lines = [f"{'':<{width}}{'found':>12}{'planted':>12}"]
    lines += [f"{what:<{width}}{found:>12,}{planted:>12,}" for what, found, planted in facts]
    return "\n".join(["", *lines, ""])
