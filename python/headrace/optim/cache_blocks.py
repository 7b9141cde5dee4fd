"""Tensors cut into blocks that stay in a core's cache while the several passes of a rule go over them.

A rule of n passes over a tensor of many megabytes moves it n times through memory; over a block of 128 Ki numbers it
moves it once. Where several threads share every operation each block costs a barrier an operation, so blocks are larger
there; on an accelerator a tensor is one block. Tensors smaller than a block are taken together, as many as fill one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ONE_THREAD = 1 << 17
MANY_THREADS = 1 << 20


def block_size(device: torch.device) -> int:
    """Numbers in a block."""
    if device.type != "cpu":
        return 1 << 62
    return ONE_THREAD if torch.get_num_threads() == 1 else MANY_THREADS


def packs(tensors: Sequence[Tensor], size: int) -> Iterator[list[int]]:
    """Indices of neighbours of one dtype that have at most `size` numbers together, or of one tensor that has more.

    Tensors without any numbers are left out.
    """
    pack: list[int] = []
    room = size
    for i, tensor in enumerate(tensors):
        count = tensor.numel()
        if pack and (count > room or tensor.dtype != tensors[pack[0]].dtype):
            yield pack
            pack, room = [], size
        if count:
            pack.append(i)
            room -= count
    if pack:
        yield pack


def blocks(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Contiguous tensors of as many numbers each, side by side, in flat views of `size` numbers."""
    return zip(*(t.view(-1).split(size) for t in tensors), strict=True)


def contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors themselves, or copies in row-major order of those that lie otherwise."""
    return [t if t.is_contiguous() else t.contiguous() for t in tensors]


def copy_back(tensors: Sequence[Tensor], worked: Sequence[Tensor]) -> None:
    """What was done to copies of `contiguous` is done to the tensors."""
    for tensor, work in zip(tensors, worked, strict=True):
        if work is not tensor:
            tensor.copy_(work)
