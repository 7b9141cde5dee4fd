"""The exams of the codecs that come with Headrace, by name."""

from __future__ import annotations

from headrace.testing.codec_exam import CodecExam
from headrace.testing.codec_exams import casts, dgc, quantized, signs, sparse

EXAMS: dict[str, CodecExam] = {
    "none": casts.NONE,
    "fp16": casts.FP16,
    "bf16": casts.BF16,
    "int8": quantized.INT8,
    "int8_nearest": quantized.INT8_NEAREST,
    "int8_dynamic": quantized.INT8_DYNAMIC,
    "natural": quantized.NATURAL,
    "qsgd": quantized.QSGD,
    "qsgd_elias": quantized.QSGD_ELIAS,
    "terngrad": quantized.TERNGRAD,
    "terngrad_clipped": quantized.TERNGRAD_CLIPPED,
    "dgc": dgc.DGC,
    "onebit": signs.ONEBIT,
    "randomk": sparse.RANDOMK,
    "randomk_unbiased": sparse.RANDOMK_UNBIASED,
    "signsgd": signs.SIGNSGD,
    "signsgd_unscaled": signs.SIGNSGD_UNSCALED,
    "threshold": sparse.THRESHOLD,
    "topk": sparse.TOPK,
}
