"""A study's results: one line of JSON a run, written when the run has ended; a study that was killed goes on from them.

A run is known by its task and setting: what has a line is not run again. A line that a kill cut is dropped. One study
writes to a file at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from bench.studies.task import Setting, Task
from headrace.errors import UserError

Line = dict[str, Any]
AnySetting = TypeVar("AnySetting", bound=Setting)


def run_of(task: Task, setting: Setting) -> dict[str, Any]:
    """What a run is known by, as it will be read back."""
    found: dict[str, Any] = json.loads(json.dumps({"task": task.about(), **asdict(setting)}))
    return found


def identity(run: Mapping[str, Any]) -> str:
    """The same for equal runs."""
    return json.dumps(run, sort_keys=True)


def read(path: Path) -> list[Line]:
    """All whole lines of a file; none where there is no file."""
    return _parsed(path.read_bytes()) if path.exists() else []


def _whole(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _parsed(data: bytes) -> list[Line]:
    return [json.loads(line) for line in data[: _whole(data)].splitlines()]


class Lines:
    """The file, held by one writer.

    Raises:
        UserError: another study writes to it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"another study writes to {path}", "wait for it, or give --results FILE") from None
        self._file.seek(0)
        data = self._file.read()
        self._file.truncate(_whole(data))
        self.all = _parsed(data)
        self._known = {identity(line["run"]): line for line in self.all}

    def get(self, task: Task, setting: Setting) -> Line | None:
        """The line of a run, or None where it is still to be made."""
        return self.find(run_of(task, setting))

    def find(self, run: Mapping[str, Any]) -> Line | None:
        """As `get`, by what a run is known by."""
        return self._known.get(identity(run))

    def found(self, task: Task, settings: Sequence[AnySetting]) -> list[tuple[AnySetting, Line]]:
        """Those settings that were run, in order, each with its line."""
        return [(setting, line) for setting in settings if (line := self.get(task, setting)) is not None]

    def append(self, line: Line) -> None:
        """Add the line of a run that was not known; on the disk when this returns."""
        name = identity(line["run"])
        assert name not in self._known, "a run has one line"
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.all.append(line)
        self._known[name] = line

    def close(self) -> None:
        """Let others write."""
        self._file.close()
