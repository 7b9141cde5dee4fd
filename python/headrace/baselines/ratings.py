"""Ratings for a recommender: checked in one pass, predicted, recommended from.

Rows whose user or item no training row has are cold: a factor model says nothing of them. They are counted, by user and
by item, and never left out without a word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

COLD = ("count", "exclude")
KINDS = {"user": "item", "item": "user"}
_GROWTH = 4


@dataclass(frozen=True)
class RatingsAccount:
    """What a split of ratings holds."""

    rows: int
    mean: float
    lowest: float
    highest: float


def check_ratings(frame: DataFrame) -> dict[str, RatingsAccount]:
    """Check user, item and rating of all splits in one pass.

    Args:
        frame: user, item int, rating, split.

    Returns:
        By split that has rows.

    Raises:
        UserError: with column, what is wrong, rows.
    """
    from pyspark.sql import functions as F

    rating = F.col("rating")
    wrong = {
        "rating": rating.isNull() | F.isnan(rating) | (F.abs(rating) == float("inf")),
        "user": F.col("user").isNull() | (F.col("user") < 0),
        "item": F.col("item").isNull() | (F.col("item") < 0),
    }
    bad = [F.count(F.when(condition, 1)).alias(f"bad_{name}") for name, condition in wrong.items()]
    figures = [F.avg(rating).alias("mean"), F.min(rating).alias("low"), F.max(rating).alias("high")]
    found = frame.groupBy("split").agg(F.count(F.lit(1)).alias("rows"), *figures, *bad).collect()
    what = {"rating": "are NaN, infinite or missing", "user": "are no numbers from 0", "item": "are no numbers from 0"}
    for row in found:
        for name, said in what.items():
            if row[f"bad_{name}"]:
                raise UserError(
                    f"{name}: {row[f'bad_{name}']:,} of {row['rows']:,} rows of {row['split']} {said}",
                    "headrace featurize-ratings anew",
                )
    if not any(row["split"] == "train" and row["rows"] for row in found):
        raise UserError("there are no rows of train", "headrace featurize-ratings with another --split")
    return {row["split"]: RatingsAccount(row["rows"], row["mean"], row["low"], row["high"]) for row in found}


@dataclass(frozen=True)
class Errors:
    """Root mean squared errors over rows, and what of them is cold.

    Args:
        rows: all.
        cold: rows of a user or item that the model does not know.
        cold_users: rows of such a user.
        cold_items: rows of such an item.
        rmse_warm: over the other rows; None where there are none.
        rmse_all: over all, the cold ones predicted by the mean of the training ratings.
    """

    rows: int
    cold: int
    cold_users: int
    cold_items: int
    rmse_warm: float | None
    rmse_all: float | None


def errors(model: Any, rows: DataFrame, mean: float) -> Errors:
    """Predict ratings and compare.

    Args:
        model: MLlib's ALSModel.
        rows: user, item, rating.
        mean: of the training ratings.
    """
    from pyspark.sql import functions as F

    known = marked(model, rows)
    predicted = model.setColdStartStrategy("nan").transform(known)
    cold = F.isnan("prediction")
    squared = F.pow(F.col("rating").cast("double") - F.col("prediction"), 2)
    fallback = F.pow(F.col("rating").cast("double") - F.lit(mean), 2)
    row = predicted.agg(
        F.count(F.lit(1)).alias("rows"),
        F.count(F.when(cold, 1)).alias("cold"),
        F.count(F.when(~F.col("known_user"), 1)).alias("cold_users"),
        F.count(F.when(~F.col("known_item"), 1)).alias("cold_items"),
        F.sqrt(F.avg(F.when(~cold, squared))).alias("warm"),
        F.sqrt(F.avg(F.when(cold, fallback).otherwise(squared))).alias("all"),
    ).first()
    assert row is not None
    return Errors(row["rows"], row["cold"], row["cold_users"], row["cold_items"], row["warm"], row["all"])


def marked(model: Any, rows: DataFrame) -> DataFrame:
    """`known_user` and `known_item` beside rows with user and item."""
    from pyspark.sql import functions as F

    for kind, factors in (("user", model.userFactors), ("item", model.itemFactors)):
        ids = factors.select(F.col("id").alias(kind), F.lit(True).alias(f"known_{kind}"))
        rows = rows.join(ids, kind, "left").withColumn(f"known_{kind}", F.coalesce(f"known_{kind}", F.lit(False)))
    return rows


def recommend(model: Any, kind: str, k: int, seen: DataFrame | None = None) -> DataFrame:
    """The best k for every user, or for every item, that the model knows.

    MLlib finds the best n of all, seen or not. So those with few seen rows are asked for k + few and those with many
    for k + many: by powers of four, at most four times as many as are needed.

    Args:
        model: MLlib's ALSModel.
        kind: for whom: user, or item.
        k: at most so many each.
        seen: user, item of pairs to leave out; None leaves out none.

    Returns:
        user, item int, rank int from 1, score float; by score, then id.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    other = KINDS[kind]
    if seen is None:
        listed = [_best(model, kind, None, k)]
    else:
        seen = seen.select("user", "item").distinct()
        listed = [_best(model, kind, asked, k + most) for most, asked in _by_seen(model, kind, seen)]
    frame = listed[0]
    for more in listed[1:]:
        frame = frame.unionByName(more)
    if seen is not None:
        frame = frame.join(seen, ["user", "item"], "left_anti")
    order = Window.partitionBy(kind).orderBy(F.col("score").desc(), F.col(other))
    ranked = frame.withColumn("rank", F.row_number().over(order)).where(F.col("rank") <= k)
    return ranked.select("user", "item", "rank", "score")


