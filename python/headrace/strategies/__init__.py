"""How ranks combine what they compute: reducers (sums of gradients) and strategies (when and what is combined)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from headrace.strategies import reducers
from headrace.strategies.allreduce import AllReduce
from headrace.strategies.overlap import OVERLAP, Overlap, pays
from headrace.strategies.reducers import BUCKET_BYTES, Reducer, ReducerSpec


class Strategy(Protocol):
    """Called by the training loop around backward, between backward and update, and after the update."""

    def backward(self) -> AbstractContextManager[None]:
        """Surrounds backward: a strategy may exchange while it runs, so nobody else uses the collective inside."""

    def on_gradients(self, grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """What the optimizer shall use instead of this rank's gradients (sums over rows, not means)."""

    def on_parameters(self, params: dict[str, Tensor], step: int) -> None:
        """Change parameters in place after the update, where the strategy works on them."""

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
    """

    factory: Callable[..., Strategy]
    synchronous: bool
    stateful: bool


REDUCERS = {
    "ordered": ReducerSpec(reducers.ordered, same_bits=True),
    "ring": ReducerSpec(reducers.ring, same_bits=False),
}
STRATEGIES = {"allreduce": StrategySpec(AllReduce, synchronous=True, stateful=False)}

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
    "pays",
]
