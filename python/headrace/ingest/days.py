"""Which files a source names, and which day each file's rows get."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from headrace.errors import UserError

DAYS_FROM = ("auto", "name", "order")
_DAY = re.compile(r"day_(\d+)")
_SPLITS = {"train": 0, "dev": 1, "val": 1, "valid": 1, "validation": 1, "test": 2}
_WORD = re.compile(r"[a-z]+")
_MAX_DAY = (1 << 31) - 1


def find_files(source: str) -> list[str]:
    """Absolute paths of the files that `source` names: patterns or folders, separated by commas.

    Raises:
        UserError: nothing is found, the source is not on a mounted file system, or a name is no text.
    """
    found: set[str] = set()
    # A name may hold a comma: an existing path is taken as it stands.
    parts = [source] if os.path.exists(source) else source.split(",")
    for pattern in filter(None, (part.strip() for part in parts)):
        pattern = pattern.removeprefix("file://")
        if "://" in pattern:
            raise UserError(f"{pattern} is not on a mounted file system", "copy the files to one, or mount it")
        # A file may be named like a pattern: an existing path is taken as it stands.
        names = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        names = [str(child) for name in names for child in _files_of(Path(name))]
        if not names:
            raise UserError(f"--source {pattern} names no file (looked from {os.getcwd()})", _nearest_folder(pattern))
        found.update(os.path.abspath(name) for name in names)
    if not found:
        raise UserError("--source is empty", "give a file, a folder or a pattern such as 'data/day_*.gz'")
    for path in found:
        if not _is_text(path):
            raise UserError(f"{os.fsencode(path)!r}: its name is not UTF-8", "rename it: names are kept as text")
    return sorted(found)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def days_of(paths: Sequence[str], days_from: str = "auto", by_name: str = "") -> dict[str, int]:
    """The day of every file.

    Args:
        paths: the files.
        days_from: `name`: from `day_N` in the name. `auto`: from that, else train = 0, dev or valid = 1, test = 2.
            `order`: position in the sorted list.
        by_name: `train.tsv=0,dev.tsv=1`: wins over the others.

    Raises:
        UserError: a file gets no day, or the settings do not fit.
    """
    if days_from not in DAYS_FROM:
        raise UserError(f"--days_from {days_from} is unknown", f"one of {', '.join(DAYS_FROM)}")
    given = _by_name(by_name)
    if days_from == "order":
        return {path: given.get(os.path.basename(path), at) for at, path in enumerate(sorted(paths))}
    days = {path: given.get(os.path.basename(path), _from_name(path, days_from)) for path in paths}
    unknown = sorted(os.path.basename(path) for path, day in days.items() if day is None)
    if unknown:
        remedy = f"--days_by_name {unknown[0]}=0 (one for each file), or --days_from order"
        raise UserError(f"which day is {', '.join(unknown[:5])}? The name does not tell", remedy)
    return {path: day for path, day in days.items() if day is not None}


def day_range(text: str | None) -> range | None:
    """`3-7` (both included) or `3`; None for all.

    Raises:
        UserError: it is neither.
    """
    if text is None or text == "":
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(text))
    if not match:
        raise UserError(f"--days {text} is not a range of days", "write --days 3-7, or --days 3")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise UserError(f"--days {text}: the last day is before the first", f"--days {last}-{first}")
    return range(first, last + 1)


def _files_of(path: Path) -> list[Path]:
    """A folder's files; hidden ones and those named with _ first (markers of other tools) are left out."""
    if not path.is_dir():
        return [path]
    return [child for child in sorted(path.iterdir()) if child.is_file() and child.name[0] not in "._"]


def _nearest_folder(pattern: str) -> str:
    folder = Path(pattern)
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(child.name for child in folder.iterdir())[:5]
    return f"{folder} holds {', '.join(names) or 'nothing'}; quote patterns so that the shell leaves them alone"


def _from_name(path: str, days_from: str) -> int | None:
    name = os.path.basename(path)
    if match := _DAY.search(name):
        return min(int(match[1]), _MAX_DAY)
    if days_from == "name":
        return None
    days = {_SPLITS[word] for word in _WORD.findall(name.lower()) if word in _SPLITS}
    return days.pop() if len(days) == 1 else None


def _by_name(text: str) -> dict[str, int]:
    days = {}
    for part in filter(None, text.split(",")):
        name, _, day = part.strip().rpartition("=")
        if not name or not day.isdecimal():
            raise UserError(f"--days_by_name: {part!r} is not name=day", "write train.tsv=0,dev.tsv=1")
        days[name] = int(day)
    return days
