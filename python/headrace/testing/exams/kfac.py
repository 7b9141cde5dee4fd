"""K-FAC beside NumPy: a tanh net differentiated by hand, row by row, label by label; whole histories instead of running
means; Kronecker products written out and solved."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headrace.optim import kfac
from headrace.testing.exams.first_order import momentum
from headrace.testing.optim_exam import Array, Exam, Run, make
from headrace.testing.problems import Problem, logistic, perceptron, squared_errors

_WIDTHS, _BATCH, _STEPS = (4, 5, 3, 3), 10, 9

_OPTIONS: dict[str, Any] = {
    "lr": 0.05, "momentum": 0.8, "weight_decay": 0.02, "decoupled": True, "damping": 0.03, "damping_split": False,
    "damping_interval": 3, "kl_clip": 0.002, "factor_decay": 0.8, "factor_interval": 2, "inverse_interval": 4,
    "method": "eigen", "fisher": "gauss_newton", "grad_worker_frac": 0.5, "fallback": "adamw", "fallback_lr": 1e-3,
    "seed": 1,
}  # fmt: skip
_SPLIT = _OPTIONS | {"damping_split": True}
_VARIANTS: tuple[dict[str, Any], ...] = (
    _OPTIONS,
    _SPLIT | {"method": "inverse"},
    _SPLIT | {"damping_interval": 0},
    _OPTIONS | {"damping_interval": 0, "fisher": "empirical", "factor_interval": 1, "kl_clip": 0.0},
    _SPLIT | {"method": "inverse", "decoupled": False, "factor_interval": 1, "inverse_interval": 1},
    _OPTIONS | {"lr": 1.0, "kl_clip": 0.3, "damping_interval": 1},  # damping falls, stays and rises
)


class _Net:
    """Weights [W b] of a net with tanh units and cross-entropy at the end."""

    def __init__(self, model: nn.Module) -> None:
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        self.weights = [
            np.concatenate([x.weight.detach().numpy(), x.bias.detach().numpy()[:, None]], 1).astype(np.float64)
            for x in linear
        ]

    def row(self, x: Array) -> tuple[list[Array], Array]:
        """Inputs of all layers with 1 appended, and the probabilities."""
        inputs, h = [], x
        for i, w in enumerate(self.weights):
            inputs.append(np.append(h, 1.0))
            h = w @ inputs[-1]
            h = np.tanh(h) if i < len(self.weights) - 1 else h
        p = np.exp(h - h.max())
        return inputs, p / p.sum()

    def output_gradients(self, inputs: list[Array], p: Array, label: int) -> list[Array]:
        """Of -log p[label] at every layer's output before tanh."""
        d = p - np.eye(len(p))[label]
        gradients = [d]
        for w, a in zip(self.weights[:0:-1], inputs[:0:-1], strict=True):
            d = (w[:, :-1].T @ d) * (1.0 - a[:-1] ** 2)
            gradients.insert(0, d)
        return gradients

    def loss(self, x: Array, y: Array) -> float:
        return float(np.mean([-np.log(self.row(row)[1][int(label)]) for row, label in zip(x, y, strict=True)]))


