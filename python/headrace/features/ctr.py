"""Click rows, bronze to silver: DataFrame to DataFrame, without side effects on tables.

The cells are computed by `row_transform` in numpy, a batch of Arrow at a time: one pass over the rows, no shuffle for
the 26 columns, the vocabulary in a file that the workers of a machine map and share. Then the rows move once, into the
order of a hash of their key.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.features.hashing import order_hash, place, places, slice_of
from headrace.features.row_transform import RowTransform, Vocabulary, arrow_cells
from headrace.features.transform import CATEGORIES, INTS, MISSING_ID, UNKNOWN_ID, Transform

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

BRONZE_COLUMNS = ("key", "day", "label", *INTS, *CATEGORIES)
SILVER_COLUMNS = (*BRONZE_COLUMNS, "split")
_SCHEMA = ", ".join(
    ["key bigint", "day int", "label float"]
    + [f"{name} float" for name in INTS]
    + [f"{name} int" for name in CATEGORIES]
    + ["split string", "_order bigint", "_place int"]
)


@dataclass(frozen=True)
class Order:
    """Where rows go: each split's share of the files, and the seed of the hash that orders them.

    Args:
        split_of_day: split by day.
        num_files: files by split, in the order of their places.
        seed: of the hash.
    """

    split_of_day: Mapping[int, str]
    num_files: Mapping[str, int]
    seed: int

    @property
    def num_partitions(self) -> int:
        """Files of all splits."""
        return sum(self.num_files.values())


@dataclass(frozen=True)
class SharedVocabulary:
    """A vocabulary file that Spark carries to the workers: its name there, and each column's part of it."""

    file: str
    spans: Mapping[str, tuple[int, int]]

    def open(self) -> Vocabulary:
        """Map the file on a worker (or on the driver)."""
        from pyspark import SparkFiles

        return Vocabulary.open(SparkFiles.get(self.file), self.spans)


@contextmanager
def share(spark: SparkSession, vocabulary: Vocabulary | None) -> Iterator[SharedVocabulary | None]:
    """Lend a vocabulary to the workers of the jobs that run inside the `with`."""
    if vocabulary is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="headrace-vocabulary-") as folder:
        file = f"{Path(folder).name}.arrow"
        vocabulary.save(Path(folder) / file)
        spark.sparkContext.addFile(str(Path(folder) / file))
        yield SharedVocabulary(file, vocabulary.spans)


def open_transform(transform: Transform, shared: SharedVocabulary | None) -> RowTransform:
    """The row transform on a worker."""
    return RowTransform(transform, shared.open() if shared is not None else None)


def encode(rows: DataFrame, transform: Transform, shared: SharedVocabulary | None, order: Order) -> DataFrame:
    """Featurize the labelled rows of the days that `order` names.

    Args:
        rows: BRONZE_COLUMNS as in bronze/criteo; rows without a label and of other days are left out.
        transform: what to do with cells.
        shared: the vocabulary, where the transform needs one.
        order: splits, files and seed.

    Returns:
        SILVER_COLUMNS; partition p holds the rows of file p, ascending by (order_hash(key), key).
    """
    from pyspark.sql import functions as F

    wanted = rows.where(F.col("day").isin(sorted(order.split_of_day))).where("label IS NOT NULL")
    encode_batches = _encoder(transform, shared, order)
    encoded = wanted.select(*BRONZE_COLUMNS).mapInArrow(encode_batches, _SCHEMA)
    # `split` leads the sort though a partition has one split only: Delta's writer wants its partition column sorted,
    # and would sort again, no longer by our order.
    moved = place(encoded, "_place", order.num_partitions).sortWithinPartitions("split", "_order", "key")
    return moved.select(*SILVER_COLUMNS)


def count_cells(encoded: DataFrame) -> DataFrame:
    """Missing and out-of-vocabulary cells.

    Args:
        encoded: as `encode` returns it.

    Returns:
        day, split, rows, and missing_c1 .. missing_c26, unknown_c1 .. unknown_c26, by day.
    """
    from pyspark.sql import functions as F

    sums = [
        F.count_if(F.col(name) == wanted).alias(f"{word}_{name}")
        for word, wanted in (("missing", MISSING_ID), ("unknown", UNKNOWN_ID))
        for name in CATEGORIES
    ]
    return encoded.groupBy("day", "split").agg(F.count(F.lit(1)).alias("rows"), *sums)


