"""K-FAC: the natural gradient with a Fisher matrix that is block-diagonal over layers, each block a Kronecker product.

    A, G <- exponential means of E[a a^T], E[g g^T], bias corrected            (every factor_interval steps)
    V    =  gradient of a layer's weight and bias [m, n], with its L2 term
    D    =  (A (x) G + (damping + L2) I)^-1 vec(V)                             (decomposed every inverse_interval steps)
    nu   =  min(1, sqrt(kl_clip / sum over layers of lr^2 <D, V>))
    m    <- momentum m + nu D,     w <- w - lr m     (decoupled decay: w <- (1 - lr weight_decay) w before)

a, g: a layer's inputs and the gradients of its outputs, for Linear and Conv2d (kfac_layers); damping of the block, or
split over its factors by pi (kfac_factors), fixed or adapted (kfac_damping); g from labels as the model would draw
them, from all of these, or from the data's own (kfac_fisher). All other parameters - embeddings, norms, weights that
modules share, subclasses of these layers - are updated by momentum SGD or AdamW inside the same optimizer. Without the
data's labels a step on which factors are due makes a forward and a backward pass of its own: batch norm's running
statistics see such a batch twice.

Over ranks: sums of factors in one collective, as triangles; decompositions are dealt out by cost and sent to the ranks
that use them; gradients are preconditioned on all ranks, or on some that send them on (kfac_curvature, kfac_dealing).

References: J. Martens and R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML
2015; R. Grosse and J. Martens, ICML 2016 (convolutions); J. Ba, R. Grosse, J. Martens, "Distributed second-order
optimization using Kronecker-factored approximations", ICLR 2017 (clipping: kl_clip = 2 delta of section 5); K. Osawa et
al., CVPR 2019 (factors summed over ranks); J. G. Pauloski et al., SC 2020 (eigenvectors, joint damping) and SC 2021
(gradient workers).

Differs from Martens and Grosse: block-diagonal only; momentum is a constant instead of the minimum of the quadratic
model over two directions; exponential means are corrected for their start instead of a decay of min(1 - 1/k, 0.95);
without the data's labels, g has the covariance of its distribution under the model, not the distribution. From Ba et
al.: decompositions are made in step, not beside training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from headrace.errors import UserError
from headrace.optim import adamw, momentum
from headrace.optim.base import Combined, Optimizer, Params
from headrace.optim.context import StepContext
from headrace.optim.kfac_factors import EIGEN, INVERSE, solved_shape
from headrace.optim.kfac_fisher import FISHERS, SAMPLED
from headrace.optim.kfac_layers import find_layers
from headrace.optim.kfac_step import LayersOptimizer
from headrace.optim.spec import (
    DENSE_ONLY,
    NEEDS_CLOSURE,
    NEEDS_KEYS,
    NEEDS_MODEL,
    STATEFUL,
    OptimizerSpec,
    dense_only,
)

_LISTS = ("params", "param_names")
FALLBACKS = {"momentum": momentum.SPEC, "adamw": adamw.SPEC}


class Kfac(Combined):
    """K-FAC for layers of a model, the fallback for what else there is; parts `layers` and `rest`.

    Each of the groups given is a group of both parts. A layer that turns out never to be called (its weight is used by
    other means) goes to the fallback in the first step: from one group to the other, before it has moved.

    Args:
        layers: their optimizer.
        rest: the other parameters' optimizer.
    """

    def __init__(self, layers: LayersOptimizer, rest: Optimizer) -> None:
        super().__init__({"layers": layers, "rest": rest})
        self.layers, self.rest = layers, rest
        self._names = {id(p): layer.name for layer in layers.layers for p in layer.params()}

    def step(self, ctx: StepContext | None = None) -> None:  # type: ignore[override]
        """See `Optimizer.step`."""
        if any(p.grad is not None and p.grad.is_sparse for group in self.rest.param_groups for p in group["params"]):
            raise dense_only("kfac")
        known = len(self.layers.left)
        self.layers.step(ctx)
        for name in self.layers.left[known:]:
            self._hand_over(name)
        self.rest.step(ctx)

    def _hand_over(self, name: str) -> None:
        """One layer at a time, in the order of `left`: a resumed run's groups are then in the same order."""
        for source, target in zip(self.layers.param_groups, self.rest.param_groups, strict=True):
            gone = [i for i, p in enumerate(source["params"]) if self._names[id(p)] == name]
            for key in _LISTS:
                if key in source:
                    target[key] += [source[key][i] for i in gone]
                    source[key][:] = [item for i, item in enumerate(source[key]) if i not in gone]

    def state_dict(self) -> dict[str, Any]:
        """See `Combined.state_dict`; with the names of layers that went to the fallback."""
        return {**super().state_dict(), "left": list(self.layers.left)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `Combined.load_state_dict`."""
        for name in state_dict["left"]:
            self.layers.leave([name])
            self._hand_over(name)
        super().load_state_dict(state_dict)


def kfac(params: Params, *, model: nn.Module, fallback: str, fallback_lr: float, **options: Any) -> Kfac:
    """The factory.

    Args:
        params: tensors, (name, tensor) pairs, or torch parameter groups of either; lr, momentum and weight_decay may
            differ by group.
        model: whose they are; parameters of it that are not among `params` are left alone.
        fallback: "momentum" or "adamw": for parameters of no layer, with this momentum and weight_decay (adamw's is
            always decoupled).
        fallback_lr: their learning rate, in groups with an lr of their own in proportion to it; 0: lr.
        options:
            lr, momentum, weight_decay: of the layers;
            decoupled: weight_decay shrinks weights, lr times, instead of being a part of the loss (L2);
            damping, damping_split: how much, and whether over the factors by pi or of the block;
            damping_interval: steps between Levenberg-Marquardt's adaptations; 0: never;
            kl_clip: bound of lr^2 <D, V> (about twice the KL divergence of a step); 0: none;
            factor_decay, factor_interval, inverse_interval: see the module's docstring;
            method: "inverse" (Cholesky; damping split) or "eigen";
            fisher: "sampled", "gauss_newton" (exact, a backward pass an output), "empirical" (the data's labels);
            grad_worker_frac: share of the ranks that precondition a layer's gradient; 0: one rank;
            seed: of "sampled", whose signs are drawn by the rows' keys.

    Raises:
        UserError: an option out of range.
    """
    _check(fallback, options)
    groups = _groups(params)
    layers = find_layers(model, {id(p) for group in groups for p in group["params"]})
    covered = {id(p) for layer in layers for p in layer.params()}
    spec = FALLBACKS[fallback]
    chosen = {**spec.defaults, **{key: options[key] for key in spec.defaults if key in options}}
    own, rest = ([_side(group, covered, inside=inside) for group in groups] for inside in (True, False))
    if fallback_lr:
        chosen["lr"] = fallback_lr
        rest = [_with_fallback_lr(group, options["lr"], fallback_lr) for group in rest]
    return Kfac(LayersOptimizer(own, layers, **options), spec.factory(rest, **chosen))


def _groups(params: Params) -> list[dict[str, Any]]:
    """torch's parameter groups, with lists of tensors and, where they were given, of names."""
    listed: list[Any] = list(params)
    groups = []
    for group in listed if listed and isinstance(listed[0], dict) else [{"params": listed}]:
        items = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        if items and isinstance(items[0], tuple):
            group = {**group, "param_names": [name for name, _ in items]}
            items = [item for _, item in items]
        groups.append({**group, "params": items})
    return groups


def _side(group: Mapping[str, Any], covered: set[int], *, inside: bool) -> dict[str, Any]:
    """The group with those of its parameters that are covered, or those that are not."""
    kept = [i for i, p in enumerate(group["params"]) if (id(p) in covered) == inside]
    return {**group, **{key: [group[key][i] for i in kept] for key in _LISTS if key in group}}


def _with_fallback_lr(group: dict[str, Any], lr: float, fallback_lr: float) -> dict[str, Any]:
    """A group with its own lr (layer_decay) keeps that one's ratio to lr."""
    return {**group, "lr": group["lr"] * fallback_lr / lr} if lr and "lr" in group else group


def _check(fallback: str, options: Mapping[str, Any]) -> None:
    """What neither part looks at itself."""
    for name, value, choices in (
        ("fallback", fallback, tuple(FALLBACKS)),
        ("fisher", options["fisher"], FISHERS),
        ("method", options["method"], (EIGEN, INVERSE)),
    ):
        if value not in choices:
            raise UserError(f"optimizer option {name} is {value!r}", f"one of {', '.join(choices)}")
    ranges = {
        "damping": 0.0 < options["damping"] < math.inf,
        "kl_clip": 0.0 <= options["kl_clip"] < math.inf,
        "factor_decay": 0.0 <= options["factor_decay"] < 1.0,
        "grad_worker_frac": 0.0 <= options["grad_worker_frac"] <= 1.0,
        "factor_interval": options["factor_interval"] >= 1,
        "inverse_interval": options["inverse_interval"] >= 1,
        "damping_interval": options["damping_interval"] >= 0,
    }
    for name, good in ranges.items():
        if not good:
            raise UserError(f"optimizer option {name} is out of range: {options[name]}")
    if options["inverse_interval"] % options["factor_interval"]:
        raise UserError("inverse_interval must be a multiple of factor_interval", "for example ten times it")
    if options["method"] == INVERSE and not options["damping_split"]:
        raise UserError("method inverse divides by damped factors: damping must be split", "damping_split true")


def _state_bytes(param: Tensor, options: Mapping[str, Any]) -> int:
    """Of a layer's weight, with a bias: momentum, two triangles a factor (one where intervals are equal) and its
    decomposition. A table has the shape of a weight and far less state."""
    fallback = 2 * param.nbytes + 4
    if param.dim() not in (2, 4):
        return fallback
    number = max(4, param.element_size())
    sides = (param.shape[0], param[0].numel() + 1)
    triangles = 2 if options["inverse_interval"] > options["factor_interval"] else 1
    factors = sum(triangles * n * (n + 1) // 2 for n in sides)
    solved = sum(n * m for n, m in (solved_shape(n, options["method"]) for n in sides))
    return max(fallback, number * (factors + solved) + param.nbytes)


SPEC = OptimizerSpec(
    factory=kfac,
    paper="Martens and Grosse 2015; Grosse and Martens 2016; Pauloski et al. 2021",
    rule="A, G <- means of a a^T, g g^T;  w <- w - lr (A (x) G + damping I)^-1 g",
    use="few, large steps for nets of linear and convolutional layers; decompositions are dealt out over ranks",
    state="of a layer [m, n]: 2 (m^2 + n^2) numbers and momentum; others 1 or 2 numbers a parameter",
    state_bytes=_state_bytes,
    cost="4 (m^2 n + m n^2) a layer; at intervals a pass, 2 B (m^2 + n^2) and about 10 (m^3 + n^3) / ranks",
    traits=frozenset({DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, NEEDS_KEYS, NEEDS_MODEL}),
    defaults={
        "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "decoupled": False, "damping": 0.01,
        "damping_split": True, "damping_interval": 0, "kl_clip": 0.01, "factor_decay": 0.95, "factor_interval": 1,
        "inverse_interval": 10, "method": INVERSE, "fisher": SAMPLED, "grad_worker_frac": 1.0, "fallback": "momentum",
        "fallback_lr": 0.0, "seed": 0,
    },
)  # fmt: skip
