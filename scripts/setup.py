"""Set the project up from nothing: tools, environment, kernels, jar, Spark's settings.

`make setup` runs it; so may you, again.

Each stage is redone only when a hash of its inputs changed or what it makes is gone. Standard library only: this runs
before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD, TOOLS, VENV = ROOT / ".build", ROOT / ".tools", ROOT / ".venv"
UV, PYTHON = TOOLS / "bin" / "uv", VENV / "bin" / "python"
DISK_GB = 8
CXX_FLAGS = ("-O3", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-fPIC", "-shared")
sys.path.insert(0, str(ROOT / "python"))


def main() -> None:
    os.chdir(ROOT)
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / "setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two `make` at once: the second finds everything done
        check_machine()
        stage("uv", ["scripts/uv.txt"], [UV], install_uv)
        inputs = ["pyproject.toml", "requirements.lock", "scripts/cxx17"]
        stage("environment", inputs, [PYTHON, VENV / "bin" / "spark-submit", VENV / "bin" / "pytest"], sync)
        stage("package", [*inputs, "setup.py"], [VENV / "bin" / "headrace"], install_package)
        sources = ["python/headrace/compress/cpp/*", "scripts/setup.py", "python/headrace/__init__.py"]
        stage("kernels", sources, [kernels()], build_kernels)
        scala = [
            "build.sbt",
            "project/*.sbt",
            "project/build.properties",
            "scala/src/**/*.*",
            "python/headrace/__init__.py",
        ]
        stage("jar", scala, [jar(), BUILD / "delta"], build_jar)
        write_spark_settings()


def check_machine() -> None:
    """Name everything that is missing at once, each with the command that installs it."""
    from headrace import java
    from headrace.errors import UserError

    missing = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        missing.append(f"Python 3.11 or 3.12 (this is {sys.version.split()[0]}): sudo apt-get install python3.11")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not UV.exists() and not _has_module("ensurepip"):
        missing.append(f"Python's venv: sudo apt-get install python{version}-venv")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        missing.append(f"Python's headers (to build Horovod): sudo apt-get install python{version}-dev")
    for tool, package in (("g++", "g++"), ("make", "make"), ("bash", "bash")):
        if not shutil.which(compiler() if tool == "g++" else tool):
            missing.append(f"{tool}: sudo apt-get install {package}")
    try:
        java.find()
    except UserError as error:
        missing.append(f"{error.problem}: {error.remedy}")
    free = shutil.disk_usage(ROOT).free / 1e9
    if not (VENV / "bin" / "pytest").exists() and free < DISK_GB:
        missing.append(f"{DISK_GB} GB of disk: {free:.1f} GB are free in {ROOT}: make room or clone elsewhere")
    if missing:
        sys.exit("error: this machine lacks\n" + "\n".join(f"  -> {line}" for line in missing))


def stage(name: str, patterns: Sequence[str], outputs: Sequence[Path], work: Callable[[], None]) -> None:
    """Run `work` unless the stamp says it was done with these inputs and its outputs are there."""
    stamp = BUILD / "stamps" / name
    key = digest(patterns)
    if stamp.exists() and stamp.read_text() == key and all(path.exists() for path in outputs):
        return
    start = time.monotonic()
    print(f"setup: {name} ...", file=sys.stderr, flush=True)
    stamp.unlink(missing_ok=True)
    work()
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(key)
    print(f"setup: {name} done in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def digest(patterns: Sequence[str]) -> str:
    """Hash of the names and bytes of all files that match, and of this interpreter."""
    total = hashlib.sha256(sys.version.encode())
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def install_uv() -> None:
    if not (TOOLS / "bin" / "python").exists():
        run(sys.executable, "-m", "venv", str(TOOLS))
    pip = [str(TOOLS / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run(*pip, "--require-hashes", "-r", "scripts/uv.txt")


def sync() -> None:
    """The locked environment; Horovod is compiled here, once (uv keeps the result)."""
    if not PYTHON.exists():
        run(str(UV), "venv", "--quiet", "--python", sys.executable, str(VENV))
    (BUILD / "stamps" / "package").unlink(missing_ok=True)  # sync removes what the lock does not name
    run(str(UV), "pip", "sync", "--quiet", "--require-hashes", "--python", str(PYTHON), "requirements.lock",
        CXX=str(ROOT / "scripts" / "cxx17"))  # fmt: skip


def install_package() -> None:
    run(str(UV), "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--python", str(PYTHON), "-e", ".")


def build_kernels() -> None:
    """The codecs' kernels as one library. No flag may let the compiler change a bit of a result."""
    built = kernels().with_suffix(".new")
    sources = sorted(str(path) for path in (ROOT / "python/headrace/compress/cpp").glob("*.cpp"))
    run(compiler(), *CXX_FLAGS, *sources, "-o", str(built), quiet=True)
    built.replace(kernels())  # who has the old one loaded keeps it


def build_jar() -> None:
    run(str(ROOT / "scripts" / "sbt"), "assembly", "package", "deltaJars", quiet=True)


def compiler() -> str:
    return os.environ.get("HEADRACE_CXX", "g++")


def kernels() -> Path:
    from headrace import __version__, resources

    return resources.kernels(__version__)


def jar() -> Path:
    from headrace import __version__, resources

    return resources.jar(__version__)


def write_spark_settings() -> None:
    """What makes a bare `.venv/bin/spark-submit jobs/X.py` work from any folder, with nothing in the environment."""
    home = next(VENV.glob("lib/python3*/site-packages/pyspark"))
    run(str(PYTHON), "scripts/spark_settings.py", str(home))


def run(*command: str, quiet: bool = False, **environment: str) -> None:
    """Run a command; on failure show what it said and stop."""
    done = subprocess.run(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL, check=False, text=True,
        stdout=subprocess.PIPE if quiet else sys.stderr, stderr=subprocess.STDOUT if quiet else None,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout or ''}\nerror: this failed with status {done.returncode}: {' '.join(command)}")


def _has_module(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    main()
