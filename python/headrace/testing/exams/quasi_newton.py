"""L-BFGS against BFGS matrices, torch's and SciPy's, and its line search's conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import scipy.optimize
import torch

from headrace.optim import lbfgs
from headrace.testing.exams.whole_model import (
    agrees_over_ranks,
    goes_around_walls,
    survives_rubbish,
    value_and_gradient,
    weights,
)
from headrace.testing.optim_exam import Array, Exam, Run, make
from headrace.testing.problems import Problem, logistic, perceptron, rosenbrock

_FIXED: dict[str, Any] = {"line_search": "none", "lr": 0.1, "history": 4, "weight_decay": 0.02}


def is_bfgs(bad_pairs: str) -> None:
    """Batches, lr fixed: the steps of the matrix B of Nocedal and Wright, equation 6.19, from B_0 = (y.y / s.y) I over
    the last pairs, solved with; damped by procedure 18.2, with B itself."""
    problem = replace(perceptron(), losses=_waves)
    lr, history, decay = _FIXED["lr"], _FIXED["history"], _FIXED["weight_decay"]
    optimizer = make(lbfgs.SPEC, problem.model, **_FIXED, bad_pairs=bad_pairs, min_curvature=0.1)
    pairs: list[tuple[Array, Array]] = []
    w, bad = weights(problem), 0
    for ids in problem.batches(12, 16):
        _, g = value_and_gradient(problem, w, ids, decay)
        b = _bfgs_matrix(pairs, w.size)
        moved = w - lr * (1.0 if pairs else min(1.0, 1.0 / np.abs(g).sum())) * np.linalg.solve(b, g)
        s, y = moved - w, value_and_gradient(problem, moved, ids, decay)[1] - g
        if bad_pairs == "damp" and s @ y < 0.2 * s @ b @ s:
            share, bad = 0.8 * s @ b @ s / (s @ b @ s - s @ y), bad + 1
            y = share * y + (1 - share) * b @ s
        if s @ y > 0.1 * np.linalg.norm(s) * np.linalg.norm(y):
            pairs = [*pairs, (s, y)][-history:]
        else:
            bad += 1
        problem.step(optimizer, ids)
        w = weights(problem)
        np.testing.assert_allclose(w, moved, rtol=1e-10, atol=1e-12)
    assert 3 <= bad <= 12, f"{bad} of 16 pairs were bad: {bad_pairs} is not tested"


def _waves(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As often concave as convex."""
    return torch.sin(5.0 * outputs + y[:, None]).sum(1)


def _bfgs_matrix(pairs: list[tuple[Array, Array]], n: int) -> Array:
    b = np.eye(n) * (pairs[-1][1] @ pairs[-1][1]) / (pairs[-1][0] @ pairs[-1][1]) if pairs else np.eye(n)
    for s, y in pairs:
        b = b - np.outer(b @ s, b @ s) / (s @ b @ s) + np.outer(y, y) / (y @ s)
    return np.asarray(b)


def is_torchs() -> None:
    """Full batch, lr fixed: 25 steps of torch.optim.LBFGS."""
    ours, theirs = perceptron(), perceptron()
    a = make(lbfgs.SPEC, ours.model, line_search="none", lr=0.5, history=5)
    b = torch.optim.LBFGS(
        theirs.model.parameters(), lr=0.5, max_iter=1, history_size=5, tolerance_grad=0.0, tolerance_change=0.0
    )

    def closure() -> torch.Tensor:
        b.zero_grad()
        loss = theirs.losses(theirs.model(theirs.x), theirs.y).mean()
        loss.backward()
        return loss

    for _ in range(25):
        ours.step(a, torch.arange(ours.rows))
        b.step(closure)
        np.testing.assert_allclose(weights(ours), weights(theirs), rtol=1e-7, atol=1e-9)


def keeps_up_with_scipy() -> None:
    """As many iterations to a gap of 1e-9 as SciPy's L-BFGS-B (More and Thuente's line search), or 1.3 times and 3."""
    for problem in (rosenbrock(), logistic(condition=1000.0), perceptron()):
        start, values = weights(problem), []
        found = scipy.optimize.minimize(
            partial(value_and_gradient, problem), start, jac=True, method="L-BFGS-B",
            callback=lambda intermediate_result: values.append(intermediate_result.fun),  # noqa: B023
            options={"maxcor": 10, "ftol": 0.0, "gtol": 1e-10, "maxiter": 200},
        )  # fmt: skip
        target = max(found.fun, 0.0) + 1e-9
        theirs = 1 + next(i for i, value in enumerate(values) if value <= target)
        ours = problem.train(make(lbfgs.SPEC, problem.model), batch=problem.rows, steps=int(1.3 * theirs) + 3)
        assert min(ours) <= target, f"{min(ours) - target:.3g} above after {len(ours) - 1} steps, SciPy needs {theirs}"


def keeps_wolfe_conditions() -> None:
    """Every point of a run fulfils both, with the slope along the step; evaluated anew."""
    for make_problem, c1, c2 in ((rosenbrock, 1e-4, 0.9), (rosenbrock, 1e-3, 0.1), (perceptron, 0.1, 0.2)):
        problem: Problem = make_problem()
        optimizer = make(lbfgs.SPEC, problem.model, c1=c1, c2=c2, lr=3.0)
        trials = []
        for _ in range(15):
            w = weights(problem)
            problem.step(optimizer, torch.arange(problem.rows))
            s = weights(problem) - w
            (f, g), (f_new, g_new) = value_and_gradient(problem, w), value_and_gradient(problem, w + s)
            assert f_new <= f + c1 * g @ s + 1e-12 * abs(f), "no sufficient decrease"
            assert abs(g_new @ s) <= c2 * abs(g @ s) * (1 + 1e-6), "no strong curvature condition"
            trials.append(optimizer.last["trials"])  # type: ignore[attr-defined]
        assert max(trials) > 1


def is_superlinear() -> None:
    """Near the minimum of the valley an error is less than a fifth of the one before, on average over five steps."""
    problem = rosenbrock()
    values = problem.train(make(lbfgs.SPEC, problem.model), batch=2, steps=42)
    first = next(i for i, value in enumerate(values) if value < 1e-4)
    assert first <= 36 and values[first + 5] < 1e-4 * 0.2**10, f"values {values[first:]} from step {first}"


_WHOLE: list[Callable[[], None]] = [
    partial(is_bfgs, "skip"), partial(is_bfgs, "damp"), is_torchs, keeps_up_with_scipy, keeps_wolfe_conditions,
    is_superlinear,
]  # fmt: skip
for _options in ({}, _FIXED):
    _WHOLE += [
        partial(agrees_over_ranks, lbfgs.SPEC, _options),
        partial(survives_rubbish, lbfgs.SPEC, _options),
    ]

EXAMS: dict[str, Exam] = {
    "lbfgs": Exam(
        options={
            "lr": 0.8, "history": 4, "line_search": "none", "c1": 1e-3, "c2": 0.5, "max_trials": 12,
            "bad_pairs": "damp", "min_curvature": 1e-6, "weight_decay": 0.01,
        },
        whole=[*_WHOLE, partial(goes_around_walls, lbfgs.SPEC, {})],
        rosenbrock=Run(options={}, steps=40, gap=1e-12),
        logistic=Run(options={}, steps=30, gap=1e-12),
    ),
}  # fmt: skip
