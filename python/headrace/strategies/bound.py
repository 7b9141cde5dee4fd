"""How far workers may run ahead of the slowest: a fixed bound s, or one that tunes itself from what it measures.

    a worker with c pushes goes on when c - min over workers of their pushes <= s           (s < 0: always)

Q. Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server", NIPS 2013: of the
other workers' gradients, parameters that a worker goes on with lack s pushes each at most.

The tuned bound moves after every `window` pushes a worker. From d_m(c), the seconds that worker m took for the c-th of
its last H pushes, from being told parameters on, it works out when these would have come under any s,

    A_m(0) = 0,    A_m(c + 1) = max(A_m(c), max over j of A_j(c - s)) + d_m(c),    T(s) = max over m of A_m(H)

with H as many as are known of all, up to 4 high (it stays while they are under high: s shows in s pushes), and takes

    s* = the least s in [low, high] with T(s) <= 1.02 T(high)
    s  = min(s*, ceiling),    ceiling <- s // 2 where the loss rose, else min(high, ceiling + 1)

The loss rose where L_k > L_(k-1) + 2 sqrt(e_k^2 + e_(k-1)^2), with L_k the mean of the losses that came with the
pushes of window k, and e_k its standard error. So s is no larger than it saves time: for a worker that is slow now and
then it is as large as the others need to go on meanwhile; for one that is always slow all make H pushes as late under
any s, and s is the least.

A rule of our own. Dynamic SSP (X. Zhao et al., "Dynamic stale synchronous parallel distributed training for deep
learning", ICDCS 2019) predicts one wait at a time from the last two pushes, and does not look at the loss.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

SLACK, SURE, HORIZON = 0.02, 2.0, 4


class Decision(NamedTuple):
    """A move of the bound.

    Args:
        bound: s from now on.
        why: "speed" or "loss".
        waited: share of the window's time that workers waited for others, on the average.
        loss: mean of the window.
        seconds: T(s) over T of the s before.
    """

    bound: int
    why: str
    waited: float
    loss: float
    seconds: float


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
        self._ceiling = limits.high
        self._before: tuple[float, float] | None = None  # L and e of the window before
        self._seconds = [self._history() for _ in range(workers)]
        self._open(now)

    def _history(self, seconds: Sequence[float] = ()) -> deque[float]:
        return deque(seconds, max(self.limits.window, HORIZON * self.limits.high))

    def _open(self, now: float) -> None:
        self._began, self._waited, self._pushes = now, 0.0, 0
        self._losses: list[float] = []

    def waited(self, seconds: float) -> None:
        """The bound made a worker wait."""
        self._waited += seconds

    def pushed(self, worker: int, seconds: float | None, loss: float | None, now: float) -> Decision | None:
        """A push came; what was decided, where that ends a window and s moves.

        Args:
            worker: whose.
            seconds: since it was told parameters; None: it did something else meanwhile.
            loss: that came with it, if any.
            now: the time.
        """
        self._pushes += 1
        if seconds is not None:
            self._seconds[worker].append(seconds)
        if loss is not None:
            self._losses.append(loss)
        if self._pushes < self.limits.window * self.workers:
            return None
        decision = self._judge(now) if all(self._seconds) else None
        self._open(now)
        return decision

    def _judge(self, now: float) -> Decision | None:
        mean, error = _mean(self._losses)
        before, self._before = self._before, (mean, error)
        rose = before is not None and mean > before[0] + SURE * math.hypot(error, before[1])
        low, high, old = self.limits.low, self.limits.high, self.value
        self._ceiling = max(low, old // 2) if rose else min(high, self._ceiling + 1)
        if min(len(each) for each in self._seconds) < high:
            return None
        took = finish_times(self._seconds, range(low, high + 1))
        wanted = next(s for s in range(low, high + 1) if took[s] <= (1 + SLACK) * took[high])
        self.value = min(wanted, self._ceiling)
        if self.value == old:
            return None
        share = self._waited / (self.workers * (now - self._began)) if now > self._began else 0.0
        why = "loss" if self.value < wanted else "speed"
        return Decision(self.value, why, share, mean, took[self.value] / took[old] if took[old] else 1.0)

    def state_dict(self, now: float) -> dict[str, Any]:
        """JSON: all of it, with the time since the window began in place of when."""
        return {
            "value": self.value, "ceiling": self._ceiling, "before": self._before, "age": now - self._began,
            "waited": self._waited, "pushes": self._pushes, "losses": self._losses,
            "seconds": [list(each) for each in self._seconds],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any], now: float) -> None:
        """Accept what `state_dict` gave."""
        before = state["before"]
        self.value, self._ceiling, self._before = state["value"], state["ceiling"], tuple(before) if before else None
        self._began, self._waited, self._pushes = now - state["age"], state["waited"], state["pushes"]
        self._seconds, self._losses = [self._history(each) for each in state["seconds"]], list(state["losses"])


def finish_times(seconds: Sequence[Sequence[float]], bounds: Sequence[int]) -> dict[int, float]:
    """T(s) by s.

    Args:
        seconds: d of every worker, the newest last; H is the least of their numbers, 1 or more.
        bounds: of s, each 0 or more.
    """
    pushes = min(len(each) for each in seconds)
    d = np.stack([np.asarray(each)[-pushes:] for each in seconds], axis=1)
    found = {}
    for s in bounds:
        arrived = np.zeros((pushes + 1, d.shape[1]))
        last = np.zeros(pushes + 1)  # max over j of A_j(c)
        for c in range(pushes):
            arrived[c + 1] = np.maximum(arrived[c], last[c - s] if c > s else 0.0) + d[c]
            last[c + 1] = arrived[c + 1].max()
        found[s] = float(last[pushes])
    return found


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """And its standard error."""
    n = len(values)
    if not n:
        return math.nan, math.nan
    mean = math.fsum(values) / n
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, n - 1) / n)
