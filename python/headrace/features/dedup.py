"""Exact and near-duplicate documents: signed, compared, and each that goes with the document that stays for it.

    exact   documents of one normal form (128-bit hash) with at least one word: all but the first
    near    of the firsts: pairs that share a MinHash bucket, whose Jaccard, computed on the texts, is >= threshold

A text without a word has no form to compare: it is nobody's duplicate, and nobody is its.
"First" is in order of ingest: documents of earlier crawls before those of this one, then by key. Everything is a
function of keys and texts: partitions, task order and reruns change nothing. The steps are functions of DataFrames;
what lies between them is put down by whoever composes them (pipelines/dedup_text.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.features.minhash import SIGNED_SCHEMA, MinHash, signer, slices
from headrace.features.shingles import shingle_sets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa
    from pyspark.sql import DataFrame

_SETS_SCHEMA = "key bigint, shingles array<bigint>"


def sign(documents: DataFrame, minhash: MinHash) -> DataFrame:
    """Text hash and buckets of every document.

    Args:
        documents: key bigint, text string.
        minhash: see MinHash.

    Returns:
        key, text_high, text_low (bigint), shingles int, buckets array<bigint> (null without words).
    """
    return documents.select("key", "text").mapInArrow(signer(minhash), SIGNED_SCHEMA)


def copies(signed: DataFrame, known: DataFrame | None) -> DataFrame:
    """Which documents repeat the normal form of an earlier one.

    Args:
        signed: as `sign` returns it.
        known: key, text_high, text_low, shingles of the firsts of earlier crawls.

    Returns:
        signed with copy_of bigint (null for the first of its form, and without words); copies have no buckets.
    """
    from pyspark.sql import functions as F

    form = ["text_high", "text_low"]
    firsts = signed.where("shingles > 0").groupBy(*form).agg(F.min("key").alias("first"))
    if known is not None:
        old = known.where("shingles > 0").groupBy(*form).agg(F.min("key").alias("old"))
        firsts = firsts.join(old, form, "left").select(*form, F.coalesce("old", "first").alias("first"))
    rows = signed.join(firsts, form, "left").withColumn("copy_of", F.expr("nullif(first, key)"))
    buckets = F.when(F.col("copy_of").isNull(), F.col("buckets")).alias("buckets")
    return rows.select("key", *form, "copy_of", "shingles", buckets)


def verified(pairs: DataFrame, sets: DataFrame, threshold: float) -> DataFrame:
    """The pairs whose Jaccard is at least the threshold.

    Args:
        pairs: a, b (bigint), a_fresh, b_fresh, as `candidates.pairs` returns them.
        sets: as `shingle_sets_of` returns them; pairs without either set are left out.
        threshold: 0 to 1.

    Returns:
        pairs with jaccard double.
    """
    from pyspark.sql import functions as F

    of_a = sets.selectExpr("key AS a", "shingles AS in_a")
    of_b = sets.selectExpr("key AS b", "shingles AS in_b")
    both = pairs.join(of_a, "a").join(of_b, "b")
    both = both.withColumn("shared", F.size(F.array_intersect("in_a", "in_b")))
    jaccard = F.col("shared") / (F.size("in_a") + F.size("in_b") - F.col("shared"))
    return both.select(*pairs.columns, jaccard.alias("jaccard")).where(F.col("jaccard") >= threshold)


def shingle_sets_of(documents: DataFrame, minhash: MinHash) -> DataFrame:
    """The set of shingles of every document: key bigint, shingles array<bigint> (ascending, without repetitions)."""
    return documents.select("key", "text").mapInArrow(_sets(minhash.ngram, minhash.fold_digits), _SETS_SCHEMA)


def _sets(ngram: int, fold_digits: bool):  # type: ignore[no-untyped-def]
    def cut(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            for part in slices(batch):
                sets = shingle_sets(part.column(1), ngram, fold_digits)
                yield pa.RecordBatch.from_arrays([part.column(0), sets], ["key", "shingles"])

    return cut


def edges(checked: DataFrame, stands_for: DataFrame | None) -> DataFrame:
    """Verified pairs, a document of an earlier crawl replaced by the one that stays for it.

    Args:
        checked: as `verified` returns them.
        stands_for: key bigint, survivor bigint of documents of earlier crawls that went.

    Returns:
        checked, with a and b replaced; match_a and match_b are the documents that were compared.
    """
    rows = checked.selectExpr("*", "a AS match_a", "b AS match_b")
    if stands_for is None:
        return rows
    for end in "ab":
        mine = stands_for.selectExpr(f"key AS {end}", "survivor")
        kept = [name for name in rows.columns if name != end]
        rows = rows.join(mine, end, "left").selectExpr(*kept, f"coalesce(survivor, {end}) AS {end}")
    return rows


def near_rows(gone: DataFrame, linked: DataFrame) -> DataFrame:
    """What is recorded of near-duplicates: the pair that shows it.

    Args:
        gone: key bigint, survivor bigint, as `clusters.removed` returns it.
        linked: as `edges` returns it.

    Returns:
        key, survivor, match_key (bigint), jaccard double, kind string.
    """
    from pyspark.sql import functions as F

    one_way = linked.selectExpr("a AS key", "b AS other", "match_b AS match_key", "jaccard")
    back = linked.selectExpr("b AS key", "a AS other", "match_a AS match_key", "jaccard")
    shown = one_way.unionByName(back).join(gone, "key")
    best = F.max(F.struct(F.expr("other = survivor").alias("direct"), "jaccard", F.expr("-match_key").alias("order")))
    rows = shown.groupBy("key", "survivor").agg(best.alias("best"))
    return rows.selectExpr("key", "survivor", "-best.order AS match_key", "best.jaccard AS jaccard", "'near' AS kind")


def exact_rows(signed: DataFrame, near: DataFrame, stands_for: DataFrame | None) -> DataFrame:
    """What is recorded of copies: they go with the first of their form, or with whoever stays for that.

    Args:
        signed: as `copies` returns it.
        near: as `near_rows` returns it.
        stands_for: key bigint, survivor bigint of documents of earlier crawls that went.

    Returns:
        key, survivor, match_key (bigint), jaccard double, kind string.
    """
    gone = near.select("key", "survivor")
    if stands_for is not None:
        gone = gone.unionByName(stands_for.select("key", "survivor"))
    firsts = gone.withColumnRenamed("key", "copy_of")
    rows = signed.where("copy_of IS NOT NULL").select("key", "copy_of").join(firsts, "copy_of", "left")
    return rows.selectExpr(
        "key", "coalesce(survivor, copy_of) AS survivor", "copy_of AS match_key", "1.0D AS jaccard", "'exact' AS kind"
    )


def with_cluster_size(rows: DataFrame) -> DataFrame:
    """Add cluster_size bigint: the documents that go with the same survivor, and it."""
    from pyspark.sql import functions as F

    sizes = rows.groupBy("survivor").agg((F.count(F.lit(1)) + 1).alias("cluster_size"))
    return rows.join(sizes, "survivor")


def by_host(documents: DataFrame, rows: DataFrame) -> DataFrame:
    """Counts of a crawl by host, and (host null) in all.

    Args:
        documents: key bigint, host string.
        rows: key bigint, kind string of those that go.

    Returns:
        host string (empty where a document has none), documents, exact, near, kept (bigint).
    """
    from pyspark.sql import functions as F

    judged = documents.select("key", F.coalesce("host", F.lit("")).alias("host"))
    judged = judged.join(rows.select("key", "kind"), "key", "left")
    kinds = [F.count_if(F.expr(f"kind <=> '{kind}'")).alias(kind) for kind in ("exact", "near")]
    counts = [F.count(F.lit(1)).alias("documents"), *kinds, F.count_if(F.expr("kind IS NULL")).alias("kept")]
    hosts = judged.groupBy("host").agg(*counts)
    return hosts.unionByName(judged.agg(F.lit(None).cast("string").alias("host"), *counts))
