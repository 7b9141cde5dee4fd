"""Learning-rate schedules as factors of the base rate: pure functions of the clock, so that a resume needs no state.

    lr_t = lr * factor(At(t, total, warmup), options),          t = units (steps, or epochs) since the end of warm-up
    before it: lr_t = lr * factor at t = 0 * (s + 1) / warmup   s = steps since the start

`plateau` alone is not a function of the clock: it follows the validation loss and has state (`Schedule.state_dict`).
`one_cycle` moves the momentum too, where a rule has one (`momentum`, or the first of `betas`).

Reference for warm-up: P. Goyal et al., "Accurate, large minibatch SGD", arXiv:1706.02677, 2017, section 2.2 (theirs
starts at lr / number of workers; ours at lr / warmup).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headrace.errors import UserError
from headrace.free_options import FREE
from headrace.optim import one_cycle
from headrace.optim.base import Optimizer
from headrace.optim.plateau import Plateau
from headrace.options import choose, described, known

NEEDS_VALIDATION = "needs_validation"  # follows the validation loss; what it has seen is state
SCHEDULE_TRAITS = (NEEDS_VALIDATION,)
UNITS = ("step", "epoch")


class At(NamedTuple):
    """The clock of a schedule, in its units (steps or epochs).

    Args:
        t: since the end of warm-up, from 0.
        total: of the run after warm-up.
        warmup: length of warm-up.
    """

    t: int
    total: int
    warmup: int = 0


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """One entry of SCHEDULES.

    Args:
        factor: `factor(at, **options)`: what the base rate is multiplied with.
        paper: the reference.
        rule: the factor in one line.
        use: when to choose it.
        defaults: options and their values where none are given.
        momentum: `momentum(at, **options)`: the momentum to be used; None leaves it to the rule.
        traits: of SCHEDULE_TRAITS.
        check: raises ValueError for options that make no sense.
    """

    factor: Callable[..., float]
    paper: str
    rule: str
    use: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    momentum: Callable[..., float | None] | None = None
    traits: frozenset[str] = frozenset()
    check: Callable[..., None] = lambda **options: None


def constant(at: At) -> float:
    """1."""
    return 1.0


def step(at: At, every: int, gamma: float) -> float:
    """gamma^floor(t / every)."""
    return gamma ** (at.t // every)


def multistep(at: At, milestones: Sequence[int], gamma: float) -> float:
    """gamma^(number of milestones passed)."""
    return gamma ** bisect_right(sorted(milestones), at.t)


def exponential(at: At, gamma: float) -> float:
    """gamma^t."""
    return float(gamma**at.t)


def polynomial(at: At, power: float, end: float) -> float:
    """end + (1 - end) (1 - t / total)^power; `end` once the run is over."""
    left = max(0.0, 1.0 - at.t / max(1, at.total))
    return float(end + (1.0 - end) * left**power)


def linear(at: At, end: float) -> float:
    """The polynomial of power 1."""
    return polynomial(at, 1.0, end)


def cosine(at: At, period: int, growth: float, end: float) -> float:
    """end + (1 - end) (1 + cos(pi c / T)) / 2, c units into a cycle of length T = period growth^i; then again from 1.

    period 0: one cycle over the whole run.
    """
    into, length = _cycle(at.t, period, growth) if period else (float(min(at.t, at.total)), max(1.0, float(at.total)))
    return end + (1.0 - end) * (1.0 + math.cos(math.pi * into / length)) / 2.0


def _cycle(t: int, period: int, growth: float) -> tuple[float, float]:
    """Units into the present cycle, and its length."""
    if growth == 1.0:
        return float(t % period), float(period)
    into, length = float(t), float(period)
    while into >= length:
        into, length = into - length, length * growth
    return into, length


def inverse_sqrt(at: At, timescale: int) -> float:
    """sqrt(k / (k + t)), k = timescale, or the length of warm-up where that is 0."""
    scale = timescale or max(1, at.warmup)
    return math.sqrt(scale / (scale + at.t))


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be above 0, not {number}")


def _not_negative(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be a number of at least 0, not {number}")


def _check_polynomial(power: float, end: float) -> None:
    _positive(power=power)
    _not_negative(end=end)


def _check_cosine(period: int, growth: float, end: float) -> None:
    if period < 0 or not growth >= 1.0:
        raise ValueError(f"period must be at least 0 and growth at least 1, not {period} and {growth}")
    _not_negative(end=end)


def _check_plateau(
    *, factor: float, threshold_mode: str, patience: int, cooldown: int, end: float, **options: Any
) -> None:
    _not_negative(end=end)
    if not 0.0 < factor < 1.0 or patience < 0 or cooldown < 0:
        raise ValueError("factor must be between 0 and 1, patience and cooldown at least 0")
    if threshold_mode not in ("rel", "abs"):
        raise ValueError(f"threshold_mode must be rel or abs, not {threshold_mode!r}")


_FALLS = "for a run of known length"

SCHEDULES: dict[str, ScheduleSpec] = {
    "constant": ScheduleSpec(factor=constant, paper="-", rule="1", use="adaptive rules, short runs"),
    "step": ScheduleSpec(
        factor=step, paper="He et al. 2016 (30 epochs, 0.1)", rule="gamma^floor(t / every)", use="by epoch, as ResNets",
        defaults={"every": 30, "gamma": 0.1}, check=lambda every, gamma: _positive(every=every, gamma=gamma),
    ),
    "multistep": ScheduleSpec(
        factor=multistep, paper="He et al. 2016", rule="gamma^(milestones passed)", use="where the steps are known",
        defaults={"milestones": (), "gamma": 0.1}, check=lambda milestones, gamma: _positive(gamma=gamma),
    ),
    "exponential": ScheduleSpec(
        factor=exponential, paper="-", rule="gamma^t", use="by epoch; by step with a gamma close to 1",
        defaults={"gamma": 0.95}, check=lambda gamma: _positive(gamma=gamma),
    ),
    "linear": ScheduleSpec(
        factor=linear, paper="Devlin et al. 2019 (BERT)", rule="1 - t / total", use=_FALLS, defaults={"end": 0.0},
        check=_not_negative,
    ),
    "polynomial": ScheduleSpec(
        factor=polynomial, paper="Liu et al. 2015 (ParseNet)", rule="(1 - t / total)^power", use=_FALLS,
        defaults={"power": 2.0, "end": 0.0}, check=_check_polynomial,
    ),
    "cosine": ScheduleSpec(
        factor=cosine, paper="Loshchilov and Hutter 2017 (SGDR, eq. 5)", rule="(1 + cos(pi t / T)) / 2, restarted",
        use=f"{_FALLS}; with period and growth for one whose end is open",
        defaults={"period": 0, "growth": 1.0, "end": 0.0}, check=_check_cosine,
    ),
    "one_cycle": ScheduleSpec(
        factor=lambda at, **options: one_cycle.factor(at.t, at.total, **options),
        momentum=lambda at, **options: one_cycle.momentum(at.t, at.total, **options),
        paper="Smith and Topin 2018",
        rule="up to 1 in a share `rise` of the run, then down far below the start; momentum the other way round",
        use="few epochs at high rates", check=one_cycle.check,
        defaults=one_cycle.DEFAULTS,
    ),
    "inverse_sqrt": ScheduleSpec(
        factor=inverse_sqrt, paper="Vaswani et al. 2017, section 5.3", rule="sqrt(k / (k + t))",
        use="after warm-up, for a run whose end is open", defaults={"timescale": 0},
        check=_not_negative,
    ),
    "plateau": ScheduleSpec(
        factor=constant, paper="-", rule="times `factor` after `patience` evaluations without a better loss",
        use="where validation says when to slow down", traits=frozenset({NEEDS_VALIDATION}), check=_check_plateau,
        defaults={
            "factor": 0.1, "patience": 10, "threshold": 1e-4, "threshold_mode": "rel", "cooldown": 0, "end": 0.0,
        },
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A schedule with its warm-up; the help is made of SCHEDULES, below."""

    name: str = "constant"
    by: str = "step"
    warmup: int = 0
    warmup_epochs: float = 0.0
    options: dict[str, Any] = field(default_factory=dict, metadata=FREE)

    def __post_init__(self) -> None:
        known("train.schedule.name", self.name, SCHEDULES)
        known("train.schedule.by", self.by, UNITS)
        if self.warmup < 0 or self.warmup_epochs < 0 or (self.warmup and self.warmup_epochs):
            raise UserError("warm-up is of so many steps or of so many epochs, not both, and of none below 0",
                            "--train.schedule.warmup or --train.schedule.warmup_epochs")  # fmt: skip
        self.chosen()

    @property
    def spec(self) -> ScheduleSpec:
        """The entry of SCHEDULES."""
        return SCHEDULES[self.name]

    def chosen(self) -> dict[str, Any]:
        """All options, checked."""
        options = choose(f"schedule {self.name}", self.spec.defaults, self.options)
        try:
            self.spec.check(**options)
        except ValueError as error:
            raise UserError(f"schedule {self.name}: {error}") from None
        return options


