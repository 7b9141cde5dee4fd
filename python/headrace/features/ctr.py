"""Click rows, bronze to silver: DataFrame to DataFrame, without side effects on tables.

One pass over the rows in Spark's own code: categories by `CategoryEncoder`, the vocabulary held once by every worker,
integers by expressions; the same numbers as `row_transform`, which scores single rows. Then the rows move once, into
the order that `Order` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headrace.features.hashing import place, places
from headrace.features.order import Order, entry_of
from headrace.features.transform import (
    CATEGORIES,
    FIRST_ID,
    INTS,
    MISSING_ID,
    MISSING_LOG,
    MISSING_QUANTILE,
    UNKNOWN_ID,
    Transform,
)
from headrace.session import FUNCTIONS

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

BRONZE_COLUMNS = ("key", "day", "label", *INTS, *CATEGORIES)
SILVER_COLUMNS = (*BRONZE_COLUMNS, "split")
BROADCAST_ENTRIES = 30_000_000


@contextmanager
def encoding(
    known: DataFrame, transform: Transform, broadcast_entries: int = BROADCAST_ENTRIES
) -> Iterator[Callable[[DataFrame], DataFrame]]:
    """Lend a function that featurizes rows.

    Args:
        known: the vocabulary (column, value, id, count); any frame where the transform needs none.
        transform: what to do with cells.
        broadcast_entries: entries of it that every worker holds; cells with rarer values go by a join.

    Yields:
        From BRONZE_COLUMNS as in bronze/criteo, with labels, to the same columns as in silver/ctr. The vocabulary's
        copies on the workers are dropped behind the `with`.
    """
    from headrace.features.category_encoder import CategoryEncoder

    rules = [transform.categories[name] for name in CATEGORIES]
    encoder = CategoryEncoder(
        inputCols=list(CATEGORIES),
        outputCols=list(CATEGORIES),
        kinds=[rule.kind for rule in rules],
        hashSizes=[max(1, rule.num_ids - FIRST_ID) for rule in rules],
        maxBroadcast=broadcast_entries,
        rowKeyCol="key",
        fitOn="vocabulary",
    )
    model = encoder.fit(known)

    def encode(rows: DataFrame) -> DataFrame:
        return number_ints(model.transform(rows.select(*BRONZE_COLUMNS)), transform).select(*BRONZE_COLUMNS)

    try:
        yield encode
    finally:
        model.release()


def arrange(cells: DataFrame, order: Order) -> DataFrame:
    """Move rows into their files' partitions.

    Args:
        cells: what `encoding` makes of rows, of days that `order` knows.
        order: files and order of rows.

    Returns:
        SILVER_COLUMNS; partition p holds the rows of file p, ascending by (rank, key).
    """
    from pyspark.sql import functions as F

    spots = F.array(*[F.lit(int(spot)) for spot in places(order.num_files)])
    split = entry_of(order.split_of_day, F.col("day"))
    spot = F.element_at(spots, order.file().cast("int") + 1)
    placed = cells.withColumns({"split": split, "_order": order.rank(), "_place": spot})
    # `split` leads the sort though a partition has one split only: Delta's writer wants its partition column sorted,
    # and would sort again, no longer by our order.
    moved = place(placed, "_place", order.num_files).sortWithinPartitions("split", "_order", "key")
    return moved.select(*SILVER_COLUMNS)


def count_cells(cells: DataFrame) -> DataFrame:
    """Missing and out-of-vocabulary cells.

    Args:
        cells: what `encoding` makes of rows.

    Returns:
        day, rows, and missing_c1 .. missing_c26, unknown_c1 .. unknown_c26, by day.
    """
    from pyspark.sql import functions as F

    sums = [
        F.count_if(F.col(name) == wanted).alias(f"{word}_{name}")
        for word, wanted in (("missing", MISSING_ID), ("unknown", UNKNOWN_ID))
        for name in CATEGORIES
    ]
    return cells.groupBy("day").agg(F.count(F.lit(1)).alias("rows"), *sums)


def unknown_shares(
    counts: Sequence[Mapping[str, Any]], columns: Sequence[str], split_of_day: Mapping[int, str]
) -> dict[str, dict[str, Any]]:
    """The share of out-of-vocabulary cells a day: cells with id 2 over cells that are not missing.

    Args:
        counts: rows of `count_cells`.
        columns: the columns that have a vocabulary; hashed ones know every value.
        split_of_day: split by day.

    Returns:
        By day (as text, ascending): split, rows, cells, missing, unknown, share, and columns: share by column.
    """
    report = {}
    for row in sorted(counts, key=lambda row: int(row["day"])):
        present = {name: row["rows"] - row[f"missing_{name}"] for name in columns}
        unknown = {name: row[f"unknown_{name}"] for name in columns}
        report[str(row["day"])] = {
            "split": split_of_day[int(row["day"])],
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


def number_ints(rows: DataFrame, transform: Transform) -> DataFrame:
    """Label and integers as float32."""
    from pyspark.sql import functions as F

    columns = {"label": F.col("label").cast("float")}
    if transform.ints == "log":
        columns |= {name: _log(F.col(name)) for name in INTS}
        return rows.withColumns(columns)
    return _ranks(rows, transform.boundaries).withColumns(columns)


def _log(x: Column) -> Column:
    from pyspark.sql import functions as F

    return F.coalesce(F.call_function(f"{FUNCTIONS}.signed_log", x), F.lit(MISSING_LOG).cast("float"))


def _ranks(rows: DataFrame, boundaries: Mapping[str, Sequence[float]]) -> DataFrame:
    """(1 + number of boundaries below x) / (1 + number of boundaries), by Bucketizer.

    A bucket there holds its lower boundary, one here its upper: so -x is put among the negative boundaries.
    """
    from pyspark.ml.feature import Bucketizer
    from pyspark.sql import functions as F

    cut = [name for name in INTS if boundaries[name]]
    negative = {f"_n_{name}": F.coalesce(-F.col(name).cast("double"), F.lit(0.0)) for name in cut}
    rows = rows.withColumns(negative)
    if cut:
        infinity = float("inf")
        splits = [[-infinity, *(-value for value in reversed(boundaries[name])), infinity] for name in cut]
        found = [f"_b_{name}" for name in cut]
        rows = Bucketizer(splitsArray=splits, inputCols=list(negative), outputCols=found).transform(rows)
    columns = {}
    for name in INTS:
        parts = len(boundaries[name]) + 1
        rank = (parts - F.col(f"_b_{name}")) / parts if boundaries[name] else F.lit(1.0)
        columns[name] = F.when(F.col(name).isNull(), MISSING_QUANTILE).otherwise(rank).cast("float")
    return rows.withColumns(columns)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
