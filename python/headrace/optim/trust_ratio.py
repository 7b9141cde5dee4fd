"""Layer-wise trust ratios: norms of layers, and which layers have none. For LARS and LAMB.

Reference: Y. You, I. Gitman, B. Ginsburg, "Large batch training of convolutional networks", arXiv:1708.03888, 2017. As
both papers' experiments have it, biases and the scales and shifts of normalization are neither decayed nor scaled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from headrace.errors import UserError
from headrace.optim.name_patterns import named_by

_LEAST = 1e-16  # squares of a layer whose norm is smaller leave float32's range


def excluded(params: Sequence[Tensor], options: Mapping[str, Any]) -> list[bool]:
    """Whether a tensor has neither trust ratio nor weight decay.

    Args:
        params: tensors of the group.
        options: a parameter group: `exclude_1d` for tensors of one dimension or none, and `exclude`, patterns
            ("*.bias") of the names that the optimizer was made with.

    Raises:
        UserError: patterns where there are no names; only "*" needs none.
    """
    patterns = options["exclude"]
    short = [bool(options["exclude_1d"]) and p.dim() <= 1 for p in params]
    if not patterns:
        return short
    if "*" in patterns:
        return [True] * len(params)
    if "param_names" not in options:
        raise UserError(
            f"optimizer option exclude {list(patterns)} goes by names, and the parameters have none",
            "make it from the model, or from model.named_parameters()",
        )
    names = {id(p): name for p, name in zip(options["params"], options["param_names"], strict=True)}
    return [s or named_by(patterns, names[id(p)]) for p, s in zip(params, short, strict=True)]


def ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator; 1 where one of them is zero: an empty layer or gradient says nothing about scale."""
    return numerator / denominator if numerator > 0.0 and denominator > 0.0 else 1.0


def norms(tensors: Sequence[Tensor], size: int) -> list[float]:
    """Euclidean norms of contiguous tensors of one dtype.

    Args:
        tensors: which may be large: float32 adds up `size` numbers at a time; 10M at once are off by a percent.
        size: numbers of a block.
    """
    parts = [(t,) if t.numel() <= size else t.view(-1).split(size) for t in tensors]
    found = iter(torch.stack(part_norms([part for some in parts for part in some])).tolist())
    return [_in_range(math.hypot(*islice(found, len(some))), t) for some, t in zip(parts, tensors, strict=True)]


def part_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Euclidean norms as tensors, to be put together by `whole_norms`; at least in float32."""
    return list(torch._foreach_norm(list(tensors), 2, torch.promote_types(tensors[0].dtype, torch.float32)))


def whole_norms(parts: Sequence[Tensor], wholes: Sequence[Tensor]) -> list[float]:
    """Norms of `wholes`, whose blocks' norms are parts[0], parts[n], ... and parts[1], parts[n + 1], ... and so on."""
    found = torch.stack(list(parts)).tolist()
    n = len(wholes)
    return [_in_range(math.hypot(*found[i::n]), whole) for i, whole in enumerate(wholes)]


def _in_range(norm: float, tensor: Tensor) -> float:
    """The norm again, of scaled numbers, where squares were too large or too small for the dtype."""
    if _LEAST < norm < math.inf:
        return norm
    largest = float(torch.linalg.vector_norm(tensor, math.inf))
    if not 0.0 < largest < math.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(tensor / largest, dtype=torch.float64))
