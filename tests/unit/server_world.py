"""Workers and servers without threads: a test says who acts next. Beside every server its slow reference in numpy."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.comm.base import from_bytes
from headrace.comm.mailbox import Message
from headrace.optim import create_parts
from headrace.optim.schedules import Rates
from headrace.strategies.bound import Decision
from headrace.strategies.compensation import ADAPTIVE, CONSTANT, EPS, MEMORY, STRENGTHS
from headrace.strategies.pushes import PushCodecs, Pushes
from headrace.strategies.server_options import STALENESS, ServerOptions
from headrace.strategies.shard import Shard
from headrace.strategies.shard_layout import Part, deal
from headrace.strategies.sparse import with_rows

Array = np.ndarray[Any, Any]
LR, TABLE = 0.05, "emb.weight"
SHAPES = {TABLE: (11, 2), "a.weight": (3, 4), "a.bias": (3,), "scale": ()}


class Steady:
    """A clock that ticks when it is told to."""

    time = 0.0

    def now(self) -> float:
        return self.time

    def spend(self, seconds: float) -> None:
        self.time += seconds


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@dataclass
class Reference:
    """One server's algorithm as the papers write it: whole arrays, everything kept, nothing shared with the code."""

    options: ServerOptions
    w: dict[str, Array]
    workers: int
    updates: int = 0
    clocks: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    pulled: list[dict[str, Array]] = field(default_factory=list)
    squares: dict[str, Array] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clocks, self.told = [0] * self.workers, [0] * self.workers
        self.pulled = [{n: a.copy() for n, a in self.w.items()} for _ in range(self.workers)]
        self.squares = {n: np.zeros_like(a) for n, a in self.w.items()}

    def push(self, m: int, grads: dict[str, tuple[Array, Array]]) -> int:
        """`grads`: by name g and where it is (a mask); the staleness."""
        tau = self.updates - self.told[m]
        for name, (g, mask) in grads.items():
            if self.options.compensation == ADAPTIVE:
                moved = MEMORY * self.squares[name] + (1 - MEMORY) * g * g
                self.squares[name] = np.where(mask, moved, self.squares[name])
                lam = (self.options.strength or STRENGTHS[ADAPTIVE]) / np.sqrt(self.squares[name] + EPS)
            else:
                lam = (self.options.strength or STRENGTHS[CONSTANT]) if self.options.compensation == CONSTANT else 0.0
            g = g + lam * g * g * (self.w[name] - self.pulled[m][name])
            lr = LR / max(1, tau) if self.options.rates == STALENESS else LR
            self.w[name] = np.where(mask, self.w[name] - lr * g, self.w[name])
        self.updates += 1
        self.clocks[m] += 1
        self.waiting.add(m)
        return tau

    def released(self) -> list[int]:
        s = self.options.bound
        ready = [m for m in sorted(self.waiting) if s < 0 or self.clocks[m] - min(self.clocks) <= s]
        for m in ready:
            self.waiting.remove(m)
            self.told[m], self.pulled[m] = self.updates, {n: a.copy() for n, a in self.w.items()}
        return ready


