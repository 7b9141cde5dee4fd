"""Codecs in several strengths, from the fewest bytes to exact: what a controller may choose for a tensor.

A rung's bytes are known beforehand; its error is what it does to a sample of the tensor. Over stretches x of the tensor

    energy = n / |sample| sum x^2,  error of a rung = n / |sample| sum (C(x) - x)^2

is right in the mean over samples for codecs that work by buckets of a stretch; for top-k it is the energy outside the
largest numbers of the sample. Reference: I. Markov, K. Alimohammadi, E. Frantar, D. Alistarh, "L-GreCo:
layerwise-adaptive gradient compression for efficient data-parallel deep learning", MLSys 2024; there a tensor's errors
are found on all of it, for one codec, and bytes are the least for an error.

All codecs of a ladder keep either nothing or draws (`RandomCodec`), so a unit's state serves any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.compress import COMPRESSORS, CodecSpec, create
from headrace.compress.base import Codec, RandomCodec
from headrace.compress.spec import EXACT, OWN_FEEDBACK, OWN_MOMENTUM, SHARED_DRAWS, SUMMABLE, UNBIASED, VARIABLE
from headrace.errors import UserError
from headrace.options import known

STRENGTHS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "topk": [{"ratio": r, "values": "float16"} for r in (0.001, 0.003, 0.01, 0.03, 0.1)],
    "qsgd": [{"levels": s, "norm": "max"} for s in (1, 3, 7, 15, 31, 127)],
}
STRETCH = 512  # numbers of a sample that lie together: the bucket of most codecs
SAMPLE = 32 * STRETCH


@dataclass(frozen=True)
class Rung:
    """A codec with its options.

    Args:
        label: "qsgd 7": the codec's name and what sets its strength.
        spec: of the codec.
        codec: made with them.
    """

    label: str
    spec: CodecSpec
    codec: Codec

    def nbytes(self, n: int, dtype: torch.dtype) -> int:
        """Of n numbers, 0 for none."""
        found = self.codec.nbytes(n, dtype) if n else 0
        assert found is not None, "rungs have a fixed size"
        return found


def why_not(spec: CodecSpec, feedback: bool) -> str:
    """Why a codec cannot be a rung, with or without error feedback; empty where it can."""
    if spec.traits & {OWN_FEEDBACK, OWN_MOMENTUM}:
        return "it remembers what it did not send in its own way, and no other codec could go on from that"
    if SHARED_DRAWS in spec.traits:
        return "all ranks must draw alike, which other codecs do not"
    if VARIABLE in spec.traits:
        return "its bytes are not known before it is used, so that no budget could be kept"
    if not feedback and not spec.traits & {EXACT, UNBIASED, SUMMABLE}:  # summable: casts
        return "it is not right in the mean, which wants error feedback"
    return ""


def fitting(names: Sequence[str], feedback: bool) -> list[str]:
    """Those of the codecs that can be rungs."""
    return [name for name in names if not why_not(COMPRESSORS[name], feedback)]


def ladder(names: Sequence[str], feedback: bool) -> list[Rung]:
    """The rungs of some codecs: at the strengths of STRENGTHS, others with their defaults.

    Raises:
        UserError: there is no such codec, or it cannot be a rung, or there is none at all.
    """
    if not names:
        raise UserError("--compression.codecs []: there is nothing to choose from", f"some of {_possible(feedback)}")
    made = []
    for name in dict.fromkeys(names):
        known("compression.codecs", name, COMPRESSORS)
        if why := why_not(COMPRESSORS[name], feedback):
            raise UserError(f"--compression.codecs: {name}: {why}", f"some of {_possible(feedback)}")
        made += [_rung(name, options) for options in STRENGTHS.get(name, [{}])]
    return made


def _possible(feedback: bool) -> str:
    return ", ".join(fitting(list(COMPRESSORS), feedback))


def _rung(name: str, options: Mapping[str, Any]) -> Rung:
    strength = next(iter(options.values()), "")
    codec = create(name, **options)
    assert codec.init(torch.zeros(1)).keys() <= RandomCodec().init(torch.zeros(1)).keys(), name
    return Rung(f"{name} {strength}".strip(), COMPRESSORS[name], codec)


def sample(x: Tensor, room: int, turn: int) -> Tensor:
    """Stretches of x [n], evenly apart and others at another turn, `room` numbers at most or a stretch; or all of x."""
    n, count = x.numel(), max(1, room // STRETCH)
    if n <= count * STRETCH:
        return x
    apart = n // count
    first = (turn * STRETCH) % (apart - STRETCH + 1)
    return torch.cat([x[k * apart + first : k * apart + first + STRETCH] for k in range(count)])


def errors(x: Tensor, rungs: Sequence[Rung], turn: int) -> list[float]:
    """|C(x) - x|^2 of every rung, for x [n], n > 0; draws are those of the turn."""
    state = RandomCodec().init(x, key=turn)
    found = [(_decoded(x, rung.codec, state) - x).double().square().sum() for rung in rungs]
    values: list[float] = torch.stack(found).tolist()
    return values


def _decoded(x: Tensor, codec: Codec, state: dict[str, Any]) -> Tensor:
    payload, _ = codec.compress(x, state)
    return codec.decompress(payload)
