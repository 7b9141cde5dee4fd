"""Numbers as they are and in 16 bits, in NumPy; bfloat16 by rounding the upper half of float32's bits."""

from __future__ import annotations

import numpy as np

from headrace.testing.codec_exam import Array, CodecExam


def half(x: Array) -> Array:
    """IEEE's binary16, kept at its largest number."""
    return np.clip(x, -65504.0, 65504.0).astype(np.float16).astype(np.float64)


def brain(x: Array) -> Array:
    """float32 with its lower 16 bits rounded away, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return kept.astype(np.uint32).view(np.float32).astype(np.float64)


NONE = CodecExam(rule=lambda x: x, nbytes=lambda x, decoded: 4 * len(x), tolerance=0.0)
FP16 = CodecExam(rule=half, nbytes=lambda x, decoded: 2 * len(x), tolerance=0.0)
BF16 = CodecExam(rule=brain, nbytes=lambda x, decoded: 2 * len(x), tolerance=0.0)
