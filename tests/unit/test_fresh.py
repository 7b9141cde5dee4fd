"""New memory for large tensors: where it lies, which pages it has; and what is converted piece by piece into it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from headrace.comm.fresh import LARGE, fresh
from headrace.comm.sums import _PIECE, saturated

CPU = torch.device("cpu")
SMAPS = Path("/proc/self/smaps")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 8, LARGE - 8, LARGE, LARGE + 24])
def test_as_many_numbers_as_asked_for_where_torch_would_put_them(dtype: torch.dtype, size: int) -> None:
    found = fresh(size // dtype.itemsize, dtype, CPU)
    assert found.dtype == dtype and found.shape == (size // dtype.itemsize,) and found.is_contiguous()
    assert found.data_ptr() % 64 == 0 and torch.equal(found.fill_(3), torch.full_like(found, 3))
    assert torch.equal(found.view(torch.uint8)[:8].clone().view(dtype), found[: 8 // dtype.itemsize])


@pytest.mark.skipif(not SMAPS.exists(), reason="what pages memory has is Linux's to tell")
def test_large_tensors_ask_for_large_pages() -> None:
    held = fresh(8 * LARGE, torch.uint8, CPU)
    middle = held.data_ptr() + 4 * LARGE
    flags = ""
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text()):
        first, last = (int(end, 16) for end in part.split(" ", 1)[0].split("-"))
        if first <= middle < last:
            flags = part.split("VmFlags:")[1]
    assert " hg" in flags, flags


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_numbers_are_kept_in_range_whatever_their_piece_holds(wide: torch.dtype, narrow: torch.dtype) -> None:
    """One piece fits, one has numbers beyond the range, one some that are not finite: alike, number by number."""
    x = torch.randn(3 * _PIECE + 5, generator=torch.Generator().manual_seed(1), dtype=wide)
    top, largest = torch.finfo(wide).max, torch.finfo(narrow).max
    x[3], x[_PIECE], x[_PIECE + 1], x[_PIECE + 2] = -0.0, top, -top, largest
    x[2 * _PIECE : 2 * _PIECE + 3] = torch.tensor([math.inf, -math.inf, math.nan])
    found = saturated(x.view(-1, 1), narrow)
    single = torch.stack([saturated(x[i], narrow) for i in (3, _PIECE, _PIECE + 1, _PIECE + 2)])
    assert single.tolist() == [0.0, largest, -largest, largest] and not bool(single[0].signbit())
    assert torch.equal(found[[3, _PIECE, _PIECE + 1, _PIECE + 2], 0], single) and not bool(found[3, 0].signbit())
    assert found[2 * _PIECE : 2 * _PIECE + 3].isnan().all() and int(found.isfinite().sum()) == len(x) - 3
    kept = x.clamp(-largest, largest).to(narrow).view(-1, 1)
    assert torch.equal(found[: 2 * _PIECE], kept[: 2 * _PIECE]) and torch.equal(found[-5:], kept[-5:])
    back = saturated(found, wide)
    assert back.dtype == wide and torch.equal(back[: 2 * _PIECE], found[: 2 * _PIECE].to(wide))
