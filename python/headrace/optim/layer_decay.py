"""Learning rates that fall with depth: layer l of L trains with lr decay^(L - l), the last one with lr.

References: J. Howard and S. Ruder, "Universal language model fine-tuning for text classification", ACL 2018
(discriminative fine-tuning, decay 1 / 2.6); K. Clark et al., "ELECTRA", ICLR 2020 (0.8). A layer is a module that holds
parameters itself, in the order in which the model registers them; parameters that share a module share a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Optimizer


def layer_groups(named: Sequence[tuple[str, Tensor]], lr: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, first layer first; each with its `lr`.

    Raises:
        UserError: the decay is not in (0, 1].
    """
    if not 0.0 < decay <= 1.0:
        raise UserError(f"layer_decay must be above 0 and at most 1, not {decay}")
    layers: dict[str, list[tuple[str, Tensor]]] = {}
    for name, param in named:
        layers.setdefault(name.rpartition(".")[0], []).append((name, param))
    depth = len(layers)
    return [
        {"params": params, "lr": lr * decay ** (depth - 1 - number)} for number, params in enumerate(layers.values())
    ]


def like_groups(optimizer: Optimizer, whole: Optimizer) -> Optimizer:
    """Give an optimizer of some of a model's parameters, by name, the base rates that these have in that of all of
    them: layers were counted among those some.

    Args:
        optimizer: made by the settings of `whole`; changed, and returned.
        whole: of all parameters; its rates may be scheduled already.
    """
    rates = {
        name: group.get("initial_lr", group["lr"]) for group in whole.param_groups for name in group["param_names"]
    }
    for group in optimizer.param_groups:
        group["lr"] = rates[group["param_names"][0]]
    return optimizer