def _by_seen(model: Any, kind: str, seen: DataFrame) -> list[tuple[int, DataFrame]]:
    """Groups of ids, each with a number that none of it has seen more than."""
    from pyspark.sql import functions as F

    counts = seen.groupBy(kind).agg(F.count(F.lit(1)).alias("n"))
    factors = model.userFactors if kind == "user" else model.itemFactors
    ids = factors.select(F.col("id").alias(kind)).join(counts, kind, "left").fillna(0, ["n"])
    power = F.ceil(F.log(F.greatest("n", F.lit(1))) / math.log(_GROWTH)).cast("int")
    ids = ids.select(kind, "n", power.alias("power"))
    most = {row["power"]: row["most"] for row in ids.groupBy("power").agg(F.max("n").alias("most")).collect()}
    return [(most[power], ids.where(F.col("power") == power).select(kind)) for power in sorted(most)]


def _best(model: Any, kind: str, asked: DataFrame | None, number: int) -> DataFrame:
    """user, item, score: the best so many of all; `asked`: for whom, None for all."""
    from pyspark.sql import functions as F

    other = KINDS[kind]
    if kind == "user":
        found = model.recommendForAllUsers(number) if asked is None else model.recommendForUserSubset(asked, number)
    else:
        found = model.recommendForAllItems(number) if asked is None else model.recommendForItemSubset(asked, number)
    one = found.select(kind, F.explode("recommendations").alias("r"))
    return one.select(kind, F.col(f"r.{other}").alias(other), F.col("r.rating").alias("score"))


def known_rmse() -> Any:
    """A spark.ml evaluator of RMSE over rows that the model knows; its `seen` has (rows, unknown ones) of every call.

    MLlib's own would be NaN with a single unknown row, or, with its coldStartStrategy drop, leave them out untold.
    """
    from pyspark.ml.evaluation import RegressionEvaluator
    from pyspark.sql import functions as F

    class KnownRmse(RegressionEvaluator):
        def __init__(self) -> None:
            super().__init__(labelCol="rating")
            self.seen: list[tuple[int, int]] = []

        def _evaluate(self, dataset: DataFrame) -> float:
            unknown = F.isnan("prediction")
            row = dataset.agg(F.count(F.lit(1)), F.count(F.when(unknown, 1))).first()
            assert row is not None
            self.seen.append((row[0], row[1]))
            return float(super()._evaluate(dataset.where(~unknown)))

    return KnownRmse()
