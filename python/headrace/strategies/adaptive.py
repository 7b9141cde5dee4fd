"""Compressed sums whose codecs are chosen by tensor under a budget of bytes, and that are as they are where that is
faster.

    minimise  sum over tensors of  error(rung)   subject to   sum of bytes(rung) <= budget * bytes as they are

with, over the ranks' sums of what they measured (`headrace.compress.ladder`): G of the gradient's |g|^2, W of what the
codec was given, |g + memory|^2, E(rung) of |C(.) - .|^2, q = E / W, and S = |sum over ranks that was decoded|^2,

    error(rung) = q G / (1 - decay^2 q)   with feedback `ef`: what is wrong in a turn when memory has settled, since
                                          |memory|^2 <- decay^2 q (G + |memory|^2)
    error(rung) = E                       else
    error(rung) / S                       with error "relative": what counts where a rule takes lengths out, as LARS

and solved by `headrace.strategies.allocation`. Decisions come after turns 1, 2, 4, ... and every `interval`, from means
of what was measured in these turns in which the newest weighs a half; ranks gather the measurements and decide from the
same numbers, so no word is lost on what was decided. Before the first decision each tensor has the best rung for normal
numbers within its own share. A tensor's memory outlives a change of its codec.

Whether to compress at all is measured (`headrace.strategies.switch`), from the end of a turn to that of the next: what
encoding takes from cores that others compute on, and what backward hides, are in it. Where it is off, gradients go as
all that is not compressed, and the first time with all of the memory: nothing is lost. Such turns are not under the
budget.

Not counted: the second loss of `reduce_scatter`, correlation of errors of different ranks or turns, unequal times of
codecs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headrace.comm.base import Collective
from headrace.comm.clock import Clock, WallClock
from headrace.comm.sums import in_order
from headrace.compress import Payload
from headrace.compress.base import RandomCodec, State
from headrace.compress.feedback import Feedback
from headrace.compress.ladder import SAMPLE, Rung, errors, sample
from headrace.errors import UserError
from headrace.strategies.allocation import Allocation, allocate
from headrace.strategies.compressed import CompressedConfig, CompressedReducer, key_of
from headrace.strategies.reducers import BucketReducer
from headrace.strategies.switch import Switch, median

ERRORS = ("absolute", "relative")
NEWEST = 0.5
_WORST = 0.999  # of q / (1 - q): a rung that loses all there is would be infinitely wrong
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """How codecs are chosen.

    Args:
        budget: bytes that are sent, over those of the gradients as they are.
        interval: turns between decisions.
        switch: compression goes off and on by what is measured.
        error: of ERRORS.
    """

    budget: float
    interval: int
    switch: bool
    error: str


class _Sample(NamedTuple):
    """Of a unit of n numbers: some of the gradient, and of what is encoded."""

    n: int
    gradient: Tensor
    whole: Tensor


class Adaptive(CompressedReducer):
    """See the module's docstring.

    Args:
        rungs: to choose from; whether they do without memory is up to the feedback.
        feedback: whose codec has no meaning here; with a switch, none or ef.
        rest: sums what is not compressed and does not go along.
        cfg: see CompressedConfig.
        adaptive: see AdaptiveConfig.
        everyone: over whom decisions are the same; None: over those that gradients are summed over.
        tell: takes events.
        clock: of what is measured.
    """

    def __init__(
        self, rungs: Sequence[Rung], feedback: Feedback, rest: BucketReducer, cfg: CompressedConfig,
        adaptive: AdaptiveConfig, everyone: Collective | None = None, tell: Tell = lambda event: None,
        clock: Clock | None = None,
    ) -> None:  # fmt: skip
        super().__init__(rungs[0].spec, feedback, rest, cfg)
        self.rungs, self.adaptive, self.tell, self.clock = rungs, adaptive, tell, clock or WallClock()
        self.switch = Switch(adaptive.interval) if adaptive.switch else None
        self.turns, self.chosen = 0, dict[str, int]()  # rungs by tensor
        self._coders = [Feedback(rung.codec, feedback.variant, feedback.decay) for rung in rungs]
        self._first = Feedback(RandomCodec(), feedback.variant, feedback.decay)  # whose state serves all rungs
        self._everyone = everyone
        self._measured: dict[str, list[float]] = {}  # means of G, W, S, E by rung; of this rank
        self._costs: dict[str, list[int]] = {}  # bytes a turn as they are, and by rung; of this rank
        self._told: dict[str, str] = {}  # labels by tensor, as they were last told
        self._samples: dict[str, list[_Sample]] = {}
        self._sums: dict[str, float] = {}
        self._since = self.clock.now()  # of the end of the last turn
        self._used, self._size, self._prior = False, 1, list[float]()

    @property
    def traits(self) -> frozenset[str]:
        """Of the messages: none that all rungs have."""
        return frozenset()

    @property
    def engaged(self) -> bool:
        """Whether this turn is compressed."""
        return self.switch is None or self.switch.engaged

    def feedback_of(self, unit: str) -> Feedback:
        """See `CompressedReducer.feedback_of`."""
        return self._coders[self.chosen[self._tensor(unit)]]

    def state_of(self, unit: str, like: Tensor, rank: int) -> State:
        """See `CompressedReducer.state_of`."""
        state = self.kept(unit)
        if state is None:
            return self._first.init(like, key_of(self.cfg.seed, unit, 1 + rank))
        fresh = "memory" not in state and self.feedback.variant != "none"  # it went with a gradient as it is
        return state | {"memory": torch.zeros_like(like)} if fresh else state

    def sum_large(
        self, large: dict[str, Tensor], small: dict[str, Tensor], collective: Collective
    ) -> dict[str, Tensor]:
        """See `OfLarge.sum_large`.

        Raises:
            UserError: the budget is too small for a tensor.
        """
        if collective.size == 1:
            return large
        self._used, self._size, self._everyone = True, collective.size, self._everyone or collective
        for name, grad in large.items():
            if name not in self.chosen:
                self._meet(name, grad, collective)
        if not self.engaged:
            return self._as_is(large, small, collective)
        summed = super().sum_large(large, small, collective)
        if self._measures:
            with self.timed("decide"):
                for name in large:
                    total = summed[name]
                    some = sample(total.reshape(-1), SAMPLE, self.turns)
                    self._sums[name] = _energy(some) * total.numel() / max(1, some.numel())
        return summed

    def sent(self, unit: str, x: Tensor, rank: int) -> Payload:
        """See `CompressedReducer.sent`."""
        if self._measures and not unit.endswith("#owner") and x.numel():
            with self.timed("decide"):
                name = self._tensor(unit)
                room = SAMPLE if unit == name else SAMPLE // self._size
                whole = self.feedback.whole(x, self.state_of(unit, x, rank))
                parts = [sample(each, room, self.turns).clone() for each in (x, whole)]
                self._samples.setdefault(name, []).append(_Sample(x.numel(), *parts))
        return super().sent(unit, x, rank)

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """See `Reducer.settle`; then what there is to decide, by all ranks together."""
        super().settle(made, rescaled)
        samples, sums, self._samples, self._sums = self._samples, self._sums, {}, {}
        used, self._used = self._used, False
        if made and used:
            self._take(samples, sums, self.clock.now() - self._since)
        self._since = self.clock.now()
        if rescaled != 1.0:
            self._measured = {name: [v * rescaled**2 for v in values] for name, values in self._measured.items()}

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`; turns so far, and those that went as they are."""
        return super().figures() | {name: self.numbers[name] for name in ("turns", "turns_as_is")}

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, decided and measured."""
        return super().state_dict() | {
            "turns": self.turns, "chosen": dict(self.chosen), "measured": dict(self._measured),
            "costs": dict(self._costs), "switch": self.switch.state_dict() if self.switch else {},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: for the state of another reducer, or of other rungs.
        """
        if "chosen" not in state:
            raise ValueError("the checkpoint knows of no decisions: codecs were not chosen by tensor then")
        if any(len(costs) != 1 + len(self.rungs) for costs in state["costs"].values()):
            raise ValueError("the checkpoint's decisions are between other codecs")
        super().load_state_dict(state)
        self.turns, self.chosen = state["turns"], dict(state["chosen"])
        self._measured = {name: list(values) for name, values in state["measured"].items()}
        self._costs = {name: list(values) for name, values in state["costs"].items()}
        if self.switch:
            self.switch.load_state_dict(state["switch"])
        self._since = self.clock.now()
        self._told = self.labels()
        self._tell(layers=self._told, compress=self.switch.compress if self.switch else True, resumed=True)

    def labels(self) -> dict[str, str]:
        """What was chosen, by tensor."""
        return {name: self.rungs[rung].label for name, rung in self.chosen.items()}

    @property
    def _measures(self) -> bool:
        """Whether a decision follows this turn."""
        turn, interval = self.turns + 1, self.adaptive.interval
        return self.engaged and (turn % interval == 0 or (turn < interval and not turn & (turn - 1)))

    def _tensor(self, unit: str) -> str:
        return unit if unit in self.chosen else unit.rpartition("#")[0]

    def _tell(self, **event: Any) -> None:
        self.tell({"type": "compression", "turn": self.turns, **event})

    def _meet(self, name: str, grad: Tensor, collective: Collective) -> None:
        """A tensor's bytes, and its rung until there is a decision."""
        lengths = [grad.numel()]
        if self.exchange(collective.size) == "reduce_scatter":
            least, more = divmod(grad.numel(), collective.size)
            chunks = [least + (place < more) for place in range(collective.size)]
            lengths = [*chunks, chunks[collective.rank]]  # and the sum that it owns
        full = sum(lengths) * grad.element_size()
        costs = [sum(rung.nbytes(n, grad.dtype) for n in lengths) for rung in self.rungs]
        if not self._prior:
            normal = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(0))
            found = [*[_energy(normal)] * 3, *errors(normal, self.rungs, 0)]
            self._prior = self._error(torch.tensor(found, dtype=torch.float64))
        fitting = [r for r, cost in enumerate(costs) if cost <= self.adaptive.budget * full]
        if not fitting:
            raise UserError(
                f"--compression.budget {self.adaptive.budget:g}: {name} with {grad.numel():,} numbers takes "
                f"{min(costs) / max(1, full):.2g} of its bytes at least",
                "a larger budget, or a larger --compression.min_numel",
            )
        self.chosen[name] = min(fitting, key=lambda r: (self._prior[r], costs[r]))
        self._costs[name] = [full, *costs]

    def _error(self, found: Tensor) -> list[float]:
        """Of every rung, from the ranks' sums of what was measured [3 + rungs]."""
        gradient, whole, total = found[:3].tolist()
        lost = found[3:]
        if self.feedback.variant == "ef" and whole > 0:
            q = lost / whole
            lost = q * gradient / (1 - (self.feedback.decay**2 * q).clamp(max=_WORST))
        values: list[float] = (lost / total if self.adaptive.error == "relative" and total > 0 else lost).tolist()
        return values

    def _take(self, samples: dict[str, list[_Sample]], sums: dict[str, float], took: float) -> None:
        """A turn is over."""
        decides = self._measures
        self.turns += 1
        self.numbers["turns"] += 1
        self.numbers["turns_as_is"] += not self.engaged
        if self.switch is not None:
            self.switch.turn(took)
        with self.timed("decide"):
            if decides:
                self._measure(samples, sums)
                self._decide()
            if self.switch is not None and self.switch.due:
                self._look(self.switch)

    def _look(self, switch: Switch) -> None:
        own = torch.tensor(switch.recent, dtype=torch.float64)
        compared = switch.agreed(median([each.tolist() for each in self._gathered(own)]))
        if compared is not None:
            self._tell(**compared._asdict())

    def _measure(self, samples: dict[str, list[_Sample]], sums: dict[str, float]) -> None:
        for name, units in samples.items():
            gradient, whole = torch.cat([u.gradient for u in units]), torch.cat([u.whole for u in units])
            found = [_energy(gradient), _energy(whole), *errors(whole, self.rungs, self.turns)]
            values = [value * sum(u.n for u in units) / whole.numel() for value in found]
            values.insert(2, sums[name])
            if all(map(_finite, values)):
                old = self._measured.get(name, values)
                self._measured[name] = [o + NEWEST * (v - o) for o, v in zip(old, values, strict=True)]

    def _decide(self) -> None:
        """By what all ranks measured."""
        none = [0.0] * (3 + len(self.rungs))
        names = sorted(self.chosen)  # the order of buckets is another where backward runs meanwhile
        own = [[*self._measured.get(name, none), *self._costs[name]] for name in names]
        words = torch.stack(self._gathered(torch.tensor(own, dtype=torch.float64)))
        found = in_order(words[:, :, : len(none)].clone())
        costs = words[:, :, len(none) :]
        allowed = int(self.adaptive.budget * float(costs[:, :, 0].sum(1).min()))
        nbytes = costs[:, :, 1:].amax(0).long().tolist()
        done = allocate(nbytes, [self._error(each) for each in found], allowed)
        if done is not None:  # else chunks of some ranks are larger than those of others: what there was stays
            self._choose(dict(zip(names, done.rungs, strict=True)), done, allowed, float(found[:, 0].sum()))

    def _choose(self, chosen: dict[str, int], done: Allocation, allowed: int, energy: float) -> None:
        self.chosen = chosen
        changed = {name: label for name, label in self.labels().items() if self._told.get(name) != label}
        self._told |= changed
        self._tell(layers=changed, bytes=done.nbytes, budget=allowed, error=done.error, bound=done.bound, energy=energy)

    def _gathered(self, own: Tensor) -> list[Tensor]:
        """Every rank's numbers, in rank order."""
        assert self._everyone is not None
        return self._everyone.allgather(own, rows=[len(own)] * self._everyone.size)

    def _as_is(self, large: dict[str, Tensor], small: dict[str, Tensor], collective: Collective) -> dict[str, Tensor]:
        """Sums of gradients and memory, which is empty then."""
        with self.timed("encode"):
            whole = {name: self._emptied(name, grad, collective) for name, grad in large.items()}
        self.numbers["in"] += (nbytes := sum(grad.nbytes for grad in large.values()))
        self.numbers["out"] += nbytes
        with self.timed("exchange"):
            return self.rest.reduce_bucket(whole | small, collective)

    def _emptied(self, name: str, grad: Tensor, collective: Collective) -> Tensor:
        """The gradient, and what was to be sent of it and of the sum of a chunk that this rank owns."""
        places = {name: 0}
        if self.exchange(collective.size) == "reduce_scatter":
            places = {f"{name}#{place}": place for place in range(collective.size)}
            places[f"{name}#owner"] = collective.rank
        held = {unit: state for unit in places if (state := self.kept(unit)) and "memory" in state}
        if not held:
            return grad
        parts = list(grad.reshape(-1).tensor_split(max(places.values()) + 1))
        for unit, state in held.items():
            parts[places[unit]] = parts[places[unit]] + state["memory"]
            self.remember(unit, {"codec": state["codec"]})
        return torch.cat(parts).view(grad.shape)


def _energy(x: Tensor) -> float:
    return float(x.double().square().sum())


def _finite(value: float) -> bool:
    return value - value == 0.0
