"""Reducers: gradients of all ranks to their sum.

Dense gradients are packed into fixed flat buckets in parameter order, one collective a bucket. `ordered` sums in rank
order (`headrace.comm.sums`): every element is g_0 + g_1 + ... + g_{n-1} from left to right, so the bits are the same on
every transport and for every bucket size. `ring` leaves the order to the transport's all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.comm.sums import sum_in_rank_order
from headrace.strategies.sparse import reduce_sparse

BUCKET_BYTES = 4 << 20


class Reducer(Protocol):
    """Sums gradients over ranks; the caller divides by the global number of rows."""

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """Sums by name, dense and row-sparse alike; every rank gives the same names in the same order."""

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """The step that the last sums were for was made, or was given up: then what they left behind is forgotten.

        Args:
            made: which of both.
            rescaled: the next gradients are by this factor larger (a scale of the loss that changes).
        """

    def figures(self) -> dict[str, float]:
        """Of this rank so far, where gradients are compressed: bytes before and after, seconds by what was done."""

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from step to step, on this rank; nothing where sums are exact."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""


SumFlat = Callable[[Tensor, Collective], Tensor]


class Stateless:
    """Base of reducers that remember nothing and compress nothing."""

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """See `Reducer.settle`"""

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`"""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See `Reducer.state_dict`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: for the state of another reducer.
        """
        if state:
            raise ValueError(f"these sums keep no state, the checkpoint has {sorted(state)}: of another strategy")


@dataclass(frozen=True)
class BucketReducer(Stateless):
    """Packs gradients into buckets and sums each by `sum_flat`.

    Args:
        sum_flat: sum of a flat tensor `[n]` over ranks.
        bucket_bytes: a bucket is closed when it holds this much; a larger tensor has its own.
    """

    sum_flat: SumFlat
    bucket_bytes: int = BUCKET_BYTES

    @property
    def in_rank_order(self) -> bool:
        """Whether sums are those of `headrace.comm.sums`."""
        return self.sum_flat is sum_in_rank_order

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `Reducer.reduce`. At one rank dense gradients come back as they are, sparse ones coalesced."""
        sparse = {name: g for name, g in grads.items() if g.is_sparse}
        dense = {name: g for name, g in grads.items() if not g.is_sparse}
        summed = reduce_sparse(sparse, collective)
        for bucket in buckets(dense, self.bucket_bytes):
            summed |= self.reduce_bucket(bucket, collective)
        return {name: summed[name] for name in grads}

    def reduce_bucket(self, bucket: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """Sum one bucket of dense gradients of one dtype by one collective; by none where nothing is in it."""
        if collective.size == 1 or not bucket:
            return bucket
        return unpacked(self.sum_flat(packed(bucket), collective), bucket)


class OfLarge:
    """Base of reducers that have a way of their own for large dense gradients. Others go along in the same messages, as
    they are, or by another reducer.

    Args:
        rest: sums what is not large and does not go along; where its sums are not in rank order, nothing does.
        min_numel: tensors of fewer numbers are not large.
        bucket_bytes: of gradients that are exchanged by one operation; None: as `rest` has it.
    """

    def __init__(self, rest: BucketReducer, min_numel: int, bucket_bytes: int | None = None) -> None:
        self.rest, self.min_numel = rest, min_numel
        self.bucket_bytes = bucket_bytes or rest.bucket_bytes

    def fits(self, grad: Tensor) -> bool:
        """Whether a gradient is large."""
        return not grad.is_sparse and grad.is_floating_point() and grad.numel() >= self.min_numel

    def sum_large(
        self, large: dict[str, Tensor], small: dict[str, Tensor], collective: Collective
    ) -> dict[str, Tensor]:
        """Sums of one bucket of large gradients, and of all the small ones or none of them.

        Args:
            large: of one type, one at least.
            small: others of that type, whose sums in rank order may go along.
            collective: over whom.
        """
        raise NotImplementedError

    def reduce(self, grads: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """See `Reducer.reduce`. Small ones of a type are with its first bucket, a bucket of them at most."""
        large = {name: g for name, g in grads.items() if self.fits(g)}
        small: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
        if self.rest.in_rank_order:
            others = [(name, g) for name, g in grads.items() if name not in large and not g.is_sparse]
            by_type = dict(sorted(others, key=lambda each: str(each[1].dtype)))
            for bucket in buckets(by_type, self.bucket_bytes):
                small.setdefault(kind_of(next(iter(bucket.values()))), bucket)
        summed: dict[str, Tensor] = {}
        for bucket in buckets(large, self.bucket_bytes):
            along = small.pop(kind_of(next(iter(bucket.values()))), {})
            summed |= self.sum_large(bucket, along, collective)
        summed |= self.rest.reduce({name: g for name, g in grads.items() if name not in summed}, collective)
        return {name: summed[name] for name in grads}

    def reduce_bucket(self, bucket: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """Sum one bucket of dense gradients of one type."""
        large = {name: g for name, g in bucket.items() if self.fits(g)}
        small = {name: g for name, g in bucket.items() if name not in large and self.rest.in_rank_order}
        summed = self.sum_large(large, small, collective) if large else {}
        summed |= self.rest.reduce_bucket({n: g for n, g in bucket.items() if n not in summed}, collective)
        return {name: summed[name] for name in bucket}


def kind_of(grad: Tensor) -> tuple[torch.dtype, torch.device]:
    """What is equal of all gradients of a bucket."""
    return grad.dtype, grad.device


def buckets(grads: dict[str, Tensor], bucket_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Cut dense gradients, in the given order, into buckets of one dtype and device of about `bucket_bytes`."""
    bucket: dict[str, Tensor] = {}
    held, kind = 0, None
    for name, grad in grads.items():
        if bucket and (held + grad.nbytes > bucket_bytes or kind != kind_of(grad)):
            yield bucket
            bucket, held = {}, 0
        bucket[name], kind = grad, kind_of(grad)
        held += grad.nbytes
    if bucket:
        yield bucket


def packed(bucket: dict[str, Tensor]) -> Tensor:
    """Dense gradients of one type end to end, [n]."""
    return torch.cat([g.reshape(-1) for g in bucket.values()])


def unpacked(flat: Tensor, bucket: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `packed`: parts of flat [n], named and shaped as those of the bucket."""
    parts = torch.split(flat, [g.numel() for g in bucket.values()])
    return {name: part.view(g.shape) for (name, g), part in zip(bucket.items(), parts, strict=True)}


def sum_by_allreduce(flat: Tensor, collective: Collective) -> Tensor:
    """The transport's own all-reduce; `[n]` to `[n]`."""
    return collective.allreduce(flat)


@dataclass(frozen=True)
class ReducerSpec:
    """A reducer and its traits.

    Args:
        factory: `factory(bucket_bytes=...)` makes one.
        same_bits: the sum has the same bits on every transport at the same number of ranks.
    """

    factory: Callable[..., BucketReducer]
    same_bits: bool


def ordered(bucket_bytes: int = BUCKET_BYTES) -> BucketReducer:
    """Sums in rank order: the same bits on every transport."""
    return BucketReducer(sum_in_rank_order, bucket_bytes)


def ring(bucket_bytes: int = BUCKET_BYTES) -> BucketReducer:
    """The transport's all-reduce for dense gradients; row-sparse ones are merged in rank order all the same."""
    return BucketReducer(sum_by_allreduce, bucket_bytes)
