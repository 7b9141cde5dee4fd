"""Every optimizer of the registry against its rule in NumPy float64, for 50 steps, dense and row-sparse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headrace import models, optim
from headrace.errors import UserError
from headrace.optim.schedules import factor
from headrace.optim.spec import ACCEPTS_SPARSE, DENSE_ONLY

Array = np.ndarray
STEPS, SHAPE = 50, (6, 3)
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "weight_decay": 0.01},
    "momentum": {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.01},
    "nesterov": {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.01},
    "adagrad": {"lr": 0.1, "eps": 1e-3, "initial_accumulator": 0.1},
    "rowwise_adagrad": {"lr": 0.1, "eps": 1e-3, "initial_accumulator": 0.1},
    "adam": {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.01},
    "adamw": {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
}


class Rules:
    """The update rules, from the papers, on whole float64 arrays."""

    def __init__(self, **options: Any) -> None:
        self.o = options
        self.t = 0
        self.m: Array | float = 0.0
        self.v: Array | float = options.get("initial_accumulator", 0.0)

    def sgd(self, w: Array, g: Array) -> Array:
        return w - self.o["lr"] * (g + self.o["weight_decay"] * w)

    def momentum(self, w: Array, g: Array) -> Array:
        self.m = self.o["momentum"] * self.m + g + self.o["weight_decay"] * w
        return w - self.o["lr"] * self.m

    def nesterov(self, w: Array, g: Array) -> Array:
        g = g + self.o["weight_decay"] * w
        self.m = self.o["momentum"] * self.m + g
        return w - self.o["lr"] * (g + self.o["momentum"] * self.m)

    def adagrad(self, w: Array, g: Array) -> Array:
        self.v = self.v + g**2
        return w - self.o["lr"] * g / (np.sqrt(self.v) + self.o["eps"])

    def rowwise_adagrad(self, w: Array, g: Array) -> Array:
        self.v = self.v + np.mean(g**2, axis=1, keepdims=True)
        return w - self.o["lr"] * g / (np.sqrt(self.v) + self.o["eps"])

    def adam(self, w: Array, g: Array) -> Array:
        return self._adam(w, g + self.o["weight_decay"] * w)

    def adamw(self, w: Array, g: Array) -> Array:
        return self._adam(w * (1 - self.o["lr"] * self.o["weight_decay"]), g)

    def _adam(self, w: Array, g: Array) -> Array:
        (b1, b2), self.t = self.o["betas"], self.t + 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        m, v = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
        return w - self.o["lr"] * m / (np.sqrt(v) + self.o["eps"])


def gradient(w: Array, step: int, rows: Array | None) -> Array:
    """Of a bent bowl with noise; zero outside `rows`."""
    g = 0.3 * w + np.sin(w + step) + np.random.default_rng(step).normal(scale=0.1, size=w.shape)
    if rows is None:
        return g
    kept = np.zeros_like(g)
    kept[rows] = g[rows]
    return kept


def follow(name: str, options: dict[str, Any], sparse: bool) -> tuple[Array, Array]:
    """Weights after STEPS steps: ours, and by the rule in NumPy."""
    start = np.random.default_rng(0).normal(size=SHAPE)
    param = torch.nn.Parameter(torch.tensor(start))
    optimizer = optim.create(name, [param], row_sparse=sparse, **options)
    rule: Callable[[Array, Array], Array] = getattr(Rules(**options), name)
    w = start.copy()
    for step in range(STEPS):
        rows = np.unique(np.random.default_rng(step).integers(0, SHAPE[0], 3)) if sparse else None
        g = gradient(w, step, rows)
        param.grad = torch.tensor(g)
        if rows is not None:
            doubled = torch.tensor(np.concatenate([rows, rows]))  # not coalesced: every row twice, in halves
            values = torch.tensor(np.concatenate([g[rows] / 2, g[rows] / 2]))
            param.grad = torch.sparse_coo_tensor(doubled[None], values, SHAPE, check_invariants=True)
        optimizer.step()
        w = rule(w, g)
    return param.detach().numpy(), w


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_fifty_steps_are_the_rules(name: str) -> None:
    ours, theirs = follow(name, OPTIONS[name], sparse=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


ROW_SPARSE = sorted(name for name, spec in optim.OPTIMIZERS.items() if ACCEPTS_SPARSE in spec.traits)


@pytest.mark.parametrize("name", ROW_SPARSE)
def test_row_sparse_gradients_are_the_dense_rule(name: str) -> None:
    options = {k: v for k, v in OPTIONS[name].items() if k != "weight_decay"} | (
        {"weight_decay": 0.0} if name == "sgd" else {}
    )
    ours, theirs = follow(name, options, sparse=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


DENSE = sorted(name for name, spec in optim.OPTIMIZERS.items() if DENSE_ONLY in spec.traits)


@pytest.mark.parametrize("name", DENSE)
def test_dense_only_rules_refuse_row_sparse_gradients_with_the_remedy(name: str) -> None:
    model = models.create("fm", {"c1": 5}, 2)
    with pytest.raises(UserError, match="--optimizer.sparse.name rowwise_adagrad"):
        optim.create(name, model)
    table = next(model.sparse_parameters())
    unnoticed = optim.create(name, [table])
    before = table.detach().clone()
    model(torch.ones(1, 2), torch.ones(1, 1, dtype=torch.int64)).sum().backward()
    with pytest.raises(UserError, match="--optimizer.sparse.name rowwise_adagrad"):
        unnoticed.step()
    assert torch.equal(table, before)


def test_weight_decay_on_row_sparse_gradients_is_refused() -> None:
    param = torch.nn.Parameter(torch.zeros(3, 2))
    param.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2), check_invariants=True)
    with pytest.raises(UserError, match="weight decay"):
        optim.create("sgd", [param], row_sparse=True, weight_decay=0.1).step()


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_state_survives_saving_and_zero_gradients_are_finite(name: str) -> None:
    def params() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.ones(SHAPE)), torch.nn.Parameter(torch.ones(2))]

    whole, half = params(), params()
    optimizers = [optim.create(name, group, lr=0.1) for group in (whole, half)]
    for step in range(6):
        if step == 3:
            saved = optimizers[1].state_dict()
            optimizers[1] = optim.create(name, half, lr=0.7)
            optimizers[1].load_state_dict(saved)
        for group, optimizer in zip((whole, half), optimizers, strict=True):
            for p in group:
                p.grad = torch.sin(p.detach() * (step + 1)) if step else torch.zeros_like(p)
            optimizer.step()
    for a, b in zip(whole, half, strict=True):
        assert torch.equal(a, b)
        assert bool(torch.isfinite(a).all())


def test_mistakes_are_named() -> None:
    param = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(UserError, match="did you mean adam"):
        optim.create("adm", param)
    with pytest.raises(UserError, match="no option 'momentum'"):
        optim.create("adam", param, momentum=0.9)
    with pytest.raises(UserError, match="lr must be"):
        optim.create("sgd", param, lr=-1.0)
    with pytest.raises(UserError, match=r"betas\[1\]"):
        optim.create("adam", param, betas=(0.9, 1.0))
    with pytest.raises(UserError, match="one of constant, linear"):
        factor("cosine", 0, 10)


def test_registry_is_described() -> None:
    for name, spec in optim.OPTIMIZERS.items():
        assert spec.paper
        assert "lr" in spec.defaults
        assert set(OPTIONS[name]) == set(spec.defaults), "the test must set every option"


def test_schedules() -> None:
    assert [factor("constant", t, 10, 4) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factor("linear", 0, 10) == 1.0
    assert [factor("linear", t, 10, 2) for t in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
