"""State in 8 bits: see headrace.compress.dynamic_tree, whose values these are; a second moment has no sign.

Reference: T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer, "8-bit optimizers via block-wise quantization", ICLR
2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from headrace.compress.dynamic_tree import BLOCK


def state_bytes(numel: int, element_size: int) -> int:
    """Bytes of one quantized state of a tensor."""
    return numel + -(-numel // BLOCK) * max(4, element_size)


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any], names: Sequence[str]) -> None:
    """Take states `names` from a saved `state_dict` as they are: torch has cast them to the parameters' type."""
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for i, param in zip(ids, params, strict=True):
        for name in names:
            if name in saved["state"].get(i, {}):
                optimizer.state[param][name] = saved["state"][i][name].to(param.device, copy=True)
