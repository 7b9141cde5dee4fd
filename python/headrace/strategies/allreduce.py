"""Synchronous data parallelism: every step uses the sum of all ranks' gradients."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from headrace.comm.base import Collective
from headrace.strategies.overlap import Overlap
from headrace.strategies.reducers import Reducer


class AllReduce:
    """Replaces gradients by their sum over ranks, every step; parameters stay equal because the updates are.

    Args:
        reducer: how sums are taken; an `Overlap` takes them while backward runs.
        collective: over whom.
    """

    local = one_copy = False

    def __init__(self, reducer: Reducer, collective: Collective) -> None:
        self.reducer = reducer
        self.collective = collective

    def begin(self, params: Mapping[str, nn.Parameter]) -> None:
        """Nothing to do."""

    def backward(self) -> AbstractContextManager[None]:
        """Surrounds backward; nobody else may use the collective inside."""
        return self.reducer.backward() if isinstance(self.reducer, Overlap) else nullcontext()

    def meets(self, step: int, last: bool) -> bool:
        """In every step."""
        return True

    def on_gradients(self, grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Sums over ranks by name; divide by the global number of rows afterwards."""
        return self.reducer.reduce(grads, self.collective)

    def before_update(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
        """Nothing to do."""

    def on_parameters(self, params: dict[str, Tensor], step: int, meets: bool) -> None:
        """Called after the update; nothing to do, all ranks made the same one."""

    def consensus(self, params: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Ranks hold the same already."""
        return nullcontext()

    def close(self) -> None:
        """Let go of the parameters."""
        if isinstance(self.reducer, Overlap):
            self.reducer.close()

    def finish(self, params: dict[str, Tensor]) -> None:
        """Ranks hold the same already."""

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """See `Reducer.settle`."""
        self.reducer.settle(made, rescaled)

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`."""
        return self.reducer.figures()

    def state_dict(self) -> dict[str, Any]:
        """What the reducer remembers; nothing else is carried from step to step."""
        return self.reducer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: for the state of another strategy or reducer.
        """
        self.reducer.load_state_dict(state)
