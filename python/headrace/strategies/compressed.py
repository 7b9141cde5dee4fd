"""Sums of dense gradients by way of a codec; small ones and row-sparse ones exactly.

    allgather        all ranks get every rank's payload, decode and add up: m (N - 1) bytes a rank
    reduce_scatter   a chunk of each tensor to each rank, which decodes, adds up, encodes the sum anew; all gather
                     these: 2 m (N - 1) / N bytes a rank, whatever N is, and a second loss, with feedback of its own
    allreduce        payloads of summable codecs are added up as numbers, never decoded between: 2 m (N - 1) / N

with m the bytes of a payload. Small ones of a type go along in the messages of its first bucket, but for `allreduce`,
whose messages are numbers of one type, and for `allgather` with more than two ranks, where that may take far more
bytes. Sums go in rank order and every rank decodes the same bytes, so all hold the same bits, on every transport. What
is remembered belongs to a parameter's name and, where it differs, to the rank. A turn counts when `settle` says that
the step was made; else it is as if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.catalog.fingerprint import splitmix64
from headrace.comm.base import Collective, as_bytes
from headrace.comm.sums import in_order, saturated, sum_in_rank_order
from headrace.compress import CodecSpec, Payload
from headrace.compress.base import Codec, State
from headrace.compress.feedback import Feedback
from headrace.compress.none import Uncompressed
from headrace.compress.spec import OWN_MOMENTUM, SHARED_DRAWS, SUMMABLE, VARIABLE
from headrace.strategies.envelope import opened, sealed
from headrace.strategies.memory import Memory
from headrace.strategies.reducers import BUCKET_BYTES, BucketReducer, OfLarge, packed, unpacked

EXCHANGES = ("auto", "allgather", "reduce_scatter", "allreduce")


@dataclass(frozen=True, kw_only=True)
class CompressedConfig:
    """How gradients are compressed.

    Args:
        exchange: of EXCHANGES; auto: allreduce for summable codecs, else allgather for two ranks or a codec with
            momentum of its own, and reduce_scatter for more.
        min_numel: tensors of fewer numbers go as they are.
        bucket_bytes: of gradients that are exchanged by one operation.
        seed: of what codecs draw.
        options: of the codec, all of them.
    """

    exchange: str = "auto"
    min_numel: int = 1024
    bucket_bytes: int = BUCKET_BYTES
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


class CompressedReducer(Memory, OfLarge):
    """See the module's docstring.

    Args:
        spec: of the codec.
        feedback: the codec with its memory.
        rest: sums what is not compressed and does not go along.
        cfg: see CompressedConfig.
    """

    def __init__(self, spec: CodecSpec, feedback: Feedback, rest: BucketReducer, cfg: CompressedConfig) -> None:
        Memory.__init__(self)
        OfLarge.__init__(self, rest, cfg.min_numel, cfg.bucket_bytes)
        self.spec, self.feedback, self.cfg = spec, feedback, cfg

    def sum_large(
        self, large: dict[str, Tensor], small: dict[str, Tensor], collective: Collective
    ) -> dict[str, Tensor]:
        """See `OfLarge.sum_large`: small ones go along where that takes no more bytes (but those of a size)."""
        if collective.size == 1:
            return large
        kind = self.exchange(collective.size)
        along = small if kind == "reduce_scatter" or (kind == "allgather" and collective.size == 2) else {}
        turn = _Turn(self, large, along, collective)
        summed = {"allgather": turn.allgather, "reduce_scatter": turn.reduce_scatter, "allreduce": turn.allreduce}
        return summed[kind]()

    @property
    def traits(self) -> frozenset[str]:
        """Of all that is sent."""
        return self.spec.traits

    def exchange(self, size: int) -> str:
        """Which exchange it is for so many ranks: what `auto` stands for, or what was given.

        An all-reduce rounds sums of casts, and nobody would hold what that leaves out of a sum that feedback
        accumulates: `auto` is none of it then, and the others take the same bytes.
        """
        if self.cfg.exchange != "auto":
            return self.cfg.exchange
        drifts = self.feedback.accumulates and self.feedback.codec.number is not None
        if SUMMABLE in self.traits and not drifts:
            return "allreduce"
        once = OWN_MOMENTUM in self.traits  # an owner's codec would apply it to the sum once more
        return "allgather" if once or size == 2 else "reduce_scatter"

    def feedback_of(self, unit: str) -> Feedback:
        """The codec of a unit, with its memory."""
        return self.feedback

    def state_of(self, unit: str, like: Tensor, rank: int) -> State:
        """What is remembered of a unit, or its first state."""
        state = self.kept(unit)
        if state is None:
            shared = SHARED_DRAWS in self.traits
            state = self.feedback.init(like, key_of(self.cfg.seed, unit, 0 if shared else 1 + rank))
        return state

    def sent(self, unit: str, x: Tensor, rank: int) -> Payload:
        """What goes over the wire for a unit this turn; what is left is remembered."""
        with self.timed("encode"):
            sent = self.feedback_of(unit).send(x, self.state_of(unit, x, rank))
        self.remember(unit, sent.state)
        self.numbers["in"] += x.nbytes
        self.numbers["out"] += sent.payload.nbytes
        return sent.payload


def key_of(seed: int, unit: str, rank: int) -> int:
    """Of a unit's draws; equal on every machine."""
    text = np.frombuffer(unit.encode().ljust(-(-len(unit.encode()) // 8) * 8, b"\0"), np.uint64)
    mixed = splitmix64(np.array([seed, rank], np.int64).view(np.uint64)).sum(dtype=np.uint64)
    for word in text:
        mixed = splitmix64(np.array([mixed ^ word], np.uint64))[0]
    return int(np.uint64(mixed) >> np.uint64(1))


_ALONG = "#along"  # the unit of all small tensors, which goes as it is and leaves nothing to remember
_AS_IS = Uncompressed()


def _exact(unit: str) -> bool:
    """Whether it is that one, or a part of it."""
    return unit.startswith(_ALONG)


class _Turn:
    """One bucket, once; small tensors of `along` go with it, exactly."""

    def __init__(
        self, reducer: CompressedReducer, bucket: dict[str, Tensor], along: dict[str, Tensor], collective: Collective
    ) -> None:
        self.reducer, self.collective, self.along = reducer, collective, along
        self.flat = {name: g.reshape(-1) for name, g in bucket.items()}
        if along:
            self.flat[_ALONG] = packed(along)
        self.shapes = {name: g.shape for name, g in bucket.items()}
        first = next(iter(bucket.values()))
        self.dtype, self.device = first.dtype, first.device
        self.draws: dict[str, tuple[int, int] | None] = {}  # by unit; other ranks' are equal, where there are any

    def allgather(self) -> dict[str, Tensor]:
        """Everything to everyone."""
        payloads = [self._send(name, x).data for name, x in self.flat.items()]
        lengths = [x.numel() for x in self.flat.values()]
        arrived = self._gather(payloads, [lengths] * self.collective.size)
        with self.reducer.timed("decode"):
            sums = self._totals(list(self.flat), arrived, lengths)
            return self._named(self._based(name, total) for name, total in zip(self.flat, sums, strict=True))

    def reduce_scatter(self) -> dict[str, Tensor]:
        """Chunk j of every tensor to rank j, and its sum to all."""
        size, rank = self.collective.size, self.collective.rank
        chunks = {name: x.tensor_split(size) for name, x in self.flat.items()}
        sent = [[self._send(f"{name}#{j}", parts[j]).data for name, parts in chunks.items()] for j in range(size)]
        lengths = [[parts[j].numel() for parts in chunks.values()] for j in range(size)]
        arrived = self._scatter(sent, lengths[rank])
        with self.reducer.timed("decode"):
            totals = self._totals([f"{name}#{rank}" for name in chunks], arrived, lengths[rank])
            totals = [self._based(f"{name}#sum", total) for name, total in zip(self.flat, totals, strict=True)]
        payloads = [self._send(f"{name}#owner", t).data for name, t in zip(self.flat, totals, strict=True)]
        gathered = self._gather(payloads, lengths)
        with self.reducer.timed("decode"):
            owners = [f"{name}#owner" for name in self.flat]
            parts = [
                [self._decoded(*each) for each in zip(owners, *of_rank, strict=True)]
                for of_rank in zip(gathered, lengths, strict=True)
            ]
            whole = [torch.cat(each) for each in zip(*parts, strict=True)]
            return self._named(self._based(name, each) for name, each in zip(self.flat, whole, strict=True))

    def allreduce(self) -> dict[str, Tensor]:
        """Numbers of payloads added up in rank order, in float32 at least."""
        payloads = [self._send(name, x).data for name, x in self.flat.items()]
        number = self.reducer.feedback.codec.number or self.dtype
        wide = torch.promote_types(number, torch.float32)
        with self.reducer.timed("exchange"):
            joined = torch.cat(payloads).view(number)
            total = sum_in_rank_order(joined, self.collective, wide)
        with self.reducer.timed("decode"):
            data = as_bytes(saturated(total, number))
            ends = np.cumsum([p.numel() for p in payloads])
            pieces = [data[end - p.numel() : end] for p, end in zip(payloads, ends.tolist(), strict=True)]
            decoded = [
                self._decoded(name, d, x.numel()) for d, (name, x) in zip(pieces, self.flat.items(), strict=True)
            ]
            return self._named(self._based(name, each) for name, each in zip(self.flat, decoded, strict=True))

    def _send(self, unit: str, x: Tensor) -> Payload:
        rank = self.collective.rank
        payload = Payload(as_bytes(x), x.shape, x.dtype) if _exact(unit) else self.reducer.sent(unit, x, rank)
        self.draws[unit] = payload.draw
        return payload

    def _named(self, values: Iterator[Tensor]) -> dict[str, Tensor]:
        summed = dict(zip(self.flat, values, strict=True))
        along = unpacked(summed.pop(_ALONG), self.along) if self.along else {}
        return along | {name: x.view(self.shapes[name]) for name, x in summed.items()}

    def _decoded(self, unit: str, data: Tensor, n: int) -> Tensor:
        return self._codec(unit).decompress(Payload(data, torch.Size([n]), self.dtype, self.draws[unit]))

    def _totals(self, units: list[str], arrived: list[list[Tensor]], lengths: list[int]) -> list[Tensor]:
        """Of each unit, the sum of what the payloads of all ranks stand for."""
        return [
            in_order(self._decoded(unit, part, n) for part in parts)
            for unit, parts, n in zip(units, zip(*arrived, strict=True), lengths, strict=True)
        ]

    def _based(self, unit: str, received: Tensor) -> Tensor:
        """What was received, on top of what was before where the feedback accumulates."""
        if not self.reducer.feedback.accumulates or _exact(unit):
            return received
        unit = f"{unit}#base"
        base = self.reducer.kept(unit)
        value = received if base is None else base["value"] + received
        self.reducer.remember(unit, {"value": value.nan_to_num(0.0, 0.0, 0.0)})
        return value.clone()

    def _gather(self, payloads: list[Tensor], lengths: list[list[int]]) -> list[list[Tensor]]:
        """Every rank's payloads: by rank, by unit; `lengths` of the units' numbers likewise."""
        with self.reducer.timed("exchange"):
            message = self._message(payloads)
            rows = None if VARIABLE in self.reducer.traits else [sum(self._sizes(each)) for each in lengths]
            arrived = self.collective.allgather(message, rows)
            return [self._opened(raw, each) for raw, each in zip(arrived, lengths, strict=True)]

    def _scatter(self, payloads: list[list[Tensor]], lengths: list[int]) -> list[list[Tensor]]:
        """What every rank sent here."""
        with self.reducer.timed("exchange"):
            messages = [self._message(each) for each in payloads]
            size = self.collective.size
            rows = None if VARIABLE in self.reducer.traits else [sum(self._sizes(lengths))] * size
            return [self._opened(raw, lengths) for raw in self.collective.alltoall(messages, rows)]

    def _message(self, payloads: list[Tensor]) -> Tensor:
        return sealed(payloads, sizes=VARIABLE in self.reducer.traits)

    def _opened(self, raw: Tensor, lengths: list[int]) -> list[Tensor]:
        fixed = None if VARIABLE in self.reducer.traits else self._sizes(lengths)
        return opened(raw, len(lengths), fixed)

    def _sizes(self, lengths: list[int]) -> list[int]:
        """Bytes of the tensors' payloads of a fixed size."""
        sizes = zip(self.flat, lengths, strict=True)
        return [(self._codec(name).nbytes(n, self.dtype) or 0) if n else 0 for name, n in sizes]

    def _codec(self, unit: str) -> Codec:
        return _AS_IS if _exact(unit) else self.reducer.feedback_of(unit).codec
