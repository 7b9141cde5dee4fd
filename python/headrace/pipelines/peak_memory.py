"""The most memory that this process and those it started have held at one time: Spark's JVM, its Python workers, ranks.

Resident memory is added up over processes: pages that several share count several times, so it is an upper bound. On a
cluster only what runs on the driver's machine is seen.
"""

from __future__ import annotations

import threading

_EVERY_S = 0.5


class PeakMemory:
    """Watches inside a `with`, twice a second; `megabytes` is the most seen so far."""

    def __init__(self) -> None:
        self.megabytes = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        self.megabytes = max(self.megabytes, resident() / 1e6)


def resident() -> int:
    """Bytes of resident memory of this process and all that descend from it."""
    import psutil

    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # ended between the two calls
            continue
    return total
