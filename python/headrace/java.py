"""Find a Java that Spark 4.0 runs on: 17 to 21, with the module jdk.incubator.vector.

`python -m headrace.java` prints its home; it needs nothing but the standard library, since set-up calls it first.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import UserError

OLDEST, NEWEST = 17, 21
MODULE = "jdk.incubator.vector"
INSTALL = "sudo apt-get install openjdk-17-jre-headless"


@dataclass(frozen=True)
class Java:
    """One Java found on this machine; `fault` says why Spark cannot use it, empty if it can."""

    home: str
    version: int
    fault: str


def candidates() -> list[str]:
    """Java homes in the order they are tried: JAVA_HOME, `java` on PATH, 17 where distributions put it, the rest."""
    on_path = shutil.which("java")
    homes = [os.environ.get("JAVA_HOME", ""), str(Path(on_path).resolve().parents[1]) if on_path else ""]
    homes += (
        sorted(glob.glob("/usr/lib/jvm/*17*")) + sorted(glob.glob("/usr/lib/jvm/*")) + sorted(glob.glob("/opt/java/*"))
    )
    homes += sorted(glob.glob("/Library/Java/JavaVirtualMachines/*/Contents/Home"))
    real = [os.path.realpath(home) for home in homes if home and os.access(f"{home}/bin/java", os.X_OK)]
    return list(dict.fromkeys(real))


@functools.lru_cache
def inspect(home: str) -> Java:
    """Ask the Java in `home` what it is."""
    text = _ask(home, "-version")
    found = re.search(r'version "(\d+)', text)
    version = int(found.group(1)) if found else 0
    if not OLDEST <= version <= NEWEST:
        return Java(home, version, f"version {version or 'unknown'}, Spark 4.0 needs {OLDEST} to {NEWEST}")
    if MODULE not in _ask(home, "--list-modules"):
        return Java(home, version, f"it lacks the module {MODULE}")
    return Java(home, version, "")


def find() -> Java:
    """The first Java that Spark can use.

    Raises:
        UserError: there is none; the problem lists what was found and why it will not do.
    """
    seen = []
    for home in candidates():
        java = inspect(home)
        if not java.fault:
            return java
        seen.append(f"{home}: {java.fault}")
    tried = "; ".join(seen) if seen else "no java on PATH, in JAVA_HOME or in /usr/lib/jvm"
    raise UserError(f"no Java that Spark 4.0 can use ({tried})", INSTALL)


def _ask(home: str, option: str) -> str:
    try:
        done = subprocess.run([f"{home}/bin/java", option], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not runnable: {error}"
    return done.stdout + done.stderr


if __name__ == "__main__":
    try:
        print(find().home)
    except UserError as error:
        sys.exit(f"error: {error}")