def unknown_shares(counts: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The share of out-of-vocabulary cells a day: cells with id 2 over cells that are not missing.

    Args:
        counts: rows of `count_cells`.
        columns: the columns that have a vocabulary; hashed ones know every value.

    Returns:
        By day (as text, ascending): split, rows, cells, missing, unknown, share, and columns: share by column.
    """
    report = {}
    for row in sorted(counts, key=lambda row: int(row["day"])):
        present = {name: row["rows"] - row[f"missing_{name}"] for name in columns}
        unknown = {name: row[f"unknown_{name}"] for name in columns}
        report[str(row["day"])] = {
            "split": row["split"],
            "rows": row["rows"],
            "cells": row["rows"] * len(columns),
            "missing": row["rows"] * len(columns) - sum(present.values()),
            "unknown": sum(unknown.values()),
            "share": _share(sum(unknown.values()), sum(present.values())),
            "columns": {name: _share(unknown[name], present[name]) for name in columns},
        }
    return report


def quantile_boundaries(counts: DataFrame, num_bins: int) -> dict[str, tuple[float, ...]]:
    """Exact boundaries that cut each column's values into `num_bins` parts of about equal weight.

    Args:
        counts: as `vocabulary.value_counts` returns them, of training days.
        num_bins: parts wanted; a value that fills several parts makes fewer.

    Returns:
        Ascending boundaries by column, at most num_bins - 1; a value on a boundary belongs to the part below.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    column = Window.partitionBy("column")
    upto = F.sum("count").over(column.orderBy("value").rowsBetween(Window.unboundedPreceding, Window.currentRow))
    total = F.sum("count").over(column)
    last, first = F.floor(upto * num_bins / total), F.floor((upto - F.col("count")) * num_bins / total)
    cuts = counts.select("column", "value", last.alias("part"), first.alias("before")).where(
        (F.col("part") > F.col("before")) & (F.col("part") < num_bins)
    )
    found: dict[str, list[float]] = {name: [] for name in INTS}
    for row in cuts.select("column", "value").collect():
        found[row["column"]].append(float(row["value"]))
    return {name: tuple(sorted(values)) for name, values in found.items()}


def _encoder(transform: Transform, shared: SharedVocabulary | None, order: Order) -> Any:
    names = [*order.num_files]
    first = dict(zip(names, np.cumsum([0, *order.num_files.values()])[:-1].tolist(), strict=True))
    spots = places(order.num_partitions)

    def encode_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = open_transform(transform, shared)
        for batch in batches:
            yield encode_batch(batch, rows, order, spots, first)

    return encode_batches


def encode_batch(
    batch: pa.RecordBatch, rows: RowTransform, order: Order, spots: np.ndarray[Any, Any], first: Mapping[str, int]
) -> pa.RecordBatch:
    """One Arrow batch of bronze rows as silver rows, with `_order` and `_place`."""
    import pyarrow as pa

    hashes = order_hash(batch.column("key").to_numpy(), order.seed)
    days = batch.column("day").to_numpy()
    split = np.empty(len(days), object)
    partition = np.zeros(len(days), np.int64)
    for day in np.unique(days):
        at, name = days == day, order.split_of_day[int(day)]
        split[at] = name
        partition[at] = first[name] + slice_of(hashes[at], order.num_files[name])
    columns = {
        "key": batch.column("key"),
        "day": batch.column("day"),
        "label": pa.array(batch.column("label").to_numpy().astype(np.float32)),
    }
    columns |= {name: pa.array(rows.int_column(name, arrow_cells(batch.column(name)))) for name in INTS}
    columns |= {name: pa.array(rows.category_column(name, arrow_cells(batch.column(name)))) for name in CATEGORIES}
    columns |= {"split": pa.array(split, pa.string()), "_order": pa.array(hashes), "_place": pa.array(spots[partition])}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
