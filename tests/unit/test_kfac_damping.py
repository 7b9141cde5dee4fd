"""K-FAC's damping: Levenberg and Marquardt's rule, and its ratio beside derivatives of the whole loss in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from headrace.optim import kfac
from headrace.optim.kfac_damping import adapted, reduction_ratio
from headrace.testing.optim_exam import make
from headrace.testing.problems import perceptron

pytestmark = pytest.mark.usefixtures("one_thread")


def test_damping_stays_between_a_quarter_and_three_quarters() -> None:
    omega = (19.0 / 20.0) ** 5
    for ratio, expected in ((0.2, 1 / omega), (0.3, 1.0), (0.7, 1.0), (0.8, omega), (math.nan, 1 / omega)):
        assert adapted(1.0, ratio, 5) == pytest.approx(expected)


def test_damping_has_bounds() -> None:
    assert adapted(1e-10, 0.8, 5) == adapted(1.2e-10, 0.8, 5) == 1e-10
    assert adapted(1e10, 0.2, 5) == adapted(0.8e10, 0.2, 5) == 1e10


@pytest.mark.parametrize("rows", [24, 1])
def test_the_ratio_is_of_the_loss_with_its_decay_and_of_its_quadratic_model(rows: int) -> None:
    problem, damping = perceptron(), 0.3
    named = {name: p.detach() for name, p in problem.model.named_parameters()}
    decays = {name: 0.1 * (number + 1) for number, name in enumerate(named)}
    sizes, ids = [p.numel() for p in named.values()], torch.arange(rows)
    w = torch.cat([p.reshape(-1) for p in named.values()])
    decay = torch.cat([torch.full_like(p.reshape(-1), decays[name]) for name, p in named.items()])

    def spread(vector: Tensor) -> dict[str, Tensor]:
        return {name: part.view(named[name].shape) for name, part in zip(named, vector.split(sizes), strict=True)}

    def outputs(vector: Tensor) -> Tensor:
        made: Tensor = torch.func.functional_call(problem.model, spread(vector), (problem.x[ids],))
        return made

    def loss(vector: Tensor) -> Tensor:
        return problem.losses(outputs(vector), problem.y[ids]).mean() + 0.5 * (decay * vector.square()).sum()

    gradient = jacobian(loss, w)
    d = -0.05 * gradient + 0.005 * torch.randn(len(w), generator=torch.Generator().manual_seed(0), dtype=w.dtype)
    p, slopes = outputs(w).softmax(1), jacobian(outputs, w)
    bent = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    matrix = torch.einsum("bin,bij,bjm->nm", slopes, bent, slopes) / rows + torch.diag(decay + damping)
    model = float(gradient @ d + 0.5 * d @ matrix @ d)
    ratio = reduction_ratio(problem.context(ids, rows), named, spread(w + d), decays, damping)
    assert model < 0.0 and ratio == pytest.approx(float(loss(w + d) - loss(w)) / model, rel=1e-9)


@pytest.mark.parametrize("after", [0.0, float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("way", [-1.0, 1.0], ids=["down", "up"])
def test_damping_rises_after_a_step_uphill_and_where_the_loss_is_no_number(way: float, after: float) -> None:
    """A small step along the gradient, as momentum may make it, is foretold well, and yet no reason to trust more."""
    problem = perceptron()
    ctx = problem.context(torch.arange(96), 96)
    before = {name: p.detach() for name, p in problem.model.named_parameters()}
    moved = {name: p + way * 1e-3 * g for (name, p), g in zip(before.items(), problem.full_gradient(), strict=True)}
    losses = ctx.losses

    def spoiled(outputs: Tensor) -> Tensor:
        here = losses(outputs)
        return here if torch.equal(outputs, ctx.outputs_at(before)) or not after else here + after

    ratio = reduction_ratio(replace(ctx, losses=spoiled), before, moved, dict.fromkeys(before, 0.0), 0.1)
    assert (adapted(1.0, ratio, 5) < 1.0) == (way < 0.0 and after == 0.0)
    assert (adapted(1.0, ratio, 5) > 1.0) == (way > 0.0 or after != 0.0)


def test_damping_follows_the_batchs_own_gradient() -> None:
    """Whatever became of the one that the step was given."""
    dampings = []
    for factor in (1.0, 100.0):
        problem = perceptron()
        optimizer = make(kfac.SPEC, problem.model, damping_interval=1, kl_clip=0.0, lr=1e-3 / factor, momentum=0.0)
        ids = torch.arange(96)
        problem.losses(problem.model(problem.x), problem.y).mean().backward()
        for param in problem.model.parameters():
            assert param.grad is not None
            param.grad *= factor
        optimizer.step(problem.context(ids, 96))
        dampings.append(optimizer.param_groups[0]["damping"])
    assert dampings[0] == dampings[1] < 0.01  # the same step
