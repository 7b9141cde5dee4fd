"""What rules do seldom: found by `make mutants` as lines that no other test runs, or whose numbers none looks at."""

from __future__ import annotations

import copy
import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from headrace import optim
from headrace.comm import LocalGroup
from headrace.errors import UserError
from headrace.optim import OPTIMIZERS, StepContext, cache_blocks, hessian_free, lars, one_cycle
from headrace.optim.base import RuleOptimizer
from headrace.optim.block_rule import Member
from headrace.optim.blocks import Region
from headrace.optim.clipping import ClippingConfig, clip_gradients
from headrace.optim.context import NonFiniteStepError, check_finite, summed
from headrace.optim.curvature import Linearized
from headrace.optim.flat import dot
from headrace.optim.kfac_factors import INVERSE, pack, solve
from headrace.optim.kfac_step import LayersOptimizer
from headrace.optim.lbfgs import LBFGS, Pairs, _search
from headrace.optim.line_search import Trial
from headrace.optim.master_weights import MasterWeights
from headrace.optim.row_gradients import is_linear
from headrace.optim.sarah import SARAH
from headrace.optim.schedules import At, Schedule, ScheduleConfig, cosine, inverse_sqrt, polynomial
from headrace.optim.shampoo import _over_tensors
from headrace.optim.torch_rule import TorchOptimizer, torch_factory
from headrace.optim.trust_ratio import excluded, norms
from headrace.testing.optim_exam import make
from headrace.testing.problems import Problem, least_squares, perceptron, squared_errors

RULES = [
    name
    for name, spec in OPTIMIZERS.items()
    if isinstance(spec.factory, type) and issubclass(spec.factory, RuleOptimizer)
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", RULES)
def test_one_tensor_alone_is_updated_as_in_a_step(name: str) -> None:
    spec, start = OPTIMIZERS[name], torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).view(4, 3)
    stepped, updated = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a, b = (spec.factory([param], **spec.defaults) for param in (stepped, updated))
    assert isinstance(b, RuleOptimizer)
    group = b.param_groups[0]
    state = b.init_state(updated, group)
    for step in range(3):
        grad = torch.cos(start + step)
        stepped.grad = grad.clone()
        a.step()
        with torch.no_grad():
            b.update(updated, grad.clone(), state, group)
    assert torch.equal(stepped, updated) and not torch.equal(stepped, start)


@pytest.mark.parametrize("name", RULES)
def test_loaded_state_takes_no_more_memory(name: str) -> None:
    """torch casts state to the parameters' type: codes of 8 bits would be of 32."""
    spec = OPTIMIZERS[name]
    options = {
        **spec.defaults,
        **{k: v for k, v in {"state_bits": 8, "min_8bit_numel": 1}.items() if k in spec.defaults},
    }
    param = nn.Parameter(torch.ones(4, 3))
    param.grad = torch.ones(4, 3)
    saved, loaded = spec.factory([param], **options), spec.factory([param], **options)
    saved.step()
    loaded.load_state_dict(saved.state_dict())
    assert loaded.state_bytes() == saved.state_bytes()
    for key in {"m_scales", "v_scales"} & set(loaded.state[param]):
        assert loaded.state[param][key].data_ptr() != saved.state[param][key].data_ptr()


def test_lbfgs_without_a_line_search_goes_a_tenth_as_far_until_the_loss_is_a_number() -> None:
    seen = []

    def line(step: float) -> Trial:
        seen.append(step)
        at = torch.tensor([step])
        return Trial(step, 1.0 if step < 0.05 else math.inf, 0.0, at, at)

    origin = Trial(0.0, 2.0, -1.0, torch.zeros(1), torch.ones(1))
    options: dict[str, Any] = {"line_search": "none", "max_trials": 3}
    assert _search(line, origin, 2.0, options).step == pytest.approx(0.02)
    assert seen == pytest.approx([2.0, 0.2, 0.02])
    assert _search(line, origin, 200.0, options) is origin


