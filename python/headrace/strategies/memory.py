"""What a reducer remembers from step to step, by parameter name, and what it measures on the way.

A turn counts when `settle` says that the step was made; else it is as if it had not been.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from headrace.comm.clock import Clock, WallClock
from headrace.compress.base import State


class Memory:
    """Base of reducers that remember.

    Attributes:
        seconds: spent, by "encode", "exchange" (waiting for others included), "decode"; and as "encode_cpu", ... those
            of the thread's own work, which a busy machine does not lengthen.
        numbers: bytes of gradients that were compressed, before and after, as "in" and "out"; of the latter those of
            tables' rows, as "rows_out".
        clock: of the seconds.
    """

    clock: Clock = WallClock()

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.numbers: Counter[str] = Counter()
        self._kept: dict[str, State] = {}
        self._next: dict[str, State] = {}

    def settle(self, made: bool, rescaled: float = 1.0) -> None:
        """See `Reducer.settle`."""
        if made:
            self._kept |= self._next
        self._next = {}
        if rescaled != 1.0:
            self._kept = {unit: self.scaled(state, rescaled) for unit, state in self._kept.items()}

    def scaled(self, state: State, factor: float) -> State:
        """A unit's state for gradients that are larger by a factor: what it remembers of gradients, scaled."""
        scaled = {n: v * factor for n, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()}
        below = {name: self.scaled(value, factor) for name, value in state.items() if isinstance(value, dict)}
        return state | scaled | below

    def figures(self) -> dict[str, float]:
        """See `Reducer.figures`."""
        seconds = {f"{what}_seconds": value for what, value in self.seconds.items()}
        sizes = {"bytes_before": self.numbers["in"], "bytes_after": self.numbers["out"]}
        return sizes | {"row_bytes_after": self.numbers["rows_out"]} | seconds

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, by name; of this rank."""
        return {"units": self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave.

        Raises:
            ValueError: for the state of another reducer.
        """
        if "units" not in state:
            raise ValueError("the checkpoint has no memory of compressed gradients: they were not compressed then")
        self._kept, self._next = dict(state["units"]), {}

    def kept(self, unit: str) -> State | None:
        """What is remembered of a unit, if anything."""
        return self._kept.get(unit)

    def remember(self, unit: str, state: State) -> None:
        """For the next turn, if this one is kept."""
        self._next[unit] = state

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds to `seconds`."""
        start, cpu = self.clock.now(), time.thread_time()
        try:
            yield
        finally:
            self.seconds[what] += self.clock.now() - start
            self.seconds[f"{what}_cpu"] += time.thread_time() - cpu
