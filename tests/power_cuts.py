"""Failures in the middle: a function that fails from now on as if the power went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def fails(patch: pytest.MonkeyPatch, place: Any, name: str, when: Callable[..., bool]) -> None:
    """Let `place.name` raise OSError("power cut") where `when` holds of its positional arguments."""
    original = getattr(place, name)

    def cut(*args: Any, **named: Any) -> Any:
        if when(*args):
            raise OSError("power cut")
        return original(*args, **named)

    patch.setattr(place, name, cut)
