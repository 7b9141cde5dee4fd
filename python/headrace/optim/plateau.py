"""Reduce on plateau: the rate is lowered where the validation loss stands still.

    a loss is better when it is below best (1 - threshold) (rel) or best - threshold (abs);
    after more than `patience` losses in a row that are not:  factor <- max(end, factor * decay), then `cooldown` losses
    count for nothing

As torch's ReduceLROnPlateau, with `end` the least factor instead of `min_lr` and no `eps`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Plateau:
    """See the module's docstring; patience and cooldown count evaluations."""

    def __init__(
        self, factor: float, patience: int, threshold: float, threshold_mode: str, cooldown: int, end: float
    ) -> None:
        self._factor, self._patience, self._cooldown, self._end = factor, patience, cooldown, end
        self._threshold, self._relative = threshold, threshold_mode == "rel"
        self.factor_now, self._best, self._bad, self._cooling = 1.0, math.inf, 0, 0

    def judge(self, loss: float) -> None:
        """Take a validation loss."""
        limit = self._best * (1.0 - self._threshold) if self._relative else self._best - self._threshold
        better = loss < limit
        self._best, self._bad = (loss, 0) if better else (self._best, self._bad + 1)
        if self._cooling:
            self._cooling, self._bad = self._cooling - 1, 0
        if self._bad > self._patience:
            self.factor_now = max(self._end, self.factor_now * self._factor)
            self._cooling, self._bad = self._cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        """JSON."""
        best = None if math.isinf(self._best) else self._best
        return {"factor": self.factor_now, "best": best, "bad": self._bad, "cooling": self._cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept what `state_dict` gave."""
        self.factor_now, self._bad, self._cooling = state["factor"], state["bad"], state["cooling"]
        self._best = math.inf if state["best"] is None else state["best"]