def test_a_kfac_factor_that_rounding_made_indefinite_is_inverted_without_its_negative_part() -> None:
    turn = torch.linalg.qr(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)).Q
    matrix = turn @ torch.diag(torch.tensor([2.0, -1e-3], dtype=torch.float64)) @ turn.T
    expected = turn @ torch.diag(torch.tensor([1 / 2.0001, 1e4], dtype=torch.float64)) @ turn.T
    torch.testing.assert_close(solve(pack(matrix), INVERSE, 1e-4), expected)


def test_the_cosine_of_a_run_of_one_unit_is_at_its_end_after_it() -> None:
    assert [cosine(At(t, 1), 0, 1.0, 0.0) for t in (0, 1)] == pytest.approx([1.0, 0.0])


def test_kfac_leaves_a_direction_that_is_not_finite_out_of_step_and_clipping() -> None:
    model = nn.Linear(2, 1, dtype=torch.float64)
    combined = optim.create("kfac", model, lr=0.5)
    assert isinstance(combined, optim.Combined)
    layers = combined.parts["layers"]
    assert isinstance(layers, LayersOptimizer)
    direction, grad = torch.tensor([[math.inf, 1.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    two = torch.full((1,), 2.0, dtype=torch.float64)
    parts = {id(model.weight): (direction, grad), id(model.bias): (two, two)}
    assert layers._clip(parts, 0.25) == pytest.approx(0.5)  # sqrt(kl_clip / (lr^2 2 2))
    assert parts[id(model.weight)][0].tolist() == [[0.0, 0.0]] and parts[id(model.weight)][1] is grad
    assert layers._clip({}, 0.25) == 1.0


def test_the_inverse_root_without_warm_up_or_time_scale_starts_from_one() -> None:
    assert inverse_sqrt(At(3, 10), 0) == pytest.approx(0.5)


def test_clipping_says_so_where_it_changed_one_unit_of_one_tensor() -> None:
    params = {"a": torch.ones(2, 4), "b": torch.ones(2, 4)}
    grads = {"a": torch.tensor([[9.0] * 4, [0.1] * 4]), "b": torch.full((2, 4), 0.1)}
    config = ClippingConfig(rule="adaptive", limit=1.0)
    assert clip_gradients(params, grads, config).clipped
    assert grads["a"].tolist() == [[1.0] * 4, pytest.approx([0.1] * 4)]
    assert not clip_gradients(params, grads, config).clipped


def test_names_left_out_of_clipping_may_be_a_list() -> None:
    assert hash(ClippingConfig(exclude=["a"])) == hash(ClippingConfig(exclude=("a",)))  # type: ignore[arg-type]


def test_clipping_nothing_to_a_small_number_clips_nothing() -> None:
    assert not clip_gradients({}, {}, ClippingConfig(rule="value", limit=0.5)).clipped


def test_one_pattern_of_several_takes_a_tensor_out_of_the_trust_ratio() -> None:
    params = [torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2)]
    options = {
        "params": params, "param_names": ["body.weight", "norm.scale", "head.weight"],
        "exclude": ("norm.*", "head.*"), "exclude_1d": True,
    }  # fmt: skip
    assert excluded(params, options) == [False, True, True]


def test_shampoos_norm_of_a_tensor_counts_every_block_once() -> None:
    def member(number: int, rows: slice) -> Member:
        return Member(0, cast(Region, SimpleNamespace(number=number)), rows, {})

    batches = [SimpleNamespace(members=[member(2, slice(0, 2))]), SimpleNamespace(members=[member(1, slice(0, 1))])]
    norms = [torch.tensor([[3.0, 1.0], [4.0, 2.0]]), torch.tensor([[12.0, 2.0]])]
    made = _over_tensors(cast(Any, batches), cast(Any, norms), 1)
    assert [norm.tolist() for norm in made if norm is not None] == [[[13.0, 3.0]] * 2, [[13.0, 3.0]]]


def test_the_largest_number_is_looked_for_in_all_tensors() -> None:
    grads = {"a": torch.tensor([0.1]), "b": torch.tensor([3.0])}
    assert clip_gradients({n: torch.ones(1) for n in grads}, grads, ClippingConfig(rule="value", limit=0.5)).clipped
    assert grads["b"].tolist() == [0.5]


def test_a_schedule_takes_a_state_of_nothing() -> None:
    for name in ("plateau", "constant"):
        schedule = Schedule(ScheduleConfig(name=name))
        schedule.load_state_dict({})
        assert schedule.rates(0, 1, 10).factor == 1.0
    Schedule(ScheduleConfig(name="constant")).load_state_dict({"best": 1.0})


def test_one_cycle_stays_at_its_end_and_may_rise_in_no_time() -> None:
    end = 1.0 / (25.0 * 1e4)
    for anneal in ("linear", "cos"):
        options = one_cycle.DEFAULTS | {"anneal": anneal}
        assert one_cycle.factor(15, 10, **options) == pytest.approx(end)
        assert one_cycle.factor(0, 2, **options | {"rise": 0.5}) == pytest.approx(1.0)


def test_loaded_masters_bring_parameters_and_options_with_them() -> None:
    def made(value: float, lr: float) -> tuple[nn.Parameter, optim.Optimizer]:
        param = nn.Parameter(torch.full((2,), value, dtype=torch.bfloat16))
        return param, optim.create("momentum", [("w", param)], lr=lr)

    (_, saved), (param, loaded) = made(3.0, 0.25), made(1.0, 0.5)
    loaded.load_state_dict(saved.state_dict())
    assert param.tolist() == [3.0, 3.0] and param.dtype == torch.bfloat16
    assert loaded.param_groups[0]["lr"] == 0.25 and loaded.param_groups[0]["params"][0] is param


def test_kfac_forgets_a_layer_that_it_leaves_and_deals_the_others_anew() -> None:
    problem = perceptron()
    combined = make(OPTIMIZERS["kfac"], problem.model, fisher="empirical", factor_interval=1)
    assert isinstance(combined, optim.Combined)
    layers = combined.parts["layers"]
    assert isinstance(layers, LayersOptimizer)
    (ids,) = problem.batches(16, 1)
    problem.step(combined, ids)
    first, *others = [layer.name for layer in layers.layers]
    assert others and all(kept.current and kept.solved for kept in layers.curvature.factors.values())
    (gone,) = layers.leave([first])
    assert not gone.recording and all(layer.recording for layer in layers.layers)
    assert list(layers.curvature.factors) == others == [layer.name for layer in layers.curvature.layers]
    assert layers.curvature._deal is None
    assert not any(kept.current or kept.solved for kept in layers.curvature.factors.values())


def test_a_plateau_has_seen_nothing_bad_at_first() -> None:
    for patience, factors in ((0, [0.5, 0.25]), (1, [1.0, 0.5])):
        plateau = Schedule(ScheduleConfig(name="plateau", options={"factor": 0.5, "patience": patience}))
        for factor in factors:
            plateau.judge(None)
            assert plateau.rates(0, 1, 1).factor == factor


def test_an_error_that_is_not_of_differentiating_twice_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = torch.ones(2, requires_grad=True)
    linear = Linearized(leaf.square(), [leaf])

    def burn(*_: Any, **__: Any) -> None:
        raise RuntimeError("on fire")

    monkeypatch.setattr(torch.autograd, "grad", burn)
    with pytest.raises(RuntimeError, match="^on fire$"):
        linear.push([torch.ones(2)])


def test_kfac_loaded_between_updates_of_its_factors_records_nothing_and_shares_nothing() -> None:
    made = []
    for _ in range(2):
        problem = perceptron()
        combined = make(OPTIMIZERS["kfac"], problem.model, fisher="empirical", factor_interval=2)
        assert isinstance(combined, optim.Combined)
        made.append((problem, combined, combined.parts["layers"]))
    (problem, saved, before), (_, loaded, layers) = made
    assert isinstance(layers, LayersOptimizer) and isinstance(before, LayersOptimizer)
    problem.step(saved, next(iter(problem.batches(16, 1))))
    assert all(layer.recording for layer in layers.layers)
    loaded.load_state_dict(saved.state_dict())
    assert not any(layer.recording for layer in layers.layers)
    for name, kept in layers.curvature.factors.items():
        other = before.curvature.factors[name]
        assert torch.equal(kept.a, other.a) and kept.a.data_ptr() != other.a.data_ptr()


def test_one_word_of_several_leaves_a_matrix_to_muons_adamw() -> None:
    params = [("embed.weight", nn.Parameter(torch.ones(2, 2))), ("body.weight", nn.Parameter(torch.ones(2, 2)))]
    optimizer = optim.create("muon", params)
    for _, param in params:
        param.grad = torch.ones(2, 2)
    optimizer.step()
    assert ["m" in optimizer.state[param] for _, param in params] == [False, True]


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_state_loaded_in_the_middle_of_a_run_replaces_what_blocks_held(name: str) -> None:
    """Into the optimizer that goes on: the same steps again; what was loaded is not written to."""
    problem = perceptron()
    optimizer = make(OPTIMIZERS[name], problem.model, interval=1)
    batches = list(problem.batches(16, 4))
    problem.step(optimizer, batches[0])
    weights, saved = copy.deepcopy(problem.model.state_dict()), copy.deepcopy(optimizer.state_dict())
    ends = []
    for _ in range(2):
        given = copy.deepcopy(saved)
        problem.model.load_state_dict(weights)
        optimizer.load_state_dict(given)
        for batch in batches[1:]:
            problem.step(optimizer, batch)
        ends.append(copy.deepcopy(problem.model.state_dict()))
        for key, held in saved["state"].items():
            for before, after in zip(held["blocks"], given["state"][key]["blocks"], strict=True):
                assert all(torch.equal(before[part], after[part]) for part in before)
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert any(not torch.equal(ends[0][key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_a_copy_of_an_optimizer_of_blocks_goes_on_by_itself(name: str) -> None:
    problem = perceptron()
    optimizer = make(OPTIMIZERS[name], problem.model, interval=1)
    first, second = problem.batches(16, 2)
    problem.step(optimizer, first)
    copied, twin = copy.deepcopy((optimizer, problem))
    for one, of in ((optimizer, problem), (copied, twin)):
        of.step(one, second)
    assert all(torch.equal(a, b) for a, b in zip(problem.model.parameters(), twin.model.parameters(), strict=True))


def test_rowwise_adagrad_takes_a_number_for_a_row() -> None:
    param = nn.Parameter(torch.tensor(1.0))
    optimizer = optim.create("rowwise_adagrad", [("w", param)], lr=0.5)
    param.grad = torch.tensor(4.0)
    optimizer.step()
    assert optimizer.state[param]["v"].tolist() == [16.0] and param.item() == pytest.approx(0.5)


def test_sarah_takes_a_new_anchor_after_an_inner_loop_that_ended_early() -> None:
    problem = least_squares(8, 2, condition=2.0)
    sarah = optim.create("sarah", problem.model, lr=1e-3, gamma=0.999999, inner_steps=50)
    assert isinstance(sarah, SARAH)
    anchors = []
    for row in range(40):
        problem.step(sarah, torch.tensor([row % 8]))
        anchors.append(sarah.kept["loop"]["anchors"])
        loop = sarah.kept["loop"]
        assert loop["step"] <= loop["length"] <= 50
        if loop["step"] == loop["length"] < 50:
            break
    assert anchors[-1] == 1 and len(anchors) < 40
    problem.step(sarah, torch.tensor([0]))
    assert sarah.kept["loop"]["anchors"] == 2


@pytest.mark.parametrize("spoiled", [math.nan, -1e-3])
def test_lbfgs_forgets_pairs_that_lead_upwards(spoiled: float) -> None:
    problem = least_squares(16, 3, condition=10.0)
    lbfgs = optim.create("lbfgs", problem.model)
    assert isinstance(lbfgs, LBFGS)
    rows = torch.arange(16)
    for _ in range(2):
        problem.step(lbfgs, rows)
    state = next(iter(lbfgs.state.values()))
    assert len(state["s"]) == lbfgs.last["pairs"] + 1 == 2
    state["rho"][-1] *= spoiled
    problem.step(lbfgs, rows)
    assert lbfgs.last["pairs"] == 0 and len(state["s"]) == 1


def test_lbfgs_forgets_pairs_whose_direction_led_nowhere() -> None:
    problem = least_squares(16, 3, condition=10.0)
    lbfgs = optim.create("lbfgs", problem.model, line_search="none", max_trials=2)
    rows = torch.arange(16)
    for _ in range(2):
        problem.step(lbfgs, rows)
    state = next(iter(lbfgs.state.values()))
    assert len(state["s"]) == 2
    before = [p.detach().clone() for p in problem.model.parameters()]
    lbfgs.param_groups[0]["lr"] = 1e300  # the loss there is infinite, also after a tenth of it
    problem.step(lbfgs, rows)
    assert not state["s"] and all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True))


def test_hessian_free_damps_more_where_conjugate_gradients_find_nothing() -> None:
    """At a minimum nothing is below q(0); a gradient that only rounding left is no reason to trust the model more."""
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    problem = Problem(model, torch.eye(3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64), squared_errors)
    optimizer = optim.create("hessian_free", model, damping=0.4)
    problem.step(optimizer, torch.arange(3))
    state = next(iter(optimizer.state.values()))
    assert state["damping"] == pytest.approx(0.6) and not model.weight.any()


def test_masters_are_an_optimizer_of_torch() -> None:
    param = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    masters = MasterWeights([("w", param)], lambda params: optim.create("sgd", params, lr=0.5))
    param.grad = torch.ones_like(param)
    masters.zero_grad()
    assert param.grad is None and masters.param_groups[0]["params"] == [param]
    masters.param_groups[0]["lr"] = 0.25
    param.grad = torch.ones_like(param)
    masters.step()
    assert param.tolist() == [0.75] * 3


def test_one_rank_whose_outputs_are_bent_is_heard_by_all() -> None:
    group = LocalGroup(2, timeout_s=20.0)

    def verdict(rank: int) -> bool:
        def outputs_at(params: Any) -> torch.Tensor:
            return params["w"].sum()[None] if rank == 0 else params["w"].square().sum()[None]

        ctx = SimpleNamespace(outputs_at=outputs_at, collective=group.collective(rank))
        return is_linear(cast(StepContext, ctx), {"w": torch.ones(3)}, {})

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(verdict, range(2))) == [False, False]


def test_lars_goes_by_the_ratio_at_norms_of_one_too() -> None:
    options = {"lr": 3.0, "weight_decay": 0.5, "trust_coefficient": 0.1, "clip": False}
    assert lars.rate(1.0, 4.0, False, options) == pytest.approx(3.0 * 0.1 / 4.5)
    assert lars.rate(2.0, 1.0, False, options) == pytest.approx(3.0 * 0.2 / 2.0)


@pytest.mark.parametrize(
    ("lr", "dtype", "divided"),
    [
        (0.5, torch.float32, True), (1.5e-12, torch.float32, True), (0.5e-12, torch.float32, False),
        (0.7e12, torch.float32, True), (1.5e12, torch.float32, False), (0.5, torch.float16, False),
    ],
)  # fmt: skip
def test_lars_keeps_v_over_s_where_that_is_in_range(lr: float, dtype: torch.dtype, divided: bool) -> None:
    bias = nn.Parameter(torch.zeros(3, dtype=dtype))  # without a ratio: s = lr
    optimizer = optim.create("lars", [bias], lr=lr)
    bias.grad = torch.full_like(bias, 2.0)
    optimizer.step()
    state = optimizer.state[bias]
    assert state["s"] == (lr if divided else 1.0)
    torch.testing.assert_close(state["v"], torch.full_like(bias, 2.0 if divided else 2.0 * lr))


def test_lbfgs_turns_to_the_gradient_where_pairs_lead_upwards_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = least_squares(16, 3, condition=10.0)
    lbfgs = optim.create("lbfgs", problem.model)
    assert isinstance(lbfgs, LBFGS)
    problem.step(lbfgs, torch.arange(16))
    value = lbfgs.last["value"]
    monkeypatch.setattr(Pairs, "direction", lambda self, gradient: 1e-3 * gradient)
    problem.step(lbfgs, torch.arange(16))
    assert lbfgs.last["pairs"] == 0 and lbfgs.last["value"] < value


def _after_a_step_of_hessian_free() -> tuple[Problem, optim.Optimizer, dict[str, Any]]:
    problem = perceptron()
    optimizer = optim.create("hessian_free", problem.model, damping=0.4)
    problem.step(optimizer, torch.arange(problem.rows))
    state = next(iter(optimizer.state.values()))
    assert "start" in state
    return problem, optimizer, state


def test_hessian_free_damps_more_and_starts_anew_where_no_step_leads_down(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, optimizer, state = _after_a_step_of_hessian_free()
    damping, before = state["damping"], [p.detach().clone() for p in problem.model.parameters()]
    monkeypatch.setattr(hessian_free, "backtrack", lambda *_: 0.0)
    problem.step(optimizer, torch.arange(problem.rows))
    assert state["damping"] == pytest.approx(1.5 * damping) and "start" not in state
    assert all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True))


def test_hessian_free_at_rate_0_says_nothing_about_its_damping() -> None:
    problem, optimizer, state = _after_a_step_of_hessian_free()
    damping = state["damping"]
    optimizer.param_groups[0]["lr"] = 0.0
    problem.step(optimizer, torch.arange(problem.rows))
    assert state["damping"] == damping


def test_hessian_free_damps_more_where_its_model_promises_no_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the loss did: here it rose by more than the model said."""
    problem, optimizer, state = _after_a_step_of_hessian_free()
    damping, found = state["damping"], hessian_free._best

    def rising(*args: Any) -> tuple[torch.Tensor, float, float]:
        d, _, _ = found(*args)
        return d, 0.5 * damping * dot(d, d) + 0.5, 1e3

    monkeypatch.setattr(hessian_free, "_best", rising)
    problem.step(optimizer, torch.arange(problem.rows))
    assert state["damping"] == pytest.approx(1.5 * damping)


def test_hessian_frees_line_search_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decrease of 0.01 of the slope's, tried at 0.8^j: Martens and Sutskever 2012, section 8.8."""
    asked: list[float] = []

    def spied(*args: Any) -> float:
        asked.extend(args[-3:-1])
        return 1.0

    monkeypatch.setattr(hessian_free, "backtrack", spied)
    _after_a_step_of_hessian_free()
    assert asked == [0.01, 0.8]


def test_the_value_of_one_row_is_its_loss() -> None:
    problem = perceptron()
    with torch.no_grad():
        loss = float(problem.losses(problem.model(problem.x[:1]), problem.y[:1]))
    optimizer = optim.create("hessian_free", problem.model)
    problem.step(optimizer, torch.arange(1))
    assert optimizer.last["value"] == pytest.approx(loss)  # type: ignore[attr-defined]


def test_a_hessian_free_step_on_one_row_is_newtons_damped() -> None:
    """(x x^T + lambda I) d = -(w.x - y) x."""
    problem = Problem(nn.Linear(3, 1, bias=False).double(), torch.eye(3).double(), torch.ones(3, 1), squared_errors)
    before = problem.model.weight.detach().clone()[0]
    optimizer = optim.create("hessian_free", problem.model, damping=2.0, preconditioner_power=0.0)
    problem.step(optimizer, torch.arange(1))
    loss = squared_errors(torch.zeros(1, 1), torch.ones(1, 1)).item()  # of an error of 1
    curvature = 2.0 * loss
    moved = problem.model.weight.detach()[0] - before
    wanted = -curvature * (before[0] - 1.0) / (curvature + 2.0)
    torch.testing.assert_close(moved, torch.stack([wanted, wanted * 0.0, wanted * 0.0]))


def test_a_product_of_long_vectors_is_of_all_their_blocks() -> None:
    assert dot(torch.ones(100_000), torch.full((100_000,), 0.5)) == 50_000.0


def test_a_polynomial_of_a_run_of_one_unit_is_at_its_end_after_it() -> None:
    assert polynomial(At(1, 1), 2.0, 0.25) == 0.25


def test_a_large_tensor_whose_state_lies_otherwise_is_updated_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_blocks, "ONE_THREAD", 4)
    start = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).view(4, 6)
    plain, turned = nn.Parameter(start.clone()), nn.Parameter(start.T.contiguous().T)
    assert not turned.is_contiguous()
    a, b = optim.create("lion", [plain], lr=0.1), optim.create("lion", [turned], lr=0.1)
    for number in range(3):
        for param, optimizer in ((plain, a), (turned, b)):
            param.grad = torch.cos(start * (number + 2))
            optimizer.step()
        for name, value in b.state[turned].items():
            if torch.is_tensor(value):
                b.state[turned][name] = value.contiguous()
    assert torch.equal(plain, turned)


