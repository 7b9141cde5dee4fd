"""Numpy's array files without numpy's reader: a header is text to be matched, never evaluated; nothing is unpickled.

Format 1.0 to 3.0 (numpy.lib.format): magic, version, length, then a dictionary literal of `descr`, `fortran_order` and
`shape`. Taken are plain numbers of 1 to 8 bytes in one or two dimensions whose bytes the file really has.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.ingest.textfiles import BrokenFileError

MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 12
_HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<descr>[<>|=][biuf][1248])',\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>[0-9]{1,18}|[0-9]{1,18},(?:\s*[0-9]{1,18})?)\s*,?\s*\),?\s*\}\s*"
)


@dataclass(frozen=True)
class ArrayFile:
    """An array file that is what it says.

    Args:
        path: the file.
        dtype: of its elements, as numpy writes it.
        shape: one or two dimensions.
        fortran: stored column by column.
        offset: of the first element.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def kind(self) -> str:
        """b, i, u or f."""
        return np.dtype(self.dtype).kind

    def map(self) -> npt.NDArray[np.generic]:
        """The array over the file's pages: what is touched is read."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        order = "F" if self.fortran else "C"
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)  # type: ignore[call-overload]


def open_array(path: str) -> ArrayFile:
    """Read and check an array file's header.

    Raises:
        BrokenFileError: it is no array file, of another type or shape than is taken, or shorter or longer than it says.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:6] != MAGIC or len(start) < 12:
            raise BrokenFileError(f"{path} is no numpy array file")
        major = start[6]
        if major not in (1, 2, 3):
            raise BrokenFileError(f"{path} is a numpy file of version {major}, which is unknown")
        width = 2 if major == 1 else 4
        length = int.from_bytes(start[8 : 8 + width], "little")
        if length > _MAX_HEADER:
            raise BrokenFileError(f"{path} has a header of {length:,} bytes: no plain array has")
        file.seek(8 + width)
        text = file.read(length).decode("latin-1")
    found = _HEADER.fullmatch(text)
    if not found or len(text) != length:
        what = (
            "pickled Python objects" if "'|O'" in text or "'O'" in text else "no plain numbers of one or two dimensions"
        )
        raise BrokenFileError(f"{path} holds {what}: {text[:100]!r}")
    shape = tuple(int(number) for number in re.findall(r"[0-9]+", found["shape"]))
    array = ArrayFile(path, found["descr"], shape, found["fortran"] == "True", 8 + width + length)
    _check_size(array)
    return array


def _check_size(array: ArrayFile) -> None:
    elements = 1
    for size in array.shape:
        elements *= size
    promised = array.offset + elements * np.dtype(array.dtype).itemsize
    size = os.path.getsize(array.path)
    if size != promised:
        raise BrokenFileError(f"{array.path} has {size:,} bytes, its header promises {promised:,}")
