"""Hessian-free optimization and natural gradient against explicit matrices of small problems."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from headrace.catalog.fingerprint import splitmix64
from headrace.optim import hessian_free, natural_gradient
from headrace.optim.curvature import Curvature
from headrace.optim.flat import Layout, Objective
from headrace.testing.exams.whole_model import (
    agrees_over_ranks,
    goes_around_walls,
    jacobians,
    survives_rubbish,
    value_and_gradient,
    weights,
)
from headrace.testing.optim_exam import Array, Exam, Run, make
from headrace.testing.problems import Problem, least_squares, logistic, perceptron, rosenbrock


def matrices(problem: Problem, ids: Tensor) -> tuple[Array, Array, Array]:
    """Gauss-Newton [n, n], empirical Fisher [n, n] and gradients of rows `ids` [B, n], from Jacobians of every row and
    the losses' derivatives as the books have them."""
    jacobian = jacobians(problem, ids)
    outputs = problem.model(problem.x[ids]).detach().numpy()
    y = problem.y[ids].numpy()
    if outputs.ndim == 2:  # softmax
        shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        slopes = shares - np.eye(outputs.shape[1])[y]
        bends = np.stack([np.diag(p) - np.outer(p, p) for p in shares])
    else:  # logistic
        share = 1.0 / (1.0 + np.exp(-outputs))
        slopes, bends = (share - y)[:, None], (share * (1.0 - share))[:, None, None]
    rows = np.einsum("bon,bo->bn", jacobian, slopes)
    gauss_newton = np.einsum("bon,bop,bpm->nm", jacobian, bends, jacobian) / len(ids)
    return gauss_newton, rows.T @ rows / len(ids), rows


def products_are_those_of_matrices() -> None:
    """Columns of G and F, value, gradient; the diagonal within the estimate's deviation."""
    for problem in (perceptron((4, 5, 3), rows=40), logistic(rows=60, features=5)):
        ids = torch.arange(3, 33)
        named = {name: p.detach() for name, p in problem.model.named_parameters()}
        layout = Layout(named)
        objective = Objective(problem.context(ids, 30), layout, 0.1)
        w = layout.vector(named)
        made = Curvature(objective, w)
        gauss_newton, fisher, rows = matrices(problem, ids)
        units = torch.eye(w.numel(), dtype=torch.float64)
        for product, matrix in ((made.gauss_newton, gauss_newton), (made.empirical_fisher, fisher)):
            columns = np.stack([product(unit).numpy() for unit in units])
            np.testing.assert_allclose(columns, matrix, rtol=1e-9, atol=1e-12)
        value, gradient = value_and_gradient(problem, w.numpy(), ids, 0.1)
        np.testing.assert_allclose(made.value(), value, rtol=1e-12)
        np.testing.assert_allclose(made.gradient().numpy(), gradient, rtol=1e-9, atol=1e-12)
        ratios = made.squared_gradients(64).numpy() / (rows**2).mean(0)
        assert ratios.min() > 0.2 and ratios.max() < 2.5 and abs(ratios.mean() - 1.0) < 0.25, ratios


def natural_gradient_solves(fisher: str, max_kl: float) -> None:
    """Steps on batches are those of np.linalg.solve."""
    lr, damping, decay = 0.3, 0.02, 0.01
    for problem in (perceptron((4, 5, 3), rows=60), logistic(rows=60, features=5)):
        optimizer = make(
            natural_gradient.SPEC, problem.model, lr=lr, damping=damping, weight_decay=decay, fisher=fisher,
            max_kl=max_kl, cg_iterations=200, cg_tolerance=1e-13,
        )  # fmt: skip
        bounded = 0
        for ids in problem.batches(20, 6):
            w = weights(problem)
            matrix = matrices(problem, ids)[("gauss_newton", "empirical").index(fisher)]
            gradient = value_and_gradient(problem, w, ids, decay)[1]
            d = np.linalg.solve(matrix + (damping + decay) * np.eye(w.size), gradient)
            step = lr
            if 0.5 * lr**2 * d @ matrix @ d > max_kl:
                step, bounded = float(np.sqrt(2.0 * max_kl / (d @ matrix @ d))), bounded + 1
            problem.step(optimizer, ids)
            np.testing.assert_allclose(weights(problem), w - step * d, rtol=1e-8, atol=1e-9)
        assert max_kl == np.inf or bounded > 0, "the bound is not tested"


