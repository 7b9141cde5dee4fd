"""Split by day: which days train, which validate, which test. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from headrace.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DaySplit:
    """Disjoint, non-empty sets of days, each ascending."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def of_day(self) -> dict[int, str]:
        """The split of each day that has one."""
        return {day: name for name in SPLITS for day in getattr(self, name)}

    def to_json(self) -> dict[str, list[int]]:
        """Days by split, as kept with the commit."""
        return {name: list(days) for name, days in asdict(self).items()}


def parse_days(text: str, setting: str = "days") -> tuple[int, ...]:
    """Read `0-5`, `6`, or `0,2,4-5` as ascending days.

    Raises:
        UserError: not such a list, or a range that runs backwards.
    """
    days: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None:
            raise UserError(f"--{setting} {text!r}: {part!r} is no day", "write days as 0-5, or 0,2,4-5")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"--{setting} {text!r}: {part!r} runs backwards", f"write {last}-{first}")
        days.update(range(first, last + 1))
    return tuple(sorted(days))


def format_days(days: Iterable[int]) -> str:
    """The inverse of `parse_days`: [0, 1, 2, 5] as `0-2,5`."""
    runs: list[list[int]] = []
    for day in sorted(days):
        if runs and runs[-1][1] == day - 1:
            runs[-1][1] = day
        else:
            runs.append([day, day])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def split_days(
    present: Sequence[int], train: str | None = None, validation: str | None = None, test: str | None = None
) -> DaySplit:
    """Assign labelled days to splits: by default the last tests, the one before validates, the rest train.

    A part that is given stands; parts left out take their default among the days that no other part names.

    Args:
        present: days that hold labelled rows.
        train: days as `parse_days` reads them, or None for the default.
        validation: likewise.
        test: likewise.

    Raises:
        UserError: no labelled day, too few days, an empty or overlapping part, a day that is not there.
    """
    given = {
        name: parse_days(text, f"split.{name}")
        for name, text in zip(SPLITS, (train, validation, test), strict=True)
        if text is not None
    }
    _check_given(given, set(present))
    free = sorted(set(present) - {day for days in given.values() for day in days})
    parts, there = dict(given), format_days(present) or "(none)"
    for name in ("test", "validation"):
        if name not in parts:
            parts[name] = (free.pop(),) if free else ()
    parts.setdefault("train", tuple(free))
    for name in SPLITS:
        if not parts[name]:
            raise UserError(
                f"no day is left for split.{name}: the table has labelled rows for day {there}",
                "ingest at least three days (one file a day: ingest-criteo), or name them: --split.train 0-5 "
                "--split.validation 6 --split.test 7",
            )
    return DaySplit(parts["train"], parts["validation"], parts["test"])


def _check_given(given: dict[str, tuple[int, ...]], present: set[int]) -> None:
    owner: dict[int, str] = {}
    there = format_days(present) or "(none)"
    for name, days in given.items():
        for day in days:
            if day in owner:
                raise UserError(
                    f"day {day} is in split.{owner[day]} and in split.{name}",
                    "give each day to one split, or the model is judged on rows it has seen",
                )
            if day not in present:
                raise UserError(
                    f"--split.{name}: day {day} has no labelled rows; days that have: {there}",
                    "ingest that day first, or leave it out",
                )
            owner[day] = name
