"""What a rank sends for one step's gradients, by the settings: known before anything is sent.

N ranks, B bytes of a gradient, m of its payload, n its numbers, w bytes of a number (4 at least):

    exact           2 (N - 1) / N B                       sums in rank order and a ring alike
    allgather       (N - 1) m
    reduce_scatter  2 (N - 1) / N m                       m of chunks
    allreduce       2 (N - 1) / N m
    vote            2 (N - 1) / N n / 8 + 4 (N - 1)       signs, and the scale to every rank
    PowerSGD        2 (N - 1) / N w r (n_1 + n_2)         of a matrix [n_1, n_2]
    auto            2 (N - 1) / N B budget                at most
    tables          (N - 1) rows (8 + B of a row)         or, through a codec, (N - 1) (16 + 8 rows + m)

Payloads whose size varies carry 8 bytes a tensor (and for small ones that go along, which is not counted here), and are
measured by encoding the gradients given, those of sums too, which may be longer. Aggregation sends what an exact sum
does, and some bytes a step for norms and distances that are not counted here. Means over ranks where chunks are unequal
by a number. `Metered` counts what is sent in truth; control words of some bytes a step are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from headrace.compress import create
from headrace.compress.base import Codec
from headrace.strategies.adaptive import Adaptive
from headrace.strategies.compressed import CompressedReducer
from headrace.strategies.compression import CompressionConfig, compressed
from headrace.strategies.majority import MajorityVote
from headrace.strategies.powersgd import PowerSGD
from headrace.strategies.reducers import OfLarge, ordered


class Traffic(NamedTuple):
    """Bytes that a rank sends a step, of dense gradients and of embedding tables."""

    dense: float
    tables: float


def traffic(cfg: CompressionConfig, grads: Mapping[str, Tensor], ranks: int) -> Traffic:
    """Of gradients like these on every rank.

    Args:
        cfg: checked. In two tiers: what is counted is the case of one rank a host, where all goes between hosts.
        grads: dense, and row-sparse ones that are coalesced.
        ranks: how many.
    """
    if ranks == 1:
        return Traffic(0, 0)
    reducer = compressed(replace(cfg, sparse="none", hierarchical=False), ordered(), seed=0)
    rows = create(cfg.sparse) if cfg.sparse != "none" else None
    dense = sum(_dense(reducer, grad, ranks) for grad in grads.values() if not grad.is_sparse)
    tables = sum(_table(grad, rows) for grad in grads.values() if grad.is_sparse)
    return Traffic(dense, (ranks - 1) * tables)


def _dense(reducer: object, grad: Tensor, ranks: int) -> float:
    ring = 2 * (ranks - 1) / ranks
    if not isinstance(reducer, OfLarge) or not reducer.fits(grad):
        return ring * grad.nbytes
    if isinstance(reducer, PowerSGD):
        numbers = reducer.cfg.rank * (grad.shape[0] + grad.numel() // grad.shape[0])
        return ring * max(4, grad.element_size()) * numbers
    if isinstance(reducer, MajorityVote):
        return ring * -(-grad.numel() // 8) + 4 * (ranks - 1)
    if isinstance(reducer, Adaptive):
        return ring * reducer.adaptive.budget * grad.nbytes
    assert isinstance(reducer, CompressedReducer)
    codec, flat, kind = reducer.feedback.codec, grad.reshape(-1), reducer.exchange(ranks)
    if kind == "allgather":
        return (ranks - 1) * _payload(codec, flat)
    if kind == "allreduce":
        return ring * _payload(codec, flat)
    return ring * sum(_payload(codec, chunk) for chunk in flat.tensor_split(ranks))


def _table(grad: Tensor, codec: Codec | None) -> float:
    rows = grad._values()
    if codec is None:
        return 8 * len(rows) + rows.nbytes
    return 16 + 8 * len(rows) + _payload(codec, rows.reshape(-1), size_bytes=0)


def _payload(codec: Codec, x: Tensor, size_bytes: int = 8) -> int:
    """Bytes of a payload, and of what says how long it is where that varies."""
    fixed = codec.nbytes(x.numel(), x.dtype) if x.numel() else 0
    if fixed is not None:
        return fixed
    payload, _ = codec.compress(x, codec.init(x))
    return payload.nbytes + size_bytes
