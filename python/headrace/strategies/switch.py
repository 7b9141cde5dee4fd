"""Whether to compress at all: what a step takes with encode + send + decode, against sending as is, as it was measured.

    way <- the other way  where  seconds(other) < (1 - MARGIN) seconds(way)

Seconds are those of a turn, all of the step that it is for, the median of the last WINDOW of a period. At first both
ways are tried for WINDOW turns and one, which is not counted. Then the chosen way is taken for a period; after it the
other one is tried again, if

    - its seconds are off by more than DRIFT from those when both were compared: the link or the machine is another, or
    - so many periods have passed: 1 at first, twice as many each time that trying changed nothing, MOST at most.

MARGIN is hysteresis: where both ways take as long, the way stays; so it does where the exchange is a small part of a
step. Trying costs WINDOW + 1 turns of the other way, at most MOST periods apart. Whoever calls must give all ranks the
same seconds: then all change together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

WINDOW = 4
MARGIN = 0.1
DRIFT = 0.25
MOST = 16


class Compared(NamedTuple):
    """Both ways were compared.

    Args:
        compress: whether compression is on from now on.
        changed: whether it was not so before.
        compressed: seconds of a turn.
        as_is: seconds of a turn.
    """

    compress: bool
    changed: bool
    compressed: float
    as_is: float


@dataclass
class Switch:
    """See the module's docstring.

    Args:
        period: turns between looks at what a turn takes.
        compress: the way that is taken.
        trying: whether it is the other one that is tried now.
        turns: of this period, or of trying, so far.
        recent: seconds of the last of them, on this rank.
        seconds: agreed ones by way: "compressed", "as_is".
        compared: those of the way that is taken when both were compared.
        idle: periods since then.
        patience: periods until the other way is tried again.
    """

    period: int
    compress: bool = True
    trying: bool = False
    turns: int = 0
    recent: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    compared: float = math.inf
    idle: int = 0
    patience: int = 1

    @property
    def engaged(self) -> bool:
        """Whether the next turn is compressed."""
        return self.compress != self.trying

    @property
    def due(self) -> bool:
        """Whether seconds must be agreed on now."""
        short = self.trying or not self.seconds
        return self.turns >= (WINDOW + 1 if short else max(self.period, WINDOW + 1))

    def turn(self, seconds: float) -> None:
        """A turn was taken and took so long on this rank."""
        self.turns += 1
        self.recent = [*self.recent[1 - WINDOW :], seconds]

    def agreed(self, seconds: float) -> Compared | None:
        """What a turn of late took, the same on all ranks; what a comparison said, where there was one."""
        way = "compressed" if self.engaged else "as_is"
        self.seconds[way], self.turns, self.recent = seconds, 0, []
        if self.trying:
            return self._compare()
        self.idle += 1
        drifted = abs(seconds - self.compared) > DRIFT * self.compared
        self.trying = self.idle >= self.patience or drifted or len(self.seconds) < 2
        if drifted:
            self.patience = 1
        return None

    def _compare(self) -> Compared:
        own, other = self._both()
        changed = other < (1 - MARGIN) * own
        self.compress ^= changed
        self.patience = 1 if changed else min(MOST, 2 * self.patience)
        self.trying, self.idle, self.compared = False, 0, min(own, other) if changed else own
        return Compared(self.compress, changed, self.seconds["compressed"], self.seconds["as_is"])

    def _both(self) -> tuple[float, float]:
        """Seconds of the way that is taken, and of the other one."""
        pair = self.seconds["compressed"], self.seconds["as_is"]
        return pair if self.compress else (pair[1], pair[0])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able, but for the infinite."""
        return {name: value for name, value in asdict(self).items() if name != "period"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        for name, value in state.items():
            setattr(self, name, type(value)(value))


def median(recent: list[list[float]]) -> float:
    """Of turns [ranks][turns], of each the mean over ranks: where one waits, another has been waited for before."""
    return statistics.median(statistics.fmean(of_turn) for of_turn in zip(*recent, strict=True))
