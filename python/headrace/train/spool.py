"""What the tracking store has yet to be told: an append-only file beside the run, and how far it was sent.

Writing never waits for the store. A line cut by a crash is left out; the mark is replaced atomically, so an entry is
sent once, or (killed between sending and marking) twice: whoever sends must take an entry twice without harm.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENTRIES, MARK, LOCK = "tracking.jsonl", "tracking.sent.json", "tracking.lock"


@dataclass(frozen=True)
class Entry:
    """One thing to send; `end` is where the next begins, in bytes."""

    value: dict[str, Any]
    end: int


class Spool:
    """The spool of the run in `directory`. Threads may append while one sends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._mutex = threading.Lock()

    def append(self, value: dict[str, Any]) -> None:
        """Keep one entry.

        Raises:
            OSError: the disk is full or the directory gone.
        """
        line = json.dumps(value, default=str).encode() + b"\n"
        with self._mutex:
            append_line(self.directory / ENTRIES, line)

    def pending(self) -> Iterator[Entry]:
        """Entries not yet marked as sent, in order."""
        path = self.directory / ENTRIES
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self.mark()["sent"])
            for line in iter(file.readline, b""):
                if not line.endswith(b"\n"):
                    return
                with contextlib.suppress(ValueError):  # a line that a crash cut, closed by the next append
                    yield Entry(json.loads(line), file.tell())

    def mark(self) -> dict[str, Any]:
        """{"sent": bytes, and what the sender keeps: the store's id of the run}."""
        try:
            found = json.loads((self.directory / MARK).read_text(encoding="utf-8"))
            return {"sent": int(found["sent"]), "run": found.get("run")}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {"sent": 0, "run": None}  # all is sent again, which does no harm

    def set_mark(self, sent: int, run: str | None) -> None:
        """Everything before `sent` has arrived."""
        draft = self.directory / f"{MARK}.{os.getpid()}"
        draft.write_text(json.dumps({"sent": sent, "run": run}), encoding="utf-8")
        draft.replace(self.directory / MARK)

    @contextlib.contextmanager
    def sender(self) -> Iterator[bool]:
        """True for the one process that may send now; the lock ends with the process."""
        with (self.directory / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def append_line(path: Path, line: bytes) -> None:
    """Append a line, ended by a line break, to a file; a line before it that a crash cut must not swallow it."""
    with path.open("ab") as file:
        if file.tell() and not _ends_whole(path):
            line = b"\n" + line
        file.write(line)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
