"""Settings of what of a model lies on which rank, and what does not go with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headrace.errors import UserError
from headrace.optim.spec import NEEDS_MODEL, OWN_GRADIENT
from headrace.options import known

REPLICATED, SHARDED = "replicated", "sharded"


@dataclass(kw_only=True)
class ParallelConfig:
    """What of the model lies on which rank.

    Args:
        tables: replicated (every rank holds all rows of the embedding tables), or sharded (each holds its part, and the
            optimizer's state of it: rows go to and fro in every step).
    """

    tables: str = REPLICATED

    @property
    def sharded(self) -> bool:
        """Whether ranks have rows of their own."""
        return self.tables == SHARDED


def check_parallel(
    cfg: ParallelConfig, *, categories: bool, strategy: str, synchronous: bool, aggregation: str, row_codec: str,
    rules: Mapping[str, Iterable[str]],
) -> None:  # fmt: skip
    """Refuse what cannot be, or does not go together.

    Args:
        cfg: the settings.
        categories: whether the model has tables.
        strategy: name of the strategy.
        synchronous: whether ranks meet in every step.
        aggregation: of ranks' gradients.
        row_codec: of row-sparse gradients.
        rules: traits of optimizers and wrappers by name.

    Raises:
        UserError: which, and what to do.
    """
    known("parallel.tables", cfg.tables, (REPLICATED, SHARDED))
    if not cfg.sharded:
        return
    what, back = f"--parallel.tables {SHARDED}", f"--parallel.tables {REPLICATED}"
    if not categories:
        raise UserError(f"{what}: without categories the model has no tables", back)
    if not synchronous:
        raise UserError(
            f"{what}: a row has one owner, whom the others ask in every step; with --strategy.name {strategy} they do "
            "not meet in every one",
            f"--strategy.name allreduce, or {back}",
        )
    if aggregation != "none":
        raise UserError(
            f"{what}: --aggregation.name {aggregation} compares whole gradients, and nobody sees those of the tables",
            f"--aggregation.name none, or {back}",
        )
    if row_codec != "none":
        raise UserError(
            f"{what}: gradients of rows go to their owners as they are", f"--compression.sparse none, or {back}"
        )
    # Such rules correct gradients by those at parameters of before: tables included, which they would have to keep.
    if own := [name for name, traits in rules.items() if {NEEDS_MODEL, OWN_GRADIENT} <= set(traits)]:
        raise UserError(f"{what}: {own[0]} evaluates the model at other tables, and no rank holds them", back)
