"""Whose optimizers ours are measured beside, by the names of OPTIMIZERS; see optim.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another's optimizer for one of our entries.

    Args:
        module: to import.
        factory: in the module.
        options: of the factory, beside those that it has in common with ours, by name.
        ours: what our entry is set to for the comparison.
        same: the rule is ours: results must agree.
        side: the longest side of a tensor that it steps on within seconds; 0: any.
    """

    module: str
    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    same: bool = True
    side: int = 0


def _torch(factory: str, *, fused: bool = False, **options: Any) -> dict[str, Peer]:
    forms = {"torch foreach": {"foreach": True}} | ({"torch fused": {"fused": True}} if fused else {})
    return {name: Peer(module="torch.optim", factory=factory, options=options | form) for name, form in forms.items()}


PEERS: dict[str, dict[str, Peer]] = {
    "sgd": _torch("SGD", fused=True),
    "momentum": _torch("SGD", fused=True, momentum=0.9),
    "nesterov": _torch("SGD", fused=True, momentum=0.9, nesterov=True),
    "adagrad": _torch("Adagrad", fused=True),
    "adam": _torch("Adam", fused=True),
    "adamw": _torch("AdamW", fused=True),
    "amsgrad": _torch("Adam", fused=True, amsgrad=True),
    "nadam": _torch("NAdam"),
    "rmsprop": _torch("RMSprop"),
    "adadelta": _torch("Adadelta"),
    "adam_8bit": {"torch fused": Peer(module="torch.optim", factory="Adam", options={"fused": True}, same=False)},
    "lars": {"pytorch_optimizer": Peer(module="pytorch_optimizer", factory="LARS")},
    "lamb": {
        "pytorch_optimizer": Peer(
            module="pytorch_optimizer", factory="Lamb",
            options={"adam_debias": True},  # else lr is divided by 1 - b1^t and m and v are not: no form of the paper's
            ours={"debias": False, "phi_bounds": (0.0, 10.0), "exclude_1d": False},
        ),
    },
    "lion": {"pytorch_optimizer": Peer(module="pytorch_optimizer", factory="Lion", same=False)},
    "adafactor": {"pytorch_optimizer": Peer(module="pytorch_optimizer", factory="AdaFactor", same=False)},
    "shampoo": {
        "distributed_shampoo": Peer(module="distributed_shampoo", factory="DistributedShampoo", same=False),
        "pytorch_optimizer": Peer(  # an SVD of side x side for every tensor: ten minutes for 10,000
            module="pytorch_optimizer", factory="Shampoo", same=False, side=1024
        ),
    },
}  # fmt: skip
