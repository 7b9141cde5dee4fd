"""Parameters chosen by patterns of their names, as the shell's: `top.4.*`, `*.bias`."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from fnmatch import fnmatchcase

from headrace.errors import UserError


def named_by(patterns: Collection[str], name: str) -> bool:
    """Whether any pattern is one of this name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(setting: str, patterns: Collection[str], names: Collection[str]) -> None:
    """Refuse a pattern that none of `names` has: it would silently choose nothing.

    Raises:
        UserError: with the nearest names, or all of them.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, 3, cutoff=0.4) or names
            raise UserError(f"--{setting} {pattern!r} is the name of no parameter", f"there are {', '.join(near)}")
