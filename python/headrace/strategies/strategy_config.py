"""Settings of when ranks work together, and what does not go with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import UserError
from headrace.free_options import FREE
from headrace.optim.spec import (
    NEEDS_CLOSURE,
    NEEDS_FULL_PASS,
    NEEDS_KEYS,
    NEEDS_MODEL,
    NEEDS_OUTPUTS,
    OWN_GRADIENT,
)  # fmt: skip
from headrace.optim.wrapper import AVERAGES
from headrace.options import choose, described, known
from headrace.strategies import STRATEGIES, StrategySpec
from headrace.strategies.surroundings import Surroundings

_AT_RANKS = {
    NEEDS_CLOSURE: "evaluates the loss",
    NEEDS_OUTPUTS: "reads the model's outputs",
    NEEDS_KEYS: "keeps something of every row",
    NEEDS_MODEL: "looks into the model's layers",
    OWN_GRADIENT: "steps along gradients of its own",
    AVERAGES: "has averages that evaluation would need",
}  # traits of rules that work where the rows are, and what these do there


@dataclass(kw_only=True)
class StrategyConfig:
    """When ranks exchange what; the help is made of STRATEGIES, below."""

    name: str = "allreduce"
    options: dict[str, Any] = field(default_factory=dict, metadata=FREE)

    @property
    def spec(self) -> StrategySpec:
        """Of the strategy.

        Raises:
            UserError: there is no such strategy.
        """
        known("strategy.name", self.name, STRATEGIES)
        return STRATEGIES[self.name]


StrategyConfig.__doc__ = f"""When ranks exchange what.

    Args:
        name: one of {", ".join(STRATEGIES)}.
        options: of the strategy, each a setting by its own name, as in --strategy.steps 8. With their defaults:
            {"; ".join(f"{name}: {described(spec.defaults) or 'none'}" for name, spec in STRATEGIES.items())}.
    """


def check_strategy(cfg: StrategyConfig, around: Surroundings) -> None:
    """Refuse what cannot be, or does not go together.

    Raises:
        UserError: which, and what to do.
    """
    spec = cfg.spec
    options = choose(f"strategy {cfg.name}", spec.defaults, cfg.options)
    spec.check(**options)
    if not spec.sums and around.reduction != "ordered":
        raise UserError(
            f"--reduction {around.reduction} with {cfg.name}: ranks make no sums of gradients there", "leave it out"
        )
    spec.fits(options, around)
    if spec.synchronous:
        return
    back = "--strategy.name allreduce"
    if around.precision == "fp16":
        raise UserError(f"--strategy.name {cfg.name} with fp16: each rank would have a scale of its own", "bf16")
    if around.parameters != "float32" and not spec.remote:
        raise UserError(
            f"{cfg.name} with {around.parameters} parameters: a rank's masters would be written over what others did",
            "--train.precision.parameters float32",
        )
    if around.overlap == "on":
        raise UserError(f"--train.overlap on: {cfg.name} exchanges nothing while backward runs", "--train.overlap auto")
    if around.aggregation != "none":
        raise UserError(
            f"--aggregation.name {around.aggregation} is of all ranks' gradients, {cfg.name} lets each step on its own",
            back,
        )
    if own := [name for name, traits in around.rules.items() if NEEDS_FULL_PASS in traits]:
        raise UserError(f"{own[0]} goes through all rows with all ranks, {cfg.name} lets each step on its own", back)
    if spec.remote:
        _check_remote(cfg.name, around.rules)


def _check_remote(name: str, rules: Mapping[str, Iterable[str]]) -> None:
    """Servers have gradients of a part of the model, and nothing else."""
    for rule, traits in rules.items():
        if asked := sorted(_AT_RANKS.keys() & traits):
            raise UserError(
                f"{rule} {_AT_RANKS[asked[0]]}, and the servers of --strategy.name {name} have gradients of their part",
                f"leave {rule} out, or --strategy.name allreduce",
            )
