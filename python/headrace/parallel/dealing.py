"""Rows of a table dealt over ranks like cards: row i lies with rank i mod size, there as row i div size.

Ranks hold equally many rows, but for one. Ids of a vocabulary go by falling frequency, so the frequent rows of every
column lie with all ranks in turn, without anything measured or kept; and a run of rows that begins and ends at
multiples of `size` is one run of rows on every rank, so tables are put together and dealt anew in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK_BYTES = 8 << 20


class Rows(Protocol):
    """A tensor that is somewhere else, a few rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""


@dataclass(frozen=True)
class Dealing:
    """See the module's docstring.

    Args:
        rows: of the whole table.
        rank: this one.
        size: number of ranks.
    """

    rows: int
    rank: int
    size: int

    @property
    def count(self) -> int:
        """Rows of this rank."""
        return (self.rows - self.rank + self.size - 1) // self.size

    @property
    def most(self) -> int:
        """Rows of the rank that has most."""
        return -(-self.rows // self.size)

    def of(self, rank: int) -> Dealing:
        """As another rank sees it."""
        return Dealing(self.rows, rank, self.size)

    def keys(self, rows: Tensor) -> Tensor:
        """Numbers that order rows of the whole table [...] by rank, and on a rank by its own numbers: rank * most + row
        there; int32 where that is enough, which sorts twice as fast."""
        rows = rows.to(torch.int32) if self.most * self.size < 2**31 else rows
        return rows % self.size * self.most + rows // self.size

    def blocks(self, row_bytes: int) -> Iterator[tuple[int, int]]:
        """Runs [start, stop) of rows of the rank that has most, of about BLOCK_BYTES in the whole table."""
        step = max(1, BLOCK_BYTES // max(1, row_bytes * self.size))
        return ((start, min(start + step, self.most)) for start in range(0, self.most, step))


def put_together(parts: Sequence[Tensor]) -> Tensor:
    """Rows of the whole table, of the ranks' rows [start, stop) in rank order; the last ranks may have one less."""
    if len({len(part) for part in parts}) == 1:
        return torch.stack(tuple(parts), 1).flatten(0, 1)
    whole = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def dealt_anew(parts: Sequence[Rows], was: int, to: Dealing) -> Tensor:
    """The rows of one rank, out of the ranks' parts of another dealing; a block is in memory at a time.

    Args:
        parts: of the same table, by rank; of ranks that have rows.
        was: over how many ranks it was dealt.
        to: the new dealing.

    Raises:
        ValueError: the parts are not of such a table.
    """
    like = parts[0].read(0, 0)
    new = like.new_zeros(to.count, *like.shape[1:])
    shared = math.gcd(was, to.size)
    step = max(1, BLOCK_BYTES // max(1, like.element_size() * like.shape[1:].numel()))
    for old, part in enumerate(parts):
        count = Dealing(to.rows, old, was).count
        if tuple(part.shape) != (count, *like.shape[1:]):
            raise ValueError(f"rank {old} of {was} kept {list(part.shape)}, its share is {[count, *like.shape[1:]]}")
        if (old - to.rank) % shared:
            continue  # none of its rows comes here
        stride = to.size // shared  # of its rows, every so many come here
        first = next(j for j in range(stride) if (j * was + old) % to.size == to.rank)
        for start in range(0, count, step):
            stop = min(start + step, count)
            begin = start + (first - start) % stride
            if begin >= stop:
                continue
            rows = part.read(start, stop)[begin - start :: stride]
            at = (begin * was + old) // to.size
            new[at : at + len(rows) * (was // shared) : was // shared] = rows
    return new
