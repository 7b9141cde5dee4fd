"""Weight decay, of either kind, for every rule that has it.

    L2:         g <- g + weight_decay w, before anything else sees g
    decoupled:  w <- (1 - lr weight_decay) w, and the rule's step with g alone

Reference: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019. Differs from the paper:
decoupled decay is scaled by lr (the schedule's factor and the base rate), as in torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def decayed(params: list[Tensor], grads: list[Tensor], options: Mapping[str, Any]) -> list[Tensor]:
    """Gradients with L2 decay, or parameters decayed in place and gradients as they are.

    Args:
        params: dense tensors.
        grads: alike; not changed.
        options: lr, weight_decay, decoupled.
    """
    if not options["weight_decay"]:
        return grads
    if not options["decoupled"]:
        return list(torch._foreach_add(grads, params, alpha=options["weight_decay"]))
    torch._foreach_mul_(params, 1.0 - options["lr"] * options["weight_decay"])
    return grads
