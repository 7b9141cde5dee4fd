"""Gradients of one rank as messages to servers: dense ones by a codec with memory, rows of tables as (ids, rows).

    dense, of min_numel numbers or more    C(g + e) with e <- g + e - C^-1(C(g + e)), as headrace.compress.feedback
    dense, fewer numbers                   as they are
    rows                                   ids int64 and the rows, as they are or by a codec that needs no memory

Nothing is summed on the way, so any codec will do; what it draws belongs to the rank, and a draw that decoding repeats
is sent as two numbers. Memory belongs to a parameter's name. What was pushed is applied: no push is taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headrace.comm.base import as_bytes, from_bytes, row_bytes
from headrace.comm.mailbox import NO_BYTES
from headrace.compress import Payload, PayloadError, create
from headrace.compress.base import taken
from headrace.compress.feedback import Feedback
from headrace.errors import UserError
from headrace.strategies.compressed import key_of
from headrace.strategies.compression import AUTO, POWERSGD, CompressionConfig
from headrace.strategies.memory import Memory
from headrace.strategies.shard_layout import Layout
from headrace.strategies.sparse import with_rows

Entry = list[Any]  # [number of the parameter, bytes, rows of a table or -1, draw]


class Packed(NamedTuple):
    """A message: JSON that says what is in the body, and the body, uint8 [n]."""

    entries: list[Entry]
    body: Tensor

    @property
    def tables(self) -> int:
        """Bytes of the body that are of tables: ids and rows."""
        return sum(nbytes for _, nbytes, rows, _ in self.entries if rows >= 0)


@dataclass(frozen=True)
class PushCodecs:
    """What gradients go through on their way to servers.

    Args:
        dense: of dense gradients; None: as they are.
        rows: of tables' rows; None: as they are.
        min_numel: dense gradients of fewer numbers go as they are.
        seed: of what codecs draw.
    """

    dense: Feedback | None = None
    rows: Feedback | None = None
    min_numel: int = 1024
    seed: int = 0


def check_pushes(cfg: CompressionConfig) -> None:
    """Refuse compression that is of sums over ranks.

    Raises:
        UserError: which, and what to do.
    """
    what, why = "", "servers take each rank's gradients as they come"
    if cfg.name in (POWERSGD, AUTO):
        what, remedy = f"--compression.name {cfg.name}", "another --compression.name"
    elif cfg.exchange != "auto":
        what, remedy = f"--compression.exchange {cfg.exchange}", "--compression.exchange auto"
    elif cfg.hierarchical:
        what, remedy = "--compression.hierarchical", "--compression.hierarchical false"
    elif cfg.variant == "ef21":
        what, remedy = "--compression.feedback ef21", "--compression.feedback ef"
        why = "a server would have to hold all ranks' gradients"
    if what:
        raise UserError(f"{what} is of sums over ranks: {why}", remedy)


def push_codecs(cfg: CompressionConfig, seed: int) -> PushCodecs:
    """Of settings that `check_pushes` has nothing against."""
    dense = Feedback(create(cfg.name, **cfg.options), cfg.variant, cfg.decay) if cfg.name != "none" else None
    rows = Feedback(create(cfg.sparse), "none") if cfg.sparse != "none" else None
    return PushCodecs(dense, rows, cfg.min_numel, seed)


class Pushes(Memory):
    """See the module's docstring.

    Args:
        codecs: see PushCodecs.
        layout: who holds what.
        rank: this one, for draws.
    """

    def __init__(self, codecs: PushCodecs, layout: Layout, rank: int) -> None:
        super().__init__()
        self.codecs, self.layout, self.rank = codecs, layout, rank
        self._numbers = {name: number for number, name in enumerate(layout.names)}

    def packed(self, server: int, grads: Mapping[str, Tensor]) -> Packed:
        """What of all gradients is for a server; coalesced, where they are row-sparse."""
        entries: list[Entry] = []
        bodies: list[Tensor] = []
        for name, grad in grads.items():
            if grad.is_sparse:
                body, entry = self._rows(server, name, grad)
            elif self.layout.owners[name] == server:
                body, entry = self._dense(name, grad)
            else:
                continue
            if body.numel():
                entries.append([self._numbers[name], body.numel(), *entry])
                bodies.append(body.cpu())
        self.settle(True)
        return Packed(entries, torch.cat(bodies) if bodies else NO_BYTES)

    def _dense(self, name: str, grad: Tensor) -> tuple[Tensor, Entry]:
        feedback = self._codec(grad)
        if feedback is None:
            return as_bytes(grad), [-1, None]
        payload = self._sent(feedback, name, grad)
        return payload.data, [-1, payload.draw]

    def _rows(self, server: int, name: str, grad: Tensor) -> tuple[Tensor, Entry]:
        ids, servers = grad._indices()[0], self.layout.servers
        here = ids % servers == server
        ids, rows = ids[here] // servers, grad._values()[here]
        if not ids.numel():
            return NO_BYTES, []
        feedback = self.codecs.rows
        data = as_bytes(rows) if feedback is None else self._sent(feedback, f"{name}#{server}", rows).data
        self.numbers["rows_out"] += data.numel() * (feedback is not None)
        return torch.cat([as_bytes(ids), data]), [ids.numel(), None]

    def _codec(self, like: Tensor) -> Feedback | None:
        return self.codecs.dense if like.numel() >= self.codecs.min_numel and like.is_floating_point() else None

    def _sent(self, feedback: Feedback, unit: str, x: Tensor) -> Payload:
        with self.timed("encode"):
            state = self.kept(unit) or feedback.init(x, key_of(self.codecs.seed, unit, 1 + self.rank))
            sent = feedback.send(x, state)
        self.remember(unit, sent.state)
        self.numbers["in"] += x.nbytes
        self.numbers["out"] += sent.payload.nbytes
        return sent.payload

    def opened(self, packed: Packed, part: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of a server's parameters by name, from any rank's message: rows numbered as the server does.

        Raises:
            PayloadError: it is no message of gradients for these.
        """
        sizes = [entry[1] for entry in packed.entries]
        if sum(sizes) != packed.body.numel() or min(sizes, default=0) < 0:
            raise PayloadError(f"{packed.body.numel()} bytes came for gradients of {sum(sizes)}")
        found = {}
        for (number, _, rows, draw), raw in zip(packed.entries, torch.split(packed.body, sizes), strict=True):
            name = self.layout.names[number]
            if name not in part:
                raise PayloadError(f"a gradient of {name} came to a server that does not hold it")
            raw, like = raw.to(part[name].device), part[name]
            found[name] = self._opened_rows(raw, rows, like) if rows >= 0 else self._opened_dense(raw, draw, like)
        return found

    def _opened_dense(self, raw: Tensor, draw: Any, param: Tensor) -> Tensor:
        feedback, dtype = self._codec(param), param.grad_dtype or param.dtype
        if feedback is None:
            return _exactly(raw, torch.empty(param.shape, dtype=dtype, device="meta"))
        return feedback.codec.decompress(Payload(raw, param.shape, dtype, tuple(draw) if draw else None))

    def _opened_rows(self, raw: Tensor, rows: int, like: Tensor) -> Tensor:
        ids, data = taken(raw, 0, rows, torch.int64), raw[8 * rows :]
        if ids.numel() != rows or (rows and not 0 <= int(ids.min()) <= int(ids.max()) < like.shape[0]):
            raise PayloadError(f"row numbers of a table of {like.shape[0]} rows lie outside it")
        if self.codecs.rows is None:
            return with_rows(ids, _exactly(data, like, rows), like)
        shape = torch.Size([rows, *like.shape[1:]])
        return with_rows(ids, self.codecs.rows.codec.decompress(Payload(data, shape, like.dtype)), like)


def _exactly(raw: Tensor, like: Tensor, rows: int | None = None) -> Tensor:
    expected = like.nbytes if rows is None else rows * row_bytes(like)
    if raw.numel() != expected:
        raise PayloadError(f"{raw.numel()} bytes for numbers of {expected}")
    return from_bytes(raw, like, rows)
