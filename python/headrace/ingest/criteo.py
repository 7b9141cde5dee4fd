"""Criteo's click logs to rows of `bronze/criteo`.

Lines are read in the JVM (`criteo_reader`), or, as its reference, with numpy (`criteo_parse`); files, ranges and line
numbers are those of all text sources (`lines`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from headrace.catalog.ledger import FileAccount, LedgerBatch
from headrace.errors import UserError
from headrace.ingest.criteo_parse import COLUMNS, Format, looks_like_header, parse_block
from headrace.ingest.criteo_reader import CriteoRows
from headrace.ingest.lines import RANGE_BYTES, InputFile, LineSource, inputs
from headrace.ingest.textfiles import Block, FileScan, Reject

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("day", pa.int32()),
        ("label", pa.int32()),
        *((name, pa.int64()) for name in COLUMNS[1:]),
    ]
)


@dataclass(frozen=True)
class CriteoFormat(Format):
    """Criteo's lines as rows of `bronze/criteo`."""

    @property
    def schema(self) -> pa.Schema:
        """Of `bronze/criteo` without `batch_id`."""
        return SCHEMA

    def parse(self, file: InputFile, block: Block) -> tuple[pa.RecordBatch, Sequence[Reject]]:
        """See `LineFormat.parse`."""
        parsed = parse_block(block.data, self, first=block.first_line == 0)
        keys = file.key(block.first_line + parsed.index)
        days = np.full(len(keys), file.day, np.int32)
        label = pa.array(parsed.values[0].astype(np.int32), pa.int32(), mask=parsed.missing[0])
        cells = [
            pa.array(values, pa.int64(), mask=missing)
            for values, missing in zip(parsed.values[1:], parsed.missing[1:], strict=True)
        ]
        rows = pa.RecordBatch.from_arrays([pa.array(keys), pa.array(days), label, *cells], schema=SCHEMA)
        return rows, parsed.rejects

    def detail(self) -> dict[str, Any]:
        """As JSON values."""
        return {"labelled": self.labelled, "max_line_bytes": self.max_line_bytes, "raw_bytes": self.raw_bytes}


class CriteoSource(LineSource):
    """Kaggle and Terabyte files.

    Args:
        fmt: what a line must be.
        header: is the first line of each file a header: auto, yes or no.
        range_bytes: about how much of a plain file one task reads.
        reader: how lines are read, `fast` or `plain`: with the same result.
    """

    name = "criteo"

    def __init__(
        self, fmt: CriteoFormat, header: str = "auto", range_bytes: int = RANGE_BYTES, reader: str = "fast"
    ) -> None:
        super().__init__(fmt, range_bytes)
        self._fields, self._header, self._reader = fmt.fields, header, reader

    def restore(self, detail: dict[str, Any]) -> CriteoFormat:
        """See `LineSource.restore`."""
        return CriteoFormat(detail["labelled"], detail["max_line_bytes"], detail["raw_bytes"])

    def commit(
        self, spark: SparkSession, lake: str, batch: LedgerBatch, scans: Mapping[str, FileScan]
    ) -> dict[str, FileAccount]:
        """See `Source.commit`."""
        from headrace.ingest.commit import commit_batch

        rows = CriteoRows(self.name, self.restore(batch.files[0].detail), self._reader)
        return commit_batch(spark, lake, batch.batch_id, inputs(batch, scans), rows)

    def has_header(self, scan: FileScan) -> bool:
        """As told, or as the first line looks."""
        if self._header == "auto":
            return looks_like_header(scan.head)
        return self._header == "yes" and scan.lines > 0

    def check(self, scans: Sequence[FileScan]) -> None:
        """A header that does not name this format's columns is another schema: show the difference."""
        super().check(scans)
        for scan in scans:
            names = scan.head.rstrip(b"\r").split(b"\t")
            if looks_like_header(scan.head) and len(names) != self._fields:
                extra = b", ".join(names[self._fields :]).decode("utf-8", "replace")[:200] or "none"
                raise UserError(
                    f"{scan.path}: its header names {len(names)} columns, expected are {self._fields}; beyond them:"
                    f" {extra}",
                    "bring the file into the format (docs/ingest.md), or say --labelled false for files without labels",
                )
