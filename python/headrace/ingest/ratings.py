"""Files of ratings - MovieLens's three formats, and others by their columns - to rows of `bronze/ratings`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from headrace.errors import UserError
from headrace.ingest.lines import RANGE_BYTES, InputFile, LineFormat, LineSource
from headrace.ingest.ratings_parse import Format, Layout, layout_of, parse_block
from headrace.ingest.textfiles import BOM, Block, BrokenFileError, FileScan, Reject, inflate, is_gzip

SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("dataset", pa.string()),
        ("user", pa.string()),
        ("item", pa.string()),
        ("rating", pa.float64()),
        ("timestamp", pa.int64()),
    ]
)
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class RatingsFormat(Format):
    """Lines of ratings as rows of `bronze/ratings`."""

    @property
    def schema(self) -> pa.Schema:
        """Of `bronze/ratings` without `batch_id`."""
        return SCHEMA

    def parse(self, file: InputFile, block: Block) -> tuple[pa.RecordBatch, Sequence[Reject]]:
        """See `LineFormat.parse`."""
        parsed = parse_block(block.data, self, first=block.first_line == 0)
        keys = pa.array(file.key(block.first_line + parsed.index))
        dataset = pa.array(itertools.repeat(self.dataset, len(keys)), pa.string())
        columns = [keys, dataset, parsed.user, parsed.item, parsed.rating, parsed.timestamp]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), parsed.rejects

    def detail(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class RatingsSource(LineSource):
    """Files of ratings, all of one layout.

    Args:
        fmt: what a line must be.
        delimiter: as `layout_of` takes it, to look at each file with.
        columns: likewise.
        range_bytes: about how much of a plain file one task reads.
    """

    name = "ratings"

    def __init__(
        self, fmt: RatingsFormat, delimiter: str = "auto", columns: str = "", range_bytes: int = RANGE_BYTES
    ) -> None:
        super().__init__(fmt, range_bytes)
        self._layout, self._delimiter, self._columns = fmt.layout, delimiter, columns

    def restore(self, detail: dict[str, Any]) -> LineFormat:
        """See `LineSource.restore`."""
        names = ("dataset", "min_rating", "max_rating", "milliseconds", "max_line_bytes", "raw_bytes")
        return RatingsFormat(Layout(**detail["layout"]), **{name: detail[name] for name in names})

    def has_header(self, scan: FileScan) -> bool:
        """As the first line looks."""
        return not scan.empty and layout_of(scan.head, self._delimiter, self._columns)[1]

    def check(self, scans: Sequence[FileScan]) -> None:
        """Refuse files whose columns are others than the first file's."""
        super().check(scans)
        for scan in scans:
            found = self._layout if scan.empty else _look(scan.path, scan.head, self._delimiter, self._columns)
            if found != self._layout:
                raise UserError(
                    f"{scan.path} is laid out otherwise than the files before it: {found} instead of {self._layout}",
                    "ingest files of one layout at a time, or say --columns and --delimiter",
                )


def detect(paths: Sequence[str], delimiter: str = "auto", columns: str = "") -> Layout:
    """The layout of the first file that has a line; the usual one where none has.

    Raises:
        UserError: it cannot be told; the file is named.
    """
    for path in paths:
        head = first_line(path)
        if head:
            return _look(path, head, delimiter, columns)
    return Layout()


def first_line(path: str) -> bytes:
    """The beginning of a file's first line, plain or gzip, without byte-order mark; empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            chunk = next(inflate(file, path), b"") if is_gzip(path) else file.read(_HEAD_BYTES)
    except (BrokenFileError, OSError):
        return b""  # the scan says what is wrong with it
    return chunk[:_HEAD_BYTES].removeprefix(BOM).split(b"\n", 1)[0]


def _look(path: str, head: bytes, delimiter: str, columns: str) -> Layout:
    try:
        return layout_of(head, delimiter, columns)[0]
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.remedy) from None
