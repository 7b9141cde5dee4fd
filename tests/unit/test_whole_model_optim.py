"""Conjugate gradients, and rules for a whole model beside tables, under faults, out of a checkpoint. What
each rule does is in test_optim_exam."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from headrace import models, optim
from headrace.comm.local import LocalGroup
from headrace.errors import UserError
from headrace.optim.conjugate_gradients import Solution, Stop, _slow, conjugate_gradients
from headrace.optim.context import NonFiniteStepError
from headrace.optim.curvature import Linearized
from headrace.optim.flat import Layout, Objective
from headrace.optim.lbfgs import Pairs, _can_fall, _search
from headrace.optim.line_search import Line, Trial
from headrace.testing.exams.whole_model import counted, weights
from headrace.testing.problems import Linear, Problem, log_losses, logistic, perceptron, squared_errors
from headrace.train.checkpoint import Checkpoint, CheckpointStore, load

WHOLE = ("lbfgs", "hessian_free", "natural_gradient")
F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


def system(n: int = 30, condition: float = 100.0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(3)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return torch.tensor((q * np.geomspace(1.0, condition, n)) @ q.T), torch.tensor(rng.normal(size=n))


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_conjugate_gradients_solve(diagonal: bool, started: bool, size: float) -> None:
    a, b = system()
    solution = np.linalg.solve(a.numpy(), b.numpy())
    found = conjugate_gradients(
        lambda v: a @ v, size * b, Stop(iterations=100, residual=1e-13),
        start=size * 0.9 * torch.tensor(solution) if started else None,
        preconditioner=a.diagonal() if diagonal else None,
    )  # fmt: skip
    ((x, q),) = found.path
    np.testing.assert_allclose(x.numpy(), size * solution, rtol=1e-9)
    np.testing.assert_allclose(q, -0.5 * size**2 * b.numpy() @ solution, rtol=1e-9)
    assert found.residual <= 1e-13


def test_conjugate_gradients_stop_where_the_paper_says() -> None:
    """q after every number of iterations, then Martens' rule on these."""
    a, b = system(60, 3e2)
    q = [0.0]
    q += [conjugate_gradients(lambda v: a @ v, b, Stop(iterations=i)).path[-1][1] for i in range(1, 80)]
    for progress in (5e-4, 5e-3, 2e-2):
        wanted = next(
            i for i in range(11, 80)
            if i > max(10, math.ceil(i / 10)) and q[i] < 0
            and (q[i] - q[i - max(10, math.ceil(i / 10))]) / q[i] < max(10, math.ceil(i / 10)) * progress
        )  # fmt: skip
        assert conjugate_gradients(lambda v: a @ v, b, Stop(iterations=500, progress=progress)).iterations == wanted
    assert wanted < 79


def test_conjugate_gradients_keep_every_1_3_to_the_j() -> None:
    a, b = system(60, 1e4)
    found = conjugate_gradients(lambda v: a @ v, b, Stop(iterations=20), keep_path=True)
    assert found.iterations == 20
    for (x, q), i in zip(found.path, (1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 20), strict=True):
        ((same, same_q),) = conjugate_gradients(lambda v: a @ v, b, Stop(iterations=i)).path
        assert torch.equal(x, same) and q == same_q


def test_conjugate_gradients_look_back_over_a_tenth_of_many_iterations() -> None:
    """After 155 over 16: a q that rose there once, and is elsewhere what it was, tells which one is looked at."""
    values = [-1.0] * 156
    assert _slow(values, 0.01)
    values[155 - 16] = -0.5
    assert not _slow(values, 0.01)
    assert not _slow([0.5] * 156, 0.01)  # above q(0)


def test_conjugate_gradients_keep_no_iterate_twice_and_none_that_is_not_finite() -> None:
    a, b = system(60, 1e4)
    found = conjugate_gradients(lambda v: a @ v, b, Stop(iterations=18), keep_path=True)
    assert len(found.path) == 10
    found.keep(torch.tensor([1.0, math.inf]), -1.0)
    assert len(found.path) == 10


