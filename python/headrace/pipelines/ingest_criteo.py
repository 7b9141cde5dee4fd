"""Criteo files into `bronze/criteo` and `quarantine/criteo`, every line accounted for in `meta/ledger`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import UserError
from headrace.ingest.criteo import CriteoFormat, CriteoSource
from headrace.ingest.criteo_reader import READERS
from headrace.ingest.days import day_range, days_of, find_files
from headrace.pipelines.ingest_files import FilesConfig, ingest
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

HEADERS = ("auto", "yes", "no")


@dataclass(kw_only=True)
class Config(FilesConfig):
    """Read Criteo files (Kaggle or Terabyte, gz or plain) into the lake, each once.

    Args:
        days: only files of these days, such as 3-7 (both included) or 3.
        days_from: where a file's day comes from: auto (day_N in its name, else train 0, dev or valid 1, test 2), name
            (day_N only) or order (its place among the files found).
        days_by_name: days of single files, such as train.tsv=0,dev.tsv=1; wins over days_from.
        labelled: 40 columns with the label first; false for test files with 39 columns.
        header: is the first line of each file a header: auto, yes or no.
        reader: fast (in the JVM) or plain (in Python): with the same result.
    """

    days: str | None = None
    days_from: str = "auto"
    days_by_name: str = ""
    labelled: bool = True
    header: str = "auto"
    reader: str = "fast"


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Finish open batches, then ingest what is new; see `ingest_files`.

    Raises:
        UserError: a setting or a file is not usable.
    """
    _check(cfg)
    days = days_of(find_files(cfg.source), cfg.days_from, cfg.days_by_name)
    wanted = day_range(cfg.days)
    days = {path: day for path, day in days.items() if wanted is None or day in wanted}
    fmt = CriteoFormat(cfg.labelled, cfg.max_line_bytes, cfg.raw_bytes)
    hint = "headrace quarantine says why; files without labels need --labelled false"
    source = CriteoSource(fmt, cfg.header, cfg.range_bytes, cfg.reader)
    ingest(spark, cfg.settings(hint), source, days, report)
    report.results["day_by_file"] = dict(sorted(days.items()))
    return report


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no input file.
    """
    _check(cfg)
    find_files(cfg.source)


def _check(cfg: Config) -> None:
    if cfg.header not in HEADERS:
        raise UserError(f"--header {cfg.header} is unknown", f"one of {', '.join(HEADERS)}")
    if cfg.reader not in READERS:
        raise UserError(f"--reader {cfg.reader} is unknown", f"one of {', '.join(READERS)}")
    cfg.check_sizes()
