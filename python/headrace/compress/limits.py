"""Options of codecs within their ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headrace.errors import UserError


def within(option: str, value: float, least: float, most: float = math.inf, *, above: bool = False) -> None:
    """Refuse a number outside [least, most], or (least, most] with `above`.

    Raises:
        UserError: it is outside, or not a finite number.
    """
    if math.isfinite(value) and (least < value if above else least <= value) and value <= most:
        return
    lower = f"above {least:g}" if above else f"at least {least:g}"
    upper = "" if most == math.inf else f" and at most {most:g}"
    raise UserError(f"compression option {option} is {value}", f"a number {lower}{upper}")


def one_of(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is not among `choices`.

    Raises:
        UserError: it is not.
    """
    if value not in choices:
        raise UserError(f"compression option {option} is {value!r}", f"one of {', '.join(choices)}")
