"""Write crawl files - WARC, WET, WAT - with planted duplicates, languages, spam and bad records, and the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import UserError
from headrace.ingest import generated_crawl as files
from headrace.ingest.generated_crawl import Generation
from headrace.ingest.generated_crawl_pages import Mix
from headrace.report import Report

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession


@dataclass(kw_only=True)
class Config:
    """Generated crawl files in Common Crawl's layout: crawl-data/, cc-index/, truth/ and truth.json.

    Args:
        dest: folder to write to; executors on other machines must see it too.
        pages: number of pages.
        pages_per_file: pages a file; a task makes one file of each format at a time.
        first_page: number of the first page: a second crawl, with the same seed, that repeats pages of a first one of N
            pages has N here (and another --dest).
        seed: of everything; the same settings give the same bytes on any number of cores.
        crawl: name of the crawl.
        formats: some of warc,wet,wat.
        exact: share of exact duplicates.
        near: share of near-duplicates.
        jaccards: similarities of near-duplicates to their originals.
        spam: share of pages that a quality rule removes, the rules in turn.
        other: share of responses that are JSON and no page.
        hostile: share of pages whose address tries something.
        languages: some of en,de,fr,es,it,nl,ru; half of the pages are English where that is among them.
        bad: share of pages whose record is damaged, the kinds in turn.
        bomb_bytes: if not 0, gzip bombs of so many bytes are among the damaged records.
        text: keep each page's main text in the truth.
        parts: Spark tasks; 0 = one a file. Never changes the bytes.
        overwrite: replace another generation in `dest`.
    """

    dest: str
    pages: int = 10_000
    pages_per_file: int = 2_000
    first_page: int = 0
    seed: int = 1
    crawl: str = "CC-MAIN-2099-01"
    formats: str = "warc,wet"
    exact: float = 0.05
    near: float = 0.1
    jaccards: str = "0.6,0.7,0.8,0.85,0.9,0.95"
    spam: float = 0.1
    other: float = 0.02
    hostile: float = 0.01
    languages: str = "en,de,fr,es,it,nl,ru"
    bad: float = 0.0
    bomb_bytes: int = 0
    text: bool = True
    parts: int = 0
    overwrite: bool = False

    def generation(self) -> Generation:
        """The part of the settings that the bytes depend on.

        Raises:
            UserError: settings that make no sense.
        """
        mix = Mix(
            seed=self.seed,
            exact=self.exact,
            near=self.near,
            spam=self.spam,
            other=self.other,
            hostile=self.hostile,
            jaccards=_numbers(self.jaccards),
            languages=_words(self.languages),
        )
        generation = Generation(
            mix=mix,
            pages=self.pages,
            pages_per_file=self.pages_per_file,
            first_page=self.first_page,
            crawl=self.crawl,
            formats=_words(self.formats),
            bad=self.bad,
            bomb_bytes=self.bomb_bytes,
            text=self.text,
        )
        generation.check()
        return generation


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: settings that make no sense.
    """
    cfg.generation()
    if cfg.parts < 0:
        raise UserError(f"--parts {cfg.parts} is negative", "give 0 for one task a file")


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Generate; nothing where all is there already.

    Raises:
        UserError: settings that make no sense, or `dest` holds another generation.
    """
    early(cfg)
    generation, dest = cfg.generation(), Path(cfg.dest).absolute()
    report.paths |= {"dest": str(dest), "truth": str(dest / files.TRUTH_DIR)}
    for form in generation.formats:
        report.paths[form] = str(dest / f"crawl-data/{generation.crawl}/{form}.paths.gz")
    if files.prepare(generation, dest, cfg.overwrite):
        report.say(f"{dest} is complete: nothing to do")
        return report
    with report.stage("generate") as stage:
        made = _write_files(spark, generation, cfg.parts, dest)
        stage.rows_out = generation.pages
        stage.bytes_in = files.size(generation, dest)
        stage.note = "" if made == generation.pages else f"{generation.pages - made:,} pages were there already"
    with report.stage("truth") as stage:
        body = files.finish(generation, dest)
        stage.rows_in = sum(sum(count.values()) for name, count in body["counts"].items() if name.endswith("_type"))
    report.results |= {"bytes": sum(body["files"].values()), **body["counts"]}
    return report


def _write_files(spark: SparkSession, generation: Generation, parts: int, dest: Path) -> int:
    """Make the files that are missing, on Spark; returns the pages made."""

    def make(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        import pyarrow

        for batch in batches:
            made = [files.write_file(generation, file, dest) for file in batch.column(0).to_pylist()]
            yield pyarrow.RecordBatch.from_arrays([pyarrow.array(made, pyarrow.int64())], ["pages"])

    tasks = min(parts or generation.files, generation.files)
    made = spark.range(0, generation.files, 1, tasks).mapInArrow(make, "pages long").groupBy().sum("pages").collect()
    return int(made[0][0])


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _words(text))
    except ValueError as error:
        raise UserError(f"--jaccards {text} are not numbers", "write --jaccards 0.8,0.9") from error
