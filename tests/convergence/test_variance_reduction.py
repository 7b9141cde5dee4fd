"""Variance reduction: the theorems' rates where SGD stalls, and a model of which others train a part."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from headrace import optim
from headrace.optim.sarah import SARAH
from headrace.optim.scsg import SCSG, geometric
from headrace.optim.variance_reduced import number_drawn
from headrace.testing.problems import Problem, least_squares, squared_errors

N, MU = 16, 0.8


pytestmark = pytest.mark.usefixtures("one_thread")


def problem_and_smoothness() -> tuple[Problem, float]:
    """MU-strongly convex, with the largest smoothness of a row; its rows disagree at the minimum."""
    problem = least_squares(N, 2, condition=1.0 / MU, noise=1.0)
    return problem, float(problem.x.square().sum(1).max())


def gaps(problem: Problem, optimizer: optim.Optimizer, steps: int, every: int) -> list[float]:
    """How far above the minimum, every so many steps, in batches of one row drawn with replacement."""
    assert problem.minimum is not None
    generator = torch.Generator().manual_seed(1)
    found = [problem.value() - problem.minimum]
    for step in range(steps):
        problem.step(optimizer, torch.randint(0, problem.rows, (1,), generator=generator))
        if (step + 1) % every == 0:
            found.append(problem.value() - problem.minimum)
    return found


def distance(problem: Problem) -> float:
    """Squared distance of the minimum from zero."""
    return float(torch.linalg.lstsq(problem.x, problem.y[:, None]).solution.square().sum())


def test_sgd_stalls_at_the_same_lr() -> None:
    problem, smooth = problem_and_smoothness()
    assert min(gaps(problem, optim.create("sgd", problem.model, lr=1 / (3 * smooth)), 600, 50)[4:]) > 1e-4


def test_saga_falls_by_the_theorems_factor() -> None:
    """Defazio et al. 2014, corollary 1: E|w - w*|^2 falls by 1 - min(1 / 4n, mu / 3L) a step."""
    problem, smooth = problem_and_smoothness()
    first = distance(problem) + 2 * N / (3 * smooth) * (problem.value() - problem.minimum)
    found = gaps(problem, optim.create("saga", problem.model, lr=1 / (3 * smooth)), 640, N)
    rate = 1 - min(1 / (4 * N), MU / (3 * smooth))
    assert all(gap <= 0.5 * first * rate ** (N * i) for i, gap in enumerate(found))
    assert found[-1] < 1e-10


def test_sag_falls_by_the_theorems_factor() -> None:
    """Schmidt et al. 2017, theorem 1: the gap falls by 1 - min(mu / 16L, 1 / 8n) a step at lr 1 / 16L."""
    problem, smooth = problem_and_smoothness()
    first = 1.5 * (problem.value() - problem.minimum) + 4 * smooth / N * distance(problem)
    found = gaps(problem, optim.create("sag", problem.model, lr=1 / (16 * smooth)), 1_920, N)
    rate = 1 - min(MU / (16 * smooth), 1 / (8 * N))
    assert all(gap <= first * rate ** (N * i) for i, gap in enumerate(found))
    assert found[-1] < 1e-10


@pytest.mark.parametrize("pick", ["last", "random"])
def test_svrg_falls_by_the_theorems_factor(pick: str) -> None:
    """Johnson and Zhang 2013, theorem 1: the gap at anchors falls by alpha in the mean with option II (random)."""
    problem, smooth = problem_and_smoothness()
    lr, inner = 0.1 / smooth, math.ceil(50 * smooth / MU)
    alpha = 1 / (MU * lr * (1 - 2 * smooth * lr) * inner) + 2 * smooth * lr / (1 - 2 * smooth * lr)
    assert alpha < 0.51
    optimizer = optim.create("svrg", problem.model, lr=lr, inner_steps=inner, pick=pick, seed=4)
    found = gaps(problem, optimizer, (6 if pick == "last" else 3) * inner, inner)
    assert all(after <= alpha**i * found[0] for i, after in enumerate(found))
    assert found[-1] < 1e-10 or pick == "random"


@pytest.mark.parametrize("gamma", [0.0, 0.125])
def test_sarah_falls_by_the_theorems_factor(gamma: float) -> None:
    """Nguyen et al. 2017, strongly convex losses: |full gradient|^2 at anchors falls by sigma_m in the mean."""
    problem, smooth = problem_and_smoothness()
    lr, inner = 0.5 / smooth, math.ceil(12 * smooth / MU)
    sigma = 1 / (MU * lr * (inner + 1)) + lr * smooth / (2 - lr * smooth)
    assert sigma < 0.51
    pick = "last" if gamma else "random"
    optimizer = optim.create("sarah", problem.model, lr=lr, inner_steps=inner, pick=pick, gamma=gamma, seed=2)
    generator = torch.Generator().manual_seed(1)
    squares = []
    for step in range(30 * inner):
        loop = cast(SARAH, optimizer).kept.get("loop", {"step": 0, "length": 0})
        if loop["step"] == loop["length"]:
            squares.append(float(problem.full_gradient()[0].square().sum()))
            if squares[-1] < 1e-12:
                break
        problem.step(optimizer, torch.randint(0, N, (1,), generator=generator))
        assert step < 30 * inner - 1
    if not gamma:
        assert all(square <= sigma**i * squares[0] for i, square in enumerate(squares))
    assert problem.value() - problem.minimum < 1e-10


@pytest.mark.parametrize("share", [1, 2])
def test_scsg_falls_to_the_minimum_with_anchors_of_all_rows_and_to_a_floor_with_half(share: int) -> None:
    """Lei and Jordan 2017: the error that stays is that of the anchor batch, none where it is all rows."""
    problem, smooth = problem_and_smoothness()
    optimizer = optim.create("scsg", problem.model, lr=0.5 / smooth, anchor_batches=4 // share)
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        anchor = torch.randperm(N, generator=generator)[: N // share]
        for ids in anchor.split(4):
            problem.step(optimizer, ids)
        while cast(SCSG, optimizer).kept["loop"]["left"]:
            problem.step(optimizer, torch.randint(0, N, (4,), generator=generator))
    assert problem.minimum is not None
    gap = problem.value() - problem.minimum
    assert gap < 1e-10 if share == 1 else gap > 1e-4


@pytest.mark.parametrize("name", ["saga", "svrg", "sarah"])
def test_variance_falls_and_sgds_does_not(name: str) -> None:
    """The spread over all single rows of the step from one state, at the start and near the minimum."""
    problem, smooth = problem_and_smoothness()
    optimizer = optim.create(
        name, problem.model, lr=1 / (3 * smooth), **({} if name == "saga" else {"inner_steps": 40})
    )
    spread, plain = [], []
    for steps in (20, 500):
        gaps(problem, optimizer, steps, steps)
        kept, weight = optimizer.state_dict(), problem.model.weight.detach().clone()
        moves = []
        for row in range(N):
            fork = copy.deepcopy(problem)
            again = optim.create(name, fork.model, lr=1 / (3 * smooth))
            again.load_state_dict(kept)
            fork.step(again, torch.tensor([row]))
            moves.append((fork.model.weight.detach() - weight) * 3 * smooth)
        spread.append(float(torch.stack(moves).var(0).sum()))
        rows = problem.x * (problem.x @ weight - problem.y)[:, None]
        plain.append(float(rows.var(0).sum()))
    assert spread[1] < 1e-6 * spread[0]
    assert plain[1] > 0.3 * plain[0]


def test_an_anchor_of_one_row_is_that_rows_gradient() -> None:
    """N of the seed is above 0: the first inner step is taken together with the anchor."""
    problem = least_squares(4, 2, noise=1.0)
    seed = next(seed for seed in range(9) if geometric(number_drawn(seed, 0), 1) > 0)
    problem.step(optim.create("scsg", problem.model, lr=0.5, anchor_batches=1, seed=seed), torch.tensor([2]))
    torch.testing.assert_close(problem.model.weight.detach(), 0.5 * problem.y[2] * problem.x[2])


class Product(nn.Module):
    """x . (u * v): affine in u, and what u's gradient is depends on v."""

    def __init__(self, v: list[float]) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.tensor([0.5, -0.3], dtype=torch.float64))
        self.v = nn.Parameter(torch.tensor(v, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.u * self.v)


@pytest.mark.parametrize("name", ["saga", "svrg", "sarah", "scsg"])
def test_estimates_stay_unbiased_where_others_train_the_rest(name: str) -> None:
    """u is the rule's, v is moved by another hand between the steps: the mean of the estimates over all rows is known.

    SCSG's anchor is all rows here: three batches of three, with v moving between them.
    """
    base = least_squares(9, 2, noise=1.0)
    more = {"scsg": {"anchor_batches": 3, "seed": 1}, "saga": {}}.get(name, {"inner_steps": 6})

    def states() -> Iterator[tuple[Problem, optim.Optimizer, float]]:
        """The state after some steps, made again and again; the mean of the estimates that belongs to it."""
        while True:
            problem = Problem(Product([1.0, 2.0]), base.x, base.y, squared_errors)
            model = problem.model
            optimizer = optim.create(name, [("u", model.u)], model=model, lr=0.02, **more)
            before = last = torch.zeros(2)
            for step in range(5):
                before, last = problem.full_gradient()[0], model.u.detach().clone()
                problem.step(optimizer, torch.arange(3) + 3 * (step % 3))
                last = (last - model.u.detach()) / 0.02
                with torch.no_grad():
                    model.v += 0.2 * (step + 1)
            now = problem.full_gradient()[0]
            yield problem, optimizer, now if name != "sarah" else now - before + last

    moves, expected = [], torch.zeros(2)
    for row, (problem, optimizer, want) in zip(range(9), states(), strict=False):
        old, expected = problem.model.u.detach().clone(), want
        problem.step(optimizer, torch.tensor([row]))
        moves.append((old - problem.model.u.detach()) / 0.02)
    torch.testing.assert_close(torch.stack(moves).mean(0), expected, rtol=1e-9, atol=1e-11)
    assert torch.stack(moves).std(0).max() > 1e-3
