"""Codecs by name: `create("qsgd", levels=7)`; see headrace.compress.base for how one is used."""

from __future__ import annotations

from typing import Any

from headrace.compress import (
    casts,
    dgc,
    int8,
    int8_dynamic,
    natural,
    none,
    onebit,
    qsgd,
    qsgd_elias,
    randomk,
    signsgd,
    terngrad,
    threshold,
    topk,
)
from headrace.compress.base import Codec, Payload, PayloadError, State
from headrace.compress.spec import CodecSpec
from headrace.options import choose, known

COMPRESSORS: dict[str, CodecSpec] = {
    "none": none.SPEC,
    "fp16": casts.FP16,
    "bf16": casts.BF16,
    "int8": int8.SPEC,
    "int8_nearest": int8.NEAREST,
    "int8_dynamic": int8_dynamic.SPEC,
    "natural": natural.SPEC,
    "qsgd": qsgd.SPEC,
    "qsgd_elias": qsgd_elias.SPEC,
    "terngrad": terngrad.SPEC,
    "terngrad_clipped": terngrad.CLIPPED,
    "dgc": dgc.SPEC,
    "onebit": onebit.SPEC,
    "randomk": randomk.KEPT,
    "randomk_unbiased": randomk.SCALED,
    "signsgd": signsgd.SCALED,
    "signsgd_unscaled": signsgd.UNSCALED,
    "threshold": threshold.SPEC,
    "topk": topk.SPEC,
}


def create(name: str, **options: Any) -> Codec:
    """The codec of that name.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    known("compression.name", name, COMPRESSORS)
    spec = COMPRESSORS[name]
    return spec.factory(**choose(f"compression {name}", spec.defaults, options))


__all__ = ["COMPRESSORS", "Codec", "CodecSpec", "Payload", "PayloadError", "State", "create"]