def kl_is_bounded() -> None:
    """The divergence itself, of softmax outputs before and after steps that would be far too long, is near max_kl."""
    problem = perceptron()
    optimizer = make(natural_gradient.SPEC, problem.model, lr=1.0, damping=0.01, max_kl=1e-4)
    for _ in range(5):
        before = problem.model(problem.x).detach().log_softmax(1)
        problem.step(optimizer, torch.arange(problem.rows))
        after = problem.model(problem.x).detach().log_softmax(1)
        divergence = float((before.exp() * (before - after)).sum(1).mean())
        assert 0.7e-4 < divergence < 1.4e-4, f"divergence {divergence:.3g}, wanted 1e-4"


def hessian_free_is_newton() -> None:
    """One step on a quadratic with almost no damping is Newton's: at the minimum."""
    for power in (0.0, 0.75):
        problem = least_squares(condition=100.0, noise=0.3)
        optimizer = make(
            hessian_free.SPEC, problem.model, damping=1e-14, cg_progress=0.0, preconditioner_power=power
        )  # fmt: skip
        problem.step(optimizer, torch.arange(problem.rows))
        newton = np.linalg.lstsq(problem.x.numpy(), problem.y.numpy(), rcond=None)[0]
        np.testing.assert_allclose(weights(problem), newton, rtol=1e-9, atol=1e-9)


