"""Ratings, bronze to silver: duplicates, implicit preferences, k-core, numbers for ids, splits; DataFrame to DataFrame.

The k-core is what is left when users with fewer than k ratings and items with fewer than l are taken out until none is
(S. B. Seidman, Network Structure and Minimum Degree, 1983): the largest part where all have enough, whatever the order.
Confidence in an implicit preference is c = 1 + alpha r, or 1 + alpha ln(1 + r), where r counts what was seen (Y. Hu et
al., Collaborative Filtering for Implicit Feedback Datasets, 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import UserError
from headrace.features.hashing import order_column, place, places, slice_column
from headrace.features.split import SPLITS

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

DUPLICATES = ("last", "mean", "sum", "count", "keep")
IMPLICIT = ("none", "binary", "linear", "log")
SPLIT_BY = ("time", "leave_last", "user", "random")
KINDS = ("user", "item")
_FOLD_SEED, _SPLIT_SEED = 0xF01D, 0x5917
_FINE_BITS = 12
_SIGN = -(1 << 63)


@dataclass(frozen=True)
class Shares:
    """Shares of validation and test, of 1; train has the rest."""

    validation: float
    test: float


def merge_duplicates(rows: DataFrame, rule: str) -> DataFrame:
    """One row for each pair of user and item.

    Args:
        rows: key, user, item, rating, timestamp.
        rule: last, mean, sum or count (of the pair's rows) as the rating, with key and timestamp of the pair's last
            row (by time, then key; rows without a time come first); or keep all.
    """
    from pyspark.sql import functions as F

    if rule == "keep":
        return rows
    last = F.max(F.struct(F.coalesce("timestamp", F.lit(_SIGN)).alias("at"), "key", "rating", "timestamp"))
    # Ratings are summed in the order of their keys: a sum of floats depends on it.
    ordered = F.expr("transform(array_sort(collect_list(struct(key, rating))), x -> x.rating)")
    total = F.aggregate(ordered, F.lit(0.0), lambda a, x: a + x)
    values: dict[str, Column] = {
        "last": F.col("last.rating"),
        "mean": F.col("total") / F.col("n"),
        "sum": F.col("total"),
        "count": F.col("n").cast("double"),
    }
    more = [total.alias("total")] if rule in ("mean", "sum") else []
    pairs = rows.groupBy("user", "item").agg(last.alias("last"), F.count(F.lit(1)).alias("n"), *more)
    return pairs.select("last.key", "user", "item", values[rule].alias("rating"), "last.timestamp")


def prefer(rows: DataFrame, implicit: str, alpha: float) -> DataFrame:
    """Rating and weight as training reads them.

    Args:
        rows: with rating.
        implicit: none (the rating, weight 1), binary (1, weight 1), linear or log (1, weight by the formula above).
        alpha: of the formula.
    """
    from pyspark.sql import functions as F

    rating = F.col("rating")
    seen = F.greatest(rating, F.lit(0.0))
    weights = {"linear": 1 + alpha * seen, "log": 1 + alpha * F.log1p(seen)}
    weight = weights.get(implicit, F.lit(1.0)).cast("float")
    label = (rating if implicit == "none" else F.lit(1.0)).cast("float")
    return rows.withColumn("weight", weight).withColumn("rating", label)


def k_core(
    rows: DataFrame, least: Mapping[str, int], keep: Callable[[DataFrame], DataFrame], max_rounds: int = 1000
) -> tuple[DataFrame, list[int]]:
    """Take out users and items with too few rows, until all have enough.

    Args:
        rows: with user and item.
        least: rows that a user, an item must have; 1 or less for no limit.
        keep: persists a frame, so that a round does not compute the ones before it again.
        max_rounds: give up after so many.

    Returns:
        The rows that are left, and how many each round has taken out, the last 0.

    Raises:
        UserError: not done after `max_rounds`.
    """
    from pyspark.sql import functions as F

    limits = {kind: number for kind, number in least.items() if number > 1}
    removed: list[int] = []
    current, size = rows, rows.count() if limits else 0
    while limits:
        left = current
        for kind, number in limits.items():
            counts = left.groupBy(kind).agg(F.count(F.lit(1)).alias("_n")).where(F.col("_n") >= number)
            left = left.join(counts.select(kind), kind, "left_semi")
        left = keep(left)
        now = left.count()
        removed.append(size - now)
        done = left if now == size else current  # what was computed for it is in the other one
        if done is not rows:
            done.unpersist()
        if now == size:
            return current, removed
        current, size = left, now
        if len(removed) == max_rounds:
            raise UserError(f"the k-core is not found after {max_rounds} rounds", "lower --min_user or --min_item")
    return current, removed


def grow_ids(rows: DataFrame, known: DataFrame, generation: int) -> DataFrame:
    """The entries to append: users and items that have no number yet, numbered on from the last.

    Whole numbers come first, by their value, then text by its code points: a data set's own order, where it has one.

    Args:
        rows: user, item.
        known: kind, value, id; may be empty.
        generation: the number of this growth.

    Returns:
        kind, value, id, generation: the same for the same rows in any order.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    values = [rows.select(F.lit(kind).alias("kind"), F.col(kind).alias("value")).distinct() for kind in KINDS]
    new = values[0].unionByName(values[1]).join(known.select("kind", "value"), ["kind", "value"], "left_anti")
    last = known.groupBy("kind").agg(F.max("id").alias("last"))
    number = F.expr("CASE WHEN value RLIKE '^-?[0-9]{1,18}$' THEN CAST(value AS BIGINT) END")
    order = Window.partitionBy("kind").orderBy(number.asc_nulls_last(), F.col("value"))
    numbered = new.withColumn("place", F.row_number().over(order)).join(F.broadcast(last), "kind", "left")
    return numbered.select(
        "kind",
        "value",
        (F.coalesce("last", F.lit(-1)) + F.col("place")).cast("int").alias("id"),
        F.lit(generation).alias("generation"),
    )


def number_ids(rows: DataFrame, ids: DataFrame) -> DataFrame:
    """Users and items as their numbers.

    Args:
        rows: user, item as text.
        ids: kind, value, id.
    """
    from pyspark.sql import functions as F

    for kind in KINDS:
        own = ids.where(F.col("kind") == kind).select(F.col("value").alias(kind), F.col("id").alias(f"_{kind}"))
        rows = rows.join(own, kind).drop(kind).withColumnRenamed(f"_{kind}", kind)
    return rows


def add_fold(rows: DataFrame, folds: int) -> DataFrame:
    """`fold`: 0 .. folds - 1 by a hash of the key."""
    from pyspark.sql import functions as F

    return rows.withColumn("fold", F.pmod(order_column(F.col("key"), _FOLD_SEED), F.lit(folds)).cast("int"))


def split_by_time(rows: DataFrame, shares: Shares) -> tuple[DataFrame, dict[str, int]]:
    """Rows before a moment train, those after a later one test; those of one moment stay together.

    Args:
        rows: with timestamp.
        shares: what is wanted; ties may shift it.

    Returns:
        rows with `split`, and the first second of validation and of test.
    """
    from pyspark.sql import functions as F

    at = F.col("timestamp")
    cuts = {"validation": 1 - shares.test - shares.validation, "test": 1 - shares.test}
    moments = {name: _moment(rows, share) for name, share in cuts.items()}
    split = F.when(at >= moments["test"], "test").when(at >= moments["validation"], "validation").otherwise("train")
    return rows.withColumn("split", split), moments


def split_leave_last(rows: DataFrame, validation: int, test: int) -> DataFrame:
    """Each user's last `test` rows test, the `validation` before them validate; a user with too few for all trains.

    Args:
        rows: with user, timestamp, key (which decides between rows of one second).
        validation: rows a user.
        test: rows a user.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    own = Window.partitionBy("user")
    place = F.row_number().over(own.orderBy(F.col("timestamp").desc(), F.col("key").desc()))
    few = F.count(F.lit(1)).over(own) <= validation + test
    split = F.when(few, "train").when(place <= test, "test").when(place <= test + validation, "validation")
    return rows.withColumn("split", split.otherwise("train"))


def split_by_hash(rows: DataFrame, column: str, shares: Shares, seed: int) -> DataFrame:
    """All rows of one user (column user), or each row by itself (column key), by a hash.

    Args:
        rows: with that column.
        column: user or key.
        shares: what is wanted.
        seed: of the hash.
    """
    from pyspark.sql import functions as F

    hashed = F.xxhash64(F.lit(seed ^ _SPLIT_SEED).cast("bigint"), F.col(column))
    cuts = [min(_SIGN + int(share * 2**64), -_SIGN - 1) for share in (shares.test, shares.test + shares.validation)]
    split = F.when(hashed < F.lit(cuts[0]), "test").when(hashed < F.lit(cuts[1]), "validation").otherwise("train")
    return rows.withColumn("split", split)


def mark_cold(rows: DataFrame) -> DataFrame:
    """`cold_user`, `cold_item`: a row that judges, whose user or item no training row has.

    Args:
        rows: user, item, split.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    for kind in KINDS:
        seen = F.max(F.col("split") == "train").over(Window.partitionBy(kind))
        rows = rows.withColumn(f"cold_{kind}", ~seen)
    return rows


def lay_out(rows: DataFrame, files: Mapping[str, int], seed: int) -> DataFrame:
    """Rows in the order of a hash of their key, each split in so many files.

    Args:
        rows: with key, split.
        files: number by split, in the order of SPLITS.
        seed: of the hash.
    """
    from pyspark.sql import functions as F

    first, count, base = F.lit(0), F.lit(1), 0
    for name in SPLITS:
        first = F.when(F.col("split") == name, F.lit(base)).otherwise(first)
        count = F.when(F.col("split") == name, F.lit(files[name])).otherwise(count)
        base += files[name]
    spots = F.array(*[F.lit(int(spot)) for spot in places(base)])
    ordered = rows.withColumn("_order", order_column(F.col("key"), seed))
    number = first + slice_column(F.col("_order"), count)
    placed = place(ordered.withColumn("_place", F.element_at(spots, (number + 1).cast("int"))), "_place", base)
    return placed.sortWithinPartitions("split", "_order", "key").drop("_order", "_place")


def _moment(rows: DataFrame, share: float) -> int:
    """The least second at which at least `share` of the rows are earlier; exact, from two short histograms."""
    from pyspark.sql import functions as F

    coarse = _histogram(rows, F.shiftright("timestamp", _FINE_BITS))
    total = sum(coarse.values())
    before = 0
    for bucket, count in coarse.items():
        if before + count >= share * total:
            fine = _histogram(rows.where(F.shiftright("timestamp", _FINE_BITS) == bucket), F.col("timestamp"))
            for second, here in fine.items():
                before += here
                if before >= share * total:
                    return second + 1
        before += count
    raise AssertionError("the last bucket holds the last row")


def _histogram(rows: DataFrame, bucket: Column) -> dict[int, int]:
    from pyspark.sql import functions as F

    counted = rows.groupBy(bucket.alias("bucket")).agg(F.count(F.lit(1)).alias("n")).collect()
    return {row["bucket"]: row["n"] for row in sorted(counted, key=lambda row: int(row["bucket"]))}