class _Reference:
    """K-FAC's rule on a `_Net`."""

    def __init__(self, net: _Net, options: Mapping[str, Any]) -> None:
        self.net, self.o = net, dict(options)
        self.damping = options["damping"]
        self.l2 = 0.0 if options["decoupled"] else options["weight_decay"]
        self.history: list[list[tuple[Array, Array]]] = [[] for _ in net.weights]
        self.velocity = [0.0 * w for w in net.weights]
        self.used: list[tuple[Array, Array]] = []
        self.damping_used = 0.0

    def step(self, t: int, x: Array, y: Array) -> None:
        o, net, layers = self.o, self.net, range(len(self.net.weights))
        rows = [net.row(row) for row in x]
        own = [net.output_gradients(a, p, int(label)) for (a, p), label in zip(rows, y, strict=True)]
        grads = [
            np.mean([np.outer(g[i], a[i]) for (a, _), g in zip(rows, own, strict=True)], axis=0)
            + self.l2 * net.weights[i]
            for i in layers
        ]
        if t % o["factor_interval"] == 0:
            for i in layers:
                self.history[i].append(self._factors(i, rows, own))
        if t % o["inverse_interval"] == 0:
            self.used = [self._mean(i) for i in layers]
            self.damping_used = self.damping
        steps = [self._solved(i, grads[i]) for i in layers]
        size = o["lr"] ** 2 * sum(float((d * g).sum()) for d, g in zip(steps, grads, strict=True))
        nu = min(1.0, (o["kl_clip"] / size) ** 0.5) if o["kl_clip"] else 1.0
        before, loss = [w.copy() for w in net.weights], net.loss(x, y)
        for i in layers:
            decay = 1.0 - o["lr"] * o["weight_decay"] if o["decoupled"] else 1.0
            self.velocity[i] = o["momentum"] * self.velocity[i] + nu * steps[i]
            net.weights[i] = decay * net.weights[i] - o["lr"] * self.velocity[i]
        if o["damping_interval"] and (t + 1) % o["damping_interval"] == 0:
            self._adapt(before, grads, net.loss(x, y) - loss, rows)

    def _factors(self, i: int, rows: list[tuple[list[Array], Array]], own: list[list[Array]]) -> tuple[Array, Array]:
        a = np.mean([np.outer(inputs[i], inputs[i]) for inputs, _ in rows], axis=0)
        if self.o["fisher"] == "empirical":
            return a, np.mean([np.outer(g[i], g[i]) for g in own], axis=0)
        total = np.zeros((len(own[0][i]),) * 2)
        for inputs, p in rows:
            for label, share in enumerate(p):
                g = self.net.output_gradients(inputs, p, label)[i]
                total += share * np.outer(g, g)
        return a, total / len(rows)

    def _mean(self, i: int) -> tuple[Array, Array]:
        """sum beta^(k-j) f_j / sum beta^(k-j)."""
        weights = self.o["factor_decay"] ** np.arange(len(self.history[i]))[::-1]
        a, g = (np.average([pair[side] for pair in self.history[i]], axis=0, weights=weights) for side in (0, 1))
        return a, g

    def _solved(self, i: int, grad: Array) -> Array:
        """(A (x) G)^-1 of the columns of V, one below the other."""
        (a, g), n, m = self.used[i], grad.shape[1], grad.shape[0]
        damping = self.l2 + (self.damping_used if self.o["method"] == "inverse" else self.damping)
        if self.o["damping_split"]:
            pi = np.sqrt((np.trace(a) / n) / (np.trace(g) / m))
            block = np.kron(a + pi * damping**0.5 * np.eye(n), g + damping**0.5 / pi * np.eye(m))
        else:
            block = np.kron(a, g) + damping * np.eye(n * m)
        return np.linalg.solve(block, grad.ravel(order="F")).reshape(grad.shape, order="F")

    def _adapt(
        self, before: list[Array], grads: list[Array], change: float, rows: list[tuple[list[Array], Array]]
    ) -> None:
        """Levenberg and Marquardt with the Fisher matrix of all parameters together, from gradients of all labels."""
        after, self.net.weights = self.net.weights, before
        step = np.concatenate([(new - old).ravel() for new, old in zip(after, before, strict=True)])
        fisher = 0.0
        for inputs, p in rows:
            for label, share in enumerate(p):
                g = self.net.output_gradients(inputs, p, label)
                flat = np.concatenate([np.outer(gi, ai).ravel() for gi, ai in zip(g, inputs, strict=True)])
                fisher += share * float(flat @ step) ** 2 / len(rows)
        self.net.weights = after
        for new, old in zip(after, before, strict=True):
            change += 0.5 * self.l2 * float((new**2).sum() - (old**2).sum())
        slope = float(np.concatenate([g.ravel() for g in grads]) @ step)
        fall, foretold = -change, -slope - 0.5 * fisher - 0.5 * (self.damping + self.l2) * float(step @ step)
        omega = 0.95 ** self.o["damping_interval"]
        if foretold <= 0.0 or fall < 0.25 * foretold:
            self.damping /= omega
        elif fall > 0.75 * foretold:
            self.damping *= omega


def follows(options: Mapping[str, Any]) -> None:
    """Some steps equal the reference's."""
    problem = perceptron(_WIDTHS)
    reference = _Reference(_Net(problem.model), options)
    optimizer = make(kfac.SPEC, problem.model, **options)
    for t, ids in enumerate(problem.batches(_BATCH, _STEPS)):
        problem.step(optimizer, ids)
        reference.step(t, problem.x[ids].numpy(), problem.y[ids].numpy())
        for i, (ours, w) in enumerate(zip(_Net(problem.model).weights, reference.net.weights, strict=True)):
            np.testing.assert_allclose(
                ours, w, rtol=1e-7, atol=1e-9, err_msg=f"step {t}, layer {i} is not the rule's with {dict(options)}"
            )
    held = optimizer.param_groups[0]["damping"]
    np.testing.assert_allclose(held, reference.damping, rtol=1e-12, err_msg="damping did not follow the rule")


