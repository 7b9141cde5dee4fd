"""What servers do with gradients as they come: settings of headrace.strategies.parameter_server."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import UserError
from headrace.strategies.bound import Limits
from headrace.strategies.compensation import KINDS

STALENESS = "staleness"
RATES = ("none", STALENESS)
_OF_TUNING = ("bound_min", "bound_max", "window")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Settings of the strategy.

    Args:
        servers: so many ranks, the first ones, hold parameters; 0: all.
        bound: s; under 0 ranks never wait.
        tune: the bound tunes itself, beginning with `bound`.
        bound_min: of a bound that tunes itself.
        bound_max: likewise.
        window: pushes a rank that it looks at.
        compensation: none, constant, adaptive.
        strength: of the compensation; 0: the paper's, 0.04 for constant, 2 for adaptive.
        rates: none, or staleness: a gradient's rates are divided by the updates that it missed.
        meet_minutes: ranks meet after so long, for checkpoints by time; 0: only where an epoch ends or a step is named.
    """

    servers: int = 0
    bound: int = -1
    tune: bool = False
    bound_min: int = 0
    bound_max: int = 16
    window: int = 16
    compensation: str = "none"
    strength: float = 0.0
    rates: str = "none"
    meet_minutes: float = 10.0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: which setting.
        """
        inside = 0 <= self.bound_min <= self.bound <= self.bound_max
        tuned = "with --strategy.tune true: of a bound that tunes itself"
        for name, ok, remedy in (
            ("servers", self.servers >= 0, "0 (all ranks) or more"),
            ("bound", inside or not self.tune, f"from {self.bound_min} to {self.bound_max} where it tunes itself"),
            ("bound_max", self.bound_max <= 64, "64 or less"),
            ("window", self.window >= 1, "1 or more"),
            *((name, self.tune or getattr(self, name) == getattr(ServerOptions, name), tuned) for name in _OF_TUNING),
            ("compensation", self.compensation in KINDS, f"one of {', '.join(KINDS)}"),
            ("strength", 0 <= self.strength < float("inf"), "0 or more"),
            ("strength", self.compensation != "none" or not self.strength, "with --strategy.compensation constant"),
            ("rates", self.rates in RATES, f"one of {', '.join(RATES)}"),
            ("meet_minutes", self.meet_minutes >= 0, "0 or more"),
        ):
            if not ok:
                raise UserError(f"--strategy.{name} {getattr(self, name)}", remedy)

    @property
    def limits(self) -> Limits | None:
        """Of a bound that tunes itself; None: it stays."""
        return Limits(low=self.bound_min, high=self.bound_max, window=self.window) if self.tune else None
