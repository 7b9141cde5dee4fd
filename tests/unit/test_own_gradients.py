"""Rules with gradients of their own: what changes gradients is refused beside them; numbers that are not finite change
nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from headrace import optim
from headrace.errors import UserError
from headrace.optim import OPTIMIZERS, NonFiniteStepError
from headrace.optim.spec import NEEDS_FULL_PASS, OWN_GRADIENT
from headrace.testing.problems import Problem, least_squares

OWN = [name for name, spec in OPTIMIZERS.items() if OWN_GRADIENT in spec.traits]
PASSES = [name for name in OWN if NEEDS_FULL_PASS in OPTIMIZERS[name].traits]


pytestmark = pytest.mark.usefixtures("one_thread")


def problem_and_rule(name: str) -> tuple[Problem, optim.Optimizer]:
    problem = least_squares(32, 4, noise=1.0)
    return problem, optim.create(name, problem.model, **({"anchor_batches": 3, "seed": 1} if name == "scsg" else {}))


def same(a: Any, b: Any) -> bool:
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", OWN)
def test_sam_around_it_is_refused_and_averages_are_not(name: str) -> None:
    problem, _ = problem_and_rule(name)
    with pytest.raises(UserError, match=f"{name} .*\n  -> --optimizer.dense.wrappers without sam"):
        optim.create(name, problem.model, wrappers={"ema": {}, "sam": {}})
    assert optim.create(name, problem.model, wrappers={"ema": {}, "swa": {}}).with_own_gradient() == [name]


def test_it_is_known_through_master_weights_and_parts() -> None:
    model = nn.Linear(2, 1).bfloat16()
    assert optim.create("lbfgs", model).with_own_gradient() == ["lbfgs"]
    assert optim.create_parts(model, {"dense": {"name": "lbfgs"}}).with_own_gradient() == ["lbfgs"]
    assert optim.create("natural_gradient", model).with_own_gradient() == []


@pytest.mark.parametrize("name", OWN)
def test_a_bad_row_of_the_batch_changes_nothing(name: str) -> None:
    problem, optimizer = problem_and_rule(name)
    *first, last = problem.batches(8, 4)
    for ids in first:
        problem.step(optimizer, ids)
    state, weight = copy.deepcopy(optimizer.state_dict()), problem.model.weight.detach().clone()
    clean = problem.x.clone()
    problem.x[last[3]] = float("nan")
    with pytest.raises(NonFiniteStepError, match=name):
        problem.step(optimizer, last)
    assert torch.equal(problem.model.weight, weight)
    assert same(optimizer.state_dict(), state)
    problem.x = clean
    problem.step(optimizer, last)
    assert bool(problem.model.weight.isfinite().all()) and not torch.equal(problem.model.weight, weight)


@pytest.mark.parametrize("name", PASSES)
def test_a_bad_row_of_the_pass_changes_nothing(name: str) -> None:
    """The step goes on as if it were the first once the row is mended."""
    (problem, optimizer), (other, fresh) = problem_and_rule(name), problem_and_rule(name)
    ids, clean = torch.arange(8), problem.x.clone()
    problem.x[20, 1] = float("inf")
    with pytest.raises(NonFiniteStepError):
        problem.step(optimizer, ids)
    assert not problem.model.weight.any()
    problem.x = clean
    for _ in range(3):
        problem.step(optimizer, ids)
        other.step(fresh, ids)
    assert torch.equal(problem.model.weight, other.model.weight)
    assert same(optimizer.state_dict(), fresh.state_dict())


@pytest.mark.parametrize("name", ["svrg", "sarah", "scsg"])
def test_a_bad_gradient_at_old_parameters_changes_nothing(name: str) -> None:
    """The batch's own gradient is fine, as the loop has seen."""
    problem, optimizer = problem_and_rule(name)
    for ids in problem.batches(8, 3):
        problem.step(optimizer, ids)
    optimizer.kept["old"]["weight"].fill_(float("inf"))  # type: ignore[attr-defined]
    weight = problem.model.weight.detach().clone()
    with pytest.raises(NonFiniteStepError, match="old parameters"):
        problem.step(optimizer, torch.arange(8))
    assert torch.equal(problem.model.weight, weight)