def solves_exact_blocks() -> None:
    """In a linear net under squared error, gradients of outputs do not depend on the row: every block is a product.

    The Gauss-Newton matrix is J^T J / N with J from torch.func; one full step is its damped blocks' solution.
    """
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 3, dtype=torch.float64), nn.Linear(3, 2, bias=False, dtype=torch.float64))
    for param in model.parameters():
        nn.init.normal_(param, generator=generator)
    problem = Problem(model, x, y, squared_errors)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def outputs(params: dict[str, Tensor]) -> Tensor:
        made: Tensor = torch.func.functional_call(model, params, (x,))
        return made

    jacobians = {name: j.reshape(80, -1) for name, j in torch.func.jacrev(outputs)(before).items()}
    grads = dict(zip(before, problem.full_gradient(), strict=True))
    optimizer = make(kfac.SPEC, model, lr=1.0, kl_clip=0.0, method="eigen", damping_split=False, fisher="gauss_newton")
    problem.step(optimizer, torch.arange(40))
    for names in (["0.weight", "0.bias"], ["1.weight"]):
        j = torch.cat([jacobians[name] for name in names], 1)
        block = j.T @ j / 40 + 0.01 * torch.eye(j.shape[1], dtype=j.dtype)
        wanted = torch.linalg.solve(block, torch.cat([grads[name].reshape(-1) for name in names]))
        made = torch.cat([(before[name] - model.get_parameter(name)).detach().reshape(-1) for name in names])
        np.testing.assert_allclose(made.numpy(), wanted.numpy(), rtol=1e-8, err_msg=f"block of {names} is not exact")


def is_nearly_newton() -> None:
    """The ill-conditioned logistic regression as a layer: to 1e-9 of its minimum in 20 steps, from zero."""
    problem = logistic(condition=100.0)
    model = nn.Sequential(nn.Linear(problem.x.shape[1], 1, bias=False, dtype=torch.float64), nn.Flatten(0))
    nn.init.zeros_(model.get_parameter("0.weight"))
    layered = Problem(model, problem.x, problem.y, problem.losses, problem.minimum)
    optimizer = make(
        kfac.SPEC, model, lr=1.0, momentum=0.0, damping=1e-8, kl_clip=0.0, factor_decay=0.0, inverse_interval=1
    )
    layered.train(optimizer, batch=layered.rows, steps=20)
    assert layered.minimum is not None
    gap = layered.value() - layered.minimum
    assert gap <= 1e-9, f"{gap:.3g} above the minimum after 20 steps"


def leaves_others_to_the_fallback(decoupled: bool) -> None:
    """What is no layer follows the fallback's rule with its own learning rate."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(3, 2))
    table = nn.Embedding(3, 2, dtype=torch.float64)
    with torch.no_grad():
        table.weight.copy_(torch.tensor(weights))
    optimizer = make(kfac.SPEC, table, fallback_lr=0.02, momentum=0.7, weight_decay=0.1, decoupled=decoupled)
    rule = momentum(lr=0.02, momentum=0.7, weight_decay=0.1, decoupled=decoupled)
    for _ in range(5):
        grad = generator.normal(size=weights.shape)
        table.weight.grad = torch.tensor(grad)
        optimizer.step()
        weights = rule(weights, grad)
        np.testing.assert_allclose(table.weight.detach().numpy(), weights, rtol=1e-10, err_msg="the fallback's rule")


EXAMS: dict[str, Exam] = {
    "kfac": Exam(
        options=_OPTIONS,
        whole=[
            *(partial(follows, options) for options in _VARIANTS), solves_exact_blocks, is_nearly_newton,
            *(partial(leaves_others_to_the_fallback, decoupled) for decoupled in (False, True)),
        ],
        variants=[{"fisher": "sampled"}],
        reductions=[
            # Where damping is all there is of the matrix, its inverse is a factor of the learning rate.
            (
                {
                    "lr": 1e10, "damping": 1e12, "damping_split": False, "method": "eigen", "kl_clip": 0.0,
                    "momentum": 0.8,
                },
                partial(torch.optim.SGD, lr=0.01, momentum=0.8),
            ),
        ],
        rosenbrock=None,  # has no layers
        logistic=Run(options={"lr": 2.0}, steps=300, gap=1e-6),  # nor has this: the fallback
    ),
}  # fmt: skip
