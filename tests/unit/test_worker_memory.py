"""What a worker frees stays with it, in a process of its own since it is set for the whole of one."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
