"""Codecs compiled: one pass over memory where torch's operations take many, with the same bits.

`cpp/*.cpp` are built into one library by `make setup` and called by ctypes, which lets other threads run meanwhile.
They take float32 on the CPU; for the rest, and where there is no library, the torch operations beside each call do the
work. These are the reference: a test compares both, codec by codec, bit by bit. HEADRACE_KERNELS=off is without.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from headrace import __version__, resources

SWITCH = "HEADRACE_KERNELS"
_VERSION = 2  # of the arguments and results; kernels.cpp has the same number
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64}
# Arguments of every kernel: p a tensor's memory, n a number.
_KERNELS: Mapping[str, str] = {
    "bucket_largest": "pnnp",
    "level_codes_drawn": "pnnnppnnp",
    "level_codes_nearest": "pnnpnp",
    "level_values": "pnnpnp",
    "natural_codes": "pnnnppp",
    "natural_values": "pnnpp",
    "pack_bits": "pnnnp",
    "unpack_bits": "pnnnp",
    "pack_trits": "pnnp",
    "unpack_trits": "pnnp",
    "tree_quantize": "pnnppp",
    "tree_values": "pnppp",
    "mark_negative": "pnp",
    "mark_beyond": "pnpp",
    "part_buckets": "pnnppp",
    "choose": "pnnpp",
    "count_bits": "pn",
    "places_of": "pnp",
    "encode_places": "pnnnnpp",
    "decode_places": "pnpnnp",
    "scatter": "ppnnp",
}


class Found(NamedTuple):
    """The library, None where it is not used, and what there is to say about that."""

    library: ctypes.CDLL | None
    said: str


@cache
def found() -> Found:
    """What this process uses; looked for once."""
    if os.environ.get(SWITCH, "on").lower() in ("off", "0", "false"):
        return Found(None, f"torch operations: {SWITCH} is {os.environ[SWITCH]}")
    path = resources.kernels(__version__)
    if not path.is_file():
        return Found(None, f"torch operations: there is no {path}")
    try:
        library = ctypes.CDLL(str(path))
        library.kernels_version.restype = library.kernels_level.restype = ctypes.c_int64
        version, level = library.kernels_version(), library.kernels_level()
        if version != _VERSION:
            return Found(None, f"torch operations: {path} has version {version}, not {_VERSION}")
        for name, arguments in _KERNELS.items():
            kernel = getattr(library, name)
            kernel.argtypes, kernel.restype = [_TYPES[each] for each in arguments], ctypes.c_int64
    except (OSError, AttributeError) as error:  # of another platform, or no library of ours
        return Found(None, f"torch operations: {path} cannot be used: {error}")
    return Found(library, f"compiled kernels{f', x86-64-v{level}' if level else ''}: {path}")


def serve(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether kernels take these: all of the type, on the CPU, without gaps."""
    return found().library is not None and all(
        x.dtype == dtype and x.device.type == "cpu" and x.is_contiguous() for x in tensors
    )


def run(name: str, *arguments: Tensor | int) -> int:
    """Call a kernel; what it returns.

    Raises:
        ValueError: a tensor is not on the CPU or has gaps.
    """
    library = found().library
    assert library is not None, "ask `serve` before"
    return int(getattr(library, name)(*[x if isinstance(x, int) else _memory(x) for x in arguments]))


def _memory(x: Tensor) -> int:
    if x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError("a kernel takes memory of the CPU without gaps")
    return x.data_ptr()
