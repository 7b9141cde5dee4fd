"""Memory that a Python worker has freed stays with it, for the next array.

The C library gives an array of megabytes back to the kernel when it is dropped, and gets the next one page by page,
each zeroed: of numpy's passes over edges that was a third of the CPU time (decisions/0017).
"""

from __future__ import annotations

import ctypes
from functools import cache

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 256 << 20
"""Free memory that a worker keeps at most; a larger array is the kernel's again when it is dropped."""
_OLD_LIMIT = 32 << 20
"""glibc before 2.35 refuses to keep larger arrays."""


@cache
def keep_freed() -> bool:
    """Ask for it, once a process: whether it was granted (by glibc; other C libraries have no such setting)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # In this order: to be granted the second alone is worse than nothing, for glibc then stops learning the first.
    kept = any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in (KEPT_BYTES, _OLD_LIMIT))
    granted = kept and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES) == 1
    if granted:
        pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own gives back what is free as well
    return granted