ScheduleConfig.__doc__ = f"""A schedule with its warm-up.

    Args:
        name: one of {", ".join(SCHEDULES)}.
        by: the unit of the schedule's clock: step, or epoch (the rate stays within one).
        warmup: steps in which rates rise linearly, before the schedule's clock starts.
        warmup_epochs: the same in epochs; of the two only one is given.
        options: of the schedule, each a setting by its own name, as in --train.schedule.period 1000. With their
            defaults: {"; ".join(f"{n}: {described(s.defaults)}" for n, s in SCHEDULES.items() if s.defaults)}.

    Raises:
        UserError: an unknown name, unit or option, or a value that makes no sense.
    """


class Rates(NamedTuple):
    """What a step is made with: factor of the base rates, and the momentum (None: the rule's own)."""

    factor: float
    momentum: float | None = None


def set_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Scale every group's base learning rate; set the momentum of rules that have one, where it is given.

    A momentum of 0 stays 0: the rule keeps no buffer then, and row-sparse gradients could not have one.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * rates.factor
        if rates.momentum is None:
            continue
        if group.setdefault("initial_momentum", group.get("momentum", 0.0)) > 0.0:
            group["momentum"] = rates.momentum
        elif "betas" in group:
            group["betas"] = (rates.momentum, *group["betas"][1:])


