"""One cycle: the rate up to its base in a share of the run, then far below its start; the momentum the other way round.

    1 / start_div -> 1 -> 1 / (start_div end_div),     high_momentum -> low_momentum -> high_momentum,
    along half cosines or lines; in three phases back to 1 / start_div first

Reference: L. Smith and N. Topin, "Super-convergence: very fast training of neural networks using large learning rates",
2018; numbers and phases as torch's OneCycleLR has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEFAULTS: dict[str, Any] = {
    "rise": 0.3, "anneal": "cos", "three_phase": False, "start_div": 25.0, "end_div": 1e4,
    "cycle_momentum": True, "low_momentum": 0.85, "high_momentum": 0.95,
}  # fmt: skip


def factor(t: int, total: int, **options: Any) -> float:
    """1 / start_div up to 1, down to 1 / (start_div end_div)."""
    low, end = 1.0 / options["start_div"], 1.0 / (options["start_div"] * options["end_div"])
    return _cycle(t, total, (low, 1.0, end), options)


def momentum(t: int, total: int, **options: Any) -> float | None:
    """The other way round: high_momentum down to low_momentum, and back."""
    if not options["cycle_momentum"]:
        return None
    high, low = options["high_momentum"], options["low_momentum"]
    return _cycle(t, total, (high, low, high), options)


def _cycle(t: int, total: int, corners: tuple[float, float, float], options: Mapping[str, Any]) -> float:
    """Between corners; in three phases the way back from the second corner to the first takes as long as the way up."""
    (first, peak, end), rise = corners, options["rise"]
    up, last = rise * total - 1.0, total - 1.0
    legs = [(up, first, peak), (last, peak, end)]
    if options["three_phase"]:
        legs = [(up, first, peak), (2.0 * rise * total - 2.0, peak, first), (last, first, end)]
    begin = 0.0
    for stop, a, b in legs[:-1]:
        if t <= stop:
            return _between(a, b, t, begin, stop, options["anneal"])
        begin = stop
    return _between(*legs[-1][1:], t, begin, last, options["anneal"])


def _between(a: float, b: float, t: int, begin: float, stop: float, anneal: str) -> float:
    """From a at `begin` to b at `stop`, and b after it."""
    share = min(1.0, max(0.0, (t - begin) / (stop - begin))) if stop > begin else 1.0
    return a + (b - a) * (share if anneal == "linear" else (1.0 - math.cos(math.pi * share)) / 2.0)


def check(*, rise: float, anneal: str, three_phase: bool, start_div: float, end_div: float, **options: Any) -> None:
    """Refuse what makes no sense.

    Raises:
        ValueError: naming the option.
    """
    if not (start_div > 0 and end_div > 0):
        raise ValueError(f"start_div and end_div must be above 0, not {start_div} and {end_div}")
    if not 0.0 < rise < (0.5 if three_phase else 1.0):
        raise ValueError(f"rise must be a share of the run{' below a half' if three_phase else ''}, not {rise}")
    if anneal not in ("cos", "linear"):
        raise ValueError(f"anneal must be cos or linear, not {anneal!r}")
    if not 0.0 <= options["low_momentum"] <= options["high_momentum"] < 1.0:
        raise ValueError("low_momentum must be in [0, 1) and at most high_momentum, which is below 1")
