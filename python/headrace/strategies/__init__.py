"""How ranks combine what they compute: reducers (sums of gradients) and strategies (when and what is combined)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from headrace.comm import Collective
from headrace.options import choose, known
from headrace.strategies import gossip, hogwild, local_sgd, reducers
from headrace.strategies.allreduce import AllReduce
from headrace.strategies.overlap import OVERLAP, Overlap, pays
from headrace.strategies.reducers import BUCKET_BYTES, Reducer, ReducerSpec

if TYPE_CHECKING:
    from headrace.strategies.surroundings import Surroundings


class Strategy(Protocol):
    """Called by the training loop around backward, between backward and update, and after the update.

    Attributes:
        local: ranks may hold different parameters between steps that they meet in, and are told nothing of each other
            in others: a rank's gradient is the mean over its own rows, and what the optimizer keeps is its own.
        one_copy: and all of them change one copy of the parameters.
    """

    local: bool
    one_copy: bool

    def begin(self, params: Mapping[str, nn.Parameter]) -> None:
        """Before the first step: parameters, equal on all ranks or as a checkpoint had them; may give them other
        memory."""

    def meets(self, step: int, last: bool) -> bool:
        """Whether all ranks meet in a step, and are told of each other; `last`: it is an epoch's last one."""

    def backward(self) -> AbstractContextManager[None]:
        """Surrounds backward: a strategy may exchange while it runs, so nobody else uses the collective inside."""

    def on_gradients(self, grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """What the optimizer shall use instead of this rank's gradients (sums over rows, not means)."""

    def before_update(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
        """What the optimizer is about to change, and by what."""

    def on_parameters(self, params: dict[str, Tensor], step: int, meets: bool) -> None:
        """Change parameters in place after the update, where the strategy works on them; `meets` as it was said."""

    def consensus(self, params: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, parameters are those that all ranks agree on: for evaluation; all ranks enter together."""

    def finish(self, params: dict[str, Tensor]) -> None:
        """Training is over: all ranks hold the same parameters from now on."""

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """Called after every step that `on_gradients` or `backward` was called for; see `Reducer.settle`."""

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`."""

    def close(self) -> None:
        """Let go of the parameters: training is over."""

    def state_dict(self) -> dict[str, Any]:
        """What must be kept with a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""


@dataclass(frozen=True)
class StrategySpec:
    """A strategy and its traits.

    Args:
        factory: `factory(reducer, collective)` makes one.
        synchronous: all ranks hold equal parameters after every step.
        stateful: `state_dict` must be kept with a checkpoint.
        defaults: options and their values where none are given.
        check: `check(**options)` refuses with a UserError what makes no sense.
        fits: `fits(options, around)` refuses settings of the run that do not go with it.
        repeatable: the same seed and number of ranks give the same bits.
    """

    factory: Callable[..., Strategy]
    synchronous: bool
    stateful: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[..., None] = lambda **options: None
    fits: Callable[[Mapping[str, Any], Surroundings], None] = lambda options, around: None
    repeatable: bool = True


REDUCERS = {
    "ordered": ReducerSpec(reducers.ordered, same_bits=True),
    "ring": ReducerSpec(reducers.ring, same_bits=False),
}
STRATEGIES = {
    "allreduce": StrategySpec(AllReduce, synchronous=True, stateful=False),
    "local_sgd": StrategySpec(
        local_sgd.local_sgd, synchronous=False, stateful=True, defaults=local_sgd.DEFAULTS, check=local_sgd.check
    ),
    "gossip": StrategySpec(
        gossip.gossip, synchronous=False, stateful=True, defaults=gossip.DEFAULTS, check=gossip.check, fits=gossip.fits
    ),
    "hogwild": StrategySpec(
        hogwild.hogwild,
        synchronous=False,
        stateful=False,
        defaults=hogwild.DEFAULTS,
        check=hogwild.check,
        fits=hogwild.fits,
        repeatable=False,
    ),
}


def create(name: str, reducer: Reducer, collective: Collective, **options: Any) -> Strategy:
    """The strategy of that name, over the ranks of a collective.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    known("strategy.name", name, STRATEGIES)
    spec = STRATEGIES[name]
    return spec.factory(reducer, collective, **choose(f"strategy {name}", spec.defaults, options))


__all__ = [
    "BUCKET_BYTES",
    "OVERLAP",
    "REDUCERS",
    "STRATEGIES",
    "AllReduce",
    "Overlap",
    "Reducer",
    "ReducerSpec",
    "Strategy",
    "StrategySpec",
    "create",
    "pays",
]