def hessian_free_by_matrices(power: float, damping: float) -> None:
    """Batches of a small net: 6 iterations of CG by their definition, the way back over them, reduction ratio, lambda
    and the line search, all of explicit matrices; several step lengths and verdicts of the ratio occur."""
    problem, decay, lr = perceptron((4, 5, 3), rows=60), 0.01, 2.0
    optimizer = make(
        hessian_free.SPEC, problem.model, damping=damping, weight_decay=decay, cg_progress=0.0, lr=lr,
        preconditioner_power=power, cg_decay=0.5, cg_iterations=6, probes=4,
    )  # fmt: skip
    w = weights(problem)
    start, identity, seen = np.zeros_like(w), np.eye(w.size), []
    light = damping < 1e-3  # with more no step is worse than a quarter of what was promised
    for ids in problem.batches(20, 13):

        def value(at: Array, ids: Tensor = ids) -> float:
            return value_and_gradient(problem, at, ids, decay)[0]

        bend, _, rows = matrices(problem, ids)
        bend += decay * identity
        f, g = value_and_gradient(problem, w, ids, decay)
        bits = splitmix64(ids.numpy() + (1 << 40))
        signs = np.stack([1.0 - 2.0 * (bits >> np.uint64(i) & np.uint64(1)).astype(float) for i in range(4)])
        scales = (((signs @ rows) ** 2).mean(0) / len(ids) + damping + decay) ** power
        path = _krylov_minimizers(bend + damping * identity, -g, start, scales)
        start, d, back = 0.5 * path[-1], path.pop(), 0
        while path and value(w + path[-1]) < value(w + d):
            d, back = path.pop(), back + 1
        rho = (value(w + d) - f) / (g @ d + 0.5 * d @ bend @ d)
        step = next(a for a in lr * 0.8 ** np.arange(60) if value(w + a * d) <= f + 0.01 * a * g @ d)
        damping *= 1.5 if rho < 0.25 else 1 / 1.5 if rho > 0.75 else 1.0
        seen.append((step, back, rho > 0.75, rho < 0.25))
        problem.step(optimizer, ids)
        np.testing.assert_allclose(weights(problem), w + step * d, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(optimizer.last["rho"], rho, rtol=1e-5)  # type: ignore[attr-defined]
        np.testing.assert_allclose(next(iter(optimizer.state.values()))["damping"], damping, rtol=1e-12)
        w = weights(problem)
    assert all(len({verdict[i] for verdict in seen}) > 1 for i in range(3 + light)), f"not all was seen: {seen}"


def _krylov_minimizers(a: Array, b: Array, start: Array, scales: Array) -> list[Array]:
    """CG's iterates 1 to 6 by their definition: minimizers of x.a x / 2 - b.x over start + span{z, a' z, a'^2 z, ...},
    a' = a / scales, z = (b - a start) / scales; the start is dropped where it is no better than 0."""
    if 0.5 * start @ a @ start - b @ start >= 0.0:
        start = np.zeros_like(start)
    r = b - a @ start
    basis, path = (r / scales)[:, None] / np.linalg.norm(r / scales), []
    for _ in range(6):
        path.append(start + basis @ np.linalg.solve(basis.T @ a @ basis, basis.T @ r))
        basis = np.linalg.qr(np.column_stack([basis, a @ basis[:, -1] / scales]))[0]
    return path


def hessian_free_is_superlinear() -> None:
    """Rosenbrock's valley: errors of the last steps fall faster and faster, to 1e-20 within 24 steps."""
    problem = rosenbrock()
    values = problem.train(make(hessian_free.SPEC, problem.model), batch=2, steps=24)
    late = [b / a for a, b in pairwise(values) if 1e-20 < a < 1e-3]
    assert values[-1] < 1e-20 and late == sorted(late, reverse=True) and late[-1] < 1e-3, values


_TIGHT = {"cg_iterations": 200, "cg_tolerance": 1e-12}
_HESSIAN_FREE: list[Callable[[], None]] = [
    products_are_those_of_matrices, hessian_free_is_newton, hessian_free_is_superlinear,
    partial(hessian_free_by_matrices, 0.0, 1e-4), partial(hessian_free_by_matrices, 0.75, 0.03),
    partial(agrees_over_ranks, hessian_free.SPEC, {}, 3),
    partial(goes_around_walls, hessian_free.SPEC, {"damping": 1e-3}), partial(survives_rubbish, hessian_free.SPEC, {}),
]  # fmt: skip
_NATURAL: list[Callable[[], None]] = [
    partial(natural_gradient_solves, "gauss_newton", np.inf), partial(natural_gradient_solves, "gauss_newton", 1e-3),
    partial(natural_gradient_solves, "empirical", 1e-3), kl_is_bounded,
    partial(agrees_over_ranks, natural_gradient.SPEC, {"damping": 0.1}),
    partial(agrees_over_ranks, natural_gradient.SPEC, {"damping": 0.1, "fisher": "empirical"}),
    partial(survives_rubbish, natural_gradient.SPEC, {"lr": 0.3}),
]  # fmt: skip

EXAMS: dict[str, Exam] = {
    "hessian_free": Exam(
        options={
            "lr": 0.9, "damping": 0.3, "cg_iterations": 40, "cg_progress": 1e-3, "cg_decay": 0.8,
            "preconditioner_power": 0.5, "probes": 4, "weight_decay": 0.01,
        },
        steps_together=3,
        whole=_HESSIAN_FREE,
        rosenbrock=Run(options={}, steps=25, gap=1e-20),
        logistic=Run(options={}, steps=25, gap=1e-12),
    ),
    "natural_gradient": Exam(
        options={
            "lr": 0.5, "fisher": "empirical", "damping": 0.01, "max_kl": 0.1, "cg_iterations": 20,
            "cg_tolerance": 1e-4, "weight_decay": 0.01,
        },
        whole=_NATURAL,
        rosenbrock=Run(options={"lr": 1.0, "damping": 1e-4, "max_kl": np.inf}, steps=12, gap=1e-12),
        logistic=Run(options={"lr": 1.0, "max_kl": np.inf}, steps=15, gap=1e-10),
    ),
}  # fmt: skip
