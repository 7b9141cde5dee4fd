"""One ingest at a time on a lake, and in a landing folder, as far as the file system can promise it.

Two ingests at once on a lake are safe without this (the ledger and Delta's transaction identifiers see to it), but both
would read the same files. In a landing folder both would write to the same files: who is told that there is no lock
must give them names of its own. The lock is the kernel's: it is gone with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_S = 1.0


@contextlib.contextmanager
def claim(lake: str, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other ingest works on the lake, then work alone.

    Args:
        lake: folder of the tables; where it is not on a local or mounted file system there is nothing to lock.
        say: told once if there is somebody to wait for.
    """
    if "://" in lake and not lake.startswith("file://"):
        yield
        return
    with claim_folder(Path(lake.removeprefix("file://")) / "meta", f"works on {lake}", say):
        yield


@contextlib.contextmanager
def claim_folder(folder: Path, doing: str, say: Callable[[str], None]) -> Iterator[bool]:
    """Wait until no other ingest has claimed the folder, then hold it.

    Args:
        folder: made where it is not there; holds the lock's file.
        doing: what another ingest does that is waited for.
        say: told once if there is somebody to wait for.

    Yields:
        Whether others are kept away: false on a file system without locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "_ingest.lock"
    with open(place, "a+") as file:
        if (held := _try(file.fileno())) is False:
            say(f"another ingest {doing} (process {_owner(place)}): waiting for it")
            while (held := _try(file.fileno())) is False:
                time.sleep(_POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield held is True


def _try(descriptor: int) -> bool | None:
    """Whether the lock is ours now; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _owner(place: Path) -> str:
    text = place.read_text()
    return text if text.isdecimal() else "unknown"
