"""Shampoo and SOAP in NumPy and SciPy: sums over all gradients there were, Kronecker products as explicit matrices.

Blocks are cut by numpy.array_split; a block's preconditioner is one matrix on its numbers laid out in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.linalg import fractional_matrix_power
from torch import nn

from headrace.optim import shampoo, soap
from headrace.optim.spec import OptimizerSpec
from headrace.testing.optim_exam import STEPS, Array, Exam, Rule, Run

SHAPES: tuple[tuple[int, ...], ...] = ((6, 3), (7,), (2, 3, 4), ())


def _sum(values: list[Array], beta: float, kind: str) -> Array:
    """Of all values: "sum", exponential "mean" with its bias corrected, or as it starts from 0: "biased"."""
    weights = [1.0 if kind == "sum" else beta ** (len(values) - 1 - i) for i in range(len(values))]
    total = np.tensordot(weights, values, 1)
    return np.asarray(total if kind == "sum" else total / sum(weights) if kind == "mean" else total * (1 - beta))


def _parts(shape: tuple[int, ...], options: Mapping[str, Any], vectors: str, large: str) -> tuple[tuple[int, ...], Any]:
    """Shape after merging; (index of a block, kinds) for each."""
    dims = [n for n in shape if n > 1] or [1]
    while len(dims) >= 3 and dims[-1] * dims[-2] <= options["merge_dims"]:
        last = dims.pop()
        dims[-1] *= last
    kinds = [large if n > options["max_dim"] else vectors if len(dims) == 1 else "full" for n in dims]
    pieces = [-(-n // options["block_size"]) if kind == "full" else 1 for n, kind in zip(dims, kinds, strict=True)]
    cuts = [np.array_split(np.arange(n), p) for n, p in zip(dims, pieces, strict=True)]
    return tuple(dims), [(np.ix_(*where), kinds) for where in product(*cuts)]


def _whole(rules: Any, dims: tuple[int, ...]) -> Rule:
    """A rule over blocks: (index, rule) of each."""

    def rule(w: Array, g: Array) -> Array:
        after = w.reshape(dims).copy()
        for where, of_block in rules:
            after[where] = of_block(w.reshape(dims)[where], g.reshape(dims)[where])
        return after.reshape(w.shape)

    return rule


def _slices_product(g: Array, dim: int) -> Array:
    others = [i for i in range(g.ndim) if i != dim]
    return np.asarray(np.tensordot(g, g, (others, others)))


def shampoo_rule(**options: Any) -> Rule:
    """Shi et al. 2023, algorithm 2, for a tensor whose shape the first call tells; norms of blocks."""
    made: list[Rule] = []

    def rule(w: Array, g: Array) -> Array:
        if not made:
            dims, parts = _parts(w.shape, options, options["vectors"], options["large"])
            made.append(_whole([(where, _ShampooBlock(kinds, options)) for where, kinds in parts], dims))
        return made[0](w, g)

    return rule


class _ShampooBlock:
    def __init__(self, kinds: list[str], options: dict[str, Any]) -> None:
        self.kinds, self.options = kinds, options
        self.gradients: list[Array] = []
        self.products: list[list[Array]] = []  # of each gradient's slices, a dimension
        self.updates: list[Array] = []
        self.roots: list[Array] = []

    def __call__(self, w: Array, g: Array) -> Array:
        o = self.options
        self.gradients.append(g + (0.0 if o["decoupled"] else o["weight_decay"] * w))
        self.products.append([_slices_product(self.gradients[-1], dim) for dim in range(g.ndim)])
        self.updates.append(self._update())
        pushed = np.tensordot([o["momentum"] ** age for age in range(len(self.updates))], self.updates[::-1], 1)
        if o["nesterov"]:
            pushed = self.updates[-1] + o["momentum"] * pushed
        decay = o["weight_decay"] * w if o["decoupled"] else 0.0
        return np.asarray(w - o["lr"] * (pushed + decay))

    def _update(self) -> Array:
        o, t = self.options, len(self.gradients)
        mean = _sum(self.gradients, o["betas"][0], "mean")
        graft = self._graft(mean)
        if t <= o["start"] or set(self.kinds) == {"none"}:
            return graft
        self._take_roots(fresh=(t - 1 - o["start"]) % o["interval"] == 0)
        direction = (reduce(np.kron, self.roots) @ mean.ravel()).reshape(mean.shape)
        if o["graft"] == "none":
            return np.asarray(direction)
        return np.asarray(direction * np.linalg.norm(graft.ravel()) / np.linalg.norm(direction.ravel()))

    def _take_roots(self, fresh: bool) -> None:
        power = -1.0 / (self.options["exponent"] or 2 * sum(kind != "none" for kind in self.kinds))
        for dim, kind in enumerate(self.kinds):
            size = self.gradients[0].shape[dim]
            if len(self.roots) == dim:
                self.roots.append(np.eye(size))
            if kind == "none" or (kind == "full" and not fresh):
                continue
            factor = _sum([of[dim] for of in self.products], self.options["betas"][1], self.options["accumulation"])
            if kind == "diagonal":
                factor = np.diag(np.diag(factor))
            ridge = self.options["eps"] * np.linalg.norm(factor, 2) * np.eye(size)
            self.roots[dim] = np.real(fractional_matrix_power(factor + ridge, power))

    def _graft(self, mean: Array) -> Array:
        kind = {"adagrad": "sum", "rmsprop": "biased", "adam": "mean"}.get(self.options["graft"])
        if kind is None:
            return mean
        squares = _sum([g**2 for g in self.gradients], self.options["betas"][1], kind)
        return np.asarray(mean / (np.sqrt(squares) + self.options["graft_eps"]))


def soap_rule(**options: Any) -> Rule:
    """Vyas et al. 2024, algorithm 3 with M in the parameter's basis and, as in the authors' code, V in the order of the
    eigenvalues; for a tensor whose shape the first call tells."""
    made: list[Rule] = []

    def rule(w: Array, g: Array) -> Array:
        if not made:
            dims, parts = _parts(w.shape, options, options["vectors"], "none")
            made.append(_whole([(where, _SoapBlock(kinds, options)) for where, kinds in parts], dims))
        return made[0](w, g)

    return rule


class _SoapBlock:
    def __init__(self, kinds: list[str], options: dict[str, Any]) -> None:
        self.kinds, self.options = kinds, options
        self.bases: list[Array] = []
        self.factors: list[Array] = []
        self.mean: Array = np.zeros(())
        self.squares: Array = np.zeros(())
        self.steps = 0

    def __call__(self, w: Array, g: Array) -> Array:
        o, full = self.options, [dim for dim, kind in enumerate(self.kinds) if kind == "full"]
        (b1, b2), products = o["betas"], [_slices_product(g, dim) for dim in range(g.ndim)]
        if not self.bases:
            self.mean, self.squares = np.zeros(g.shape), np.zeros(g.shape)
            self.bases = [np.eye(n) for n in g.shape]
            self.factors = [(1 - b2) * p for p in products]
            for dim in full:
                self.bases[dim] = np.linalg.eigh(self.factors[dim])[1]
            if full:
                return w
        self.steps += 1
        turn = reduce(np.kron, self.bases)
        turned = (turn.T @ g.ravel()).reshape(g.shape)
        self.mean = b1 * self.mean + (1 - b1) * g
        self.squares = b2 * self.squares + (1 - b2) * turned**2
        root = np.sqrt(self.squares / (1 - b2**self.steps)) + o["eps"]
        moved = (turn.T @ self.mean.ravel()).reshape(g.shape) / (1 - b1**self.steps) / root
        after = w - o["lr"] * ((turn @ moved.ravel()).reshape(g.shape) + o["weight_decay"] * w)
        self.factors = [b2 * f + (1 - b2) * p for f, p in zip(self.factors, products, strict=True)]
        if self.steps % o["interval"] == 0:
            for dim in full:
                self._refine(dim)
        return np.asarray(after)

    def _refine(self, dim: int) -> None:
        factor, basis = self.factors[dim], self.bases[dim]
        order = np.argsort(-np.diag(basis.T @ factor @ basis), kind="stable")
        self.squares = np.take(self.squares, order, axis=dim)
        self.bases[dim] = np.linalg.qr(factor @ basis[:, order])[0]


def _gradient(w: Array, seed: int) -> Array:
    """Of a bent bowl, with noise: full rank, no symmetry."""
    return np.asarray(0.5 * w + np.cos(2 * w + seed) + np.random.default_rng(seed).normal(scale=0.3, size=w.shape))


def _agrees(
    spec: OptimizerSpec,
    rule: Any,
    options: Mapping[str, Any],
    rtol: float = 1e-8,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
) -> None:
    """All tensors in one optimizer, `STEPS` steps."""
    weights = [np.random.default_rng(i).normal(size=shape) for i, shape in enumerate(shapes)]
    params = [nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = spec.factory(params, **options)
    rules = [rule(**options) for _ in weights]
    for step in range(STEPS):
        for i, param in enumerate(params):
            grad = _gradient(weights[i], 100 * i + step)
            param.grad = torch.tensor(grad)
            weights[i] = rules[i](weights[i], grad)
        optimizer.step()
        for w, param in zip(weights, params, strict=True):
            np.testing.assert_allclose(
                param.detach().numpy(), w, rtol=rtol, atol=rtol / 100, err_msg=f"step {step}, {dict(options)}"
            )


_SHAMPOO: dict[str, Any] = {
    "lr": 0.05, "betas": (0.8, 0.95), "momentum": 0.5, "nesterov": True, "weight_decay": 0.01, "decoupled": False,
    "eps": 1e-3, "accumulation": "mean", "exponent": 0, "root": "eigh", "interval": 5, "start": 2, "block_size": 4,
    "max_dim": 6, "large": "diagonal", "vectors": "full", "merge_dims": 8, "graft": "adam", "graft_norm": "block",
    "graft_eps": 1e-3,
}  # fmt: skip
# Shampoo as in 2018: no graft, sums, every step, unblocked, tensors as they are.
_PLAIN = _SHAMPOO | {
    "betas": (0.0, 0.9), "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "accumulation": "sum", "interval": 1,
    "start": 0, "block_size": 100, "max_dim": 100, "merge_dims": 0, "graft": "none", "lr": 0.2,
}  # fmt: skip
_SUMS = _PLAIN | {"interval": 7}
_SHAMPOO_VARIANTS: tuple[tuple[Mapping[str, Any], float], ...] = (
    (_SUMS | {"vectors": "diagonal", "graft": "sgd", "exponent": 3.0, "weight_decay": 0.02, "decoupled": True}, 1e-8),
    (_SUMS | {"accumulation": "mean", "betas": (0.9, 0.9), "root": "newton", "block_size": 3}, 1e-5),
    (
        _SHAMPOO
        | {"merge_dims": 100, "block_size": 5, "graft": "adagrad", "interval": 7, "nesterov": False, "decoupled": True},
        1e-8,
    ),
    (_SHAMPOO | {"max_dim": 3, "large": "none", "graft": "rmsprop", "vectors": "diagonal", "start": 0}, 1e-8),
    (_SHAMPOO | {"max_dim": 2, "large": "none", "graft": "none", "start": 0, "momentum": 0.0, "nesterov": False}, 1e-8),
)
_SOAP: dict[str, Any] = {
    "lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.01, "interval": 3, "block_size": 3, "max_dim": 7,
    "vectors": "none", "merge_dims": 0,
}  # fmt: skip
_SOAP_VARIANTS: tuple[Mapping[str, Any], ...] = (
    _SOAP | {"interval": 1, "betas": (0.95, 0.95), "weight_decay": 0.0},
    _SOAP | {"vectors": "full", "block_size": 2, "merge_dims": 6},
    _SOAP | {"max_dim": 3},
)


def _graft_alone(graft: str, **options: Any) -> dict[str, Any]:
    return {"graft": graft, "start": 1000, "lr": 0.01} | options


EXAMS: dict[str, Exam] = {
    "shampoo": Exam(
        rule=shampoo_rule,
        options=_SHAMPOO,
        whole=[
            partial(_agrees, shampoo.SPEC, shampoo_rule, _PLAIN, shapes=((4, 3), (2, 3, 2))),
            *(partial(_agrees, shampoo.SPEC, shampoo_rule, o, rtol) for o, rtol in _SHAMPOO_VARIANTS),
        ],
        reductions=[
            (_graft_alone("adam", weight_decay=0.1), partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)),
            (
                _graft_alone("adam", weight_decay=0.1, decoupled=False, graft_norm="tensor"),
                partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
            ),
            (_graft_alone("adagrad", betas=(0.0, 0.9), graft_eps=1e-10), partial(torch.optim.Adagrad, lr=0.01)),
            (
                _graft_alone("rmsprop", betas=(0.0, 0.99), momentum=0.9),
                partial(torch.optim.RMSprop, lr=0.01, momentum=0.9),
            ),
            (
                _graft_alone("sgd", betas=(0.0, 0.9), momentum=0.9, nesterov=True),
                partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
            ),
        ],
        rosenbrock=Run(options={"lr": 0.1, "betas": (0.95, 0.999), "vectors": "full"}, steps=1_500, gap=1e-5),
        logistic=Run(options={"lr": 0.1, "vectors": "full"}, steps=200, gap=1e-7),
    ),
    "soap": Exam(
        rule=soap_rule,
        options=_SOAP,
        whole=[partial(_agrees, soap.SPEC, soap_rule, o) for o in _SOAP_VARIANTS],
        reductions=[
            ({"max_dim": 0, "lr": 0.01, "betas": (0.9, 0.99)}, partial(torch.optim.Adam, lr=0.01, betas=(0.9, 0.99))),
            (
                {"max_dim": 0, "lr": 0.01, "betas": (0.9, 0.999), "weight_decay": 0.1},
                partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
            ),
        ],
        rosenbrock=Run(options={"lr": 0.1, "betas": (0.95, 0.999), "vectors": "full"}, steps=1_500, gap=1e-5),
        logistic=Run(options={"lr": 0.1, "betas": (0.9, 0.99), "vectors": "full"}, steps=200, gap=1e-7),
    ),
}
