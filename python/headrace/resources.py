"""Where files that travel with the package lie: in a checkout, else inside the installed wheel."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from headrace.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def in_checkout() -> bool:
    """True where the package runs from its source tree (editable install, PYTHONPATH)."""
    return (_CHECKOUT / "build.sbt").is_file()


def root() -> Path:
    """The folder that holds conf/, data_catalog/ and jobs/."""
    return _CHECKOUT if in_checkout() else _PACKAGE / "_data"


def path(name: str) -> Path:
    """Path of a file or folder that travels with the package, such as `conf` or `data_catalog/silver_ctr.yaml`.

    Raises:
        UserError: it is not there.
    """
    found = root() / name
    if not found.exists():
        raise UserError(f"{name} is missing from {root()}", "install the package again, or run from a whole checkout")
    return found


def jar(version: str) -> Path:
    """Where the assembly jar of this version belongs (it need not exist)."""
    name = f"headrace-assembly-{version}.jar"
    return _CHECKOUT / ".build" / name if in_checkout() else _PACKAGE / "_data" / "jars" / name


def kernels(version: str) -> Path:
    """Where the compiled kernels of this version belong, for this platform (they need not exist)."""
    name = f"headrace-kernels-{version}-{sys.platform}-{platform.machine()}.so"
    return _CHECKOUT / ".build" / name if in_checkout() else _PACKAGE / "_data" / "kernels" / name