def test_soaps_factors_are_means_of_squares() -> None:
    param = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimizer = optim.create("soap", [param], betas=(0.9, 0.75))
    grads = [torch.randn(2, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2)]
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    (held,) = optimizer.state[param]["blocks"]
    first, second = (grad @ grad.T for grad in grads)
    torch.testing.assert_close(held["factor0"][0], 0.25 * (0.75 * first + second))


def test_shampoos_diagonals_are_sums_over_rows_and_columns() -> None:
    """Sides above max_dim: (sum of squares)^(-1/4) of the row times that of the column."""
    param = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    options = {"accumulation": "sum", "betas": (0.0, 0.9), "graft": "none", "eps": 0.0}
    optimizer = optim.create("shampoo", [param], lr=1.0, max_dim=1, large="diagonal", **options)
    param.grad = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer.step()
    squares = param.grad.square()
    wanted = -param.grad * (squares.sum(1, keepdim=True) * squares.sum(0, keepdim=True)) ** -0.25
    torch.testing.assert_close(param.detach(), wanted)


def test_the_norm_of_a_large_tensor_is_not_summed_in_one_go() -> None:
    """float32 adds a million squares at once to 4e-4."""
    assert norms([torch.full((1_000_000,), 0.1)], 1 << 16) == pytest.approx([100.0], rel=5e-5)


