"""Which optimizers are right where a rank holds a part of the model only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace import optim
from headrace.errors import UserError
from headrace.optim.elementwise import Elementwise
from headrace.optim.spec import NEEDS_CLOSURE, NEEDS_FULL_PASS, NEEDS_KEYS, NEEDS_MODEL, NEEDS_OUTPUTS, OWN_GRADIENT
from headrace.optim.torch_rule import TorchOptimizer
from headrace.optim.wrapper import CHANGES_GRADIENT, Wrapper

WHOLE_MODEL = {NEEDS_CLOSURE, NEEDS_FULL_PASS, NEEDS_KEYS, NEEDS_MODEL, NEEDS_OUTPUTS, OWN_GRADIENT, CHANGES_GRADIENT}


def check_part(name: str, options: Mapping[str, Any]) -> None:
    """Refuse what looks at more than the gradients of a part.

    Args:
        name: a key of OPTIMIZERS.
        options: of `headrace.optim.create`.

    Raises:
        UserError: an unknown rule, or one that evaluates the whole model, by itself or in a wrapper; decay by layer.
    """
    wrappers = {key: optim.WRAPPERS[key].traits for key in options.get("wrappers") or {} if key in optim.WRAPPERS}
    for each, traits in {name: optim.spec_of(name).traits, **wrappers}.items():
        if traits & WHOLE_MODEL:
            raise UserError(f"{each} looks at the whole model, and a rank has a part of it", "sgd, momentum, adam, ...")
    if options.get("layer_decay", 1.0) != 1.0:
        raise UserError("layer_decay counts the layers of a whole model, and a rank has a part of it", "layer_decay 1")


def check_elementwise(name: str, made: optim.Optimizer) -> None:
    """Refuse a rule that does not treat every number of a tensor apart from the others, for tensors are split.

    Raises:
        UserError: it is such a rule.
    """
    rule = made
    while isinstance(rule, Wrapper):
        rule = rule.inner
    if not isinstance(rule, Elementwise | TorchOptimizer):
        raise UserError(f"{name} looks at whole tensors, and a rank has parts of them", "sgd, momentum, adam, ...")
