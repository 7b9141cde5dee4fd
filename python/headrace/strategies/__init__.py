"""How ranks combine what they compute: reducers (sums of gradients) and strategies (when and what is combined)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from headrace.comm import Collective
from headrace.optim.schedules import Rates
from headrace.options import choose, known
from headrace.strategies import gossip, hogwild, local_sgd, parameter_server, reducers
from headrace.strategies.allreduce import AllReduce
from headrace.strategies.equipment import Equipment
from headrace.strategies.overlap import OVERLAP, Overlap, pays
from headrace.strategies.reducers import BUCKET_BYTES, Reducer, ReducerSpec
from headrace.strategies.server_options import ServerOptions

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


@runtime_checkable
class Remote(Strategy, Protocol):
    """A strategy by which others update the parameters: `push` takes the place of the optimizer's step, and the rank's
    own optimizer only says at what rates. Inside `consensus`, and after it, ranks hold the same: a checkpoint has no
    parameters of single ranks."""

    def push(self, grads: Mapping[str, Tensor], rates: Rates, loss: float | None) -> None:
        """Send gradients, of the mean `loss` over this rank's rows, to be applied at these rates; none and None where
        it has no rows."""


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
        sums: over ranks, by the reducer, of gradients or of changes.
        repeatable: the same seed and number of ranks give the same bits.
        remote: it is `Remote`, and the factory takes an Equipment after the collective.
        lead: `lead(options)` of strategies that are not synchronous: the most steps that a rank may be ahead of another
            one; None: as many as an epoch has.
    """

    factory: Callable[..., Strategy]
    synchronous: bool
    stateful: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[..., object] = lambda **options: None
    fits: Callable[[Mapping[str, Any], Surroundings], None] = lambda options, around: None
    sums: bool = True
    repeatable: bool = True
    remote: bool = False
    lead: Callable[[Mapping[str, Any]], int | None] | None = None


REDUCERS = {
    "ordered": ReducerSpec(reducers.ordered, same_bits=True),
    "ring": ReducerSpec(reducers.ring, same_bits=False),
}


def _made(strategy: Callable[..., Strategy], usual: Any, **traits: Any) -> StrategySpec:
    """Of ranks that step on their own; a strategy that takes its options as one object.

    Args:
        strategy: makes it of all that the factory is given, and the options.
        usual: options where none are given: a dataclass whose `check` refuses values out of range.
        traits: see StrategySpec.
    """

    def checked(**options: Any) -> Any:
        given = type(usual)(**options)
        given.check()
        return given

    return StrategySpec(
        lambda *around, **options: strategy(*around, checked(**options)),
        synchronous=False, defaults=asdict(usual), check=checked, **traits,
    )  # fmt: skip


def _served(usual: ServerOptions) -> StrategySpec:
    return _made(
        lambda reducer, *around: parameter_server.ParameterServer(*around), usual, stateful=True,
        fits=parameter_server.fits, sums=False, repeatable=False, remote=True, lead=parameter_server.lead,
    )  # fmt: skip


STRATEGIES = {
    "allreduce": StrategySpec(AllReduce, synchronous=True, stateful=False),
    "local_sgd": _made(local_sgd.LocalSGD, local_sgd.Rounds(), stateful=True, fits=local_sgd.fits, lead=local_sgd.lead),
    "gossip": _made(
        gossip.Gossip, gossip.GossipConfig(), stateful=True, fits=gossip.fits, sums=False, lead=gossip.lead
    ),
    "hogwild": _made(
        hogwild.Hogwild,
        hogwild.HogwildConfig(),
        stateful=False,
        fits=hogwild.fits,
        sums=False,
        repeatable=False,
        lead=hogwild.lead,
    ),
    "parameter_server": _served(ServerOptions()),
    "ssp": _served(ServerOptions(bound=4)),
}


def create(
    name: str, reducer: Reducer, collective: Collective, equipment: Equipment | None = None, **options: Any
) -> Strategy:
    """The strategy of that name, over the ranks of a collective.

    Args:
        name: a key of STRATEGIES.
        reducer: sums gradients.
        collective: over whom.
        equipment: of strategies with trait remote.
        options: of the strategy.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    known("strategy.name", name, STRATEGIES)
    spec = STRATEGIES[name]
    chosen = choose(f"strategy {name}", spec.defaults, options)
    if not spec.remote:
        return spec.factory(reducer, collective, **chosen)
    if equipment is None:
        raise ValueError(f"strategy {name} needs an Equipment")
    return spec.factory(reducer, collective, equipment, **chosen)


__all__ = [
    "BUCKET_BYTES",
    "OVERLAP",
    "REDUCERS",
    "STRATEGIES",
    "AllReduce",
    "Equipment",
    "Overlap",
    "Reducer",
    "ReducerSpec",
    "Remote",
    "Strategy",
    "StrategySpec",
    "create",
    "pays",
]
