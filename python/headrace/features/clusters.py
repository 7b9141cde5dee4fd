"""Pairs of duplicates to clusters, and who stays: the first document of each cluster.

A cluster is a connected component of the pairs, so that a chain of small changes is one cluster. One of more than
`max_cluster` documents has probably been joined by chance similarities; it is split: in order of ingest a document
stays unless it is a verified duplicate of one that stays (the lexicographically first maximal independent set). Then
whoever goes is directly like the one that stays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

_REMOVED = "key bigint, survivor bigint"


def clusters(edges: DataFrame, named: DataFrame) -> DataFrame:
    """What is known of each cluster.

    Args:
        edges: a bigint, b bigint, a_fresh boolean, b_fresh boolean. A document that is not fresh stays in any case.
        named: node bigint, component bigint, as features.components returns it for these edges.

    Returns:
        component bigint, survivor bigint (its first document: one that is not fresh if there is one, else the smallest
        key), fresh bigint and known bigint (how many of each kind).
    """
    from pyspark.sql import functions as F

    members = _members(edges).join(named, "node")
    first = F.min(F.struct("fresh", "node"))["node"]
    counts = [F.count_if(F.col("fresh")).alias("fresh"), F.count_if(~F.col("fresh")).alias("known")]
    return members.groupBy("component").agg(first.alias("survivor"), *counts)


def removed(edges: DataFrame, named: DataFrame, found: DataFrame, max_cluster: int) -> DataFrame:
    """The fresh documents that go, each with the one that stays.

    Args:
        edges, named: as for `clusters`.
        found: what `clusters` returned.
        max_cluster: fresh documents of a cluster; larger ones are split.

    Returns:
        key bigint, survivor bigint.
    """
    from pyspark.sql import functions as F

    whole = found.where(F.col("fresh") <= max_cluster).select("component", "survivor")
    fresh = _members(edges).where("fresh").join(named, "node")
    gone = fresh.join(whole, "component").where("node <> survivor").selectExpr("node AS key", "survivor")
    large = found.where(F.col("fresh") > max_cluster).select("component")
    inside = edges.join(named.withColumnRenamed("node", "a"), "a").join(F.broadcast(large), "component")
    inside = inside.select("component", "a", "b", "a_fresh", "b_fresh")
    return gone.unionByName(inside.groupBy("component").applyInArrow(_split, _REMOVED))


def _members(edges: DataFrame) -> DataFrame:
    ends = [edges.selectExpr(f"{end} AS node", f"{end}_fresh AS fresh") for end in "ab"]
    return ends[0].unionByName(ends[1]).distinct()


def _split(edges: pa.Table) -> pa.Table:
    """The documents of one cluster that are directly like one that stays; some 300 bytes an edge while it lasts."""
    import pyarrow as pa

    columns = (edges.column(name).to_pylist() for name in ("a", "b", "a_fresh", "b_fresh"))
    neighbours: dict[tuple[bool, int], list[tuple[bool, int]]] = {}
    for a, b, a_fresh, b_fresh in zip(*columns, strict=True):
        neighbours.setdefault((a_fresh, a), []).append((b_fresh, b))
        neighbours.setdefault((b_fresh, b), []).append((a_fresh, a))
    survivor: dict[tuple[bool, int], int] = {}
    for node in sorted(neighbours):
        staying = [other for other in neighbours[node] if other < node and other not in survivor]
        if node[0] and staying:
            survivor[node] = min(staying)[1]
    keys = pa.array([key for _, key in survivor], pa.int64())
    return pa.table({"key": keys, "survivor": pa.array(list(survivor.values()), pa.int64())})
