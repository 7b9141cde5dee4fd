"""Local SGD: ranks step on their own, and every H steps take the mean of what became of their parameters.

    in between    x_r <- rule(x_r, gradient of rank r's own rows)
    in a round    d = mean over ranks of (x_r - x),  u <- momentum u + d
                  x <- x + lr u,  or x + lr (momentum u + d) with nesterov;  x_r <- x

x is what all ranks had after the round before. lr 1 and momentum 0 are plain averaging: S. U. Stich, "Local SGD
converges fast and communicates little", ICLR 2019. H = 1 for the first steps and more later is post-local SGD: T. Lin,
S. U. Stich, K. K. Patel, M. Jaggi, "Don't use large mini-batches, use local SGD", ICLR 2020. With momentum: J. Wang,
V. Tantia, N. Ballas, M. Rabbat, "SlowMo", ICLR 2020; with nesterov over AdamW: A. Douillard et al., "DiLoCo", 2023. H
grows by a factor a round: after F. Haddadpour et al., "Local SGD with periodic averaging", NeurIPS 2019.

Embedding tables: rows that a rank has touched since the last round are exchanged as (ids, changes) and averaged over
all ranks, without momentum. The optimizer's own state stays with its rank. What goes over the wire are changes, through
any reducer: compressed ones with their feedback too. Ranks are told of each other (loss, a wish to stop, bad numbers)
in rounds only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.compress.spec import NO_SIZES, OWN_MOMENTUM
from headrace.errors import UserError
from headrace.strategies.own_steps import OwnSteps, Places, put, replaced
from headrace.strategies.reducers import Reducer, ordered
from headrace.strategies.sparse import coalesced, tables_of, with_rows

if TYPE_CHECKING:
    from headrace.strategies.surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """When ranks meet, and what they make of it.

    Args:
        steps: H, of a round.
        growth: of H from round to round.
        max_steps: where it grows, it grows no further.
        sync_steps: the first so many steps of the run are rounds of one step.
        outer_lr: lr above.
        outer_momentum: momentum above.
        nesterov: see above.
    """

    steps: int = 8
    growth: float = 1.0
    max_steps: int = 64
    sync_steps: int = 0
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    nesterov: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: which setting.
        """
        for name, ok, remedy in (
            ("steps", self.steps >= 1, "1 or more"),
            ("growth", self.growth >= 1, "1 or more"),
            ("max_steps", self.growth == 1 or self.max_steps >= self.steps, "--strategy.steps or more"),
            (
                "max_steps",
                self.growth > 1 or self.max_steps == Rounds.max_steps,
                "is of rounds that grow: --strategy.growth over 1",
            ),
            ("sync_steps", self.sync_steps >= 0, "0 or more"),
            ("outer_lr", self.outer_lr > 0, "more than 0"),
            ("outer_momentum", 0 <= self.outer_momentum < 1, "from 0 to under 1"),
            ("nesterov", self.outer_momentum > 0 or not self.nesterov, "with --strategy.outer_momentum over 0"),
        ):
            if not ok:
                raise UserError(f"--strategy.{name} {getattr(self, name)}", remedy)

    def length(self, number: int) -> int:
        """H of round `number`, the rounds of one step at the beginning not counted."""
        if self.growth == 1:
            return self.steps
        if math.log(self.steps) + number * math.log(self.growth) > math.log(self.max_steps) + 1:
            return self.max_steps  # a power of so many rounds may be no float
        return min(self.max_steps, int(self.steps * self.growth**number))