def test_what_does_not_change_with_a_parameter_has_no_derivative() -> None:
    w = torch.tensor([0.5, -2.0], requires_grad=True)
    assert Linearized(w.sign(), [w]).push([torch.ones(2)]).tolist() == [0.0, 0.0]


def test_hessian_free_takes_as_many_probes_as_it_says() -> None:
    problem = perceptron()
    optimizer = optim.create("hessian_free", problem.model, probes=64)
    problem.step(optimizer, torch.arange(problem.rows))
    with pytest.raises(UserError, match="1 to 64 probes"):
        optim.create("hessian_free", problem.model, probes=65)


def test_conjugate_gradients_keep_their_start_where_nothing_is_below_it() -> None:
    """q(x) = x.A x / 2 - b.x at (1, 0) is -1; the direction of steepest descent from there has negative curvature."""
    a, b, start = torch.diag(torch.tensor([2.0, -1.0])), torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0])
    ((x, q),) = conjugate_gradients(lambda v: a @ v, b, Stop(iterations=5), start=start).path
    assert torch.equal(x, start) and q == pytest.approx(-1.0)


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(3, 3),
        1e-45 * torch.eye(3),
        -torch.eye(3),
        torch.full((3, 3), torch.nan),
        torch.full((3, 3), torch.inf),
    ],
)
def test_conjugate_gradients_find_nothing_in_bad_matrices(matrix: Tensor) -> None:
    assert Solution().residual == 1.0
    assert conjugate_gradients(lambda v: matrix @ v, torch.ones(3), Stop(iterations=9)).path == []
    assert conjugate_gradients(lambda v: v, torch.zeros(3), Stop(iterations=9)).path == []


def test_conjugate_gradients_solve_singular_systems_as_far_as_they_go() -> None:
    a = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    found = conjugate_gradients(lambda v: a @ v, b, Stop(iterations=50))
    assert torch.allclose(found.path[-1][0], torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("name", WHOLE)
def test_mistakes_are_named(name: str) -> None:
    problem = perceptron()
    named = list(problem.model.named_parameters())
    with pytest.raises(UserError, match="know their names"):
        problem.step(optim.create(name, problem.model.parameters()), torch.arange(4))
    with pytest.raises(UserError, match="one set of options"):
        optim.create(name, [{"params": named[:1]}, {"params": named[1:]}])
    with pytest.raises(UserError, match="several dtypes"):
        optim.create(name, [*named, ("half", nn.Parameter(torch.zeros(2)))])
    optimizer = optim.create(name, problem.model)
    problem.model(problem.x).sum().backward()
    with pytest.raises(UserError, match="StepContext"):
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("lbfgs", "line_search", "armijo"), ("lbfgs", "bad_pairs", "keep"), ("lbfgs", "history", 0),
        ("lbfgs", "c2", 1e-5), ("lbfgs", "c1", 0.0),
        ("hessian_free", "damping", 0.0), ("hessian_free", "probes", 65), ("hessian_free", "cg_decay", 1.5),
        ("hessian_free", "probes", 0), ("hessian_free", "cg_iterations", 0),
        ("natural_gradient", "fisher", "exact"), ("natural_gradient", "max_kl", 0.0),
        ("natural_gradient", "damping", -1.0), ("natural_gradient", "cg_iterations", 0),
    ],
)  # fmt: skip
def test_options_out_of_range(name: str, option: str, value: Any) -> None:
    with pytest.raises(UserError, match=option):
        optim.create(name, perceptron().model, **{option: value})


