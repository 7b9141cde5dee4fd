"""Memory that the ranks of one host share: a file under /dev/shm that is gone from there as soon as all have opened it.

Rank 0 makes it (random name, mode 0600, blocks reserved, so that no write can fail later), tells its name to the others
and removes it when they have opened it, or cannot: nothing is left behind, whatever ends the ranks afterwards. Who
cannot open it is on another host, or in a container of its own; who can, in a directory that hosts share, runs under
another kernel, which would have a copy of its own. Works for threads and processes alike.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from headrace.comm.base import Collective
from headrace.errors import UserError

_NAME = re.compile(r"headrace-[0-9a-f]{32}")
_FAST = "/dev/shm"


def shared(collective: Collective, nbytes: int, directory: str = "") -> mmap.mmap:
    """So many bytes, the same for all ranks, zeros at first.

    Args:
        collective: of all ranks, which call it together.
        nbytes: 1 or more, equal on all.
        directory: where the file is for a moment; empty: /dev/shm, or the temporary directory where there is none.

    Raises:
        UserError: on all ranks: there is no room, or ranks are on several hosts.
    """
    place = Path(directory or (_FAST if os.path.isdir(_FAST) else tempfile.gettempdir()))
    with contextlib.ExitStack() as stack:
        name = ""

        def create() -> None:
            nonlocal name
            name = stack.enter_context(_file(place, nbytes)) if collective.rank == 0 else ""

        remedy = f"free space in {place}, or --strategy.directory DIR"
        names = _together(collective, create, lambda: name, f"no {nbytes:,} bytes to share in {place}", remedy)
        opened: list[mmap.mmap] = []
        what = f"ranks that do not see rank 0's memory {place} are on another host, or in a container of their own"
        remedy = "all ranks on one host, or --strategy.name gossip"
        kernels = _together(collective, lambda: opened.append(_opened(place, names[0], nbytes)), _kernel, what, remedy)
    if others := [rank for rank, kernel in enumerate(kernels) if kernel != kernels[0]]:
        raise UserError(f"rank {others[0]} sees {place}, but is on another host than rank 0", remedy)
    return opened[0]


def _kernel() -> str:
    """Differs between machines, and is the same in all containers of one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


@contextlib.contextmanager
def _file(place: Path, nbytes: int) -> Iterator[str]:
    """The name of a new file, which is removed at the end."""
    name = f"headrace-{secrets.token_hex(16)}"
    handle = os.open(place / name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        try:
            os.posix_fallocate(handle, 0, nbytes)
        finally:
            os.close(handle)
        yield name
    finally:
        (place / name).unlink(missing_ok=True)


def _opened(place: Path, name: str, nbytes: int) -> mmap.mmap:
    if not _NAME.fullmatch(name):
        raise OSError(f"{name[:80]!r} is no name of shared memory")
    handle = os.open(place / name, os.O_RDWR | os.O_NOFOLLOW)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != nbytes or found.st_uid != os.geteuid():
            raise OSError(f"{name} is not the file that was made")
        return mmap.mmap(handle, nbytes)
    finally:
        os.close(handle)


def _together(
    collective: Collective, work: Callable[[], Any], told: Callable[[], str], what: str, remedy: str
) -> list[str]:
    """Run `work` on every rank; what each tells then, or an error on all where any could not."""
    problem = ""
    try:
        work()
    except OSError as error:
        problem = f"{type(error).__name__}: {error}"
    answers = collective.allgather_object([told(), problem])
    bad = [f"rank {rank}: {answer[1]}" for rank, answer in enumerate(answers) if answer[1]]
    if bad:
        raise UserError(f"{what} ({bad[0]})", remedy)
    return [answer[0] for answer in answers]
