"""The largest numbers of a tensor by absolute value, and where numbers are large; NaN is larger than all.

    exact     one pass of torch.topk
    sampled   a threshold from a sample that more than k numbers are sure to reach, all but; torch.topk of these

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
    chosen = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
    chosen.index_fill_(0, x.abs().topk(k, sorted=False).indices, True)
    return places(chosen.logical_and_(x != 0))


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
    found, size = [], piece_for(x)
    for start in range(0, x.numel(), size):
        piece = x[start : start + size]
        if in_numpy(x):
            flags = torch.from_numpy(np.logical_not(np.abs(piece.numpy()) <= threshold.numpy()))
        else:
            flags = (piece.abs() <= threshold).logical_not_()
        found.append(places(flags) + start)
    return torch.cat(found)


def all_finite(x: Tensor) -> bool:
    """Whether no number of x is NaN or infinite; a finite sum is proof, and cheap."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())
