"""Weights that a method is not defined for are counted over all shards before it begins, and refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

    from headrace.features.node_blocks import Adjacency, Shard


def unfit(shard: Shard) -> int:
    """Edges whose weight is negative or no finite number."""
    if shard.weights is None:
        return 0
    return int(len(shard.weights) - np.count_nonzero((shard.weights >= 0) & np.isfinite(shard.weights)))


def refuse_unfit(spark: SparkSession, adjacency: Adjacency, why: str) -> None:
    """Read the shards of an adjacency with weights once; one without costs nothing.

    Args:
        spark: the session.
        adjacency: the graph.
        why: what needs weights of 0 or more.

    Raises:
        UserError: there are weights that are negative or not finite; it counts them.
    """
    if not adjacency.weighted:
        return

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow

        for batch in batches:
            found = [unfit(adjacency.shard(number)) for number in batch.column(0).to_pylist()]
            yield pyarrow.RecordBatch.from_arrays([pyarrow.array(found, pyarrow.int64())], ["unfit"])

    shards = len(adjacency.shards)
    rows = spark.range(0, shards, 1, max(1, shards)).mapInArrow(count, "unfit bigint")
    if total := sum(row["unfit"] for row in rows.collect()):
        raise UserError(
            f"{total:,} edges have a weight that is negative or not finite; {why}",
            "mend the input, or leave weights out: featurize-graph --weights false",
        )
