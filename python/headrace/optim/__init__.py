"""Optimizers by name: `create("adam", model.dense_parameters(), lr=1e-3)`.

A model has two groups, each with its own optimizer: embedding tables (row-sparse gradients) and the rest;
`create_parts` makes one optimizer of both.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from headrace.errors import UserError
from headrace.optim import (
    adadelta,
    adafactor,
    adagrad,
    adam,
    adam_8bit,
    adamw,
    amsgrad,
    hessian_free,
    kfac,
    lamb,
    lars,
    lbfgs,
    lion,
    momentum,
    muon,
    nadam,
    natural_gradient,
    nesterov,
    rmsprop,
    rowwise_adagrad,
    sag,
    saga,
    sarah,
    scsg,
    sgd,
    shampoo,
    soap,
    svrg,
)
from headrace.optim.base import Combined, Optimizer, Params, RuleOptimizer
from headrace.optim.context import StepContext
from headrace.optim.spec import ACCEPTS_SPARSE, NEEDS_MODEL, OptimizerSpec, dense_only

OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgd": sgd.SPEC,
    "momentum": momentum.SPEC,
    "nesterov": nesterov.SPEC,
    "adagrad": adagrad.SPEC,
    "rowwise_adagrad": rowwise_adagrad.SPEC,
    "adadelta": adadelta.SPEC,
    "rmsprop": rmsprop.SPEC,
    "adam": adam.SPEC,
    "adamw": adamw.SPEC,
    "sag": sag.SPEC,
    "saga": saga.SPEC,
    "svrg": svrg.SPEC,
    "sarah": sarah.SPEC,
    "scsg": scsg.SPEC,
    "nadam": nadam.SPEC,
    "amsgrad": amsgrad.SPEC,
    "adafactor": adafactor.SPEC,
    "lion": lion.SPEC,
    "muon": muon.SPEC,
    "kfac": kfac.SPEC,
    "adam_8bit": adam_8bit.SPEC,
    "lars": lars.SPEC,
    "lamb": lamb.SPEC,
    "shampoo": shampoo.SPEC,
    "soap": soap.SPEC,
    "lbfgs": lbfgs.SPEC,
    "hessian_free": hessian_free.SPEC,
    "natural_gradient": natural_gradient.SPEC,
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
    name: str,
    model_or_params: nn.Module | Params,
    *,
    model: nn.Module | None = None,
    row_sparse: bool = False,
    **options: Any,
) -> Optimizer:
    """Make an optimizer.

    Args:
        name: a key of OPTIMIZERS.
        model_or_params: a model (all its parameters), or tensors, (name, tensor) pairs or torch parameter groups.
        model: whose parameters these are, for rules that look into its layers; taken from a model by itself.
        row_sparse: the gradients will be row-sparse; taken from a model by itself.
        options: of the rule; OPTIMIZERS[name].defaults are the others.

    Raises:
        UserError: unknown name or option, a value out of range, a dense-only rule for row-sparse gradients, or a rule
            that needs the model without it.
    """
    spec = spec_of(name)
    unknown = sorted(set(options) - set(spec.defaults))
    if unknown:
        raise UserError(f"optimizer {name} has no option {unknown[0]!r}", f"its options are {', '.join(spec.defaults)}")
    params: Any = model_or_params
    if isinstance(model_or_params, nn.Module):
        model, params = model_or_params, model_or_params.named_parameters()
        row_sparse = row_sparse or bool(row_sparse_parameters(model_or_params))
    if row_sparse and ACCEPTS_SPARSE not in spec.traits:
        raise dense_only(name)
    chosen = {**spec.defaults, **options}
    if NEEDS_MODEL not in spec.traits:
        return spec.factory(params, **chosen)
    if model is None:
        raise UserError(f"optimizer {name} looks into the model's layers", "give it the model: model=...")
    return spec.factory(params, model=model, **chosen)


def create_parts(model: nn.Module, parts: Mapping[str, Mapping[str, Any]]) -> Combined:
    """One optimizer of two: `{"dense": {"name": "kfac", ...}, "sparse": {"name": "rowwise_adagrad", ...}}`.

    Args:
        model: `sparse` are its parameters with row-sparse gradients, `dense` the others.
        parts: name and options of each part; one that the model has no parameters for may be left out.

    Raises:
        UserError: see `create`; or parameters without a part.
    """
    tables = row_sparse_parameters(model)
    named: dict[str, list[tuple[str, nn.Parameter]]] = {"dense": [], "sparse": []}
    for name, param in model.named_parameters():
        if param.requires_grad:
            named["sparse" if id(param) in tables else "dense"].append((name, param))
    made = {}
    for part, params in named.items():
        if not params:
            continue
        if part not in parts:
            raise UserError(f"no optimizer for the model's {part} parameters", f"--optimizer.{part}.name")
        options = dict(parts[part])
        made[part] = create(options.pop("name"), params, model=model, row_sparse=part == "sparse", **options)
    return Combined(made)


def row_sparse_parameters(model: nn.Module) -> set[int]:
    """`id`s of parameters whose gradients are row-sparse: those of a model's `sparse_parameters()`."""
    find = getattr(model, "sparse_parameters", None)
    found: Iterable[nn.Parameter] = find() if find is not None else ()
    return {id(param) for param in found}


__all__ = [
    "OPTIMIZERS", "Combined", "Optimizer", "OptimizerSpec", "RuleOptimizer", "StepContext", "create", "create_parts",
    "spec_of",
]  # fmt: skip
