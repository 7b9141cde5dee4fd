"""Dense ids for nodes that have names: the rank of a name among those of its type, by bytes; later names come behind.

Strings do not go through numpy in blocks of one size, and a knowledge graph has few edges a node: Spark's own sort and
joins do it, which spill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_ROW_BITS = 33  # of monotonically_increasing_id: partition << 33 | row


def ends(triples: DataFrame) -> DataFrame:
    """node_type, name of both ends (src, dst) of every triple."""
    heads = triples.selectExpr("source_type AS node_type", "src AS name")
    return heads.unionAll(triples.selectExpr("target_type AS node_type", "dst AS name"))


def new_names(names: DataFrame, known: DataFrame | None) -> DataFrame:
    """The distinct names that have no id yet, sorted: node_type, name, place. To be numbered from storage.

    Sorting again, as after a lost executor, may cut partitions at other names: then other places would not fit the
    counts by partition, so what is numbered must have been put down (`catalog.scratch.kept`).

    Args:
        names: node_type, name.
        known: node_type, name, id; None where there are none.
    """
    from pyspark.sql import functions as F

    fresh = names.distinct()
    if known is not None:
        fresh = fresh.join(known.select("node_type", "name"), ["node_type", "name"], "left_anti")
    return fresh.orderBy("node_type", "name").withColumn("place", F.monotonically_increasing_id())


def number(names: DataFrame, known: Mapping[str, int]) -> tuple[DataFrame, dict[str, int]]:
    """The names with their dense ids (node_type, name, id), and the nodes of each type.

    Args:
        names: as `new_names` gave them, put down.
        known: nodes by type that have ids already.
    """
    from pyspark.sql import functions as F

    partition = F.shiftright("place", _ROW_BITS)
    counts = names.groupBy(partition.alias("partition"), "node_type").count().collect()
    before: dict[int, int] = {}
    starts: dict[str, int] = {}
    totals = dict(known)
    done = 0
    for row in sorted(counts, key=lambda row: (row["partition"], row["node_type"])):
        before.setdefault(row["partition"], done)
        starts.setdefault(row["node_type"], done)
        totals[row["node_type"]] = totals.get(row["node_type"], 0) + row["count"]
        done += row["count"]
    if not counts:
        return names.select("node_type", "name", F.col("place").alias("id")), totals
    shift = {name: known.get(name, 0) - start for name, start in starts.items()}
    row_in_partition = F.col("place").bitwiseAND(F.lit((1 << _ROW_BITS) - 1))
    dense = row_in_partition + _look_up(partition, before) + _look_up(F.col("node_type"), shift)
    return names.select("node_type", "name", dense.alias("id")), totals


def _look_up(key: Column, table: Mapping[int, int] | Mapping[str, int]) -> Column:
    from pyspark.sql import functions as F

    pairs = [F.lit(part) for item in table.items() for part in item]
    return F.element_at(F.create_map(*pairs), key).cast("bigint")


def renumber(triples: DataFrame, nodes: DataFrame) -> DataFrame:
    """Triples with dense ids: type int, src bigint, dst bigint.

    Args:
        triples: type int, source_type, src, target_type, dst, all but the first strings.
        nodes: node_type, name, id.
    """
    heads = nodes.selectExpr("node_type AS source_type", "name AS src", "id AS head")
    tails = nodes.selectExpr("node_type AS target_type", "name AS dst", "id AS tail")
    joined = triples.join(heads, ["source_type", "src"]).join(tails, ["target_type", "dst"])
    return joined.selectExpr("type", "head AS src", "tail AS dst")
