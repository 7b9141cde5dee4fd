"""The largest numbers of a tensor by absolute value, and where numbers are large; NaN is larger than all.

    exact     the k-th largest of all, by partial sorting
    sampled   a threshold from a sample that more than k numbers are sure to reach, all but; the k largest of these

Both give the k largest. The sample (Lin et al. 2018) has one number, drawn with a fixed seed, from each of S equal
stretches; with p = k / n fewer than k numbers are above its (S p + 4 sqrt(S p) + 4)-th largest once in 30,000 tensors,
or where many are equal, or the tensor follows the pattern of the draws: then `exact` is asked.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from headrace.compress import kernels
from headrace.compress.signs import in_numpy, piece_for, places

SELECTIONS = ("exact", "sampled")
SAMPLE = 1 << 14
CPU = torch.device("cpu")
_SMALL = 64  # numbers: too few to take a sample of


def largest(x: Tensor, k: int, selection: str) -> Tensor:
    """Indices, ascending, of the k numbers of x [n] with the largest |x|, or of all that are not 0 if these are fewer.

    Of equals, any; `selection` is of SELECTIONS.
    """
    candidates = _candidates(x, k) if selection == "sampled" and x.numel() >= _SMALL else None
    if candidates is None:
        return _topk(x, k)
    if candidates.numel() <= k:
        return candidates
    return candidates[_topk(x.index_select(0, candidates), k)]


def _topk(x: Tensor, k: int) -> Tensor:
    size = x.abs()
    if in_numpy(x) and k < x.numel():
        return places(_topk_in_numpy(size, k))
    chosen = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
    chosen.index_fill_(0, size.topk(k, sorted=False).indices, True)
    return places(chosen.logical_and_(size != 0))


def _topk_in_numpy(size: Tensor, k: int) -> Tensor:
    """Flags of the k largest of [n], k < n: what is above the k-th, and as many of its equals as there is room for."""
    numbers = size.numpy()
    kth = np.partition(numbers, len(numbers) - k)[len(numbers) - k]  # NaN comes last
    above = np.isnan(numbers) if np.isnan(kth) else np.logical_not(numbers <= kth)
    room = k - int(np.count_nonzero(above))
    if room > 0 and kth != 0:
        above[np.flatnonzero(numbers == kth)[:room]] = True
    elif room < 0:  # more that are NaN
        above[np.flatnonzero(above)[k:]] = False
    return torch.from_numpy(above)


def _candidates(x: Tensor, k: int) -> Tensor | None:
    """Ascending indices of k numbers or more, the largest, or of all that are not 0; None if there are too few."""
    n = x.numel()
    count = min(SAMPLE, n // 8)
    mean = count * k / n
    rank = math.ceil(mean + 4 * math.sqrt(mean) + 4)
    if rank >= count:
        return None
    threshold = x.index_select(0, sampled_places(n, count, x.device)).abs().topk(rank, sorted=False).values.min()
    found = places_beyond(x, threshold)
    return found if found.numel() >= k or threshold == 0 else None


@lru_cache(64)
def sampled_places(n: int, count: int, device: torch.device = CPU) -> Tensor:
    """int64 [count]: one place from each of `count` stretches of [0, n), the same at every call."""
    generator = torch.Generator(device).manual_seed(1)
    starts = torch.arange(count, device=device) * n // count
    return starts + torch.randint(0, n // count, (count,), generator=generator, device=device)


def places_beyond(x: Tensor, threshold: Tensor) -> Tensor:
    """Ascending indices int64 where not |x| <= threshold."""
    if kernels.serve(x, threshold):
        bits = torch.empty(-(-x.numel() // 8), dtype=torch.uint8)
        beyond = torch.empty(kernels.run("mark_beyond", x, x.numel(), threshold, bits), dtype=torch.int64)
        kernels.run("places_of", bits, x.numel(), beyond)
        return beyond
    found = []
    if not in_numpy(x):
        for start, piece in zip(range(0, x.numel(), piece_for(x)), x.split(piece_for(x)), strict=True):
            found.append(places((piece.abs() <= threshold).logical_not_()).add_(start))
        return torch.cat(found)
    numbers, limit, size = x.numpy(), threshold.numpy(), piece_for(x)
    sizes, flags = np.empty(min(size, len(numbers)), numbers.dtype), np.empty(min(size, len(numbers)), np.bool_)
    for start in range(0, len(numbers), size):  # in memory that is there
        piece = numbers[start : start + size]
        within = np.less_equal(np.abs(piece, out=sizes[: len(piece)]), limit, out=flags[: len(piece)])
        found.append(places(torch.from_numpy(np.logical_not(within, out=within))).add_(start))
    return torch.cat(found)


def all_finite(x: Tensor) -> bool:
    """Whether no number of x is NaN or infinite; a finite sum is proof, and cheap."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())
