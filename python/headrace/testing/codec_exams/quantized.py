"""Codecs of buckets, a scale for each and few bits a number, in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from headrace.compress import create
from headrace.testing.codec_exam import DRAWS, Array, CodecExam, decoded_once
from headrace.testing.exams.large_batch import round_trip


def by_buckets(x: Array, bucket: int, one: Callable[[Array], Array]) -> Array:
    """What `one` makes of every bucket, side by side."""
    return np.concatenate([one(x[start : start + bucket]) for start in range(0, len(x), bucket)], axis=-1)


def largest(x: Array) -> float:
    """max |x|."""
    return float(np.abs(x).max())


def euclidean(x: Array) -> float:
    """|x|_2."""
    return float(np.sqrt(x @ x))


def between(x: Array, scale: float, levels: int) -> Array:
    """Multiples of scale / levels below and above [2, n]."""
    if scale == 0:
        return np.zeros((2, len(x)))
    y = x / scale * levels
    y = np.where(np.abs(y - np.rint(y)) < 1e-9, np.rint(y), y)
    return np.stack([np.floor(y), np.ceil(y)]) * scale / levels


def int8(x: Array, *, bucket: int) -> Array:
    """Neighbours among multiples of a 127th of the largest."""
    return by_buckets(x, bucket, lambda part: between(part, largest(part), 127))


def int8_nearest(x: Array, *, bucket: int) -> Array:
    """The nearer of these."""
    low, high = int8(x, bucket=bucket)
    return np.where(x - low < high - x, low, high)


def qsgd(x: Array, *, levels: int, bucket: int, norm: str) -> Array:
    """Alistarh et al. 2017, section 3.1."""
    scale = euclidean if norm == "l2" else largest
    return by_buckets(x, bucket, lambda part: between(part, scale(part), levels))


def terngrad(x: Array, *, bucket: int, clip: float = np.inf) -> Array:
    """Wen et al. 2017, equations 1 and 9, sigma about zero."""

    def one(part: Array) -> Array:
        bound = min(largest(part), clip * euclidean(part) / len(part) ** 0.5) if clip < np.inf else largest(part)
        return between(np.clip(part, -bound, bound), bound, 1)

    return by_buckets(x, bucket, one)


def natural(x: Array, *, bucket: int) -> Array:
    """Powers of two about a number; what is too small for them, 0 or the smallest."""

    def one(part: Array) -> Array:
        if not part.any():
            return np.zeros((2, len(part)))
        smallest = 2.0 ** (np.ceil(np.log2(np.abs(part).max())) - 126)
        with np.errstate(divide="ignore"):
            logs = np.log2(np.abs(part))
        low, high = 2.0 ** np.floor(logs), 2.0 ** np.ceil(logs)
        tiny = np.abs(part) < smallest
        return np.sign(part) * np.stack([np.where(tiny, 0.0, low), np.where(tiny, smallest, high)])

    return by_buckets(x, bucket, one)


def bytes_of(bits: float) -> Callable[..., int]:
    """A float32 scale a bucket, and packed codes; 1.6 bits: five to a byte."""

    def nbytes(x: Array, decoded: Array, *, bucket: int, levels: int | None = None, **other: Any) -> int:
        b = bits if levels is None else int(np.ceil(np.log2(2 * levels + 1)))
        if b == 1.6:
            return 4 * -(-len(x) // bucket) + -(-len(x) // 5)
        together = np.lcm(int(b), 8)  # bits that whole numbers fill whole bytes with
        groups = -(-len(x) // (together // int(b)))
        return int(4 * -(-len(x) // bucket) + groups * together // 8)

    return nbytes


def omega_text(k: int) -> str:
    """Elias' recursive code as text, by its definition."""
    text = "0"
    while k > 1:
        text = f"{k:b}{text}"
        k = len(f"{k:b}") - 1
    return text


def elias_text(part: Array) -> str:
    """Alistarh et al. 2017, section 3.2: levels with sign of one bucket."""
    text, before = "", -1
    for place in np.flatnonzero(part):
        text += omega_text(int(place) - before) + ("1" if part[place] < 0 else "0") + omega_text(abs(int(part[place])))
        before = int(place)
    return text


