"""Half precision: 11 bits of a number, none above 65,504; what is larger becomes infinite and has to be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 65_504
"""Of float16; numbers up to 65,520 are rounded to it."""


def to_half(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Rounded to half precision; what is too large is infinite, without a warning: callers count it."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def overflows(values: npt.NDArray[Any]) -> int:
    """Finite values that half precision cannot hold."""
    return int(np.count_nonzero(np.isfinite(values) & np.isinf(to_half(values))))
