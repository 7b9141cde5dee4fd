"""What is asked of every rule for a whole model, and problems as functions of one NumPy vector for references."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from headrace.comm.local import LocalGroup
from headrace.optim import OptimizerSpec
from headrace.optim.context import NonFiniteStepError, StepContext
from headrace.testing.optim_exam import Array, make
from headrace.testing.problems import Problem, least_squares, perceptron


def weights(problem: Problem) -> Array:
    """The model's parameters [n], a copy."""
    return parameters_to_vector(problem.model.parameters()).detach().double().numpy().copy()


def value_and_gradient(
    problem: Problem, w: Array, ids: Tensor | None = None, decay: float = 0.0
) -> tuple[float, Array]:
    """Of the mean loss of rows `ids` at w [n], and decay / 2 |w|^2, by plain autograd; the model is left as it was."""
    before = weights(problem)
    rows = torch.arange(problem.rows) if ids is None else ids
    params = list(problem.model.parameters())
    vector_to_parameters(torch.tensor(w), params)
    loss = problem.losses(problem.model(problem.x[rows]), problem.y[rows]).mean()
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params)]).numpy()
    vector_to_parameters(torch.tensor(before), params)
    return float(loss.detach()) + 0.5 * decay * float(w @ w), gradient + decay * w


def jacobians(problem: Problem, ids: Tensor) -> Array:
    """d outputs / d parameters of rows `ids`, [B, outputs, n], by torch.func."""
    named = dict(problem.model.named_parameters())

    def outputs(params: Mapping[str, Tensor]) -> Tensor:
        made: Tensor = torch.func.functional_call(problem.model, dict(params), (problem.x[ids],))
        return made.reshape(ids.shape[0], -1)

    made = torch.func.jacrev(outputs)(named)
    return torch.cat([made[name].flatten(2) for name in named], dim=2).detach().numpy()


def agrees_over_ranks(spec: OptimizerSpec, options: Mapping[str, Any], steps: int = 5) -> None:
    """Two ranks (of a batch they cannot halve) make the steps of one, and hold the same bits."""
    group = LocalGroup(2, 60.0)
    with ThreadPoolExecutor(2) as pool:
        a, b = (run.result() for run in [pool.submit(_train, spec, options, steps, group, rank) for rank in range(2)])
    np.testing.assert_array_equal(a, b, err_msg="ranks hold other bits")
    np.testing.assert_allclose(a, _train(spec, options, steps), rtol=1e-10, atol=1e-10, err_msg="2 ranks are not one")


def _train(
    spec: OptimizerSpec, options: Mapping[str, Any], steps: int, group: LocalGroup | None = None, rank: int = 0
) -> Array:
    problem = perceptron()
    try:
        problem.train(
            make(spec, problem.model, **options), batch=47, steps=steps,
            collective=group.collective(rank) if group else None,
        )  # fmt: skip
    except BaseException as error:
        if group is not None:
            group.abort(repr(error))
        raise
    return weights(problem)


def goes_around_walls(spec: OptimizerSpec, options: Mapping[str, Any]) -> None:
    """The loss is NaN, Inf or -Inf beyond a wall near the start: every step stays inside, and the minimum is found.

    Barrier: -log(1 - o) of the output of a linear model, beside a pull of strength 8 towards the wall: o = 7 / 8.
    """
    for outside in (torch.nan, torch.inf, -torch.inf):
        problem = replace(least_squares(rows=40, features=3), losses=partial(_walled, outside))
        problem.x[:] = problem.x.abs().mean()
        optimizer = make(spec, problem.model, **options)
        values = problem.train(optimizer, batch=problem.rows, steps=40)
        assert np.isfinite(values).all(), f"a step went beyond the wall: {values}"
        best = 8.0 * (1.0 - 7.0 / 8.0) + np.log(8.0)
        assert values[-1] - best < 1e-6, f"{values[-1] - best:.3g} above the minimum"


def _walled(outside: float, outputs: Tensor, y: Tensor) -> Tensor:
    inside = outputs < 1.0
    safe = torch.where(inside, outputs, torch.zeros_like(outputs))
    return torch.where(inside, 8.0 * (1.0 - safe) - torch.log1p(-safe), outside * torch.ones_like(outputs))


def survives_rubbish(spec: OptimizerSpec, options: Mapping[str, Any]) -> None:
    """A batch whose loss is NaN or Inf everywhere moves nothing, said or not, and the next good one goes on."""
    for number in (float("nan"), float("inf")):
        problem = perceptron()
        optimizer = make(spec, problem.model, **options)
        ids = torch.arange(32)
        problem.step(optimizer, ids)
        before = weights(problem)
        with suppress(NonFiniteStepError):
            replace(problem, losses=partial(_spoiled, problem.losses, number)).step(optimizer, ids)
        np.testing.assert_array_equal(weights(problem), before, err_msg=f"moved by a loss that is {number}")
        value = problem.value()
        for _ in range(5):
            problem.step(optimizer, ids)
        assert problem.value() < value, "does not go on after a bad batch"


def _spoiled(losses: Callable[[Tensor, Tensor], Tensor], number: float, outputs: Tensor, y: Tensor) -> Tensor:
    made: Tensor = losses(outputs, y) * number
    return made


def counted(ctx: StepContext, counts: list[int]) -> StepContext:
    """A context that counts forward passes in counts[0]."""

    def outputs_at(params: Mapping[str, Tensor] | None) -> Tensor:
        counts[0] += 1
        return ctx.outputs_at(params)

    return replace(ctx, outputs_at=outputs_at)