def elias_streams(decoded: Array, levels: int, bucket: int, scales: Array) -> list[str]:
    """The bits of every bucket, from what it decodes to."""
    parts = [decoded[start : start + bucket] for start in range(0, len(decoded), bucket)]
    return [
        elias_text(np.rint(part * (levels / scale if scale else 0.0)))
        for part, scale in zip(parts, scales, strict=True)
    ]


def elias_bytes(x: Array, decoded: Array, *, levels: int, bucket: int, norm: str) -> int:
    """Norms, sizes of 16 bits, and each bucket's bits in whole bytes."""
    scale = euclidean if norm == "l2" else largest
    scales = by_buckets(x, bucket, lambda part: np.array([scale(part)]))
    return sum(6 + -(-len(text) // 8) for text in elias_streams(decoded, levels, bucket, scales))


def elias_bits_are_the_papers() -> None:
    """Every bit of a payload of three buckets, written out."""
    x = torch.randn(250, generator=torch.Generator().manual_seed(1)) * torch.linspace(0, 3, 250) ** 4
    for levels in (1, 7, 127):
        codec = create("qsgd_elias", levels=levels, bucket=100)
        payload, _ = codec.compress(x, codec.init(x, key=levels))
        scales = payload.data[:12].view(torch.float32).double().numpy()
        texts = elias_streams(codec.decompress(payload).double().numpy(), levels, 100, scales)
        assert payload.data[12:18].view(torch.int16).tolist() == [len(text) for text in texts]
        whole = "".join(text + "0" * (-len(text) % 8) for text in texts)
        assert "".join(f"{byte:08b}" for byte in payload.data[18:].tolist()) == whole, levels


def small_numbers_are_kept_on_average() -> None:
    """Natural compression of numbers 2^-120 to 2^-140 of the largest: that or 0, but right on average."""
    exponents = torch.arange(-140.0, -119.0, dtype=torch.float64)
    x = torch.cat([torch.ones(1, dtype=torch.float64), 1.5 * 2.0**exponents])
    codec = create("natural")
    every = torch.stack([decoded_once(codec, x, turn=turn) for turn in range(DRAWS)])
    assert set(every.unique().log2().tolist()) <= {float("-inf"), 0.0, *map(float, range(-126, -118))}
    off = (every.mean(0) / x - 1).abs()
    # Of those below t = 2^-126 a share p = x / t becomes t: the mean's deviation is sqrt((1 - p) / p / draws).
    share = (x / 2.0**-126).clamp(max=1.0)
    deviation = ((1 - share) / share + 1 / 8).div(DRAWS).sqrt()
    assert bool((off <= 6 * deviation + 20 / (DRAWS * share))[1:].all()), off


def powers_of_two_stay() -> None:
    """Natural compression of what it can say is exact, whatever is drawn."""
    x = torch.cat([2.0 ** torch.arange(-100.0, 20.0), -(2.0 ** torch.arange(-90.0, 10.0)), torch.zeros(3)])
    codec = create("natural", bucket=64)
    assert all(torch.equal(decoded_once(codec, x, turn=turn), x) for turn in range(5))


INT8 = CodecExam(neighbours=int8, nbytes=bytes_of(8), variants=({"bucket": 100},))
INT8_NEAREST = CodecExam(rule=int8_nearest, nbytes=bytes_of(8), variants=({"bucket": 100},))
INT8_DYNAMIC = CodecExam(
    rule=lambda x: round_trip(x, signed=True), nbytes=lambda x, decoded: len(x) + 4 * -(-len(x) // 2048)
)
NATURAL = CodecExam(
    neighbours=natural,
    nbytes=bytes_of(8),
    whole=(small_numbers_are_kept_on_average, powers_of_two_stay),
)
QSGD = CodecExam(
    neighbours=qsgd,
    nbytes=bytes_of(0),
    variants=(
        {"levels": 1, "bucket": 100},
        {"levels": 9, "norm": "max"},
    ),
    tolerance=1e-5,  # a norm may be 22 times the largest
)
QSGD_ELIAS = CodecExam(
    neighbours=qsgd,
    nbytes=elias_bytes,
    tolerance=1e-5,
    whole=(elias_bits_are_the_papers,),
)
TERNGRAD = CodecExam(neighbours=terngrad, nbytes=bytes_of(1.6))
TERNGRAD_CLIPPED = CodecExam(neighbours=terngrad, nbytes=bytes_of(1.6), variants=({"clip": 1.0, "bucket": 64},))
