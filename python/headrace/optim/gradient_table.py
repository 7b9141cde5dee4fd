"""A table with an entry for every training row, found by its key: the same on all ranks, in bounded memory.

    keys [n] int64, sorted     entries [n, C]     n (8 + C element_size) bytes <= table_bytes

Any row may come to any rank in any epoch, so every rank holds the whole table; what a rank finds out about its rows is
gathered, in rank order, before it is entered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.errors import UserError
from headrace.optim.context import StepContext

PADDING_KEY = -1  # of rows that only fill up a batch (data.batch.PAD_KEY): they have no entry
SMALLER = "svrg, sarah and scsg keep nothing for a row"


@dataclass(frozen=True)
class GlobalRows:
    """The rows of a global batch without padding, in rank order.

    Args:
        keys: [R], of all ranks.
        counts: how many of them every rank has.
        own: this rank's, among R.
        collective: the way to the other ranks.
    """

    keys: Tensor
    counts: list[int]
    own: slice
    collective: Collective | None

    @classmethod
    def of(cls, keys: Tensor, collective: Collective | None) -> GlobalRows:
        """From this rank's keys [r], those of padding left out."""
        if collective is None or collective.size == 1:
            return cls(keys, [len(keys)], slice(0, len(keys)), None)
        everyone = collective.allgather(keys.contiguous())
        counts = [len(part) for part in everyone]
        start = sum(counts[: collective.rank])
        return cls(torch.cat(everyone), counts, slice(start, start + len(keys)), collective)

    def gather(self, entries: Tensor) -> Tensor:
        """All ranks' [R, C] of this rank's [r, C]."""
        if self.collective is None:
            return entries
        return torch.cat(self.collective.allgather(entries.contiguous(), rows=self.counts))


def row_keys(ctx: StepContext, name: str) -> Tensor:
    """Keys of this rank's rows [B].

    Raises:
        UserError: the batch has none.
    """
    if ctx.keys is None:
        raise UserError(
            f"optimizer {name} keeps a gradient for every row and finds it by the row's key, and these rows have none",
            f'give batches a tensor "key"; {SMALLER}',
        )
    return ctx.keys


@dataclass
class Room:
    """What a table may take.

    Args:
        limit: bytes.
        row_bytes: of an entry and its key.
        what: an entry, in words.
        rows: taken so far.
    """

    limit: int
    row_bytes: int
    what: str
    rows: int = 0

    def take(self, rows: int) -> None:
        """Take room for so many more rows, before anything is computed for them.

        Raises:
            UserError: there is none: what a row needs, and what else can be done.
        """
        self.rows += rows
        if self.rows * self.row_bytes > self.limit:
            raise UserError(
                f"a table of gradients takes {self.row_bytes:,} bytes a training row here ({self.what}, and a key of "
                f"8): the first {self.rows:,} rows need {self.rows * self.row_bytes:,} bytes, and table_bytes "
                f"{self.limit:,} has room for {self.limit // self.row_bytes:,}",
                f"{SMALLER}; or raise table_bytes to training rows x {self.row_bytes:,}",
            )


class GradientTable:
    """See the module's docstring.

    Args:
        keys: [n], sorted, all different.
        entries: [n, C].
    """

    def __init__(self, keys: Tensor, entries: Tensor) -> None:
        self.keys, self.entries = keys, entries

    @classmethod
    def of(cls, keys: list[Tensor], entries: list[Tensor]) -> GradientTable:
        """The table of rows in any order; while it is made it takes up to three times its memory.

        Raises:
            UserError: a key comes twice.
        """
        ordered, order = torch.cat(keys).sort()
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise UserError(
                f"row key {int(twice[0])} comes twice in the training rows", f"keys must be different; {SMALLER}"
            )
        return cls(ordered, torch.cat(entries)[order])

    def places(self, keys: Tensor) -> Tensor:
        """Where the entries of keys [R] are.

        Raises:
            UserError: a key is not in the table.
        """
        places = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        missing = keys if not len(self.keys) else keys[self.keys[places] != keys]
        if len(missing):
            raise UserError(
                f"row key {int(missing[0])} is not one of the {len(self.keys):,} that the first pass found",
                f"train on the rows that the run began with; {SMALLER}",
            )
        return places


def first_of_each(places: Tensor) -> Tensor:
    """True [R] where a place [R] comes for the first time."""
    order = torch.argsort(places, stable=True)
    ordered = places[order]
    first = torch.ones_like(places, dtype=torch.bool)
    first[order[1:][ordered[1:] == ordered[:-1]]] = False
    return first
