"""What is in quarantine, by reason, with example lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.catalog import delta
from headrace.catalog.spec import load

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_SHOWN_BYTES = 120


@dataclass(frozen=True)
class Example:
    """A refused line or record: line and offset count from 0, a record has no line; `raw` is its beginning."""

    file: str
    line: int | None
    offset: int
    raw: bytes
    length: int

    def text(self) -> str:
        """For people: control characters and foreign bytes escaped."""
        shown = self.raw.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()
        more = f"... ({self.length:,} bytes)" if self.length > len(self.raw) else ""
        line = "" if self.line is None else f"line {self.line} "
        return f"{self.file} {line}offset {self.offset}: {shown}{more}"


@dataclass(frozen=True)
class Refused:
    """One reason: how many lines in how many files, and the first of them."""

    reason: str
    rows: int
    files: int
    examples: tuple[Example, ...]


def by_reason(
    spark: SparkSession, lake: str, table: str, *, examples: int, condition: Column | None = None
) -> list[Refused]:
    """Reasons by falling number of lines or records.

    Args:
        spark: the session.
        lake: folder of the tables.
        table: `quarantine/criteo` or another source's.
        examples: how many lines to show for each reason.
        condition: over the table's columns; None for all rows.
    """
    spec = load(table)
    delta.ensure(spark, spec, lake)
    rows = delta.read(spark, spec, lake)
    return _group(rows if condition is None else rows.where(condition), examples)


def _group(rows: DataFrame, examples: int) -> list[Refused]:
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    by_line = ["line"] if "line" in rows.columns else []  # records of a crawl have none
    counts = rows.groupBy("reason").agg(F.count("*").alias("rows"), F.count_distinct("file").alias("files")).collect()
    place = F.row_number().over(Window.partitionBy("reason").orderBy("file_ordinal", *by_line, "offset"))
    firsts = rows.withColumn("place", place).where(F.col("place") <= examples).orderBy("reason", "place")
    shown = F.expr(f"substring(raw, 1, {_SHOWN_BYTES})").alias("raw")
    lines: dict[str, list[Example]] = {}
    for row in firsts.select("reason", "file", *by_line, "offset", shown, "raw_length").collect():
        example = Example(row.file, row.line if by_line else None, row.offset, bytes(row.raw), row.raw_length)
        lines.setdefault(row.reason, []).append(example)
    found = [Refused(row.reason, row.rows, row.files, tuple(lines.get(row.reason, ()))) for row in counts]
    return sorted(found, key=lambda refused: (-refused.rows, refused.reason))


def lines_of(refused: list[Refused]) -> list[str]:
    """The list for people."""
    lines = []
    for each in refused:
        lines.append(f"{each.rows:>12,}  {each.reason}" + (f"  ({each.files:,} files)" if each.files > 1 else ""))
        lines += [f"{'':>14}{example.text()}" for example in each.examples]
    return lines
