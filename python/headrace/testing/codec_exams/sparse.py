"""A few numbers of many, in NumPy: by a full sort, and by a comparison of each."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from headrace.compress import Codec, Payload, PayloadError, create
from headrace.compress.index_coding import coded_bytes, decode_indices, encode_indices
from headrace.compress.randomk import drawn_places
from headrace.compress.selection import SAMPLE, largest, sampled_places
from headrace.compress.signs import piece_for
from headrace.testing.codec_exam import Array, CodecExam


def count_of(n: int, ratio: float) -> int:
    """The share of n as it was typed, rounded up."""
    return max(1, math.ceil(Fraction(str(ratio)) * n))


def largest_of(x: Array, k: int) -> Array:
    """All but the k largest |x| are 0."""
    out = np.zeros_like(x)
    chosen = np.argsort(-np.abs(x), kind="stable")[:k]
    out[chosen] = x[chosen]
    return out


def coded_size(k: int, n: int) -> int:
    """Elias and Fano's code of k places below n: the best of all splits, in whole bytes a plane."""
    if k == 0:
        return 0
    splits = [(k * low + (n - 1) // 2**low, low) for low in range(64)]
    steps, low = k + (n - 1) // 2 ** min(splits)[1], min(splits)[1]
    return math.ceil(steps / 8) + low * math.ceil(k / 8)


def top_k(x: Array, ratio: float, selection: str, values: str) -> Array:
    """float16: parts of the largest."""
    out = largest_of(x, count_of(len(x), ratio))
    most = np.abs(out).max()
    if values == "float32" or most == 0:
        return out
    return (out / most * 32768).astype(np.float16).astype(np.float64) / 32768 * most


def _top_k_bytes(x: Array, decoded: Array, ratio: float, selection: str, values: str) -> int:
    k = count_of(len(x), ratio)
    return (4 * k if values == "float32" else 2 * k + 4) + coded_size(k, len(x))


def beyond(x: Array, tau: float, relative: bool) -> Array:
    """The threshold, with its sign."""
    limit = tau * np.abs(x).mean() if relative else tau
    return np.where(np.abs(x) > limit, limit * np.sign(x), 0.0)


def _threshold_bytes(x: Array, decoded: Array, tau: float, relative: bool) -> int:
    count = int(np.count_nonzero(decoded))
    return 12 + math.ceil(count / 8) + coded_size(count, len(x))


def codes_indices() -> None:
    """Bit by bit in plain Python, for all kinds of crowds; room for k holds fewer."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 9, 100, 5000, 300_000):
        for k in sorted({1, min(2, n), -(-n // 10), -(-n // 3), n}) if n < 10_000 else (70_000,):
            for count in (k, k // 2):
                indices = np.sort(rng.choice(n, count, replace=False))
                coded = encode_indices(torch.from_numpy(indices), k, n)
                assert coded.numel() == coded_size(k, n) == coded_bytes(k, n)
                np.testing.assert_array_equal(coded.numpy(), _coded_slowly(indices.tolist(), k, n))
                np.testing.assert_array_equal(decode_indices(coded, k, n).numpy(), indices)


def _coded_slowly(indices: list[int], k: int, n: int) -> npt.NDArray[np.uint8]:
    low = min(range(64), key=lambda low: (k * low + (n - 1) // 2**low, low))
    steps = [0] * (8 * math.ceil((k + (n - 1) // 2**low) / 8))
    for j, index in enumerate(indices):
        steps[index // 2**low + j] = 1
    planes = [[index // 2**bit % 2 for index in indices] + [0] * (k - len(indices)) for bit in range(low)]
    bits = steps + [b for plane in planes for b in plane + [0] * (-k % 8)]
    return np.packbits(np.array(bits, np.uint8), bitorder="little")


def refuses_false_indices() -> None:
    """Out of range, repeated, falling, too many, of another size."""
    good = torch.from_numpy(_coded_slowly([3, 5, 6, 40], 4, 100))
    assert decode_indices(good, 4, 100).tolist() == [3, 5, 6, 40]
    for wrong in ([3, 5, 5, 40], [3, 6, 5, 40], [3, 5, 6, 105]):
        _refused(torch.from_numpy(_coded_slowly(wrong, 4, 100)), 4, 100)
    many = list(range(0, 320_000, 8))
    block = piece_for(good, 32) // 4  # where one block of indices ends, checks go on
    for next_one in (8 * block - 8, 8 * block - 7):
        many[block - 1 : block + 1] = [8 * block - 7, next_one]
        _refused(torch.from_numpy(_coded_slowly(many, 40_000, 320_000)), 40_000, 320_000)
    for data in (good[:-1], torch.cat([good, good[:1]]), torch.full_like(good, 255)):
        _refused(data, 4, 100)


def _refused(data: torch.Tensor, k: int, n: int) -> None:
    try:
        found = decode_indices(data, k, n)
    except PayloadError:
        return
    raise AssertionError(f"{data.tolist()} became {found.tolist()}")


def samples_as_well_as_it_sorts() -> None:
    """The k largest by a full sort, where a sample serves and where it misleads; types of NumPy's and others."""
    rng = np.random.default_rng(0)
    n, k = 20_000, 200
    misleading = rng.normal(size=n)
    misleading[sampled_places(n, min(SAMPLE, n // 8)).numpy()] *= 100
    few = np.zeros(n)
    few[rng.choice(n, 150, replace=False)] = rng.normal(size=150)
    tensors = [rng.normal(size=n), rng.standard_cauchy(n), misleading, few, np.zeros(n), np.full(n, -2.0)]
    for selection, dtype in itertools.product(("exact", "sampled"), (torch.float64, torch.bfloat16)):
        for each in tensors:
            x = torch.from_numpy(each).to(dtype)
            chosen, numbers = largest(x, k, selection).numpy(), x.double().numpy()
            assert len(chosen) == min(k, np.count_nonzero(numbers)) and (np.diff(chosen) > 0).all()
            sizes = np.sort(np.abs(numbers))
            np.testing.assert_array_equal(np.sort(np.abs(numbers[chosen])), sizes[n - len(chosen) :])
        _prefers_what_is_not_finite(torch.from_numpy(tensors[0]).to(dtype), k, selection)


def _prefers_what_is_not_finite(x: torch.Tensor, k: int, selection: str) -> None:
    """Among other numbers and equal ones; there may be more or fewer of it than there is room for."""
    x[[7, 4000, 19_999]] = torch.tensor([math.nan, math.inf, -math.inf], dtype=x.dtype)
    assert {7, 4000, 19_999} <= set(largest(x, k, selection).tolist())
    equal = torch.full_like(x, 3.0)
    equal[5000 : 5100 + k] = math.nan
    chosen = largest(equal, k, selection)
    assert len(chosen) == k and equal[chosen].isnan().all()
    equal[5100 : 5100 + k] = 4.0
    found = set(largest(equal, k, selection).tolist())
    assert len(found) == k and set(range(5000, 5100)) <= found <= set(range(5000, 5100 + k))


def places_are_equally_likely() -> None:
    """Every place, and every pair of neighbours, about as often as it must be; few of many and many of few."""
    generator = torch.Generator().manual_seed(0)
    for n, k in ((50, 5), (50, 20), (50, 50), (1000, 1)):
        seen, both, turns = np.zeros(n), 0, 2000
        for _ in range(turns):
            places = drawn_places(n, k, generator).numpy()
            assert len(places) == k and (np.diff(places) > 0).all() and places[0] >= 0 and places[-1] < n
            seen[places] += 1
            both += int((np.diff(places) == 1).sum())
        p = k / n
        assert np.abs(seen - turns * p).max() <= 5 * math.sqrt(turns * p * (1 - p)) + 1
        pairs = turns * p * (k - 1)
        assert abs(both - pairs) <= 6 * math.sqrt(pairs) + 1


def threshold_refuses_lies() -> None:
    """Counts below 0, beyond the tensor, unlike the bytes; one place twice."""
    codec = create("threshold")
    x = torch.zeros(64)
    x[[3, 9]] = torch.tensor([5.0, -4.0])
    right, _ = codec.compress(x, {})
    assert codec.decompress(right).nonzero().view(-1).tolist() == [3, 9]
    for count in (-1, 0, 1, 3, 65, 1 << 40, (1 << 63) - 1):
        data = right.data.clone()
        data[:8] = torch.tensor([count]).view(torch.uint8)
        refused(codec, Payload(data, x.shape, x.dtype))
    twice = torch.cat([right.data[:13], torch.from_numpy(_coded_slowly([3, 3], 2, 64))])
    refused(codec, Payload(twice, x.shape, x.dtype))
    fewer = torch.cat([right.data[:13], encode_indices(torch.tensor([6]), 2, 64)])
    refused(codec, Payload(fewer, x.shape, x.dtype))


def threshold_knows_no_measure() -> None:
    """What is sent of 2^e x is 2^e of what is sent of x, where sums are beyond float32 and where x is all but 0."""
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    codec = create("threshold")
    sent = codec.decompress(codec.compress(x, {})[0])
    assert sent.any()
    for power in (120, -120):
        scaled = codec.decompress(codec.compress(x * 2.0**power, {})[0])
        torch.testing.assert_close(scaled * 2.0**-power, sent, rtol=1e-6, atol=0)


def refused(codec: Codec, payload: Payload) -> None:
    """The payload is not decoded."""
    try:
        codec.decompress(payload)
    except PayloadError:
        return
    raise AssertionError(f"{payload.data.tolist()} was decoded")


TOPK = CodecExam(
    rule=top_k,
    nbytes=_top_k_bytes,
    variants=[
        {"selection": "exact"}, {"values": "float16"}, {"ratio": 0.3}, {"ratio": 1.0, "selection": "exact"},
        {"ratio": 0.1, "selection": "exact", "values": "float16"},
    ],
    whole=[codes_indices, refuses_false_indices, samples_as_well_as_it_sorts],
)  # fmt: skip
RANDOMK = CodecExam(
    neighbours=lambda x, ratio: np.stack([0 * x, x]),
    nbytes=lambda x, decoded, ratio: 4 * count_of(len(x), ratio),
    variants=[{"ratio": 0.5}],
    whole=[places_are_equally_likely],
)
RANDOMK_UNBIASED = CodecExam(
    neighbours=lambda x, ratio: np.stack([0 * x, x * len(x) / count_of(len(x), ratio)]),
    nbytes=lambda x, decoded, ratio: 4 * count_of(len(x), ratio),
    variants=[{"ratio": 0.5}],
    tolerance=1e-4,
)
THRESHOLD = CodecExam(
    rule=beyond,
    nbytes=_threshold_bytes,
    variants=[{"tau": 0.5}, {"tau": 0.7, "relative": False}],
    whole=[threshold_refuses_lies, threshold_knows_no_measure],
)