class Schedule:
    """A schedule at work; a function of the step but for `plateau`.

    Args:
        config: see ScheduleConfig.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config, self._options = config, config.chosen()
        self._follower = Plateau(**self._options) if NEEDS_VALIDATION in config.spec.traits else None

    def rates(self, step: int, epochs: int, steps_per_epoch: int) -> Rates:
        """For step `step` (from 0, over the whole run) of a run of `epochs` epochs of so many steps."""
        warmup = self.config.warmup or round(self.config.warmup_epochs * steps_per_epoch)
        unit = steps_per_epoch if self.config.by == "epoch" else 1
        after, total = max(0, step - warmup), max(0, epochs * steps_per_epoch - warmup)
        at = At(after // unit, -(-total // unit), -(-warmup // unit))
        spec = self.config.spec
        factor = self._follower.factor_now if self._follower else spec.factor(at, **self._options)
        rise = (step + 1) / warmup if step < warmup else 1.0
        return Rates(factor * rise, spec.momentum(at, **self._options) if spec.momentum else None)

    def judge(self, loss: float | None) -> None:
        """Take a validation loss; None (no figure) counts as not better."""
        if self._follower is not None:
            self._follower.judge(math.inf if loss is None else loss)

    def state_dict(self) -> dict[str, Any]:
        """Empty but for plateau."""
        return self._follower.state_dict() if self._follower else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave."""
        if self._follower is not None and state:
            self._follower.load_state_dict(state)
