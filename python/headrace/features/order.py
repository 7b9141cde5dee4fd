"""The order of training rows, and the commits it is written in.

shuffled  by a hash of the key over a split's days; one commit
day       day by day, within a day by the hash; a commit a day
file      day by day, as the input files have them; a commit a day
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.features.hashing import order_column, slice_column
from headrace.features.layout import files_for
from headrace.features.split import SPLITS, DaySplit

if TYPE_CHECKING:
    from pyspark.sql import Column

K = TypeVar("K")
ORDERS = ("shuffled", "day", "file")
LINE_BITS = 40  # of a key, below the file's ordinal


@dataclass(frozen=True)
class Order:
    """Where rows go: into which file, and in which order there.

    Args:
        split_of_day: split by day.
        files: by group, the number of its first file and how many it has; groups are days or, where `seed` is None,
            input files by ordinal. Days may share their files.
        num_files: of all groups.
        seed: of the hash that orders the rows; None for the order of the input.
        rows_per_file: where `seed` is None, lines of the input that make a file.
    """

    split_of_day: Mapping[int, str]
    files: Mapping[int, tuple[int, int]]
    num_files: int
    seed: int | None
    rows_per_file: int = 1

    def rank(self) -> Column:
        """What rows of a file are sorted by, before their key."""
        from pyspark.sql import functions as F

        key = F.col("key")
        return key if self.seed is None else order_column(key, self.seed)

    def file(self) -> Column:
        """The number of each row's file."""
        from pyspark.sql import functions as F

        key = F.col("key")
        group = F.col("day") if self.seed is not None else F.shiftright(key, LINE_BITS).cast("int")
        first = entry_of({group: first for group, (first, _) in self.files.items()}, group)
        if self.seed is None:
            return first + F.floor(key.bitwiseAND((1 << LINE_BITS) - 1) / F.lit(self.rows_per_file))
        share = entry_of({group: count for group, (_, count) in self.files.items()}, group)
        return first + slice_column(self.rank(), share)


def shuffled(days: DaySplit, rows: Mapping[int, int], rows_per_file: int, seed: int) -> Order:
    """Rows of a split mixed over its days.

    Args:
        days: of each split.
        rows: by day.
        rows_per_file: about so many rows in a file.
        seed: of the hash.
    """
    of_split = {name: sum(rows[day] for day in getattr(days, name)) for name in SPLITS}
    spans = _spans(files_for(of_split, rows_per_file))
    files = {day: spans[split] for day, split in days.of_day().items()}
    return Order(days.of_day(), files, _total(spans), seed)


def by_day(days: DaySplit, rows: Mapping[int, int], rows_per_file: int, seed: int) -> Order:
    """Split by split, day by day; arguments as of `shuffled`."""
    of_day = {str(day): rows[day] for day in days_in_order(days)}
    spans = {int(day): span for day, span in _spans(files_for(of_day, rows_per_file)).items()}
    return Order(days.of_day(), spans, _total(spans), seed)


def by_file(days: DaySplit, last_lines: Mapping[tuple[int, int], int], rows_per_file: int) -> Order:
    """Split by split, day by day, then by input file and line.

    Args:
        days: of each split.
        last_lines: number of the last line that is a row, by (day, ordinal of the input file).
        rows_per_file: lines that make a file.
    """
    place = {day: at for at, day in enumerate(days_in_order(days))}
    inputs = sorted((key for key in last_lines if key[0] in place), key=lambda key: (place[key[0]], key[1]))
    spans = _spans({ordinal: last_lines[day, ordinal] // rows_per_file + 1 for day, ordinal in inputs})
    return Order(days.of_day(), spans, _total(spans), None, rows_per_file)


def days_in_order(days: DaySplit) -> list[int]:
    """All days, split by split."""
    return [day for name in SPLITS for day in getattr(days, name)]


def commits(order: str, days: DaySplit) -> list[list[int]]:
    """The days of each commit."""
    every = days_in_order(days)
    return [every] if order == "shuffled" else [[day] for day in every]


def entry_of(mapping: Mapping[int, Any], key: Column) -> Column:
    """The entry of each row's key."""
    from pyspark.sql import functions as F

    return F.element_at(F.create_map(*[F.lit(part) for item in mapping.items() for part in item]), key)


def _spans(counts: Mapping[K, int]) -> dict[K, tuple[int, int]]:
    """First number and count of each group, in order."""
    firsts = accumulate([0, *counts.values()])
    return {group: (first, count) for (group, count), first in zip(counts.items(), firsts, strict=False)}


def _total(spans: Mapping[Any, tuple[int, int]]) -> int:
    return max(first + count for first, count in spans.values())