def test_numbers_whose_sum_is_out_of_range_are_numbers() -> None:
    check_finite([torch.full((4,), 3e38)], "large ones")
    with pytest.raises(NonFiniteStepError, match="one of them is not finite"):
        check_finite([torch.ones(2), torch.tensor([1.0, math.inf])], "one of them")


TORCHS = ("sgd", "momentum", "nesterov", "adagrad", "adam", "amsgrad", "adamw")


@pytest.mark.parametrize("name", TORCHS)
def test_a_rule_of_torchs_is_fused_and_shows_what_the_inner_one_holds(name: str) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = optim.create(name, [param], lr=0.1)
    assert isinstance(optimizer, TorchOptimizer)
    param.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.param_groups[0]["fused"] is True
    assert optimizer.state is optimizer.inner.state and optimizer.param_groups is optimizer.inner.param_groups
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert optimizer.param_groups[1]["decoupled"] == optimizer.param_groups[0]["decoupled"]


def test_a_rule_of_torchs_that_has_no_fused_form_is_made_without() -> None:
    rows = nn.Parameter(torch.zeros(3, 2))
    optimizer = torch_factory("sparse_adam", torch.optim.SparseAdam, sparse=True)([rows], lr=0.1)
    rows.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2))
    optimizer.step()
    assert rows.detach().any(1).tolist() == [False, True, False]


def test_a_rule_of_ours_refuses_rows_unless_it_says_otherwise() -> None:
    table = nn.Parameter(torch.zeros(3, 2))
    table.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2), check_invariants=True)
    with pytest.raises(UserError, match="sparse"):
        optim.create("lion", [table]).step()


def test_sums_are_over_two_ranks_too_and_a_loss_is_not_scaled_unless_said() -> None:
    group = LocalGroup(2, timeout_s=20.0)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda r: summed([torch.full((2,), r + 1.0)], group.collective(r))[0].tolist(), range(2)))
    assert found == [[3.0, 3.0], [3.0, 3.0]]
    assert {field.name: field.default for field in dataclasses.fields(StepContext)}["scale"] == 1.0
