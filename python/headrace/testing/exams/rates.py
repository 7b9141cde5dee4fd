"""Rates that theory gives, measured: checks of their own beside a rule's reference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace import optim
from headrace.testing.problems import least_squares


def sgd_falls_as_one_over_t() -> None:
    """With steps b / (c + t) on noisy least squares, t E[gap] goes to what Chung's theorem says, over 300 runs.

    In the Hessian's eigenvectors, with eigenvalues h and the variance s of a row's gradient at the minimum: t E[gap] ->
    sum of h b^2 s / (2 b h - 1) / 2, where 2 b h > 1. References: K. L. Chung, "On a stochastic approximation
    method", 1954; V. Fabian, "On asymptotic normality in stochastic approximation", 1968.
    """
    problem = least_squares(rows=200, features=4, condition=4.0, noise=1.0, seed=3)
    x, y = problem.x, problem.y
    best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    h, vectors = torch.linalg.eigh(x.T @ x / problem.rows)
    s = ((x * (x @ best - y)[:, None]) @ vectors).square().mean(0)
    b, c, runs, steps = 2.0 / float(h[0]), 150.0, 300, 2_000
    expected = float((h * b**2 * s / (2.0 * b * h - 1.0)).sum() / 2.0)
    w = nn.Parameter(torch.zeros(runs, 4, dtype=torch.float64))
    optimizer = optim.create("sgd", [w])
    generator = torch.Generator().manual_seed(0)
    for t in range(1, steps + 1):
        ids = torch.randint(problem.rows, (runs,), generator=generator)
        w.grad = x[ids] * ((x[ids] * w.detach()).sum(1) - y[ids])[:, None]
        optimizer.param_groups[0]["lr"] = b / (c + t)
        optimizer.step()
        if t in (steps // 4, steps):
            gap = float((((w.detach() - best) @ vectors).square() * h).sum(1).mean() / 2.0)
            share = gap * (c + t) / expected
            assert 0.9 < share < 1.1, f"sgd: t E[gap] is {share:.3f} of theory's at step {t}"


def momentum_contracts_by_its_root() -> None:
    """On a quadratic with eigenvalues from mu to L, at Polyak's lr and momentum, the error shrinks by sqrt(momentum)
    a step, (sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu)): the square root of gradient descent's number of steps.

    Reference: B. T. Polyak 1964.
    """
    low, high = 0.01**0.5, 1.0
    root = (high - low) / (high + low)
    errors = _errors("momentum", lr=4.0 / (high + low) ** 2, momentum=root**2)
    shrunk = float((errors[300] / errors[100]) ** (1.0 / 200))
    assert abs(shrunk / root - 1.0) < 0.01, f"momentum: shrinks by {shrunk:.4f} a step, theory says {root:.4f}"


def nesterov_contracts_by_its_rate() -> None:
    """At lr 1 / L and momentum (sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu)) the error shrinks by 1 - sqrt(mu / L).

    It is a step's double root of z^2 - (1 + momentum)(1 - lr mu) z + momentum (1 - lr mu), of the slowest eigenvector.

    Reference: Y. Nesterov, "Introductory lectures on convex optimization", 2004, section 2.2.
    """
    root = 1.0 - 0.01**0.5
    errors = _errors("nesterov", lr=1.0, momentum=root / (2.0 - root))
    shrunk = float((errors[300] / errors[100]) ** (1.0 / 200))
    assert abs(shrunk / root - 1.0) < 0.01, f"nesterov: shrinks by {shrunk:.4f} a step, theory says {root:.4f}"


def _errors(name: str, *, lr: float, momentum: float) -> Tensor:
    """Distances from the minimum of sum of h w^2 / 2, h from .01 to 1, by step."""
    h = torch.logspace(-2.0, 0.0, 6, dtype=torch.float64)
    w = nn.Parameter(torch.ones_like(h))
    optimizer = optim.create(name, [w], lr=lr, momentum=momentum)
    distances = []
    for _ in range(301):
        distances.append(w.detach().norm())
        w.grad = h * w.detach()
        optimizer.step()
    return torch.stack(distances)
