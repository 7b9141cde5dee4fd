"""Embedding tables of which every rank holds a part: rows come before forward, their gradients go back after backward.

    ids of the batch -> each once -> alltoall to their owners -> alltoall of rows -> forward, backward on these rows
    -> sums by id on each rank -> alltoall to owners -> sums in rank order -> the owner's optimizer, on its rows alone

One table holds all columns (models.embedding), so each of the three exchanges is one operation a step, whatever
`train.accumulate`. Memory of a rank: 1 / N of the rows and of what the optimizer keeps of them, and the batch's rows.
Bits are those of replicated tables with sums in rank order: the same rows go into the same sums in the same order, by
id in order of occurrence, then over ranks.

Bytes that rank r of N sends in a step, with n_rq the distinct ids of its batch that q holds (padding is nobody's) and w
bytes of a row:

    sum over q != r of  n_rq (4 + w)  +  n_qr w        ids and gradients;  rows for others  (8 for 4 from 2^31 rows on)

about (N - 1) / N n (4 + 2 w) for n distinct ids, where replicated tables send (N - 1) n (8 + w): about as much for two
ranks, and nearly N / 2 times less for many. Which rank holds what: see headrace.parallel.dealing.

References: M. Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv:1906.00091, 2019, section 4 (tables over devices, alltoall of lookups); D. Mudigere et al., arXiv:2104.05158, 2021
(row-wise sharding). Different from both: ids go over once for a rank's whole batch, not once for every occurrence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headrace.comm.base import Collective
from headrace.comm.metered import TABLES, part
from headrace.models.embedding import PADDING_ID, FusedEmbedding, gather, sum_rows
from headrace.parallel.dealing import Dealing, put_together
from headrace.strategies.sparse import as_coalesced, with_rows

_DRAWN = 16  # torch draws normal numbers by so many at a time; a run of fewer at the end would have other bits


@dataclass
class Fetched:
    """A batch's rows on this rank.

    Args:
        ids: of the batch, int64 [B, C].
        places: of every id in `rows`, [B, C].
        keys: of `rows`, rising (see Dealing.keys); -1 first, which stands for padding.
        rows: a zero row, then one for every distinct id [1 + n, dim]; gradients gather in its `grad`.
        counts: of rows by owner.
        served: rows of this rank that each rank asked for, by asking rank.
    """

    ids: Tensor
    places: Tensor
    keys: Tensor
    rows: Tensor
    counts: list[int]
    served: list[Tensor]


class ShardedEmbedding(FusedEmbedding):
    """A FusedEmbedding whose `weight` has the rows of one rank; the same bits as there.

    Args:
        cardinalities: see FusedEmbedding.
        dim: floats a row.
        rank: this one.
        size: number of ranks.
    """

    def __init__(self, cardinalities: Mapping[str, int], dim: int, *, rank: int, size: int) -> None:
        dealing = Dealing(sum(cardinalities.values()), rank, size)
        super().__init__(cardinalities, dim, dealing.count)
        self.dealing = dealing
        self.fetched: Fetched | None = None
        self.counted: Counter[str] = Counter()

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of ids int64 [B, C], of those that were fetched -> float [B, C, dim]."""
        assert self.fetched is not None, "forward without the rows of other ranks"
        held = self.fetched
        places = held.places if ids is held.ids else torch.searchsorted(held.keys, self.keys(ids))
        return gather(held.rows, places, places.new_zeros(1))

    def keys(self, ids: Tensor) -> Tensor:
        """Of ids [B, C]; see Dealing.keys; -1 for padding."""
        return torch.where(ids == PADDING_ID, -1, self.dealing.keys(ids + self.offsets))

    @torch.no_grad()
    def draw(self, std: float, first_order: int, generator: torch.Generator) -> None:
        """This rank's rows of those that FusedEmbedding draws, a block of the whole at a time."""
        deal, dim = self.dealing, self.weight.shape[1]
        step = _DRAWN * deal.size * max(1, (1 << 20) // (_DRAWN * deal.size * dim))
        starts = list(range(0, max(1, self.rows - step + 1), step))
        for start, stop in zip(starts, [*starts[1:], self.rows], strict=True):
            block = self.weight.new_empty(stop - start, dim).normal_(0.0, std, generator=generator)
            mine = block[deal.rank :: deal.size]
            self.weight[start // deal.size : start // deal.size + len(mine)] = mine
        self.weight[:, :first_order] = 0.0
        self.zero_padding()

    @torch.no_grad()
    def zero_padding(self) -> None:
        """Set this rank's rows of padding to zero."""
        rows = self.offsets + PADDING_ID
        self.weight[rows[rows % self.dealing.size == self.dealing.rank] // self.dealing.size] = 0.0


class ShardedTables:
    """A `Parallelism`; see the module's docstring.

    Args:
        model: one with an input `sparse`, the ids [B, C] of its table.
        table: of the model.
        collective: over whom.
    """

    def __init__(self, model: nn.Module, table: ShardedEmbedding, collective: Collective) -> None:
        self.table, self.collective = table, collective
        assert (table.dealing.rank, table.dealing.size) == (collective.rank, collective.size)
        (self.name,) = (name for name, param in model.named_parameters() if param is table.weight)
        self.names = frozenset((self.name,))

    def fetch(self, inputs: Mapping[str, Tensor]) -> Fetched:
        """See `Parallelism.fetch`; the rows of the input `sparse`."""
        ids, deal, weight = inputs["sparse"], self.table.dealing, self.table.weight.detach()
        self.table.check(ids)
        every = self.table.keys(ids).reshape(-1)
        keys, places = torch.unique(torch.cat((every.new_full((1,), -1), every)), return_inverse=True)
        first = [rank * deal.most for rank in range(deal.size + 1)]
        cuts = torch.searchsorted(keys, keys.new_tensor(first)).tolist()
        asked = [keys[a:b] - at for a, b, at in zip(cuts, cuts[1:], first, strict=False)]
        counts = [len(each) for each in asked]
        served = self._alltoall(asked)
        rows = self._alltoall([weight.index_select(0, each) for each in served], rows=counts)
        held = torch.cat((weight.new_zeros(1, weight.shape[1]), *rows)).requires_grad_()
        self.table.counted["rows_asked"] += sum(counts)
        self.table.counted["rows_served"] += sum(len(each) for each in served)
        return Fetched(ids, places[1:].view(ids.shape), keys, held, counts, served)

    @contextmanager
    def serving(self, fetched: Fetched) -> Iterator[None]:
        """See `Parallelism.serving`."""
        before, self.table.fetched = self.table.fetched, fetched
        try:
            yield
        finally:
            self.table.fetched = before

    def gradients(self, fetched: Fetched) -> dict[str, Tensor]:
        """See `Parallelism.gradients`: of rows by their place."""
        grad = fetched.rows.grad
        return {} if grad is None else {self.name: as_coalesced(grad)}

    def exchanged(self, fetched: Fetched) -> dict[str, Tensor]:
        """See `Parallelism.exchanged`."""
        weight = self.table.weight
        sums = next((grad._values() for grad in self.gradients(fetched).values()), weight.detach()[:0])
        assert len(sums) == sum(fetched.counts), "a row was fetched and not used"
        parts = self._alltoall(sums.split(fetched.counts), rows=[len(each) for each in fetched.served])
        fetched.rows.grad = None
        ids, rows = sum_rows(torch.cat(fetched.served).long(), torch.cat(parts))
        return {self.name: with_rows(ids, rows, weight)}

    def rows(self, name: str) -> int:
        """See `Parallelism.rows`."""
        assert name == self.name
        return self.table.rows

    def whole(self, name: str) -> Iterator[Tensor]:
        """See `Parallelism.whole`."""
        assert name == self.name
        weight, deal = self.table.weight.detach(), self.table.dealing
        nothing = weight[:0]
        for start, stop in deal.blocks(weight.element_size() * weight.shape[1]):
            own = weight[start:stop]
            counts = [min(stop, deal.of(rank).count) - start for rank in range(deal.size)]
            rows = counts if deal.rank == 0 else [0] * deal.size
            parts = self._alltoall([own, *[nothing] * (deal.size - 1)], rows=rows)
            yield put_together(parts) if deal.rank == 0 else nothing

    def _alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        with part(self.collective, TABLES):
            return self.collective.alltoall(chunks, rows)

    def figures(self) -> dict[str, float]:
        """See `Parallelism.figures`."""
        return {"rows_held": float(self.table.dealing.count), **{n: float(c) for n, c in self.table.counted.items()}}