@pytest.mark.parametrize("name", WHOLE)
def test_lr_0_and_a_stationary_point_move_nothing(name: str) -> None:
    problem = perceptron()
    before = weights(problem)
    optimizer = optim.create(name, problem.model, lr=0.0)
    for _ in range(3):
        problem.step(optimizer, torch.arange(problem.rows))
    np.testing.assert_array_equal(weights(problem), before)
    problem.losses = lambda outputs, y: 0.0 * outputs.sum(1) + 1.0
    optimizer = optim.create(name, problem.model)
    for _ in range(3):
        problem.step(optimizer, torch.arange(problem.rows))
    np.testing.assert_array_equal(weights(problem), before)


@pytest.mark.parametrize(
    ("sy", "wanted"), [(-1.0, 0.2), (0.0, 0.2), (0.15, 0.2), (0.19, 0.2), (0.21, 0.21), (3.0, 3.0)]
)
def test_damping_leaves_a_fifth_of_the_curvature(sy: float, wanted: float) -> None:
    """s = B s = (1, 0): s.B s = 1."""
    state: dict[str, Any] = {}
    s = torch.tensor([1.0, 0.0], dtype=torch.float64)
    Pairs(state).add(
        s, torch.tensor([sy, 0.3], dtype=torch.float64), s, {"bad_pairs": "damp", "min_curvature": 1e-8, "history": 3}
    )
    assert float(state["y"][0] @ s) == pytest.approx(wanted)
    assert state["rho"] == [pytest.approx(1.0 / wanted)]


def test_rows_without_keys_get_a_remedy() -> None:
    problem = perceptron()
    problem.losses(problem.model(problem.x), problem.y).mean().backward()
    ctx = replace(problem.context(torch.arange(96), 96), keys=None)
    with pytest.raises(UserError, match=r"--optimizer\.dense\.preconditioner_power 0"):
        optim.create("hessian_free", problem.model).step(ctx)
    optim.create("hessian_free", problem.model, preconditioner_power=0.0).step(ctx)


@pytest.mark.parametrize("name", ["lbfgs", "hessian_free"])
def test_a_batch_with_a_loss_that_is_no_number_is_refused_and_changes_nothing(name: str) -> None:
    problem = perceptron()
    optimizer = optim.create(name, problem.model)
    problem.step(optimizer, torch.arange(48))
    before, kept = weights(problem), copy.deepcopy(optimizer.state_dict()["state"])
    problem.x[3] = math.nan
    with pytest.raises(NonFiniteStepError):
        problem.step(optimizer, torch.arange(48))
    np.testing.assert_array_equal(weights(problem), before)
    assert str(optimizer.state_dict()["state"]) == str(kept)


def test_a_batch_whose_gradient_alone_is_no_number_is_refused() -> None:
    problem = perceptron()
    optimizer = optim.create("hessian_free", problem.model)
    problem.losses = lambda outputs, y: (0.0 * outputs).sqrt().sum(1) + 1.0
    before = weights(problem)
    with pytest.raises(NonFiniteStepError, match="the gradient"):
        problem.step(optimizer, torch.arange(48))
    np.testing.assert_array_equal(weights(problem), before)


def test_the_natural_gradient_is_solved_for_as_far_as_asked() -> None:
    iterations = []
    for tolerance in (0.5, 1e-2, 1e-6):
        problem = perceptron()
        optimizer: Any = optim.create("natural_gradient", problem.model, cg_tolerance=tolerance, cg_iterations=200)
        problem.step(optimizer, torch.arange(problem.rows))
        assert optimizer.last["residual"] <= tolerance
        iterations.append(optimizer.last["iterations"])
    assert 0 < iterations[0] < iterations[1] < iterations[2] < 200


@pytest.mark.parametrize(("size", "first"), [(0.25, 0.5), (1.0, 0.5), (8.0, 0.0625)])
def test_lbfgs_first_step_is_lr_along_the_gradient_at_most_1_long(size: float, first: float) -> None:
    problem = Problem(Linear(1), torch.ones(1, 1, dtype=F64), torch.full((1,), -size, dtype=F64), squared_errors)
    optimizer = optim.create("lbfgs", problem.model, lr=0.5, line_search="none")
    problem.step(optimizer, torch.arange(1))
    assert weights(problem) == pytest.approx(-first * size)


