"""One bit a number, in NumPy: means of boolean selections, bucket by bucket."""

from __future__ import annotations

import numpy as np
import torch

from headrace.compress.signs import counts_of, pack, pack_by_words, unpack, unpack_by_words
from headrace.testing.codec_exam import Array, CodecExam


def one_bit(x: Array, bucket: int) -> Array:
    """Each number becomes the mean of those of its bucket and sign."""
    out = np.empty_like(x)
    for start in range(0, len(x), bucket):
        part = x[start : start + bucket]
        for chosen in (part < 0, part >= 0):
            if chosen.any():
                out[start : start + bucket][chosen] = part[chosen].mean()
    return out


def sign(x: Array) -> Array:
    """+1 for 0 as well."""
    return np.where(x < 0, -1.0, 1.0)


def packs_bits() -> None:
    """NumPy's packbits, and back, for every length about a word; counts by plain sums."""
    rng = np.random.default_rng(0)
    for n in [*range(1, 70), 4096, (1 << 19) + 3]:
        flags = torch.from_numpy(rng.random(n) < rng.random())
        packed = pack(flags)
        np.testing.assert_array_equal(packed.numpy(), np.packbits(flags.numpy(), bitorder="little"))
        assert torch.equal(pack_by_words(flags), packed)
        assert torch.equal(unpack(packed, n), flags) and torch.equal(unpack_by_words(packed, n), flags)
    for length in (8, 24, 512, 2040, 4096):
        flags = torch.from_numpy(rng.random(3 * length) < np.repeat([0.0, 0.5, 1.0], length))
        assert counts_of(flags, length).tolist() == flags.view(3, length).sum(1).tolist()
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pack(unpack(every, 2048)), every)


def _one_bit_bytes(x: Array, decoded: Array, bucket: int) -> int:
    return -(-len(x) // 8) + 8 * -(-len(x) // bucket)


ONEBIT = CodecExam(
    rule=one_bit,
    nbytes=_one_bit_bytes,
    variants=[{"bucket": 8}, {"bucket": 1024}, {"bucket": 1 << 20}],
    whole=[packs_bits],
)
SIGNSGD = CodecExam(
    rule=lambda x: np.abs(x).mean() * sign(x), nbytes=lambda x, decoded: 4 + -(-len(x) // 8), whole=[packs_bits]
)
SIGNSGD_UNSCALED = CodecExam(
    rule=lambda x: sign(x) * x.any(), nbytes=lambda x, decoded: 4 + -(-len(x) // 8), whole=[packs_bits]
)
