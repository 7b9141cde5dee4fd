"""What was refused on the way into the lake, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.catalog.spec import load_all
from headrace.errors import UserError
from headrace.ingest.refused import by_reason, lines_of
from headrace.pipelines.rows import require_ledger
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(kw_only=True)
class Config:
    """List the reasons for refused lines with counts and examples.

    Args:
        lake: folder of the tables.
        source: the kind of input, such as criteo.
        examples: how many lines to show for each reason.
    """

    lake: str = "lake"
    source: str = "criteo"
    examples: int = 3


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: no such source, or a lake into which nothing was ingested.
    """
    if f"quarantine/{cfg.source}" not in load_all():
        known = [name.partition("/")[2] for name in load_all() if name.startswith("quarantine/")]
        raise UserError(f"no quarantine for {cfg.source}", f"--source {' or '.join(sorted(known))}")
    require_ledger(cfg.lake)


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Print the reasons.

    Raises:
        UserError: no such source, or no lake.
    """
    early(cfg)
    table = f"quarantine/{cfg.source}"
    refused = by_reason(spark, cfg.lake, table, examples=cfg.examples)
    report.say(f"{sum(each.rows for each in refused):,} rows in {table}")
    for line in lines_of(refused):
        report.say(line)
    report.results |= {
        "rows_quarantined": sum(each.rows for each in refused),
        "reasons": {each.reason: each.rows for each in refused},
    }
    report.paths["quarantine"] = f"{cfg.lake.rstrip('/')}/{table}"
    return report