def test_lbfgs_hands_both_conditions_to_its_line_search() -> None:
    """phi = (a - 0.9)^2 tried at 1: lower than 0, but not by c1, or not flat by c2."""
    line = lambda a: Trial(a, (a - 0.9) ** 2, 2.0 * (a - 0.9), torch.zeros(()), torch.zeros(()))  # noqa: E731
    for c1, c2, accepted in ((0.1, 0.2, True), (0.45, 0.5, False), (0.1, 0.11, False)):
        options = {"line_search": "strong_wolfe", "c1": c1, "c2": c2, "max_trials": 9}
        assert (_search(cast(Line, line), line(0.0), 1.0, options).step == 1.0) == accepted


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.01 * 2.0**-23), (F64, 2.0**-52)])
def test_a_fall_that_rounding_hides_is_not_looked_for(dtype: torch.dtype, least: float) -> None:
    assert _can_fall(-4.0, -4.01 * least, dtype) and not _can_fall(-4.0, -3.99 * least, dtype)


def test_a_gradient_with_one_number_that_is_none_makes_the_objective_inf() -> None:
    params = {"w": torch.tensor([0.0, 1.0, 4.0], dtype=F64)}
    ctx = optim.StepContext(
        outputs_at=lambda given: dict(given or params)["w"].sqrt()[None], losses=lambda z: z.sum(1), rows=1
    )
    layout = Layout(params)
    objective = Objective(ctx, layout)
    assert objective.value(layout.vector(params)) == 3.0
    value, gradient = objective.value_and_gradient(layout.vector(params))
    assert value == math.inf and gradient.tolist() == [math.inf, 0.5, 0.25]


@pytest.mark.parametrize("lr", [3e38, 1e300])
@pytest.mark.parametrize("name", WHOLE)
def test_steps_out_of_the_range_of_float32_are_not_made(name: str, lr: float) -> None:
    problem = perceptron(dtype=torch.float32)
    before, value = weights(problem), problem.value()
    no_bound = {"max_kl": float("inf")} if name == "natural_gradient" else {}
    problem.step(optim.create(name, problem.model, lr=lr, **no_bound), torch.arange(problem.rows))
    assert np.isfinite(weights(problem)).all()
    assert problem.value() < value or np.array_equal(weights(problem), before)


@pytest.mark.parametrize("name", WHOLE)
def test_parameters_may_be_frozen_and_thawed(name: str) -> None:
    problem = perceptron()
    first, *_ = problem.model.parameters()
    optimizer = optim.create(name, problem.model, weight_decay=0.1)
    for frozen in (False, True, False):
        first.requires_grad_(not frozen)
        for _ in range(2):
            before, value = first.detach().clone(), problem.value()
            problem.step(optimizer, torch.arange(problem.rows))
            assert torch.equal(first, before) == frozen
            assert problem.value() != value


@pytest.mark.parametrize("name", WHOLE)
def test_float32_reaches_what_float32_can_tell(name: str) -> None:
    problem = logistic(condition=100.0)
    problem.model.float()
    problem.x, problem.y = problem.x.float(), problem.y.float()
    optimizer = optim.create(
        name, problem.model, **({"lr": 1.0, "max_kl": float("inf")} if name == "natural_gradient" else {})
    )
    values = problem.train(optimizer, batch=problem.rows, steps=30)
    assert problem.minimum is not None
    assert abs(values[-1] - problem.minimum) < 2e-7
    assert np.isfinite(values).all()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2.0 * grads[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x.view(-1, 1, 4, 8)).chunk(3, -1)
        made: Tensor = nn.functional.scaled_dot_product_attention(q, k, v).sum((1, 2, 3))
        return made


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(32, 1), nn.Flatten(0)), Attention()], ids=["once", "attention"]
)
def test_layers_that_differentiate_once_only_are_refused_and_lbfgs_takes_them(model: nn.Module) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = Once.apply(self.inner(x)) if isinstance(model, nn.Sequential) else self.inner(x)
            return made

    torch.manual_seed(0)
    x = torch.randn(6, 32)
    problem = Problem(Twice(), x, (x[:, 0] > 0).float(), log_losses)
    for name in ("hessian_free", "natural_gradient"):
        with pytest.raises(UserError, match="differentiate the model twice"):
            problem.step(optim.create(name, problem.model), torch.arange(6))
    before = problem.value()
    problem.step(optim.create("lbfgs", problem.model), torch.arange(6))
    assert problem.value() < before


