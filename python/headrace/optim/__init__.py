"""Optimizers by name: `create("adam", model.dense_parameters(), lr=1e-3)`.

A model has two groups, each with its own optimizer: embedding tables (row-sparse gradients) and the rest;
`create_parts` makes one optimizer of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from headrace.config import nearest
from headrace.errors import UserError
from headrace.optim import (
    adadelta,
    adafactor,
    adagrad,
    adam,
    adam_8bit,
    adamw,
    amsgrad,
    ema,
    hessian_free,
    kfac,
    lamb,
    lars,
    lbfgs,
    lion,
    lookahead,
    momentum,
    muon,
    nadam,
    natural_gradient,
    nesterov,
    rmsprop,
    rowwise_adagrad,
    sag,
    saga,
    sam,
    sarah,
    scsg,
    sgd,
    shampoo,
    soap,
    svrg,
    swa,
)
from headrace.optim.base import Combined, Optimizer, Params, RuleOptimizer
from headrace.optim.context import NonFiniteStepError, StepContext
from headrace.optim.layer_decay import layer_groups
from headrace.optim.master_weights import HALF, MasterWeights
from headrace.optim.spec import ACCEPTS_SPARSE, NEEDS_MODEL, OWN_GRADIENT, OptimizerSpec, dense_only
from headrace.optim.wrapper import CHANGES_GRADIENT, WrapperSpec, averaged
from headrace.options import choose, known

OPTIMIZERS: dict[str, OptimizerSpec] = {
    "sgd": sgd.SPEC,
    "momentum": momentum.SPEC,
    "nesterov": nesterov.SPEC,
    "adagrad": adagrad.SPEC,
    "rowwise_adagrad": rowwise_adagrad.SPEC,
    "adadelta": adadelta.SPEC,
    "rmsprop": rmsprop.SPEC,
    "adam": adam.SPEC,
    "nadam": nadam.SPEC,
    "amsgrad": amsgrad.SPEC,
    "adamw": adamw.SPEC,
    "adam_8bit": adam_8bit.SPEC,
    "adafactor": adafactor.SPEC,
    "lion": lion.SPEC,
    "muon": muon.SPEC,
    "lars": lars.SPEC,
    "lamb": lamb.SPEC,
    "lbfgs": lbfgs.SPEC,
    "hessian_free": hessian_free.SPEC,
    "natural_gradient": natural_gradient.SPEC,
    "kfac": kfac.SPEC,
    "shampoo": shampoo.SPEC,
    "soap": soap.SPEC,
    "sag": sag.SPEC,
    "svrg": svrg.SPEC,
    "saga": saga.SPEC,
    "sarah": sarah.SPEC,
    "scsg": scsg.SPEC,
}

WRAPPERS: dict[str, WrapperSpec] = {"lookahead": lookahead.SPEC, "sam": sam.SPEC, "ema": ema.SPEC, "swa": swa.SPEC}


def spec_of(name: str) -> OptimizerSpec:
    """The entry of OPTIMIZERS.

    Raises:
        UserError: there is none of that name.
    """
    if name not in OPTIMIZERS:
        hint = nearest(name, list(OPTIMIZERS)) or f"one of {', '.join(OPTIMIZERS)}"
        raise UserError(f"there is no optimizer {name!r}", hint)
    return OPTIMIZERS[name]


def create(
    name: str,
    model_or_params: nn.Module | Params,
    *,
    model: nn.Module | None = None,
    row_sparse: bool = False,
    wrappers: Mapping[str, Mapping[str, Any]] | None = None,
    layer_decay: float = 1.0,
    **options: Any,
) -> Optimizer:
    """Make an optimizer; parameters of half precision get float32 masters (see master_weights).

    Args:
        name: a key of OPTIMIZERS.
        model_or_params: a model (all its parameters), or tensors, (name, tensor) pairs or torch parameter groups.
        model: whose parameters these are, for rules that look into its layers; taken from a model by itself.
        row_sparse: the gradients will be row-sparse; taken from a model by itself.
        wrappers: options of each of WRAPPERS that goes around the rule, the innermost first.
        layer_decay: see optim.layer_decay; 1: all layers have one rate.
        options: of the rule; OPTIMIZERS[name].defaults are the others.

    Raises:
        UserError: unknown name or option, a value out of range or of another type, a dense-only rule for row-sparse
            gradients, a rule that needs the model without it, or a wrapper that the rule or its parameters cannot have.
    """
    spec = spec_of(name)
    chosen = choose(f"optimizer {name}", spec.defaults, options)
    params: Any = model_or_params
    if isinstance(model_or_params, nn.Module):
        model, params = model_or_params, model_or_params.named_parameters()
        row_sparse = row_sparse or bool(row_sparse_parameters(model_or_params))
    if row_sparse and ACCEPTS_SPARSE not in spec.traits:
        raise dense_only(name)
    if NEEDS_MODEL in spec.traits:
        if model is None:
            raise UserError(f"optimizer {name} looks into the model's layers", "give it the model: model=...")
        chosen["model"] = model
    params = list(params)
    dress = {key: _dress(key, given, name, row_sparse) for key, given in (wrappers or {}).items()}

    def make(params: Any) -> Optimizer:
        if layer_decay != 1.0:
            params = layer_groups(_named(params, "layer_decay"), chosen["lr"], layer_decay)
        made = spec.factory(params, **chosen)
        for key, own in dress.items():
            made = WRAPPERS[key].factory(made, **own)
        return made

    if any(isinstance(pair, tuple) and pair[1].dtype in HALF for pair in params):
        if NEEDS_MODEL in spec.traits or row_sparse:
            raise UserError(
                f"optimizer {name} cannot work on float32 masters of parameters of half precision",
                "--train.precision.parameters float32",
            )
        return MasterWeights(_named(params, "master weights"), make)
    return make(params)


def _dress(name: str, given: Any, rule: str, row_sparse: bool) -> dict[str, Any]:
    """Options of wrapper `name` around `rule`."""
    known("optimizer.dense.wrappers", name, WRAPPERS)
    spec = WRAPPERS[name]
    if row_sparse:
        raise UserError(
            f"{name} would go through all rows of the embedding tables at every step", "--optimizer.dense.wrappers"
        )
    if CHANGES_GRADIENT in spec.traits and OWN_GRADIENT in OPTIMIZERS[rule].traits:
        raise UserError(
            f"optimizer {rule} evaluates or corrects gradients itself: that of {name} would not reach it, or bias its "
            "steps",
            f"--optimizer.dense.wrappers without {name}, or another --optimizer.dense.name",
        )
    if not isinstance(given, Mapping):
        ways = ", ".join(f"--optimizer.dense.{name}.{option}" for option in spec.defaults)
        raise UserError(f"{name} has options, and was given {given!r}", ways)
    return choose(name, spec.defaults, given)


def _named(params: list[Any], what: str) -> list[tuple[str, Any]]:
    if not all(isinstance(pair, tuple) for pair in params):
        raise UserError(f"{what}: parameters must have names", "give the model, or model.named_parameters()")
    return params


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
    "OPTIMIZERS", "WRAPPERS", "Combined", "NonFiniteStepError", "Optimizer", "OptimizerSpec", "RuleOptimizer",
    "StepContext", "WrapperSpec", "averaged", "create", "create_parts", "spec_of",
]  # fmt: skip
