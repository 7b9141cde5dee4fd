"""The exams of the codecs that come with Headrace, by name."""

from __future__ import annotations

from headrace.testing.codec_exam import CodecExam
from headrace.testing.codec_exams import casts

EXAMS: dict[str, CodecExam] = {
    "none": casts.NONE,
    "fp16": casts.FP16,
    "bf16": casts.BF16,
}
