"""Files of ratings into `bronze/ratings` and `quarantine/ratings`, every line accounted for in `meta/ledger`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import UserError
from headrace.ingest.days import find_files
from headrace.ingest.ratings import RatingsFormat, RatingsSource, detect
from headrace.ingest.ratings_parse import DELIMITERS
from headrace.pipelines.ingest_files import FilesConfig, ingest
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

UNITS = ("s", "ms")


@dataclass(kw_only=True)
class Config(FilesConfig):
    """Read files of ratings (MovieLens, or by their columns; gz or plain), all of one layout, into the lake, each once.

    Args:
        dataset: name kept with every row; default: that of the first file's folder.
        delimiter: auto (the first of ::, tab, comma, semicolon in the first line), tab, ::, "," or ";".
        columns: names in the order of the files, as user,item,rating,timestamp (other names are left alone); or, for
            files with a header, which of its names is what, as user=reviewerID,item=asin,rating=overall. Default: known
            names of a header, else user,item,rating,timestamp. Without a rating every line counts 1.
        min_rating: lower ratings go to quarantine.
        max_rating: higher ratings go to quarantine.
        timestamps: s (seconds since 1970) or ms.
    """

    dataset: str = ""
    delimiter: str = "auto"
    columns: str = ""
    min_rating: float | None = None
    max_rating: float | None = None
    timestamps: str = "s"
    max_line_bytes: int = 1 << 16


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Finish open batches, then ingest what is new; see `ingest_files`.

    Raises:
        UserError: a setting or a file is not usable.
    """
    _check(cfg)
    paths = find_files(cfg.source)
    fmt = RatingsFormat(
        layout=detect(paths, cfg.delimiter, cfg.columns),
        dataset=cfg.dataset or Path(paths[0]).parent.name or "ratings",
        min_rating=cfg.min_rating,
        max_rating=cfg.max_rating,
        milliseconds=cfg.timestamps == "ms",
        max_line_bytes=cfg.max_line_bytes,
        raw_bytes=cfg.raw_bytes,
    )
    hint = "headrace quarantine --source ratings says why; --columns and --delimiter say how lines are read"
    source = RatingsSource(fmt, cfg.delimiter, cfg.columns, cfg.range_bytes)
    ingest(spark, cfg.settings(hint), source, dict.fromkeys(paths), report)
    report.results["dataset"] = fmt.dataset
    return report


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no input file, a first line that says nothing.
    """
    _check(cfg)
    detect(find_files(cfg.source), cfg.delimiter, cfg.columns)


def _check(cfg: Config) -> None:
    if cfg.delimiter not in ("auto", *DELIMITERS):
        raise UserError(f"--delimiter {cfg.delimiter!r} is unknown", f"auto, {', '.join(DELIMITERS)}")
    if cfg.timestamps not in UNITS:
        raise UserError(f"--timestamps {cfg.timestamps} is unknown", f"one of {', '.join(UNITS)}")
    if cfg.min_rating is not None and cfg.max_rating is not None and cfg.min_rating > cfg.max_rating:
        raise UserError(f"--min_rating {cfg.min_rating} is over --max_rating {cfg.max_rating}")
    cfg.check_sizes()
