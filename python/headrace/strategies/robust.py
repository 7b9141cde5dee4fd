"""Aggregation that a few corrupted gradients cannot lead astray: what all ranks agree on instead of their sum.

    median         of every coordinate over the N ranks; of an even number, the mean of the middle two
    trimmed_mean   of every coordinate: the mean without the b smallest and the b largest; b < N / 2
    krum           the mean of the m gradients with the least score; the score of V_i is the sum of |V_i - V_j|^2 over
                   its N - f - 2 nearest j != i; N >= 2 f + 3. m = 1 is Krum, more is Multi-Krum, m <= N - f
    norm_clip      the mean of V_i min(1, c median |V_j| / |V_i|); of an even number of norms, the lower middle one

Results are N times that, since callers divide sums by the rows of all ranks: right where ranks have as many rows each.
References: D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-robust distributed learning: towards optimal
statistical rates", ICML 2018 (the first two); P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine
learning with adversaries: Byzantine tolerant gradient descent", NIPS 2017. Different from them: there is no server;
every rank aggregates its chunk of all gradients and shares it. That is proof against ranks that compute wrong gradients
(bad memory, bad rows), not against ranks that do not run this program; and who knows the honest gradients can hide
among them and slow training down, most of all under krum: G. Baruch, M. Baruch, Y. Goldberg, "A little is enough:
circumventing defenses for distributed learning", NeurIPS 2019.

V is the whole gradient of a rank, row-sparse tables included: Krum's distances and the norms are over all of it, and
chosen or clipped it is as a whole. Medians of rows are not defined: a row that most ranks did not touch would never
change, so `median` and `trimmed_mean` refuse row-sparse gradients by name.

Bytes a rank sends: 2 (N - 1) / N of the dense gradients' as an exact sum does, rows as in headrace.strategies.sparse;
krum 2 (N - 1) / N 8 N^2 more, for distances; norm_clip 8 (N - 1) more. Bits are the same on all ranks and transports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.comm.sums import in_order, saturated, sum_in_rank_order
from headrace.errors import UserError
from headrace.strategies.reducers import BucketReducer, Stateless, buckets, packed, unpacked
from headrace.strategies.sparse import Tables, coalesced, grouped, with_rows

Rule = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Coordinatewise(BucketReducer):
    """Every coordinate by a rule of its own; `sum_flat` is one made by `chunkwise`."""

    name: str = ""

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `Reducer.reduce`.

        Raises:
            UserError: there are row-sparse gradients.
        """
        if tables := [name for name, g in grads.items() if g.is_sparse]:
            raise UserError(
                f"--aggregation.name {self.name} is not defined for the row-sparse gradient of {tables[0]}",
                "--aggregation.name krum or norm_clip, or a model without embedding tables",
            )
        return super().reduce(grads, collective)


def chunkwise(rule: Rule) -> Callable[[Tensor, Collective], Tensor]:
    """A flat tensor [n] of every rank to N times what `rule` makes of them: rows [N, n] to [n], any n."""

    def aggregated(flat: Tensor, collective: Collective) -> Tensor:
        return _shared(rule(_scattered(flat, collective)).mul_(collective.size), flat, collective)

    return aggregated


