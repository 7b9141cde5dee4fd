"""Optimizers by name: `create("adam", model.dense_parameters(), lr=1e-3)`.

A model has two groups, each with its own optimizer: embedding tables (row-sparse gradients) and the rest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from headrace.errors import UserError
from headrace.optim import adagrad, adam, adamw, momentum, nesterov, rowwise_adagrad, sgd
from headrace.optim.spec import ACCEPTS_SPARSE, OptimizerSpec, RuleOptimizer, StepContext, dense_only

OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgd": sgd.SPEC,
    "momentum": momentum.SPEC,
    "nesterov": nesterov.SPEC,
    "adagrad": adagrad.SPEC,
    "rowwise_adagrad": rowwise_adagrad.SPEC,
    "adam": adam.SPEC,
    "adamw": adamw.SPEC,
}


def spec_of(name: str) -> OptimizerSpec:
    """The entry of OPTIMIZERS.

    Raises:
        UserError: there is none of that name.
    """
    if name not in OPTIMIZERS:
        near = difflib.get_close_matches(name, OPTIMIZERS, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(OPTIMIZERS)}"
        raise UserError(f"there is no optimizer {name!r}", hint)
    return OPTIMIZERS[name]


def create(
    name: str, model_or_params: nn.Module | Iterable[Tensor], *, row_sparse: bool = False, **options: Any
) -> RuleOptimizer:
    """Make an optimizer.

    Args:
        name: a key of OPTIMIZERS.
        model_or_params: a model (all its parameters) or tensors or torch parameter groups.
        row_sparse: the gradients will be row-sparse; taken from a model by itself.
        options: of the rule; OPTIMIZERS[name].defaults are the others.

    Raises:
        UserError: unknown name or option, a value out of range, or a dense-only rule for row-sparse gradients.
    """
    spec = spec_of(name)
    unknown = sorted(set(options) - set(spec.defaults))
    if unknown:
        raise UserError(f"optimizer {name} has no option {unknown[0]!r}", f"its options are {', '.join(spec.defaults)}")
    params: Any = model_or_params
    if isinstance(model_or_params, nn.Module):
        params = model_or_params.parameters()
        find = getattr(model_or_params, "sparse_parameters", None)
        row_sparse = row_sparse or (find is not None and any(True for _ in find()))
    if row_sparse and ACCEPTS_SPARSE not in spec.traits:
        raise dense_only(name)
    return spec.factory(params, **{**spec.defaults, **options})


__all__ = ["OPTIMIZERS", "OptimizerSpec", "RuleOptimizer", "StepContext", "create", "spec_of"]
