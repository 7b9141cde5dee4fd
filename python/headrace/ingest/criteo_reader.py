"""Criteo's lines read in the JVM: Spark's format `criteo` (`io.headrace.criteo`), by the ranges of a scan.

The same rows, verdicts and reasons as `lines.read_lines` with `CriteoFormat`, which is its reference and steps in where
the JVM cannot: it opens names in the characters of its locale only, and holds no line of a GiB.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.ingest.criteo_parse import Format
from headrace.ingest.lines import InputFile, LineFormat, Part, pack, read_lines

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.ingest.criteo import CriteoFormat

READERS = ("fast", "plain")
_MAX_LINE_BYTES = 1 << 29


@dataclass(frozen=True)
class CriteoRows:
    """The rows of a batch's lines, for `commit_batch`.

    Args:
        name: of the source.
        fmt: what a line must be.
        reader: `fast` (JVM) or `plain` (numpy in Python workers).
    """

    name: str
    fmt: CriteoFormat
    reader: str = "fast"

    def read(self, spark: SparkSession, files: Sequence[InputFile], part: Part) -> DataFrame:
        """Accepted or refused lines."""
        return read(spark, files, self.fmt, part, self.reader)


def read(
    spark: SparkSession, files: Sequence[InputFile], fmt: CriteoFormat, part: Part = "accepted", reader: str = "fast"
) -> DataFrame:
    """The files' accepted lines, or the refused ones; see `lines.read_lines`.

    Args:
        spark: the session.
        files: what to read; a file may be given with only some of its ranges.
        fmt: what a line must be.
        part: which lines.
        reader: one of `READERS`.
    """
    if reader == "plain" or not _in_reach(files, fmt):
        return read_lines(spark, files, fmt, part)
    return spark.read.format("criteo").option("part", part).option("plan", plan(files, fmt)).load()


def plan(files: Sequence[InputFile], fmt: Format) -> str:
    """What the JVM is to read, as `io.headrace.criteo.ReadPlan` wants it."""
    number = {file.ordinal: at for at, file in enumerate(files)}
    gzip = [any(piece.gzip for piece in file.scan.ranges) for file in files]
    tasks = [
        [[number[file.ordinal], piece.start, piece.end, piece.first_line, piece.crc32] for file, piece in task]
        for task in pack(files)
    ]
    return json.dumps(
        {
            "labelled": fmt.labelled,
            "max_line_bytes": fmt.max_line_bytes,
            "raw_bytes": min(fmt.raw_bytes, _MAX_LINE_BYTES),
            "files": [
                [file.scan.path, file.ordinal, file.day, file.header, packed]
                for file, packed in zip(files, gzip, strict=True)
            ],
            "tasks": tasks,
        },
        separators=(",", ":"),
    )


def _in_reach(files: Sequence[InputFile], fmt: LineFormat) -> bool:
    return fmt.max_line_bytes <= _MAX_LINE_BYTES and all(file.scan.path.isascii() for file in files)
