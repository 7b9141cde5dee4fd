"""Gossip of embedding tables: an edge of the graph mixes the rows that one of its two ranks has touched.

    x_r <- x_r + sum over neighbours j of V_rj (x_j - x_r)   for a row that r or j has touched since the last turn,
                                                             V = (W + W^T) / 2

What r takes on an edge j gives, so the mean over ranks of every row stays, whoever touched it; a row whose ranks all
touch it is mixed by V like dense parameters, a rare one is drawn together by each touch: randomized gossip (Boyd et al.
2006). V is symmetric also where W is not (a directed edge alone would not keep the mean of rows that only one of its
ends sends), and a mixed row does not count as touched, or word of it would go round for ever. Bytes a rank sends to a
neighbour, with w those of a row and t, u the rows that it and both of them have touched: 8 t, then w u.

Ranks may differ in rows that any of them has changed since all agreed: those are what `mean` is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.compress.base import PayloadError
from headrace.strategies.neighbours import exchange
from headrace.strategies.reducers import ordered
from headrace.strategies.sparse import Tables, coalesced, grouped, with_rows


class TouchedRows:
    """Of every table, which rows this rank has touched since the last turn, and changed since all ranks agreed."""

    def __init__(self) -> None:
        self._recent: dict[str, Tensor] = {}  # ids [n], ascending
        self._changed: dict[str, Tensor] = {}  # uint8 [rows of the table], 1 where changed

    def touch(self, name: str, grad: Tensor) -> None:
        """A step by a row-sparse gradient is about to be made."""
        ids = coalesced(grad)._indices()[0]
        self._recent[name] = _union([self._recent[name], ids]) if name in self._recent else ids.clone()
        self._change(name, ids, grad.shape[0])

    def mix(self, params: Mapping[str, Tensor], mutual: Mapping[int, float], collective: Collective) -> None:
        """One turn, in place.

        Args:
            params: tables by name, the same on all ranks.
            mutual: V_rj by neighbour.
            collective: all ranks call it at the same time.
        """
        for tables in grouped({name: self._touched(name, table) for name, table in params.items()}):
            ids, change = _mixed(tables, params, mutual, collective)
            for name, rows, values in _by_table(tables, ids, change):
                params[name].index_add_(0, rows, values.to(params[name].dtype))
                self._change(name, rows, len(params[name]))
        self._recent = {}

    def mean(self, params: Mapping[str, Tensor], collective: Collective) -> dict[str, tuple[Tensor, Tensor]]:
        """Of every table, the rows that ranks may differ in: ids, and their means over ranks; the same on all."""
        ids = {name: self._differ(name, table, collective) for name, table in params.items()}
        sums = ordered().reduce({name: table[ids[name]] for name, table in params.items()}, collective)
        return {name: (ids[name], total.div_(collective.size)) for name, total in sums.items()}

    def agreed(self) -> None:
        """All ranks hold the same rows."""
        self._recent, self._changed = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"recent": self._recent, "changed": self._changed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave."""
        self._recent, self._changed = dict(state["recent"]), dict(state["changed"])

    def _touched(self, name: str, table: Tensor) -> Tensor:
        """The rows as they are now, as a row-sparse tensor like a gradient."""
        ids = self._recent.get(name, torch.empty(0, dtype=torch.int64, device=table.device))
        return with_rows(ids, table[ids], table)

    def _change(self, name: str, ids: Tensor, rows: int) -> None:
        if name not in self._changed:
            self._changed[name] = torch.zeros(rows, dtype=torch.uint8, device=ids.device)
        self._changed[name][ids] = 1

    def _differ(self, name: str, table: Tensor, collective: Collective) -> Tensor:
        own = self._changed.get(name, torch.zeros(len(table), dtype=torch.uint8, device=table.device))
        return collective.allreduce(own if collective.size < 256 else own.int()).nonzero()[:, 0]


def _mixed(
    tables: Tables, params: Mapping[str, Tensor], mutual: Mapping[int, float], collective: Collective
) -> tuple[Tensor, Tensor]:
    """Ids of all rows that are mixed on an edge, ascending, and what is to be added to them, float32 at least."""
    own = torch.cat([g._indices()[0] + at for g, at in zip(tables.grads.values(), tables.offsets, strict=False)])
    touched = exchange(collective, dict.fromkeys(mutual, own), None, own)
    for ids in touched.values():
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < tables.offsets[-1]:
            raise PayloadError("a neighbour sent rows that no table has")
    edges = {j: _union([own, ids]) for j, ids in touched.items()}
    sent = {j: _rows(tables, params, ids) for j, ids in edges.items()}
    like = _rows(tables, params, own[:0])
    arrived = exchange(collective, sent, {j: len(ids) for j, ids in edges.items()}, like)
    every = _union([own, *edges.values()])
    change = like.new_zeros(len(every), *like.shape[1:], dtype=torch.promote_types(like.dtype, torch.float32))
    for j, ids in edges.items():
        change[torch.searchsorted(every, ids)] += (arrived[j].to(change.dtype) - sent[j]) * mutual[j]
    return every, change


def _by_table(tables: Tables, ids: Tensor, *values: Tensor) -> Iterator[tuple[Any, ...]]:
    """Name, ids in the table, and its part of values, of every table; ids count through all of them, ascending."""
    cuts = torch.searchsorted(ids, torch.tensor(tables.offsets, device=ids.device)).tolist()
    for name, offset, a, b in zip(tables.grads, tables.offsets, cuts, cuts[1:], strict=False):
        yield name, ids[a:b] - offset, *(value[a:b] for value in values)


def _rows(tables: Tables, params: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Rows of ids that count through all tables."""
    return torch.cat([params[name][own] for name, own in _by_table(tables, ids)])


def _union(ids: list[Tensor]) -> Tensor:
    return torch.cat(ids).unique()
