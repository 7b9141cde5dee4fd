"""Buckets to pairs of documents that are worth comparing: all pairs of a bucket, and a bounded number in a giant one.

    bucket of n <= max_bucket documents    all n (n - 1) / 2 pairs
    larger                                 each document with the `window` before it, in the order (next band's bucket,
                                           key), and with the bucket's smallest key: at most n (window + 1) pairs

All pairs, not each with the smallest: in a bucket {m, a, b} where m is like neither, a star would lose the pair (a, b).
In a giant bucket (a template that fills thousands of pages) all pairs would be quadratic; there the order puts those
who also share the next band beside each other, and what was not compared is counted and reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def bucketed(documents: DataFrame, fresh: bool) -> DataFrame:
    """One row a document and band.

    Args:
        documents: key bigint, buckets array<bigint>; null buckets give no row.
        fresh: whether these are the documents to be judged, and not those they are compared with.

    Returns:
        bucket bigint, following bigint (the next band's bucket), key bigint, fresh boolean.
    """
    from pyspark.sql import functions as F

    rows = documents.where("buckets IS NOT NULL").selectExpr("key", "buckets", "posexplode(buckets) AS (band, bucket)")
    following = F.expr("element_at(buckets, CAST(pmod(band + 1, size(buckets)) + 1 AS INT))")
    return rows.select("bucket", following.alias("following"), "key", F.lit(fresh).alias("fresh"))


def shared_buckets(fresh: DataFrame, known: DataFrame | None) -> DataFrame:
    """Buckets with at least two documents, of which one is fresh.

    Args:
        fresh: as `bucketed` returns them.
        known: documents of earlier crawls, the same way.

    Returns:
        their columns, and size bigint (documents in the bucket), first struct<key, fresh> (the smallest key).
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    rows = fresh
    if known is not None:
        rows = fresh.unionByName(known.join(fresh.select("bucket").distinct(), "bucket", "left_semi"))
    whole = Window.partitionBy("bucket")
    size = F.count(F.lit(1)).over(whole).alias("size")
    first = F.min(F.struct("key", "fresh")).over(whole).alias("first")
    return rows.select("*", size, first).where("size > 1")


def pairs(shared: DataFrame, max_bucket: int, window: int) -> DataFrame:
    """The pairs to compare, each once, with at least one fresh document.

    Args:
        shared: as `shared_buckets` returns it; read three times, so put down before.
        max_bucket: documents in a bucket of which all pairs are compared.
        window: neighbours of each document in a larger one.

    Returns:
        a bigint, b bigint, a < b; a_fresh and b_fresh boolean.
    """
    from pyspark.sql import functions as F

    found = _all_pairs(shared.where(F.col("size") <= max_bucket))
    found = found.unionByName(_windowed(shared.where(F.col("size") > max_bucket), window))
    return found.where("a_fresh OR b_fresh").distinct()


def skipped(shared: DataFrame, max_bucket: int, window: int) -> dict[str, int]:
    """Giant buckets, the largest, and the most pairs in them that are not compared (another bucket may hold them)."""
    from pyspark.sql import functions as F

    sizes = shared.where(F.col("size") > max_bucket).groupBy("bucket").agg(F.first("size").alias("size"))
    left = F.greatest(F.lit(0), F.col("size") * (F.col("size") - 1) / 2 - F.col("size") * (window + 1))
    row = sizes.agg(F.count(F.lit(1)), F.max("size"), F.sum(left)).collect()[0]
    return {"buckets": row[0], "largest": row[1] or 0, "pairs_skipped": int(row[2] or 0)}


def _all_pairs(small: DataFrame) -> DataFrame:
    first = small.selectExpr("bucket", "key AS a", "fresh AS a_fresh")
    second = small.selectExpr("bucket", "key AS b", "fresh AS b_fresh")
    return first.join(second, "bucket").where("a < b").select("a", "b", "a_fresh", "b_fresh")


def _windowed(giant: DataFrame, window: int) -> DataFrame:
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    order = Window.partitionBy("bucket").orderBy("following", "key")
    me = F.struct("key", "fresh")
    others = F.array("first", *[F.lag(me, distance).over(order) for distance in range(1, window + 1)])
    rows = giant.select(me.alias("me"), others.alias("others"))
    rows = rows.select("me", F.explode("others").alias("other")).where("other IS NOT NULL")
    rows = rows.where("me.key <> other.key").select(
        F.least("me", "other").alias("x"), F.greatest("me", "other").alias("y")
    )
    return rows.selectExpr("x.key AS a", "y.key AS b", "x.fresh AS a_fresh", "y.fresh AS b_fresh")
