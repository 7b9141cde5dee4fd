"""What of a model lies on which rank, where ranks do not hold all of it."""

from __future__ import annotations

from torch import nn

from headrace.comm.base import Collective
from headrace.parallel.base import Parallelism, Replicated
from headrace.parallel.sharded_tables import ShardedEmbedding, ShardedTables


def layout(model: nn.Module, collective: Collective) -> Parallelism:
    """How a model lies on the ranks of a collective; it was made so."""
    if isinstance(getattr(model, "embedding", None), ShardedEmbedding):
        return ShardedTables(model, collective)  # type: ignore[arg-type]
    return Replicated()


__all__ = ["Parallelism", "Replicated", "ShardedEmbedding", "ShardedTables", "layout"]
