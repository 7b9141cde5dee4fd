"""Wrappers around rules: the papers' algorithms in NumPy, settings that reduce to the rule alone, the same bits after a
resume and on all ranks."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headrace import optim
from headrace.comm.local import LocalGroup
from headrace.errors import UserError
from headrace.optim import OPTIMIZERS, WRAPPERS, averaged
from headrace.optim.clipping import ClippingConfig, clip_gradients
from headrace.optim.context import NonFiniteStepError
from headrace.optim.spec import OWN_GRADIENT
from headrace.optim.wrapper import AVERAGES, CHANGES_GRADIENT
from headrace.testing.problems import Linear, Problem, least_squares, logistic, perceptron, squared_errors

SETTINGS: dict[str, dict[str, Any]] = {
    "lookahead": {"k": 3, "alpha": 0.4},
    "sam": {"rho": 0.1, "adaptive": True, "eta": 0.02},
    "ema": {"decay": 0.8, "warmup": True},
    "swa": {"start": 3, "every": 2},
}
STEPS, BATCH, LR = 12, 16, 0.1


pytestmark = pytest.mark.usefixtures("one_thread")


def wrap(problem: Problem, wrappers: dict[str, Any], name: str = "sgd", **options: Any) -> optim.Optimizer:
    return optim.create(name, problem.model, wrappers=wrappers, **({"lr": LR} | options))


def flat(problem: Problem) -> np.ndarray[Any, Any]:
    return torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()]).numpy().copy()


def run(problem: Problem, optimizer: optim.Optimizer, steps: int = STEPS) -> list[np.ndarray[Any, Any]]:
    """Weights before the first and after every step."""
    seen = [flat(problem)]
    for ids in problem.batches(BATCH, steps):
        problem.step(optimizer, ids)
        seen.append(flat(problem))
    return seen


def least_squares_gradient(problem: Problem, ids: torch.Tensor) -> Callable[[Any], Any]:
    """Mean gradient of half squared errors by hand."""
    x, y = problem.x[ids].numpy(), problem.y[ids].numpy()
    return lambda w: x.T @ (x @ w - y) / len(y)


def test_every_wrapper_is_tested_and_described() -> None:
    assert set(SETTINGS) == set(WRAPPERS)
    for name, spec in WRAPPERS.items():
        assert set(SETTINGS[name]) == set(spec.defaults)
        assert all((spec.paper, spec.rule, spec.use, spec.state, spec.cost))


@pytest.mark.parametrize("k", [2, 3])
def test_lookahead_is_algorithm_1_of_zhang_et_al(k: int) -> None:
    problem = least_squares(noise=0.5)
    optimizer = wrap(problem, {"lookahead": {"k": k, "alpha": 0.4}})
    seen = run(problem, optimizer)
    fast = slow = np.zeros(8)
    for step, ids in enumerate(problem.batches(BATCH, STEPS)):
        fast = fast - LR * least_squares_gradient(problem, ids)(fast)
        if (step + 1) % k == 0:
            slow = 0.6 * slow + 0.4 * fast
            fast = slow
        np.testing.assert_allclose(seen[step + 1], fast, rtol=1e-10, err_msg=f"step {step}")
    assert optimizer.state_dict()["steps"] == STEPS


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_the_gradient_at_the_perturbed_weights(adaptive: bool) -> None:
    problem = least_squares(noise=0.5)
    with torch.no_grad():
        problem.model.weight += torch.linspace(-1.0, 1.0, 8)
    w = flat(problem)
    seen = run(problem, wrap(problem, {"sam": {"rho": 0.3, "adaptive": adaptive, "eta": 0.05}}, weight_decay=0.02))
    for step, ids in enumerate(problem.batches(BATCH, STEPS)):
        gradient = least_squares_gradient(problem, ids)
        scaling = np.diag(np.abs(w) + 0.05 if adaptive else np.ones(8))  # T of Kwon et al.
        g = gradient(w)
        ball = 0.3 * scaling @ scaling @ g / np.sqrt(g @ scaling @ scaling @ g)
        assert np.linalg.norm(np.linalg.inv(scaling) @ ball) == pytest.approx(0.3)
        w = w - LR * (gradient(w + ball) + 0.02 * w)
        np.testing.assert_allclose(seen[step + 1], w, rtol=1e-10, err_msg=f"step {step}")


@pytest.mark.parametrize("gradient", [0.0, 1.0])
def test_sam_goes_as_far_from_a_gradient_of_1_as_from_any_and_nowhere_from_one_of_0(gradient: float) -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = Problem(Linear(1), one, torch.full((1,), -gradient, dtype=torch.float64), squared_errors)
    problem.step(wrap(problem, {"sam": {"rho": 0.5}}), torch.arange(1))
    assert flat(problem) == pytest.approx(-LR * 1.5 * gradient)


def test_asam_leaves_biases_unscaled() -> None:
    problem = perceptron()
    grads = dict(zip([n for n, _ in problem.model.named_parameters()], problem.full_gradient(), strict=True))
    weights = {n: p.detach().clone() for n, p in problem.model.named_parameters()}
    scale = {n: torch.ones_like(w) if n.endswith("bias") else w.abs() + 0.05 for n, w in weights.items()}
    norm = sum(float((scale[n] * g).square().sum()) for n, g in grads.items()) ** 0.5
    for n, p in problem.model.named_parameters():
        p.data += 0.3 * scale[n] ** 2 * grads[n] / norm
    there = problem.full_gradient()
    problem = perceptron()
    problem.step(
        wrap(problem, {"sam": {"rho": 0.3, "adaptive": True, "eta": 0.05}}, lr=1.0), torch.arange(problem.rows)
    )
    for (n, p), g in zip(problem.model.named_parameters(), there, strict=True):
        torch.testing.assert_close(p.detach(), weights[n] - g, rtol=1e-9, atol=1e-12)


def test_ema_is_torchs_and_with_warm_up_the_sum_over_the_history() -> None:
    problem, plain = perceptron(), perceptron()
    optimizer, bare = wrap(problem, {"ema": {"decay": 0.8}}), wrap(plain, {})
    model = AveragedModel(plain.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for ids in plain.batches(BATCH, STEPS):
        plain.step(bare, ids)
        problem.step(optimizer, ids)
        model.update_parameters(plain.model)
    for (_, ours), theirs in zip(optimizer.averages(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    problem = perceptron()
    optimizer = wrap(problem, {"ema": {"decay": 0.6, "warmup": True}})
    history = run(problem, optimizer)[1:]
    decays = [min(0.6, (1 + t) / (10 + t)) for t in range(STEPS)]
    shares = [np.prod(decays[1:])] + [(1 - decays[t]) * np.prod(decays[t + 1 :]) for t in range(1, STEPS)]
    assert sum(shares) == pytest.approx(1.0)
    held = torch.cat([a.reshape(-1) for _, a in optimizer.averages()]).numpy()
    np.testing.assert_allclose(held, sum(s * w for s, w in zip(shares, history, strict=True)), rtol=1e-10)


@pytest.mark.parametrize(("start", "every"), [(1, 1), (4, 3)])
def test_swa_is_the_mean_of_the_weights_from_start_on(start: int, every: int) -> None:
    problem = perceptron()
    optimizer = wrap(problem, {"swa": {"start": start, "every": every}})
    history: list[Any] = []
    for step, ids in enumerate(problem.batches(BATCH, STEPS), 1):
        problem.step(optimizer, ids)
        if step >= start and (step - start) % every == 0:
            history.append(flat(problem))
        held = [a.reshape(-1) for _, a in optimizer.averages()]
        assert bool(held) == bool(history)
        if held:
            np.testing.assert_allclose(torch.cat(held).numpy(), np.mean(history, axis=0), rtol=1e-10)


@pytest.mark.parametrize(
    "wrappers",
    [{"lookahead": {"k": 1, "alpha": 1.0}}, {"sam": {"rho": 0.0}}, {"ema": {}}, {"swa": {}}],
    ids=lambda w: next(iter(w)),
)
def test_a_setting_that_changes_nothing_changes_nothing(wrappers: dict[str, Any]) -> None:
    a, b = perceptron(), perceptron()
    plain, wrapped = run(a, wrap(a, {}, "adam")), run(b, wrap(b, wrappers, "adam"))
    np.testing.assert_allclose(plain, wrapped, rtol=1e-9, atol=1e-12)


def test_averages_are_in_place_inside_and_the_weights_after_it() -> None:
    problem = perceptron()
    optimizer = wrap(problem, {"ema": {"decay": 0.5}})
    with averaged(optimizer) as there:
        assert not there
    run(problem, optimizer)
    trained, held = flat(problem), torch.cat([a.reshape(-1) for _, a in optimizer.averages()]).numpy().copy()
    assert not np.allclose(trained, held)
    with averaged(optimizer) as there:
        assert there
        assert (flat(problem) == held).all()
    assert (flat(problem) == trained).all()


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_all_wrappers_around_any_rule_resume_to_the_same_bits(rule: str) -> None:
    whole, half = perceptron(dtype=torch.float32), perceptron(dtype=torch.float32)
    own = OWN_GRADIENT in OPTIMIZERS[rule].traits
    dress = {
        name: given for name, given in SETTINGS.items() if not own or CHANGES_GRADIENT not in WRAPPERS[name].traits
    }
    make = lambda problem: optim.create(rule, problem.model, wrappers=dress)  # noqa: E731
    a, b = make(whole), make(half)
    for step, ids in enumerate(whole.batches(BATCH, 8)):
        if step == 4:
            saved = copy.deepcopy(b.state_dict())
            b = make(half)
            b.load_state_dict(saved)
        whole.step(a, ids)
        half.step(b, ids)
    assert (flat(whole) == flat(half)).all()
    for (_, x), (_, y) in zip(a.averages(), b.averages(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("wrapper", ["lookahead", "ema", "swa"])
def test_a_loaded_state_is_a_copy(wrapper: str) -> None:
    a, b = perceptron(), perceptron()
    one, other = (wrap(problem, {wrapper: SETTINGS[wrapper]}) for problem in (a, b))
    run(a, one, 4)
    saved = one.state_dict()
    kept = [tensor.clone() for tensor in saved["kept"]]
    other.load_state_dict(saved)
    run(b, other, 6)
    assert kept and all(torch.equal(before, after) for before, after in zip(kept, saved["kept"], strict=True))


def test_a_state_of_others_is_refused() -> None:
    a, b = perceptron(), least_squares()
    one, other = wrap(a, {"ema": {}}), wrap(b, {"ema": {}})
    run(a, one, 1)
    with pytest.raises(ValueError, match="other shapes"):
        other.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="not one of ema"):
        one.load_state_dict(wrap(a, {}).state_dict())


def test_schedules_reach_the_rule_inside() -> None:
    problem = perceptron()
    optimizer = wrap(problem, SETTINGS)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    seen = run(problem, optimizer, 2)
    assert (seen[0] == seen[-1]).all()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_ranks_make_the_step_of_one_and_hold_the_same_bits(wrapper: str) -> None:
    def train(size: int) -> list[Any]:
        group = LocalGroup(size)
        found: list[Any] = [None] * size

        def rank(r: int) -> None:
            problem = logistic(rows=64)
            optimizer = wrap(problem, {wrapper: SETTINGS[wrapper]})
            problem.train(optimizer, batch=BATCH, steps=6, collective=group.collective(r))
            found[r] = (flat(problem), [a.detach().numpy() for _, a in optimizer.averages()])

        threads = [threading.Thread(target=rank, args=(r,)) for r in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found

    (one,), (first, second) = train(1), train(2)
    np.testing.assert_allclose(one[0], first[0], rtol=1e-10)
    assert (first[0] == second[0]).all()
    assert all((x == y).all() for x, y in zip(first[1], second[1], strict=True))
    assert bool(first[1]) == (AVERAGES in WRAPPERS[wrapper].traits)


def test_sams_own_gradient_is_clipped_as_the_loop_clips() -> None:
    problem = least_squares(noise=0.5)
    optimizer = wrap(problem, {"sam": {"rho": 0.5}}, lr=1.0)
    (problem.model.weight.grad,) = problem.full_gradient()
    config = ClippingConfig(rule="norm", limit=0.01)
    params = dict(problem.model.named_parameters())
    ids = torch.arange(problem.rows)
    optimizer.step(problem.context(ids, problem.rows, clip=lambda grads: clip_gradients(params, grads, config)))
    assert np.linalg.norm(flat(problem)) == pytest.approx(0.01)


def test_sam_with_a_bad_second_gradient_changes_nothing_and_says_so() -> None:
    problem = least_squares()
    optimizer = wrap(problem, {"ema": {}, "sam": {"rho": 1e200}}, "adam")
    run(problem, optimizer, 0)
    before = flat(problem)
    with pytest.raises(NonFiniteStepError):
        problem.step(optimizer, torch.arange(16))
    assert (flat(problem) == before).all()
    assert optimizer.averages() == []
    with pytest.raises(UserError, match="StepContext"):
        optimizer.step()


@pytest.mark.parametrize(
    ("wrappers", "told"),
    [
        ({"lookahead": {"k": 0}}, "k must be at least 1"),
        ({"lookahead": {"alpha": 1.5}}, "alpha in"),
        ({"ema": {"decay": 1.0}}, "decay must be in"),
        ({"swa": {"every": 0}}, "at least 1"),
        ({"sam": {"rho": -1.0}}, "rho and eta"),
        ({"sam": {"adaptive": 1}}, "adaptive must be of type bool"),
        ({"sam": 0.05}, r"was given 0.05\n  -> --optimizer\.dense\.sam\.rho"),
        ({"ema": None}, r"--optimizer\.dense\.ema\.decay"),
    ],
)
def test_mistakes_are_told(wrappers: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        wrap(least_squares(), wrappers)


def test_layer_decay_gives_earlier_layers_lower_rates() -> None:
    problem = perceptron()
    optimizer = optim.create("sgd", problem.model, lr=1.0, layer_decay=0.5, wrappers={"ema": {}})
    gradient = problem.full_gradient()
    before = [p.detach().clone() for p in problem.model.parameters()]
    problem.step(optimizer, torch.arange(problem.rows))
    for p, old, g, lr in zip(problem.model.parameters(), before, gradient, (0.25, 0.25, 0.5, 0.5, 1, 1), strict=True):
        torch.testing.assert_close(p.detach(), old - lr * g)
    with pytest.raises(UserError, match="must have names"):
        optim.create("sgd", [nn.Parameter(torch.zeros(1))], layer_decay=0.5)
    with pytest.raises(UserError, match="at most 1"):
        optim.create("sgd", problem.model, layer_decay=1.5)