class World:
    """N workers, K servers, and messages between them that come in order from each to each, and in no other.

    Args:
        workers, servers: how many.
        options: of the servers.
        codecs: of pushes.
    """

    def __init__(
        self, workers: int, servers: int, options: ServerOptions, codecs: PushCodecs | None = None, rule: str = "sgd"
    ) -> None:
        params = start()
        self.options, self.layout, self.clock = options, deal(params, [TABLE], servers), Steady()
        self.params = [{n: p.clone() for n, p in params.items()} for _ in range(workers)]
        self.pushes = [Pushes(codecs or PushCodecs(), self.layout, rank) for rank in range(workers)]
        self.decisions: list[Decision] = []
        self.shards = [self._shard(k, params, rule) for k in range(self.layout.servers)]
        self.references = [
            Reference(options, {n: p.double().numpy().copy() for n, p in self.layout.part(k, params).items()}, workers)
            for k in range(self.layout.servers)
        ]
        self.made = [0] * workers
        self.links: defaultdict[tuple[int, int], deque[Any]] = defaultdict(deque)
        self.answers: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self.ready = set(range(workers))
        self.meet_at = [0] * workers
        self.staleness: list[int] = []

    def _shard(self, k: int, params: dict[str, Tensor], rule: str) -> Shard:
        def make(part: Any) -> Any:
            return create_parts(part, {"dense": {"name": rule, "lr": LR}, "sparse": {"name": "sgd", "lr": LR}})

        return Shard(
            Part(self.layout.part(k, params), self.layout), make, self.pushes[0], len(self.params), self.options,
            self.clock, k == 0, self.decisions.append,
        )  # fmt: skip

    def gradients(self, m: int) -> dict[str, Tensor]:
        """Of a quadratic that has its minimum elsewhere for every push; of some rows of the table."""
        generator = torch.Generator().manual_seed(1000 * m + self.made[m])
        grads: dict[str, Tensor] = {}
        for name, param in self.params[m].items():
            if name == TABLE:
                ids = torch.randperm(len(param), generator=generator)[:4].sort().values
                grads[name] = with_rows(ids, param[ids] + torch.randn(4, 2, generator=generator), param)
            else:
                grads[name] = param + torch.randn(param.shape, generator=generator)
        return grads

    def actions(self) -> list[tuple[str, int, int]]:
        steps = [("step", m, 0) for m in sorted(self.ready)]
        return steps + [("deliver", m, k) for (m, k), queue in sorted(self.links.items()) if queue]

    def act(self, what: str, m: int, k: int) -> None:
        """A worker makes a step, or a server gets the next message of a worker."""
        if what == "deliver":
            self._deliver(m, k)
            return
        self.ready.remove(m)
        grads = self.gradients(m)
        for server in range(self.layout.servers):
            packed = self.pushes[m].packed(server, grads)
            head = {
                "clock": self.made[m], "rates": list(Rates(1.0)), "loss": 0.0, "bound": [0, self.options.bound],
                "stop": False, "entries": packed.entries,
            }  # fmt: skip
            self.links[m, server].append((Message(m, "push", json.loads(json.dumps(head)), packed.body), grads))
        self.made[m] += 1

    def _deliver(self, m: int, k: int) -> None:
        message, grads = self.links[m, k].popleft()
        reference, shard = self.references[k], self.shards[k]
        letters = shard.handle(message)
        tau = reference.push(m, {n: _array(g, k, self.layout.servers) for n, g in grads.items() if self._is_on(n, k)})
        self.staleness.append(tau)
        released = reference.released()
        assert [letter.to for letter in letters] == released
        for letter in letters:
            head = letter.head
            assert head["pushes"] == reference.clocks[letter.to] and head["least"] == min(reference.clocks)
            if letter.to == m:
                assert head["staleness"] == tau
            self._answer(letter.to, k, letter)

    def _is_on(self, name: str, k: int) -> bool:
        return name == TABLE or self.layout.owners[name] == k

    def _answer(self, m: int, k: int, letter: Any) -> None:
        self.answers[m][k] = letter
        if len(self.answers[m]) < self.layout.servers:
            return
        for server, answer in self.answers.pop(m).items():
            self._take(m, server, answer)
            self.meet_at[m] = max(self.meet_at[m], answer.head["meet_at"])
        self.ready.add(m)

    def _take(self, m: int, k: int, letter: Any) -> None:
        """Written apart from the strategy's own reading of an answer."""
        body, part, at = letter.body, self.layout.part(k, self.params[m]), 0
        for name, value in part.items():
            if name != TABLE:
                value.copy_(from_bytes(body[at : at + value.nbytes], value))
                at += value.nbytes
        (rows,) = letter.head["rows"]
        ids = from_bytes(body[at : at + 8 * rows], torch.empty(0, dtype=torch.int64), rows)
        new = from_bytes(body[at + 8 * rows :], part[TABLE], rows)
        for i, row in zip(ids.tolist(), new, strict=True):
            part[TABLE][i] = row


def _array(grad: Tensor, k: int, servers: int) -> tuple[Array, Array]:
    """g as an array of the server's part, and where it is."""
    dense = grad.to_dense().double().numpy() if grad.is_sparse else grad.double().numpy()
    mask = np.ones_like(dense, bool)
    if grad.is_sparse:
        mask = np.zeros_like(mask)
        mask[grad._indices()[0].numpy()] = True
        return dense[k::servers], mask[k::servers]
    return dense, mask
