"""Settings of aggregation against corrupted ranks, and the reducer that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from headrace.errors import UserError
from headrace.free_options import FREE
from headrace.options import choose, described, known
from headrace.strategies.reducers import BucketReducer, Reducer
from headrace.strategies.robust import Coordinatewise, Krum, NormClip, chunkwise, median, trimmed_mean


@dataclass(frozen=True, kw_only=True)
class AggregationSpec:
    """One entry of AGGREGATIONS.

    Args:
        factory: `factory(exact, **options)` makes the reducer; `exact` is how sums are taken otherwise.
        paper: the reference.
        rule: what becomes of the ranks' gradients, in a few words.
        why_not: `why_not(ranks, options)`: why it cannot be, or an empty text.
        defaults: options and their values where none are given.
        rows: whether it is defined for row-sparse gradients.
        whole: whether it must see whole gradients, so that none can be exchanged while backward runs.
    """

    factory: Callable[..., Reducer]
    paper: str
    rule: str
    why_not: Callable[[int, Mapping[str, Any]], str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rows: bool = False
    whole: bool = False


def _median(exact: BucketReducer) -> Reducer:
    return Coordinatewise(chunkwise(median), exact.bucket_bytes, name="median")


def _trimmed_mean(exact: BucketReducer, trim: int) -> Reducer:
    return Coordinatewise(chunkwise(partial(trimmed_mean, trim=trim)), exact.bucket_bytes, name="trimmed_mean")


def _krum(exact: BucketReducer, faulty: int, chosen: int) -> Reducer:
    return Krum(exact.bucket_bytes, faulty, chosen)


def _few_for_median(ranks: int, options: Mapping[str, Any]) -> str:
    return "" if ranks >= 3 else "of less than 3 gradients the median is the mean: any one of them moves it at will"


def _few_for_trimming(ranks: int, options: Mapping[str, Any]) -> str:
    trim = options["trim"]
    if trim < 1:
        return f"trim {trim}: 1 or more, without any it is the mean"
    return "" if ranks > 2 * trim else f"trim {trim} leaves something of {2 * trim + 1} ranks or more"


def _few_for_krum(ranks: int, options: Mapping[str, Any]) -> str:
    faulty, chosen = options["faulty"], options["chosen"]
    if faulty < 0:
        return f"faulty {faulty}: 0 or more"
    if ranks < 2 * faulty + 3:
        return f"faulty {faulty} takes 2 x {faulty} + 3 = {2 * faulty + 3} ranks or more"
    return "" if 1 <= chosen <= ranks - faulty else f"chosen {chosen}: from 1 to ranks - faulty = {ranks - faulty}"


def _few_for_clipping(ranks: int, options: Mapping[str, Any]) -> str:
    if not 0 < options["factor"] < float("inf"):
        return f"factor {options['factor']:g}: more than 0"
    return "" if ranks >= 2 else "one rank has no others to be compared with"


AGGREGATIONS: dict[str, AggregationSpec] = {
    "median": AggregationSpec(
        factory=_median,
        paper="Yin et al. 2018",
        rule="the median of every number",
        why_not=_few_for_median,
    ),
    "trimmed_mean": AggregationSpec(
        factory=_trimmed_mean,
        paper="Yin et al. 2018",
        rule="the mean of every number without the smallest and largest",
        why_not=_few_for_trimming,
        defaults={"trim": 1},
    ),
    "krum": AggregationSpec(
        factory=_krum,
        paper="Blanchard et al. 2017",
        rule="the mean of the gradients that are nearest to their neighbours",
        why_not=_few_for_krum,
        defaults={"faulty": 1, "chosen": 1},
        rows=True,
        whole=True,
    ),
    "norm_clip": AggregationSpec(
        factory=NormClip,
        paper="-",
        rule="the mean of gradients no longer than factor times the median norm",
        why_not=_few_for_clipping,
        defaults={"factor": 1.0},
        rows=True,
        whole=True,
    ),
}


@dataclass(kw_only=True)
class AggregationConfig:
    """What becomes of the ranks' gradients; the help is made of AGGREGATIONS, below."""

    name: str = "none"
    options: dict[str, Any] = field(default_factory=dict, metadata=FREE)

    @property
    def spec(self) -> AggregationSpec:
        """Of the rule; not of `none`.

        Raises:
            UserError: there is no such rule.
        """
        known("aggregation.name", self.name, ("none", *AGGREGATIONS))
        return AGGREGATIONS[self.name]

    def chosen(self) -> dict[str, Any]:
        """Options of the rule, defaults included.

        Raises:
            UserError: one that it has not, or of another type.
        """
        return choose(f"aggregation {self.name}", self.spec.defaults, self.options)


AggregationConfig.__doc__ = f"""The ranks' gradients: summed, or what a few corrupted ones cannot lead astray.

    Args:
        name: none (the sum), or {"; ".join(f"{name}: {spec.rule}" for name, spec in AGGREGATIONS.items())}.
        options: of the rule, each a setting by its own name, as in --aggregation.trim 2. With their defaults:
            {"; ".join(f"{n}: {described(s.defaults)}" for n, s in AGGREGATIONS.items() if s.defaults)}.
    """


def check_aggregation(cfg: AggregationConfig, ranks: int, *, tables: bool = False, overlap: str = "auto") -> None:
    """Refuse what cannot be.

    Args:
        cfg: the settings.
        ranks: how many there are.
        tables: whether the model has row-sparse gradients.
        overlap: whether gradients are to be exchanged while backward runs.

    Raises:
        UserError: which, and what to do.
    """
    if cfg.name == "none":
        if cfg.options:
            raise UserError(
                f"--aggregation.{next(iter(cfg.options))}: sums have no options",
                f"--aggregation.name, one of {', '.join(AGGREGATIONS)}",
            )
        return
    if why := cfg.spec.why_not(ranks, cfg.chosen()):
        raise UserError(f"--aggregation.name {cfg.name} with {ranks} rank{'s' * (ranks != 1)}: {why}")
    if tables and not cfg.spec.rows:
        others = " or ".join(name for name, spec in AGGREGATIONS.items() if spec.rows)
        raise UserError(
            f"--aggregation.name {cfg.name} is not defined for the row-sparse gradients of embedding tables",
            f"--aggregation.name {others}, or --model.categories false",
        )
    if cfg.spec.whole and overlap == "on":
        raise UserError(
            f"--train.overlap on: {cfg.name} must see whole gradients before anything is exchanged",
            "--train.overlap auto",
        )


def aggregated(cfg: AggregationConfig, exact: BucketReducer) -> Reducer:
    """The reducer of a run: `exact` itself where gradients are summed. `cfg` is checked."""
    return exact if cfg.name == "none" else cfg.spec.factory(exact, **cfg.chosen())
