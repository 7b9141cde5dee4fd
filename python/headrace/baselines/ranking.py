"""How good lists of recommendations are, by MLlib's RankingEvaluator, over users with something to find.

    precision@k = |found in the first k| / k              recall@k = |found in the first k| / |relevant|
    NDCG@k = sum over found ranks r <= k of 1 / log2(r + 1), over that of the best list: min(|relevant|, k) ranks
    MAP@k = mean over users of sum over found ranks r <= k of precision@r, over min(|relevant|, k)

(K. Järvelin, J. Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002; relevance is yes or no here.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_METRICS: dict[str, Any] = {
    "precision": "precisionAtK",
    "recall": "recallAtK",
    "ndcg": "ndcgAtK",
    "map": "meanAveragePrecisionAtK",
}


@dataclass(frozen=True)
class Ranking:
    """Means over users.

    Args:
        k: length of the lists.
        users: that the means are over.
        unknown_users: users with something to find that the model does not know: with cold "count" among `users`, with
            an empty list.
        precision: at k; so are the others. None without users.
    """

    k: int
    users: int
    unknown_users: int
    precision: float | None = None
    recall: float | None = None
    ndcg: float | None = None
    map: float | None = None


def rank(recommended: DataFrame, relevant: DataFrame, known: DataFrame, k: int, cold: str) -> Ranking:
    """Judge lists.

    Args:
        recommended: user, item, rank from 1.
        relevant: user, item: what there was to find.
        known: id: the users that the model knows.
        k: places of a list that count.
        cold: count (a user that the model does not know has an empty list) or exclude (is left out of the means).
    """
    from pyspark.sql import functions as F

    in_order = F.expr("transform(array_sort(collect_list(struct(rank, item))), x -> double(x.item))")
    lists = recommended.where(F.col("rank") <= k).groupBy("user").agg(in_order.alias("prediction"))
    wanted = relevant.groupBy("user").agg(F.collect_set(F.col("item").cast("double")).alias("label"))
    empty = F.array().cast("array<double>")
    joined = (
        wanted.join(lists, "user", "left")
        .join(known.select(F.col("id").alias("user"), F.lit(True).alias("known")), "user", "left")
        .select("label", F.coalesce("prediction", empty).alias("prediction"), F.col("known").isNull().alias("cold"))
        .persist()
    )
    try:
        return _judged(joined, k, cold)
    finally:
        joined.unpersist()


def _judged(joined: DataFrame, k: int, cold: str) -> Ranking:
    from pyspark.ml.evaluation import RankingEvaluator
    from pyspark.sql import functions as F

    unknown = joined.where("cold").count()
    counted = joined.where(~F.col("cold")) if cold == "exclude" else joined
    users = counted.count()
    if not users:
        return Ranking(k, users, unknown)
    judge = RankingEvaluator(k=k)
    figures: dict[str, Any] = {
        ours: float(judge.setMetricName(theirs).evaluate(counted)) for ours, theirs in _METRICS.items()
    }
    return Ranking(k, users, unknown, **figures)
