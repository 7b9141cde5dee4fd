"""A server: its part of the parameters, and what it answers to every message. It knows no transport, and no time but
that of the clock it is given.

    push from worker m, its c-th    tau <- updates since m was last told;  g <- g' where delays are compensated for
                                    w <- rule(w, g) at m's rates, divided by max(1, tau) where staleness slows them
                                    told to m once c - min over workers of their pushes <= bound
    pull                            told at once

What is told are parameters: dense ones whole, of tables the rows that changed since the worker was last told. The rule
is the run's optimizer, made for this part. References: M. Li et al., "Scaling distributed machine learning with the
parameter server", OSDI 2014; the bound: Q. Ho et al., NIPS 2013 (headrace.strategies.bound); rates: W. Zhang, S. Gupta,
X. Lian, J. Liu, "Staleness-aware async-SGD for distributed deep learning", IJCAI 2016, lr / tau.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headrace.comm.base import CollectiveError, as_bytes, from_bytes
from headrace.comm.clock import Clock
from headrace.comm.mailbox import NO_BYTES, Message
from headrace.optim import Optimizer
from headrace.optim.schedules import Rates, set_rates
from headrace.strategies.bound import Decision, TunedBound
from headrace.strategies.compensation import Compensation
from headrace.strategies.pushes import Packed, Pushes
from headrace.strategies.row_news import RowNews
from headrace.strategies.server_options import STALENESS, ServerOptions
from headrace.strategies.shard_layout import Part


class Letter(NamedTuple):
    """What a server sends: to a worker; JSON; bytes uint8 [n], the last so many of them of tables."""

    to: int
    head: dict[str, Any]
    body: Tensor
    tables: int


@dataclass
class _Worker:
    """What a server knows of a worker.

    Args:
        pushes: that came.
        told: the update it was last told of.
        told_at: when, if it went on to a push then.
        since: when it began to wait to be told, while it does.
        staleness: of its last gradient.
        pulled: dense parameters as it was told them, where delays are compensated for.
    """

    pushes: int = 0
    told: int = 0
    told_at: float | None = None
    since: float | None = None
    staleness: int | None = None
    pulled: dict[str, Tensor] = field(default_factory=dict)


class Shard:
    """See the module's docstring.

    Args:
        part: its parameters, changed from now on.
        optimizer: makes the rule.
        pushes: reads messages.
        workers: how many there are; all hold the parameters of `part` as they are.
        options: see ServerOptions.
        clock: of the rank it is on.
        first: it decides for all servers: on a bound that tunes itself, on when ranks meet.
        on_decision: told when the bound moves.
    """

    def __init__(
        self, part: Part, optimizer: Callable[[nn.Module], Optimizer], pushes: Pushes, workers: int,
        options: ServerOptions, clock: Clock, first: bool, on_decision: Callable[[Decision], None],
    ) -> None:  # fmt: skip
        self.part, self.optimizer, self.pushes, self.options, self.clock = part, optimizer(part), pushes, options, clock
        self.on_decision = on_decision
        self.updates = 0
        self.compensation = Compensation(options.compensation, options.strength)
        self._workers = {rank: _Worker() for rank in range(workers)}
        old = self.compensation.active
        self._news = {name: RowNews(part.held[name].data, workers, old) for name in part.tables}
        self._dense = {name: param.data for name, param in part.held.items() if name not in part.tables}
        self._bound = (0, options.bound)  # number of the decision, s
        limits = options.limits if first else None
        self._tuned = TunedBound(options.bound, limits, workers, clock.now()) if limits else None
        self._first, self._meet_at, self._met = first, 0, clock.now()
        if old:
            flat = self._flat()
            for worker in self._workers.values():
                worker.pulled = self._named(flat)

    @torch.no_grad()
    def handle(self, message: Message) -> list[Letter]:
        """What to send because of a message: kind "push", "pull", or "leave" (a worker makes no more steps).

        Raises:
            CollectiveError: a push is missing or came twice.
            PayloadError: what came is no gradient of these parameters.
        """
        if message.kind == "pull":
            self._met = self.clock.now()
            letter = self._told(message.source)
            self._workers[message.source].told_at = None  # what it does now is no step
            return [letter]
        if message.kind == "leave":
            del self._workers[message.source]
        else:
            self._push(message.source, message.head, message.body)
        return self._released()

    def _push(self, rank: int, head: Mapping[str, Any], body: Tensor) -> None:
        worker = self._workers[rank]
        if head["clock"] != worker.pushes:
            raise CollectiveError(f"push {worker.pushes} of rank {rank} was to come, and push {head['clock']} came")
        self._bound = max(self._bound, tuple(head["bound"]))
        grads = self.pushes.opened(Packed(head["entries"], body), self.part.held)
        worker.staleness = self.updates - worker.told if grads else None
        if grads:
            self._apply(rank, grads, Rates(*head["rates"]))
        worker.pushes += 1
        now = worker.since = self.clock.now()
        if self._first:
            self._decide(rank, head["loss"], now)
            self._ask(head["stop"], now)

    def _apply(self, rank: int, grads: dict[str, Tensor], rates: Rates) -> None:
        tau = self.updates - self._workers[rank].told
        for name, grad in grads.items():
            corrected = self._corrected(rank, name, grad) if self.compensation.active else grad
            self.part.held[name].grad = corrected
            if grad.is_sparse:
                self._news[name].changing(grad._indices()[0], self.updates + 1)
        slower = max(1, tau) if self.options.rates == STALENESS else 1
        set_rates(self.optimizer, Rates(rates.factor / slower, rates.momentum))
        self.optimizer.step()
        self.updates += 1
        for param in self.part.held.values():
            param.grad = None

    def _corrected(self, rank: int, name: str, grad: Tensor) -> Tensor:
        param = self.part.held[name].data
        if not grad.is_sparse:
            return self.compensation.corrected(name, grad, param, self._workers[rank].pulled[name])
        ids, rows = grad._indices()[0], grad._values()
        rows = self.compensation.corrected(name, rows, param, self._news[name].as_told(rank, ids), ids)
        return torch.sparse_coo_tensor(ids[None], rows, grad.shape, is_coalesced=True, check_invariants=False)

    def _decide(self, rank: int, loss: float | None, now: float) -> None:
        if self._tuned is None:
            return
        at = self._workers[rank].told_at
        decision = self._tuned.pushed(rank, None if at is None else now - at, loss, now)
        if decision is not None:
            self._bound = (self._bound[0] + 1, decision.bound)
            self.on_decision(decision)

    def _ask(self, stop: bool, now: float) -> None:
        """Choose a push that all workers meet after, where one asks for it or it is time. The one that is ahead may be
        at its next one already, and is told when that has come: so all know of a push that is one more."""
        late = 0 < 60 * self.options.meet_minutes <= now - self._met
        if (stop or late) and self._meet_at <= self._least():
            self._meet_at = max(worker.pushes for worker in self._workers.values()) + 2

    def _least(self) -> int:
        return min((worker.pushes for worker in self._workers.values()), default=0)

    def _released(self) -> list[Letter]:
        """To those who wait and need no longer, in rank order."""
        least, bound, letters = self._least(), self._bound[1], []
        for rank, worker in self._workers.items():
            if worker.since is not None and (bound < 0 or worker.pushes - least <= bound):
                if self._tuned is not None:
                    self._tuned.waited(self.clock.now() - worker.since)
                worker.since = None
                letters.append(self._told(rank))
        return letters

    def _told(self, rank: int) -> Letter:
        worker, rows, bodies = self._workers[rank], [], []
        worker.told, worker.told_at = self.updates, self.clock.now()
        for name, news in self._news.items():
            ids = news.tell(rank, self.updates)
            rows.append(ids.numel())
            bodies += [as_bytes(ids).cpu(), as_bytes(self.part.held[name].data[ids]).cpu()]
        flat = self._flat()
        if self.compensation.active:
            worker.pulled = self._named(flat)
        head = {
            "pushes": worker.pushes, "least": self._least(), "bound": self._bound, "meet_at": self._meet_at,
            "staleness": worker.staleness, "rows": rows,
        }  # fmt: skip
        return Letter(rank, head, torch.cat([flat, *bodies]), sum(body.numel() for body in bodies))

    def _flat(self) -> Tensor:
        return torch.cat([as_bytes(value).cpu() for value in self._dense.values()] or [NO_BYTES])

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        """Dense parameters from a copy of all of them."""
        parts = torch.split(flat, [value.nbytes for value in self._dense.values()])
        return {
            name: from_bytes(raw, value).to(value.device)
            for (name, value), raw in zip(self._dense.items(), parts, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """What is kept beside the parameters, when all workers hold them as they are."""
        tuned = None if self._tuned is None else self._tuned.state_dict(self.clock.now())
        return {
            "optimizer": self.optimizer.state_dict(), "compensation": self.compensation.state_dict(),
            "bound": list(self._bound), "tuned": tuned,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: it is another optimizer's, or of other parameters.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self.compensation.load_state_dict(state["compensation"])
        self._bound = (state["bound"][0], state["bound"][1])
        if self._tuned is not None and state["tuned"] is not None:
            self._tuned.load_state_dict(state["tuned"], self.clock.now())
