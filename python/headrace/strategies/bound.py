"""How far workers may run ahead of the slowest: a fixed bound s, or one that tunes itself from what it measures.

    a worker with c pushes goes on when c - min over workers of their pushes <= s           (s < 0: always)

Q. Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server", NIPS 2013: of the
other workers' gradients, parameters that a worker goes on with lack s pushes each at most.

The tuned bound looks at windows of `window` pushes a worker, of N workers. In window k

    rho_k = seconds that the bound made workers wait / (N times the window's seconds)
    L_k, e_k = mean of the losses that came with the pushes, and its standard error
    lag_k = the largest c - min

and moves s within [low, high] by the first of these that holds, looking from the second window after a change on (the
first one only shows how those that waited take up the new room):

    L_k > L_(k-1) + 2 sqrt(e_k^2 + e_(k-1)^2)    "loss": s <- s // 2; no raise for `hold` windows, hold <- 2 hold
    after a raise, rho_k > 0.8 rho before it     "idle": back to that s; no raise for `hold` windows, hold <- 2 hold
    rho_k > 0.05                                 "wait": s <- max(s + 1, 2 s)
    lag_k < s                                    "room": s <- s - 1

So s rises while waiting gets less by it: a rank that is slow now and then is waited for less with a larger bound, one
that is always slow just as long with any. What no one uses is taken back, for it is the harm that the next slow rank
can do. A rule of our own; that of Dynamic SSP (X. Zhao et al., "Dynamic stale synchronous parallel distributed training
for deep learning", ICDCS 2019) predicts waiting from the last two pushes and does not look at the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

WASTE, HELPED, SURE = 0.05, 0.8, 2.0
_MAX_HOLD = 64
_KEPT = ("before", "raised", "settling", "held", "hold")


class Decision(NamedTuple):
    """A move of the bound."""

    bound: int
    why: str
    waited: float
    loss: float
    lag: int


@dataclass
class _Window:
    began: float
    waited: float = 0.0
    lag: int = 0
    pushes: int = 0
    losses: list[float] = field(default_factory=list)

    def mean(self) -> tuple[float, float]:
        """Of the losses, and its standard error."""
        n = len(self.losses)
        if not n:
            return math.nan, math.nan
        mean = math.fsum(self.losses) / n
        square = math.fsum((loss - mean) ** 2 for loss in self.losses)
        return mean, math.sqrt(square / max(1, n - 1) / n)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a tuned bound.

    Args:
        low: s is at least so much.
        high: and at most so much.
        window: pushes a worker in a window.
    """

    low: int = 0
    high: int = 16
    window: int = 16


class TunedBound:
    """See the module's docstring; a function of what it is told, and of nothing else.

    Args:
        value: s to begin with.
        limits: see Limits.
        workers: N.
        now: the time.
    """

    def __init__(self, value: int, limits: Limits, workers: int, now: float) -> None:
        self.value, self.limits, self.workers = value, limits, workers
        self._window = _Window(now)
        self._before: tuple[float, float] | None = None  # L and e of the window before
        self._raised: tuple[int, float] | None = None  # s and rho before a raise that is to be judged
        self._settling, self._held, self._hold = False, 0, 2

    def waited(self, seconds: float) -> None:
        """The bound made a worker wait."""
        self._window.waited += seconds

    def pushed(self, loss: float | None, lag: int, now: float) -> Decision | None:
        """A push came; what was decided, where that ends a window and s moves."""
        window = self._window
        window.pushes += 1
        window.lag = max(window.lag, lag)
        if loss is not None:
            window.losses.append(loss)
        if window.pushes < self.limits.window * self.workers or now <= window.began:
            return None
        self._window = _Window(now)
        return self._judge(window, window.waited / (self.workers * (now - window.began)))

    def _judge(self, window: _Window, waited: float) -> Decision | None:
        mean, error = window.mean()
        before, self._before = self._before, (mean, error)
        self._held = max(0, self._held - 1)
        if self._settling:
            self._settling = False
            return None
        rose = before is not None and mean > before[0] + SURE * math.hypot(error, before[1])
        raised, self._raised = self._raised, None
        value, why = self._moved(window, waited, rose, raised)
        if value == self.value:
            return None
        if why == "wait":
            self._raised = (self.value, waited)
        self.value, self._settling = value, True
        return Decision(value, why, waited, mean, window.lag)

    def _moved(self, window: _Window, waited: float, rose: bool, raised: tuple[int, float] | None) -> tuple[int, str]:
        low, high = self.limits.low, self.limits.high
        if rose and self.value > low:
            self._wait_with_raises()
            return max(low, self.value // 2), "loss"
        if raised is not None and waited > HELPED * raised[1]:
            self._wait_with_raises()
            return raised[0], "idle"
        if waited > WASTE and not self._held:
            return min(high, max(self.value + 1, 2 * self.value)), "wait"
        if window.lag < self.value:
            return max(low, self.value - 1), "room"
        return self.value, ""

    def _wait_with_raises(self) -> None:
        self._held, self._hold = self._hold, min(_MAX_HOLD, 2 * self._hold)

    def state_dict(self, now: float) -> dict[str, Any]:
        """JSON: all of it, with the time since the window began in place of when."""
        own = {name: getattr(self, f"_{name}") for name in _KEPT}
        window = asdict(self._window) | {"began": now - self._window.began}
        return own | {"value": self.value, "window": window}

    def load_state_dict(self, state: Mapping[str, Any], now: float) -> None:
        """Accept what `state_dict` gave."""
        for name in _KEPT:
            value = state[name]
            setattr(self, f"_{name}", tuple(value) if isinstance(value, list) else value)
        self.value = state["value"]
        self._window = _Window(**{**state["window"], "began": now - state["window"]["began"]})
