"""Time as strategies and studies see it: that of the machine, or that of a simulated cluster."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """One rank's time."""

    def now(self) -> float:
        """Seconds from some beginning."""

    def spend(self, seconds: float) -> None:
        """Say that the rank computed for so long; a real clock went on by itself meanwhile."""


class WallClock:
    """The machine's."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.monotonic()

    def spend(self, seconds: float) -> None:
        """See `Clock.spend`."""