def test_gradients_of_a_step() -> None:
    """L-BFGS looks at the batch once, and once a trial; CG's products do not run the model again."""
    problem, ids, counts = perceptron(), torch.arange(48), [0]
    for name in WHOLE:
        optimizer: Any = optim.create(name, problem.model)
        for _ in range(4):
            counts[0] = 0
            problem.model.zero_grad()
            problem.losses(problem.model(problem.x[ids]), problem.y[ids]).mean().backward()
            optimizer.step(counted(problem.context(ids, 48), counts))
            if name == "lbfgs":
                assert counts[0] == 1 + optimizer.last["trials"]
            assert counts[0] <= (30 if name != "natural_gradient" else 1), name
            assert name == "lbfgs" or optimizer.last["iterations"] > 2


def click_context(model: models.ClickModel, seed: int, rank: int = 0, size: int = 1, **more: Any) -> optim.StepContext:
    rng = torch.Generator().manual_seed(seed)
    dense, sparse = torch.randn(64, 13, generator=rng), torch.randint(1, 5, (64, 2), generator=rng)
    label = (dense[:, 0] + sparse[:, 0] - 3.0 + torch.randn(64, generator=rng) > 0).float()
    dense, sparse, label = dense[rank::size], sparse[rank::size], label[rank::size]

    def outputs_at(params: Mapping[str, Tensor] | None) -> Tensor:
        made: Tensor = torch.func.functional_call(model, dict(params or {}), (dense, sparse))
        return made

    return optim.StepContext(
        outputs_at=outputs_at,
        losses=lambda z: nn.functional.binary_cross_entropy_with_logits(z, label, reduction="none"),
        rows=64,
        keys=torch.arange(64)[rank::size],
        **more,
    )


def click_step(model: models.ClickModel, optimizer: optim.Optimizer, seed: int) -> float:
    ctx = click_context(model, seed)
    optimizer.zero_grad()
    loss = ctx.loss_at()
    loss.backward()
    optimizer.step(ctx)
    return float(loss.detach())


def parts(model: models.ClickModel, name: str) -> optim.Combined:
    return optim.create_parts(model, {"dense": {"name": name}, "sparse": {"name": "rowwise_adagrad"}})


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kind", ["dlrm", "deepfm", "logistic"])
def test_dense_part_beside_tables_and_out_of_a_checkpoint(name: str, kind: str, tmp_path: Path) -> None:
    options = {"embedding_dim": 4, "hidden": (8,), "bottom": (8,), "dropout": 0.2, "seed": 1}
    whole, half = (models.create(kind, {"a": 5, "b": 5}, 13, **options) for _ in range(2))
    a, b = parts(whole, name), parts(half, name)
    losses = [click_step(whole, a, 0) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    for _ in range(4):
        click_step(half, b, 0)
    kept = Checkpoint(model=half.state_dict(), optimizer=b.state_dict(), rank={})
    saved = load(CheckpointStore(tmp_path).save(kept, 6, LocalGroup(1).collective(0)), 0)
    other = models.create(kind, {"a": 5, "b": 5}, 13, **(options | {"seed": 2}))
    other.load_state_dict(saved.model)
    b = parts(other, name)
    b.load_state_dict(copy.deepcopy(saved.optimizer))
    for _ in range(4):
        click_step(other, b, 0)
    for p, q in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
