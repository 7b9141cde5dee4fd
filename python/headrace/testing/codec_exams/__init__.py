"""The exams of the codecs that come with Headrace, by name."""

from __future__ import annotations

from headrace.testing.codec_exam import CodecExam
from headrace.testing.codec_exams import casts, dgc, signs, sparse

EXAMS: dict[str, CodecExam] = {
    "none": casts.NONE,
    "fp16": casts.FP16,
    "bf16": casts.BF16,
    "dgc": dgc.DGC,
    "onebit": signs.ONEBIT,
    "randomk": sparse.RANDOMK,
    "randomk_unbiased": sparse.RANDOMK_UNBIASED,
    "signsgd": signs.SIGNSGD,
    "signsgd_unscaled": signs.SIGNSGD_UNSCALED,
    "threshold": sparse.THRESHOLD,
    "topk": sparse.TOPK,
}