class LocalSGD(OwnSteps):
    """See the module's docstring.

    Args:
        reducer: sums changes over ranks.
        collective: over whom.
        rounds: see Rounds.
    """

    def __init__(self, reducer: Reducer, collective: Collective, rounds: Rounds) -> None:
        self.reducer, self.collective, self.rounds = reducer, collective, rounds
        self._steps, self._round = 0, 0  # since the last round; rounds so far
        self._tables: set[str] | None = None  # parameters with row-sparse gradients
        self._start: dict[str, Tensor] = {}  # dense parameters after the last round
        self._outer: dict[str, Tensor] = {}  # u of these
        self._rows: dict[str, Rows] = {}  # of tables: what the steps since have touched, as it was

    def meets(self, step: int, last: bool) -> bool:
        """Whether the step ends a round; the last of an epoch does."""
        return last or step < self.rounds.sync_steps or self._steps + 1 >= self.rounds.length(self._round)

    def before_update(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
        """Remember what the step is about to change."""
        if self._tables is None:
            self._tables = tables_of(grads, self.collective)
        if not self._start:
            self._start = {name: param.clone() for name, param in params.items() if name not in self._tables}
        for name in self._tables & grads.keys():
            self._rows[name] = touch(self._rows.get(name), coalesced(grads[name])._indices()[0], params[name])

    def on_parameters(self, params: dict[str, Tensor], step: int, meets: bool) -> None:
        """After the update; in a round parameters become all ranks'."""
        self._steps += 1
        if meets:
            self._meet(params)
            self._round += step >= self.rounds.sync_steps

    def _meet(self, params: dict[str, Tensor]) -> None:
        changes = self._mean_changes(params, self.reducer)
        self.reducer.settle(True)
        for name, change in changes.items():
            if change.is_sparse:
                put(params, {name: self._rows_after(name, params[name], change)})
                continue
            self._start[name] += self._outer_step(name, change)
            params[name].copy_(self._start[name])
        self._rows, self._steps = {}, 0

    @contextlib.contextmanager
    def consensus(self, params: dict[str, Tensor]) -> Iterator[None]:
        """Inside, parameters are the mean over ranks; all ranks enter together. Also where they have just met:
        parameters may be averages of a rank's own steps (ema)."""
        if not self._start:
            yield
            return
        changes = self._mean_changes(params, ordered())
        means: Places = {
            name: self._rows_after(name, params[name], change)
            if change.is_sparse
            else (..., self._start[name] + change)
            for name, change in changes.items()
        }
        with replaced(params, means):
            yield

    def finish(self, params: dict[str, Tensor]) -> None:
        """A last round, where steps were made since the last one."""
        if self._steps:
            self._meet(params)

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`; and how many rounds there were."""
        return self.reducer.figures() | {"rounds": float(self._round)}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside this rank's own parameters and optimizer."""
        return {
            "steps": self._steps, "round": self._round, "start": self._start, "outer": self._outer,
            "tables": None if self._tables is None else sorted(self._tables),
            "rows": {name: {"ids": rows.ids, "values": rows.values} for name, rows in self._rows.items()},
            "reducer": self.reducer.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: for the state of another strategy.
        """
        if "round" not in state:
            raise ValueError("the checkpoint knows no rounds: it is of another strategy")
        self._steps, self._round = state["steps"], state["round"]
        self._start, self._outer = dict(state["start"]), dict(state["outer"])
        self._tables = None if state["tables"] is None else set(state["tables"])
        self._rows = {name: Rows(rows["ids"], rows["values"]) for name, rows in state["rows"].items()}
        self.reducer.load_state_dict(state["reducer"])

    def _mean_changes(self, params: Mapping[str, Tensor], reducer: Reducer) -> dict[str, Tensor]:
        """Means over ranks of the changes since the last round: [like the parameter], or row-sparse and coalesced."""
        changes = {name: self._change(name, param) for name, param in params.items()}
        sums = reducer.reduce(changes, self.collective)
        for total in sums.values():
            (total._values() if total.is_sparse else total).div_(self.collective.size)
        return sums

    def _change(self, name: str, param: Tensor) -> Tensor:
        if name in self._start:
            return param - self._start[name]
        rows = self._rows.get(name)
        if rows is None:
            none = torch.empty(0, dtype=torch.int64, device=param.device)
            rows = Rows(none, param[none])
        return with_rows(rows.ids, param[rows.ids] - rows.values, param)

    def _outer_step(self, name: str, change: Tensor) -> Tensor:
        rounds = self.rounds
        if not rounds.outer_momentum:
            return change * rounds.outer_lr
        held = self._outer.get(name)
        u = self._outer[name] = change.clone() if held is None else rounds.outer_momentum * held + change
        return rounds.outer_lr * (rounds.outer_momentum * u + change if rounds.nesterov else u)

    def _rows_after(self, name: str, param: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of rows, and these as all ranks had them after the last round, plus the mean change."""
        ids = change._indices()[0]
        base = param[ids]
        if name in self._rows:
            base[torch.searchsorted(ids, self._rows[name].ids)] = self._rows[name].values
        return ids, base + change._values()


class Rows(NamedTuple):
    """Rows of a table: ids [n], ascending, and values [n, ...]."""

    ids: Tensor
    values: Tensor


def touch(known: Rows | None, ids: Tensor, param: Tensor) -> Rows:
    """`known` and those rows of `param` that are not among them yet; `ids` ascend."""
    if known is None:
        return Rows(ids.clone(), param[ids])
    new = ids[~torch.isin(ids, known.ids)]
    every, order = torch.cat([known.ids, new]).sort()
    return Rows(every, torch.cat([known.values, param[new]])[order])


def fits(options: Mapping[str, Any], around: Surroundings) -> None:
    """Refuse codecs that make something else of changes than changes.

    Raises:
        UserError: which, and what to do.
    """
    codec, traits = around.compression.name, around.compression.traits
    if NO_SIZES in traits:
        raise UserError(
            f"--compression.name {codec} sends no sizes: with local_sgd every parameter would change by one in a round",
            "--compression.name signsgd, or --strategy.name allreduce",
        )
    if OWN_MOMENTUM in traits and options["outer_momentum"]:
        raise UserError(
            f"--strategy.outer_momentum {options['outer_momentum']:g}: {codec} applies momentum itself",
            "--strategy.outer_momentum 0, or another --compression.name",
        )


def lead(options: Mapping[str, Any]) -> int:
    """Steps of the longest round, but for the last, in which ranks meet."""
    longest = options["max_steps"] if options["growth"] > 1 else options["steps"]
    return int(longest) - 1
