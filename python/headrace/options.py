"""Options as users type them: names and types are those of the defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from headrace.config import nearest
from headrace.errors import UserError


def known(setting: str, name: str, names: Collection[str]) -> None:
    """Refuse what is not among `names`.

    Raises:
        UserError: with the nearest name, or all of them.
    """
    if name not in names:
        hint = nearest(name, list(names)) or f"one of {', '.join(names)}"
        raise UserError(f"--{setting} {name!r} is unknown", hint)


def choose(owner: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` with `given` over them, each value in the type of its default.

    Raises:
        UserError: an option that `owner` has not, or a value of another type; with what there is.
    """
    for name in given:
        if name not in defaults:
            hint = f"{nearest(name, list(defaults))} its options are {described(defaults) or 'none'}".lstrip()
            raise UserError(f"{owner} has no option {name!r}", hint)
    return {name: typed(f"{owner}: {name}", given[name], old) if name in given else old
            for name, old in defaults.items()}  # fmt: skip


def described(defaults: Mapping[str, Any]) -> str:
    """`lr 0.001, betas (0.9, 0.999)`: options with their defaults."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in defaults.items())


def typed(what: str, value: Any, default: Any) -> Any:
    """A value in the type of its default: numbers may be written as text, tuples as lists.

    Raises:
        UserError: it cannot be.
    """
    if default is None or (value is None and not isinstance(default, bool | int | float | str | tuple | list)):
        return value
    try:
        return _typed(value, default)
    except (TypeError, ValueError, OverflowError):
        kind = "a list like" if isinstance(default, tuple | list) else f"of type {type(default).__name__}, like"
        raise UserError(f"{what} must be {kind} {_shown(default)}, not {value!r}") from None


def _typed(value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(default, int | float):
        if isinstance(value, bool) or value is None:
            raise TypeError
        number = float(value)
        if isinstance(default, float):
            return number
        if number != int(number):
            raise ValueError
        return int(number)
    if isinstance(default, str) and not isinstance(value, str):
        raise TypeError
    if isinstance(default, tuple | list):
        names = bool(default) and all(isinstance(each, str) for each in default)  # as many as wanted
        if isinstance(value, str) or (default and not names and len(value) != len(default)):
            raise ValueError
        some = default[:1] * len(value) if names else default
        like = some or [0.0 if any(isinstance(v, float) for v in value) else v for v in value]
        return type(default)(_typed(v, d) for v, d in zip(value, like, strict=True))
    return value


def _shown(value: Any) -> str:
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, tuple | list) else str(value)
