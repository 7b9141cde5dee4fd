"""One ingest at a time on a lake, as far as the file system can promise it: to save work, not to be right.

Two ingests at once are safe without this (the ledger and Delta's transaction identifiers see to it), but both would
read the same files. The lock is the kernel's: it is gone with the process, however that ends.
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
    folder = Path(lake.removeprefix("file://")) / "meta"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "_ingest.lock", "a+") as file:
        if not _try(file.fileno()):
            say(f"another ingest works on {lake} (process {_owner(folder)}): waiting for it")
            while not _try(file.fileno()):
                time.sleep(_POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _owner(folder: Path) -> str:
    text = (folder / "_ingest.lock").read_text()
    return text if text.isdecimal() else "unknown"
