"""Servers update the parameters, by each rank's gradient as it comes; ranks do not wait for each other, or within a
bound (stale synchronous parallel, SSP).

    rank r    g <- gradient of the mean over its own rows at x_r;  push g, each server its part
              x_r <- what the servers answer (headrace.strategies.shard)

Servers are ranks that train as well: a thread of theirs answers. Ranks meet at the end of an epoch, for evaluation and
for checkpoints; and where one asks for it (a stop, a bad number) or `meet_minutes` have gone by, after a step that the
first server names early enough for all to know it. Where they meet all pushes have been applied, and all ranks hold
what the servers hold: so servers' parameters are the model's, and neither versions nor what workers had pulled need be
kept with a checkpoint.

References: J. Dean et al., "Large scale distributed deep networks", NIPS 2012 (Downpour SGD); M. Li et al., OSDI 2014;
Q. Ho et al., NIPS 2013 (SSP). N pushes a step are N updates, each by a gradient of 1 / N of the rows: plain SGD takes
1 / N of its rate, or `rates staleness`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headrace.comm.base import Collective, from_bytes, row_bytes
from headrace.comm.mailbox import Message
from headrace.comm.metered_mailbox import MeteredMailbox
from headrace.errors import UserError
from headrace.optim.schedules import Rates
from headrace.strategies.bound import Decision
from headrace.strategies.equipment import Equipment
from headrace.strategies.own_steps import OwnSteps
from headrace.strategies.pushes import Pushes, check_pushes
from headrace.strategies.server_options import ServerOptions
from headrace.strategies.shard import Shard
from headrace.strategies.shard_layout import Layout, Part, deal

if TYPE_CHECKING:
    from headrace.strategies.surroundings import Surroundings

SERVER, WORKER, MEETING = "server", "worker", "meeting"  # boxes


class ParameterServer(OwnSteps):
    """See the module's docstring.

    Args:
        collective: over whom; used where ranks meet.
        equipment: see Equipment.
        options: see ServerOptions.

    Attributes:
        shard: this rank's part, where it is a server and has begun.
    """

    def __init__(self, collective: Collective, equipment: Equipment, options: ServerOptions) -> None:
        self.collective, self.equipment, self.options = collective, equipment, options
        self.mailbox, self.clock = MeteredMailbox(equipment.mailbox), equipment.clock
        self.shard: Shard | None = None
        self._layout: Layout | None = None
        self._pushes: Pushes | None = None
        self._state: dict[str, Any] | None = None  # loaded, to begin with
        self._made, self._waits, self._meet_at, self._step = 0, False, 0, 0
        self._bound = [0, options.bound]
        self._drained = True
        self._staleness = [0, 0, 0]  # largest, sum, number
        self._tables = {"push": 0, "told": 0}  # bytes of tables sent to other ranks; each by a thread of its own
        self._threads = torch.get_num_threads()

    def meets(self, step: int, last: bool) -> bool:
        """At the end of an epoch, and after the step that the first server named."""
        return last or self._made + 1 == self._meet_at

    def begin(self, params: Mapping[str, nn.Parameter]) -> None:
        """Deal the parameters out, and answer from now on where this rank is a server."""
        size, rank, given = self.collective.size, self.collective.rank, self.equipment
        check_servers(self.options.servers, size)
        values = {name: param.detach() for name, param in params.items()}
        layout = self._layout = deal(values, given.tables, self.options.servers or size)
        self._pushes = Pushes(given.codecs, layout, rank)
        state, self._state = self._state, None
        if state is not None:
            self._pushes.load_state_dict(state["pushes"])
            self._bound = list(state["bound"])
        if rank >= layout.servers:
            return
        part = Part(layout.part(rank, values), layout)
        self.shard = Shard(
            part, given.optimizer, self._pushes, size, self.options, self.clock, rank == 0, self._decided
        )  # fmt: skip
        if state is not None:
            self.shard.load_state_dict(state["shard"])
        self.mailbox.serve(SERVER, self._answer)

    def _answer(self, message: Message) -> None:
        """By the server's thread."""
        assert self.shard is not None
        torch.set_num_threads(self._threads)  # a new thread has another number: bits may depend on it
        for letter in self.shard.handle(message):
            self.mailbox.send(letter.to, WORKER, "told", letter.head, letter.body)
            if letter.to != self.mailbox.rank:
                self._tables["told"] += letter.tables

    def _decided(self, decision: Decision) -> None:
        self.equipment.on_event({"type": "bound", "step": self._step, **decision._asdict()})

    def push(self, grads: Mapping[str, Tensor], rates: Rates, loss: float | None) -> None:
        """Send gradients to the servers; `on_parameters` takes their answer.

        Args:
            grads: of the mean over this rank's rows; row-sparse ones coalesced.
            rates: to apply them at.
            loss: that mean; None: there are no gradients, for there are no rows.
        """
        self._push(grads, rates, loss, self.equipment.should_stop())

    def _push(self, grads: Mapping[str, Tensor], rates: Rates, loss: float | None, stop: bool) -> None:
        """`stop`: ranks are to meet soon."""
        assert self._layout is not None and self._pushes is not None
        common = {
            "clock": self._made, "rates": list(rates), "loss": loss, "bound": self._bound, "stop": stop,
        }  # fmt: skip
        for server in range(self._layout.servers):
            packed = self._pushes.packed(server, grads)
            with self._pushes.timed("send"):
                self.mailbox.send(server, SERVER, "push", common | {"entries": packed.entries}, packed.body)
            if server != self.mailbox.rank:
                self._tables["push"] += packed.tables
        self._made, self._waits, self._drained = self._made + 1, True, False

    def on_parameters(self, params: dict[str, Tensor], step: int, meets: bool) -> None:
        """Take the servers' answers."""
        if not self._waits:  # this rank met a bad number, and all are to hear of it
            self._push({}, Rates(1.0), None, stop=True)
        self._waits, self._step = False, step + 1
        for head in self._take(params):
            if head["staleness"] is not None:
                most, total, number = self._staleness
                self._staleness = [max(most, head["staleness"]), total + head["staleness"], number + 1]
        if meets:
            self._drain(params)

    def _take(self, params: dict[str, Tensor]) -> list[dict[str, Any]]:
        """An answer of every server, written into the parameters."""
        assert self._layout is not None and self._pushes is not None
        heads, began = [], self.clock.now()
        for _ in range(self._layout.servers):
            message = self.mailbox.receive(WORKER)
            assert message is not None
            self._write(params, message)
            self._bound = max(self._bound, message.head["bound"])
            self._meet_at = max(self._meet_at, message.head["meet_at"])
            heads.append(message.head)
        self._pushes.seconds["exchange"] += self.clock.now() - began
        return heads

    def _write(self, params: dict[str, Tensor], message: Message) -> None:
        assert self._layout is not None
        server, servers, at = message.source, self._layout.servers, 0
        part = self._layout.part(server, params)
        counts = iter(message.head["rows"])

        def taken(like: Tensor, rows: int | None = None) -> Tensor:
            nonlocal at
            size = like.nbytes if rows is None else rows * row_bytes(like)
            raw, at = message.body[at : at + size], at + size
            return from_bytes(raw.to(like.device), like, rows)

        for name, value in part.items():
            if not self._layout.is_table(name):
                value.copy_(taken(value))
        for name, value in part.items():
            if self._layout.is_table(name):
                ids = taken(torch.empty(0, dtype=torch.int64, device=value.device), next(counts))
                params[name].index_copy_(0, ids * servers + server, taken(value, ids.numel()))

    def _drain(self, params: dict[str, Tensor]) -> None:
        """All ranks together: nothing is under way afterwards, and all hold what the servers hold."""
        if self._drained:
            return
        assert self._layout is not None
        self._meet()  # everyone has been answered: all pushes have been applied
        for server in range(self._layout.servers):
            self.mailbox.send(server, SERVER, "pull")
        self._take(params)
        self._meet()  # no one begins to push before all have pulled
        self._drained = True

    def _meet(self) -> None:
        """A barrier by messages: ranks may be an epoch apart, and transports give an operation up after minutes."""
        rank, size = self.mailbox.rank, self.mailbox.size
        if rank:
            self.mailbox.send(0, MEETING, "here")
            self.mailbox.receive(MEETING)
            return
        for _ in range(size - 1):
            self.mailbox.receive(MEETING)
        for other in range(1, size):
            self.mailbox.send(other, MEETING, "all here")

    @contextlib.contextmanager
    def consensus(self, params: dict[str, Tensor]) -> Iterator[None]:
        """All ranks hold what the servers hold, and go on from there; all enter together."""
        self._drain(params)
        yield

    def finish(self, params: dict[str, Tensor]) -> None:
        """See `consensus`."""
        self._drain(params)

    def leave(self) -> None:
        """This rank makes no more steps, and is not waited for."""
        assert self._layout is not None
        for server in range(self._layout.servers):
            self.mailbox.send(server, SERVER, "leave")

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`; staleness of this rank's gradients (updates that they missed); bytes to other ranks:
        pushed, told by its server, all, and those of them that are of tables; the bound."""
        own = self._pushes.figures() if self._pushes is not None else {}
        most, total, number = self._staleness
        sent = self.mailbox.sent
        return own | {
            "staleness_max": float(most), "staleness_mean": total / max(1, number), "bound": float(self._bound[1]),
            "pushed_bytes": sent["push"], "told_bytes": sent["told"], "mailed_bytes": self.mailbox.sent_bytes,
            "mailed_bytes_of_tables": sum(self._tables.values()),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Feedback of this rank, and of its server what `Shard.state_dict` says; where ranks have met."""
        assert self._drained, "a checkpoint is of the consensus"
        if self._state is not None or self._pushes is None:
            return self._state or {}
        shard = None if self.shard is None else self.shard.state_dict()
        return {"pushes": self._pushes.state_dict(), "bound": self._bound, "shard": shard}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept what `state_dict` gave, before the first step.

        Raises:
            ValueError: for the state of another strategy.
        """
        if state and "shard" not in state:
            raise ValueError("the checkpoint knows no servers: it is of another strategy")
        self._state = state or None


def check_servers(servers: int, ranks: int) -> None:
    """Refuse more servers than ranks.

    Raises:
        UserError: there are.
    """
    if servers > ranks:
        raise UserError(f"--strategy.servers {servers} of {ranks} ranks", f"0 (all ranks), up to {ranks}")


def fits(options: Mapping[str, Any], around: Surroundings) -> None:
    """See `check_servers` and `check_pushes`."""
    check_servers(options["servers"], around.ranks)
    check_pushes(around.compression)


def lead(options: Mapping[str, Any]) -> int | None:
    """The bound, or the largest that it may become; None: there is none."""
    bound = int(options["bound_max"] if options["tune"] else options["bound"])
    return bound if bound >= 0 else None
