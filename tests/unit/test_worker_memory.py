"""What a worker frees stays with it, in a process of its own since it is set for the whole of one."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest

from headrace.features.worker_memory import KEPT_BYTES, keep_freed

PROGRAM = """
import resource
import numpy as np
import pyarrow as pa
from headrace.features.worker_memory import KEPT_BYTES, keep_freed

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def passes():
    before = faults()
    for _ in range(5):
        held = [pa.array(np.ones(1 << 20)).cast(pa.float32()) for _ in range(20)]
        del held
    return faults() - before

passes()
free = passes()
assert keep_freed() and keep_freed()
passes()
print(free, passes(), pa.default_memory_pool().backend_name)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_arrays_are_made_of_what_others_left() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after, pool = done.stdout.split()
    assert pool == "system"
    assert int(after) < int(before) / 10


@pytest.mark.parametrize(
    ("most", "asked"),
    [(1 << 40, [KEPT_BYTES, -KEPT_BYTES]), (32 << 20, [KEPT_BYTES, 32 << 20, -KEPT_BYTES]), (0, None)],
)
def test_older_c_libraries_keep_what_they_grant(
    most: int, asked: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """glibc before 2.35 refuses more than 32 MiB, and trimming alone would only stop what it does by itself."""
    calls = []

    def mallopt(which: int, size: int) -> int:
        calls.append(size if which == -3 else -size)
        return int(size <= most or which == -1)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(pa, "set_memory_pool", lambda _: None)
    assert keep_freed.__wrapped__() is (asked is not None)
    assert calls == (asked or [KEPT_BYTES, 32 << 20])