def median(x: Tensor) -> Tensor:
    """Of x [N, n] over ranks, [n]; of an even N the mean of the middle two. NaN counts as infinity."""
    rows, n = ranked(x), len(x)
    return rows[n // 2] if n % 2 else rows[n // 2 - 1].add(rows[n // 2]).div_(2)


def trimmed_mean(x: Tensor, trim: int) -> Tensor:
    """Of x [N, n] over ranks without the `trim` smallest and largest, [n]; added up from the smallest. NaN counts as
    infinity."""
    kept = ranked(x)[trim : len(x) - trim]
    return in_order(kept).div_(len(kept))


def ranked(x: Tensor) -> list[Tensor]:
    """Rows of x [N, n] with every column in rising order, NaN made infinity.

    By exchanges between neighbouring rows, N rounds of them: for as few rows as there are ranks that is ten times as
    fast as sorting columns.
    """
    rows = list(torch.nan_to_num(x, torch.inf, torch.inf, -torch.inf).unbind(0))
    for turn in range(len(rows)):
        for i in range(turn % 2, len(rows) - 1, 2):
            rows[i], rows[i + 1] = torch.minimum(rows[i], rows[i + 1]), torch.maximum(rows[i], rows[i + 1])
    return rows


@dataclass(frozen=True)
class Krum(Stateless):
    """See the module's docstring.

    Args:
        bucket_bytes: of dense gradients that are exchanged by one operation.
        faulty: f, corrupted ranks to withstand.
        chosen: m, gradients that the mean is of.
    """

    bucket_bytes: int
    faulty: int = 1
    chosen: int = 1

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `Reducer.reduce`."""
        size = collective.size
        dense = {name: g for name, g in grads.items() if not g.is_sparse}
        cut = list(buckets(dense, self.bucket_bytes))
        flats = [packed(bucket) for bucket in cut]
        chunks = [_scattered(flat, collective) for flat in flats]
        tables = grouped({name: coalesced(g) for name, g in grads.items() if g.is_sparse})
        rows = [each.gathered(collective) for each in tables]
        parts = [squares(x) for x in chunks] + [row_squares(each, collective.rank) for each in rows]
        if not parts:
            return {}
        best = choose(_together(parts, collective), self.faulty, self.chosen)
        found: dict[str, Tensor] = {}
        for bucket, flat, x in zip(cut, flats, chunks, strict=True):
            found |= unpacked(_shared(in_order(x[best]).mul_(size / len(best)), flat, collective), bucket)
        for each, by_rank in zip(tables, rows, strict=True):
            found |= _taken(each, [by_rank[rank] for rank in best], size / len(best))
        return {name: found[name] for name in grads}


@dataclass(frozen=True)
class NormClip(Stateless):
    """See the module's docstring; each rank scales its own gradient, then they are summed.

    Args:
        exact: how sums are taken.
        factor: c, of the median norm.
    """

    exact: BucketReducer
    factor: float = 1.0

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `Reducer.reduce`."""
        own = {name: coalesced(g) if g.is_sparse else g for name, g in grads.items()}
        norm = whole_norm(own)
        words = collective.allgather(torch.tensor([norm], dtype=torch.float64), rows=[1] * collective.size)
        norms = sorted(torch.cat(words).nan_to_num(torch.inf).tolist())
        limit = self.factor * norms[(len(norms) - 1) // 2]
        # A norm that is not finite takes no part: what is not finite goes on and is seen, no number is made of it.
        scale = limit / norm if limit < norm < torch.inf else 1.0
        return self.exact.reduce({name: _times(g, scale) for name, g in own.items()}, collective)


def whole_norm(grads: Mapping[str, Tensor]) -> float:
    """Of all gradients as one vector; sparse ones coalesced."""
    values = [g._values() if g.is_sparse else g for g in grads.values()]
    squared = [torch.linalg.vector_norm(x, dtype=torch.float64).square().cpu() for x in values]
    return float(torch.stack(squared).sum().sqrt()) if squared else 0.0


def squares(x: Tensor) -> Tensor:
    """Squared distances float64 [N, N] between the rows of x [N, n], by differences: equal rows are 0 apart."""
    found = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for i in range(len(x) - 1):
        found[i, i + 1 :] = torch.linalg.vector_norm(x[i + 1 :] - x[i], dim=1, dtype=torch.float64).square()
    return found + found.T


def row_squares(by_rank: list[tuple[Tensor, Tensor]], rank: int) -> Tensor:
    """This rank's part of the squared distances between ranks' (ids, rows): that of its range of all ids."""
    size, rows = len(by_rank), by_rank[0][1]
    own = torch.cat([ids for ids, _ in by_rank]).unique().tensor_split(size)[rank]
    if not own.numel():
        return torch.zeros(size, size, dtype=torch.float64, device=rows.device)
    dense = rows.new_zeros(size, own.numel(), *rows.shape[1:])
    for each, (ids, values) in enumerate(by_rank):
        a, b = torch.searchsorted(ids, torch.stack([own[0], own[-1] + 1])).tolist()
        dense[each, torch.searchsorted(own, ids[a:b])] = values[a:b]
    return squares(dense.view(size, -1))


def choose(distances: Tensor, faulty: int, chosen: int) -> list[int]:
    """Ranks of the least scores, ascending; of equal scores the lower rank. Distances squared [N, N]."""
    far = distances.nan_to_num(torch.inf).fill_diagonal_(torch.inf)
    scores = far.sort(dim=1).values[:, : len(far) - faulty - 2].sum(1)
    return sorted(scores.sort(stable=True).indices[:chosen].tolist())


def _scattered(flat: Tensor, collective: Collective) -> Tensor:
    """This rank's chunk of every rank's tensor, by rank, in float32 at least."""
    chunks = flat.tensor_split(collective.size)
    parts = collective.alltoall(chunks, rows=[chunks[collective.rank].numel()] * collective.size)
    return torch.stack(parts).to(torch.promote_types(flat.dtype, torch.float32))


def _shared(own: Tensor, flat: Tensor, collective: Collective) -> Tensor:
    """All ranks' chunks of a tensor like `flat`, end to end."""
    rows = [chunk.numel() for chunk in flat.tensor_split(collective.size)]
    return torch.cat(collective.allgather(saturated(own, flat.dtype), rows=rows))


def _together(parts: list[Tensor], collective: Collective) -> Tensor:
    """The sum over ranks of their parts [N, N], on the CPU."""
    own = torch.stack([part.cpu() for part in parts]).sum(0)
    return sum_in_rank_order(own.view(-1).to(parts[0].device), collective).view(own.shape).cpu()


def _taken(tables: Tables, parts: list[tuple[Tensor, Tensor]], scale: float) -> dict[str, Tensor]:
    """Rows of some ranks, summed in their order and scaled."""
    return {name: _times(grad, scale) for name, grad in tables.merged(parts).items()}


def _times(grad: Tensor, scale: float) -> Tensor:
    """A gradient scaled, row-sparse ones coalesced as they are."""
    if scale == 1.0:
        return grad
    return with_rows(grad._indices()[0], grad._values() * scale, grad) if grad.is_sparse else grad * scale
