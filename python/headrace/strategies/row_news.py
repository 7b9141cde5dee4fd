"""Which rows of a table changed since a worker was last told, and what they were then.

A row has the number of the update that changed it last. An update that is the first to change a row since a worker was
told adds the row to that worker's news: so these name every row once, and tell the rows' old values where they are
kept. Nothing goes through the whole table.
"""

from __future__ import annotations

import torch
from torch import Tensor

Chunk = tuple[Tensor, Tensor | None]


class RowNews:
    """Of one table on one server.

    Args:
        table: [rows, ...]; changed by others, after `changing`.
        workers: how many there are; all know the table as it is now.
        keep_old: what rows were is wanted.
    """

    def __init__(self, table: Tensor, workers: int, keep_old: bool) -> None:
        self.table, self.keep_old = table, keep_old
        self._stamps = torch.zeros(table.shape[0], dtype=torch.int64, device=table.device)
        self._told = [0] * workers
        self._news: list[list[Chunk]] = [[] for _ in range(workers)]

    def changing(self, ids: Tensor, update: int) -> None:
        """Rows [n], distinct, are about to be changed by update number `update`, from 1."""
        stamps = self._stamps[ids]
        for worker, told in enumerate(self._told):
            first = ids[stamps <= told]
            if first.numel():
                self._news[worker].append((first, self.table[first] if self.keep_old else None))
        self._stamps[ids] = update

    def tell(self, worker: int, update: int) -> Tensor:
        """Rows that the worker has not got as they are after update `update`, rising: it gets them now."""
        chunks, self._news[worker], self._told[worker] = self._news[worker], [], update
        ids = [ids for ids, _ in chunks] or [self._stamps[:0]]
        return torch.cat(ids).sort().values

    def as_told(self, worker: int, ids: Tensor) -> Tensor:
        """Rows [n, ...] as the worker has them; ids [n] are distinct and rise."""
        assert self.keep_old
        rows = self.table[ids]
        for changed, old in self._news[worker]:
            among = torch.isin(changed, ids, assume_unique=True)
            assert old is not None
            rows[torch.searchsorted(ids, changed[among])] = old[among]
        return rows
