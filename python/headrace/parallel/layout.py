"""How a model lies on ranks, which is seen from the model: it was made so."""

from __future__ import annotations

from torch import nn

from headrace.comm.base import Collective
from headrace.parallel.base import Parallelism, Replicated
from headrace.parallel.sharded_tables import ShardedEmbedding, ShardedTables


def layout(model: nn.Module, collective: Collective) -> Parallelism:
    """Of a model on the ranks of a collective."""
    table = getattr(model, "embedding", None)
    return ShardedTables(model, table, collective) if isinstance(table, ShardedEmbedding) else Replicated()
