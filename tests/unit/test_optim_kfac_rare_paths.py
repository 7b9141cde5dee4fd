"""What K-FAC and the variance-reduced rules do seldom: see test_optim_rare_paths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from headrace import optim
from headrace.comm import LocalGroup
from headrace.errors import UserError
from headrace.optim import StepContext, inner_loop, kfac
from headrace.optim.context import NonFiniteStepError
from headrace.optim.dealing import longest_first
from headrace.optim.gradient_table import GlobalRows, GradientTable
from headrace.optim.inner_loop import InnerLoop
from headrace.optim.kfac_dealing import Parcel, deal, deliver
from headrace.optim.kfac_factors import INVERSE, pack, solve, split_ratio, unpack
from headrace.optim.kfac_fisher import SAMPLED, _columns, _signs, add_pass, loss_roots
from headrace.optim.kfac_layers import Layer, find_layers
from headrace.optim.kfac_step import LayersOptimizer
from headrace.optim.row_gradients import is_linear
from headrace.optim.sarah import SARAH
from headrace.optim.variance_reduced import VarianceReduced, number_drawn
from headrace.testing.optim_exam import make
from headrace.testing.problems import Problem, cross_entropies, least_squares, log_losses, perceptron, squared_errors

F64 = torch.float64

pytestmark = pytest.mark.usefixtures("one_thread")


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _layers_of(optimizer: optim.Optimizer) -> LayersOptimizer:
    assert isinstance(optimizer, kfac.Kfac)
    return optimizer.layers


def _watched(module: nn.Module) -> list[Layer]:
    layers = find_layers(module, {id(p) for p in module.parameters()})
    for layer in layers:
        layer.handles()
    return layers


def _roots(hessians: Tensor) -> Tensor:
    """Roots of losses o^T H o / 2 with H [B, C, C]."""
    y = torch.zeros(len(hessians), 1)
    problem = Problem(nn.Identity(), _random(*hessians.shape[:2], dtype=hessians.dtype), y, squared_errors)
    ctx = problem.context(torch.arange(len(hessians)), len(hessians))
    return loss_roots(replace(ctx, losses=lambda o: 0.5 * torch.einsum("bi,bij,bj->b", o, hessians, o)), problem.x)


# --- roots of the loss and signs


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e4])
def test_directions_that_are_rounding_beside_the_greatest_have_no_root(size: float) -> None:
    """[[1, -1], [-1, 1 + 2 d]] has eigenvalues of about 2 and d: rounding up to 4 C eps 2, so 16 eps, of any size."""
    eps = torch.finfo(torch.float32).eps
    rows = torch.stack([torch.tensor([[1.0, -1.0], [-1.0, 1.0 + 2 * d * eps]]) for d in (8, 24, 0)])
    scale = 2.0 ** round(math.log2(size))
    roots = _roots(scale * rows)
    left = (roots @ torch.full((2,), 0.5**0.5)).norm(dim=1)  # along the least eigenvector
    wanted = torch.tensor([0.0, math.sqrt(24 * eps * scale), 0.0])
    torch.testing.assert_close(left, wanted, rtol=0.05, atol=1e-6 * math.sqrt(scale))


def test_many_outputs_leave_more_to_rounding() -> None:
    """Beside the largest of 1: of 40 outputs, what is below 160 eps is nothing."""
    eps, turn = torch.finfo(torch.float32).eps, torch.linalg.qr(_random(40, 40)).Q
    values = torch.tensor([1.0, 80 * eps, 400 * eps] + [0.5] * 37, dtype=F64)
    (root,) = _roots(((turn * values) @ turn.T)[None].float())
    left = torch.linalg.eigvalsh(root.double()).square()
    assert float(left[0]) < eps and float(left[1]) == pytest.approx(400 * eps, rel=0.2)


def test_a_row_that_is_no_number_spoils_the_batchs_roots() -> None:
    hessians = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).expand(3, 2, 2).clone()
    hessians[1] = torch.nan
    assert bool(_roots(hessians).isnan().all())


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("width", [2, 3, 5])
def test_a_softmax_of_any_width_is_no_diagonal(width: int, rows: int) -> None:
    x = _random(rows, width)
    problem = Problem(nn.Identity(), x, torch.arange(rows) % width, cross_entropies)
    roots, p = loss_roots(problem.context(torch.arange(rows), rows), x), x.softmax(1)
    wanted = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    assert roots.shape[1] == width and (not rows or torch.allclose(roots @ roots.mT, wanted, atol=1e-12))


def test_hessians_are_held_for_as_many_outputs_as_is_said() -> None:
    for width in (256, 257):
        x = _random(1, width)
        ctx = Problem(nn.Identity(), x, torch.tensor([0]), cross_entropies).context(torch.tensor([0]), 1)
        if width == 256:
            assert loss_roots(ctx, x).shape == (1, 256, 256)
        else:
            with pytest.raises(UserError, match="257 outputs a row are more than 256"):
                loss_roots(ctx, x)


def _clicks(width: int) -> Problem:
    x = _random(40, width)
    return Problem(nn.Identity(), x, (x > 0).double(), lambda o, t: log_losses(o, t).sum(1))


def test_one_output_needs_no_keys_and_takes_signs_where_there_are() -> None:
    """Rows that batch norm mixes have gradients together, whose signs count."""
    for width in (1, 2):
        problem = _clicks(width)
        ctx = problem.context(torch.arange(40), 40)
        (drawn,) = _columns(ctx, problem.x, SAMPLED, 3)
        assert bool((drawn > 0).any()) and bool((drawn < 0).any())
        nameless = replace(ctx, keys=None)
        if width == 1:
            assert torch.equal(next(_columns(nameless, problem.x, SAMPLED, 3)), drawn.abs())
        else:
            with pytest.raises(UserError, match="fisher gauss_newton"):
                next(_columns(nameless, problem.x, SAMPLED, 3))


@pytest.mark.parametrize("columns", [1, 64, 65])
def test_every_output_has_a_sign(columns: int) -> None:
    signs = _signs(_clicks(1).context(torch.arange(40), 40), columns, 0)
    assert signs.shape == (40, columns) and len({tuple(c.tolist()) for c in signs.T}) == columns


def test_every_step_of_every_seed_draws_other_signs() -> None:
    seeds = set()
    for seed in (0, 1, 2, (1 << 62) + 5):
        layers = _layers_of(make(kfac.SPEC, nn.Linear(2, 2), seed=seed))
        for layers.steps in range(4):
            seeds.add(layers._seed())
            _signs(_clicks(1).context(torch.arange(4), 4), 70, layers._seed())  # fits the arithmetic of 64 bits
    assert len(seeds) == 16


class _Apart(nn.Module):
    """A layer whose outputs have no gradient, or that is not called at all."""

    def __init__(self, called: bool) -> None:
        super().__init__()
        self.layer, self.other, self.called = nn.Linear(2, 2), nn.Parameter(torch.ones(2)), called

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2] to [B, 2]."""
        made: Tensor = self.layer(x).detach() if self.called else x * self.other
        return made


@pytest.mark.parametrize("called", [True, False])
def test_a_pass_that_shows_nothing_of_a_layer_adds_nothing(called: bool) -> None:
    problem = Problem(_Apart(called), torch.ones(3, 2), torch.zeros(3, 2), squared_errors)
    (layer,) = _watched(problem.model)
    add_pass([layer], problem.context(torch.arange(3), 3), "gauss_newton", 0)
    sums = layer.take()
    assert not sums.g.any() and float(sums.positions) == 0.0 and bool(sums.called) == called


def test_after_a_pass_of_its_own_kfac_holds_no_more_calls() -> None:
    problem = perceptron()
    layers = _watched(problem.model)
    add_pass(layers, problem.context(torch.arange(8), 8), "gauss_newton", 0)
    problem.model(problem.x)
    assert all(layer.seen is None for layer in layers)


# --- layers and factors


@pytest.mark.parametrize(
    ("a", "g", "ratio"),
    [
        (4.0, 1.0, 2.0), (0.25, 1.0, 0.5), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.0, 0.0, 1.0),
        (math.inf, 1.0, 1.0), (1.0, math.inf, 1.0), (math.inf, math.inf, 1.0),
        (4e200, 1e200, 2.0), (4e-200, 1e-200, 2.0), (1e200, 1e-200, 1.0), (1e-200, 1e200, 1.0),
    ],
)  # fmt: skip
def test_damping_is_split_evenly_where_a_ratio_says_nothing(a: float, g: float, ratio: float) -> None:
    assert split_ratio(a, g) == pytest.approx(ratio)


def test_a_factor_is_inverted_with_its_damping_on_the_diagonal() -> None:
    made = solve(pack(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=F64)), INVERSE, 0.5)
    torch.testing.assert_close(made, torch.tensor([[2.5, -1.0], [-1.0, 2.5]], dtype=F64) / 5.25)


def test_a_row_with_a_gradient_of_some_outputs_counts() -> None:
    (layer,) = _watched(nn.Linear(2, 3, dtype=F64))
    x, grad = _random(4, 2), torch.tensor([[0.0, 1.0, 0.0], [0.0] * 3, [1.0, 2.0, 3.0], [0.0] * 3], dtype=F64)
    layer.add(x, grad)
    sums, kept = layer.take(), torch.cat([x, torch.ones(4, 1, dtype=F64)], 1)[[0, 2]]
    assert float(sums.positions) == 2
    torch.testing.assert_close(sums.a, kept.T @ kept)


@pytest.mark.parametrize("module", [nn.Linear(6, 3), nn.Conv2d(2, 3, 2)], ids=["linear", "convolution"])
def test_autocast_leaves_factors_in_full_precision(module: nn.Module) -> None:
    made = []
    for enabled in (False, True):
        (layer,) = _watched(module)
        layer.recording = True
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            inputs = _random(5, 2, 4, 6, dtype=torch.float32)
            grad = _random(*module(inputs).shape, seed=1, dtype=torch.float32)
            layer.add(inputs, grad)
        made.append(layer.take())
    assert torch.equal(made[0].a, made[1].a) and torch.equal(made[0].g, made[1].g)


def test_factors_of_a_batch_of_one_row_are_its_own() -> None:
    problem = Problem(nn.Linear(2, 3, dtype=F64), _random(4, 2), _random(4, 3, seed=1), squared_errors)
    optimizer = make(kfac.SPEC, problem.model, fisher="empirical")
    g = (problem.model(problem.x[:1]) - problem.y[:1]).detach()
    problem.step(optimizer, torch.tensor([0]))
    (kept,) = _layers_of(optimizer).curvature.factors.values()
    a = torch.cat([problem.x[:1], torch.ones(1, 1, dtype=F64)], 1)
    torch.testing.assert_close(unpack(kept.a), a.T @ a)
    torch.testing.assert_close(unpack(kept.g), g.T @ g)


class _Outputs(nn.Module):
    """Outputs times numbers, so that one's gradient may be out of range."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.layer, self.factors = nn.Linear(2, len(factors)), torch.tensor(factors)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2] to [B, C]."""
        made: Tensor = self.layer(x) * self.factors
        return made


@pytest.mark.parametrize(("inputs", "factors"), [(1.0, [1e13, 1.0]), (1e25, [1e-25, 1e-25])], ids=["G", "A"])
def test_a_factor_of_which_some_is_out_of_range_is_not_taken(inputs: float, factors: list[float]) -> None:
    """And its first good one is decomposed at once, though that is between refreshes."""
    model = _Outputs(factors)
    x = torch.full((3, 2), inputs)
    problem = Problem(model, x, torch.full((3, 2), 5.0), squared_errors)
    optimizer = make(kfac.SPEC, model, fisher="empirical", inverse_interval=5, kl_clip=0.0, lr=0.0)
    problem.step(optimizer, torch.arange(3))
    held = _layers_of(optimizer).curvature.factors
    assert not held
    model.factors = torch.ones(2)
    x.fill_(1.0)
    problem.step(optimizer, torch.arange(3))
    assert held["layer"].updates == 1 and held["layer"].current and len(held["layer"].solved) == 2


# --- steps


def test_work_is_counted() -> None:
    problem = perceptron((8, 5, 3))
    optimizer = make(kfac.SPEC, problem.model, inverse_interval=2)
    problem.train(optimizer, batch=16, steps=3)
    work = _layers_of(optimizer).curvature.work
    assert (work.decompositions, work.gradients) == (2 * 4, 3 * 2)
    assert work.cost == 2 * (9**3 + 5**3 + 6**3 + 3**3)


@pytest.mark.parametrize(("factor", "inverse"), [(2, 2), (1, 1), (1, 2)])
def test_factors_are_held_twice_only_where_they_change_between_decompositions(factor: int, inverse: int) -> None:
    problem = perceptron((8, 3))
    optimizer = make(kfac.SPEC, problem.model, factor_interval=factor, inverse_interval=inverse)
    problem.train(optimizer, batch=16, steps=1)
    (kept,) = optimizer.state_dict()["parts"]["layers"]["layers"].values()
    assert (kept["used"] is None) == (factor == inverse)


def test_backward_passes_are_watched_where_factors_are_due() -> None:
    problem = perceptron((8, 3))
    optimizer = make(kfac.SPEC, problem.model, fisher="empirical", factor_interval=3, inverse_interval=3)
    (layer,) = _layers_of(optimizer).layers
    watched = [layer.recording]
    for ids in problem.batches(8, 5):
        problem.step(optimizer, ids)
        watched.append(layer.recording)
    assert watched == [True, False, False, True, False, False]
    assert _layers_of(optimizer).state_dict()["steps"] == 5


def test_tensors_without_names_will_do_where_damping_is_fixed() -> None:
    model = nn.Linear(3, 2)
    assert _layers_of(optim.create("kfac", list(model.parameters()), model=model)).layers


def test_a_layer_of_which_a_part_has_no_gradient_rests() -> None:
    problem = perceptron((8, 5, 3))
    optimizer = make(kfac.SPEC, problem.model)
    first, last = (layer.params() for layer in _layers_of(optimizer).layers)
    problem.losses(problem.model(problem.x), problem.y).mean().backward()
    first[1].grad = None
    before = [p.detach().clone() for p in first + last]
    optimizer.step(problem.context(torch.arange(problem.rows), problem.rows))
    moved = [not torch.equal(p, b) for p, b in zip(first + last, before, strict=True)]
    assert moved == [False, False, True, True]


def test_a_small_step_is_clipped_to_a_smaller_bound() -> None:
    layers = _layers_of(optim.create("kfac", nn.Linear(2, 1, bias=False), lr=0.5))
    (weight,) = layers.param_groups[0]["params"]
    parts = {id(weight): (torch.tensor([[0.2, 0.4]]), torch.tensor([[1.0, 2.0]]))}  # lr^2 <D, V> = 1 / 4
    assert layers._clip(parts, 0.01) == pytest.approx(0.2)
    assert layers._clip(parts, 1.0) == layers._clip(parts, 0.0) == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor_decay": 1.0}, "factor_decay"),
        ({"factor_decay": -0.1}, "factor_decay"),
        ({"factor_interval": 0}, "factor_interval"),
        ({"inverse_interval": 0}, "inverse_interval"),
        ({"damping_interval": -1}, "damping_interval"),
        ({"damping": math.inf}, "damping"),
        ({"kl_clip": math.inf}, "kl_clip"),
        ({"grad_worker_frac": -0.1}, "grad_worker_frac"),
        ({"lr": -0.1}, "lr"),
        ({"fallback_lr": -0.1}, "lr"),
        ({"fallback_lr": math.nan, "fallback": "adamw"}, "lr"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        optim.create("kfac", nn.Linear(2, 2), **options)


# --- work over ranks


def test_the_longest_job_goes_where_it_is_done_soonest() -> None:
    assert longest_first([3, 1, 1, 1], [1, 2]) == [1, 0, 0, 1]
    assert longest_first([1, 1, 1, 3], [1, 2]) == [0, 0, 1, 1]


def test_layers_and_factors_are_dealt_by_the_cubes_of_their_sides() -> None:
    """1000 to one, 3 times 343 to the other, and the fourth where it is done first: as no other power has it."""
    sides, wanted = (10, 7, 7, 7, 7), [0, 1, 1, 1, 0]
    for side, shapes in enumerate(([(1, n) for n in sides], [(m, 1) for m in sides])):
        assert [workers for (workers,) in deal(shapes, 2, 0.0).workers] == wanted
        both = deal(shapes, 2, 1.0)
        assert all(workers == (0, 1) for workers in both.workers)
        assert [pair[side] for pair in both.solvers] == wanted
    assert {len(workers) for workers in deal([(9, 9)] * 4, 8, 0.25).workers} == {2}
    assert {len(workers) for workers in deal([(9, 9)] * 4, 3, 0.0).workers} == {1}


def test_ranks_do_not_meet_for_parcels_that_stay() -> None:
    silent = SimpleNamespace(rank=0, size=2)  # has no alltoall
    deliver([Parcel(0, (), torch.ones(2)), Parcel(1, (1,), torch.ones(2))], cast(Any, silent))


def test_work_is_dealt_anew_for_another_number_of_ranks() -> None:
    problem = perceptron((8, 5, 3))
    layers = _layers_of(make(kfac.SPEC, problem.model))
    options = layers.param_groups[0]
    alone = layers.curvature._dealt(None, options)
    assert alone.size == 1 and layers.curvature._dealt(None, options) is alone
    assert layers.curvature._dealt(LocalGroup(2, 1.0).collective(0), options).size == 2


# --- variance reduction


def test_numbers_drawn_are_of_a_seed_and_a_draw() -> None:
    drawn = [number_drawn(seed, draw) for seed in (0, 1, 2, (1 << 62) + 5) for draw in range(6)]
    assert len(set(drawn)) == 24 and all(0.0 <= u < 1.0 for u in drawn)


@pytest.mark.parametrize(
    ("rows", "batch", "options", "length"),
    [
        (12, 4, {}, 3), (10, 4, {}, 3), (10, 4, {"inner_steps": 5}, 5), (10, 4, {"inner_epochs": 0.1}, 1),
        (10, 1, {}, 10), (6, 4, {"inner_epochs": 2.0}, 3),
    ],
)  # fmt: skip
def test_a_loop_is_as_long_as_it_takes_to_see_the_rows(rows: int, batch: int, options: Any, length: int) -> None:
    problem = least_squares(rows, 2)
    optimizer = cast(InnerLoop, optim.create("svrg", problem.model, lr=1e-3, **{"inner_epochs": 1.0, **options}))
    problem.step(optimizer, torch.arange(batch))
    assert optimizer.kept["loop"]["length"] == length


@pytest.mark.parametrize(("name", "last"), [("svrg", 4), ("sarah", 5)])
def test_an_anchor_is_drawn_from_all_iterates_that_the_paper_has(
    name: str, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """w_0 .. w_{m - 1} for SVRG, .. w_m for SARAH."""
    for drawn, picked in ((0.0, 0), (1.0 - 2.0**-53, last)):
        monkeypatch.setattr(inner_loop, "number_drawn", lambda *_, u=drawn: u)
        problem = least_squares(10, 2)
        optimizer = cast(InnerLoop, optim.create(name, problem.model, lr=1e-3, pick="random", inner_steps=5))
        problem.step(optimizer, torch.arange(4))
        assert optimizer.kept["loop"]["picked"] == picked


def test_sarah_plus_compares_squared_norms_of_all_parameters() -> None:
    problem = perceptron(rows=12)
    optimizer = cast(SARAH, optim.create("sarah", problem.model, lr=1e-3, gamma=0.5))
    wanted = sum(float(g.square().sum()) for g in problem.full_gradient())
    problem.step(optimizer, torch.arange(4))
    assert optimizer.kept["loop"]["first_square"] == pytest.approx(wanted)


def test_parameters_that_others_train_are_known_from_own_and_frozen_ones() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    for param in model[1].parameters():
        param.requires_grad_(False)
    optimizer = optim.create("svrg", list(model[0].named_parameters(prefix="0")), model=model)
    assert isinstance(optimizer, VarianceReduced)
    assert set(optimizer.own) == {"0.weight", "0.bias"} and set(optimizer.others) == {"2.weight", "2.bias"}


def _spoiled(ctx: StepContext, at: Mapping[str, Tensor]) -> StepContext:
    """Losses are no numbers where the first parameter is that of `at`."""
    name, there = next(iter(at.items()))
    outputs_at = ctx.outputs_at

    def bad(params: Mapping[str, Tensor] | None) -> Tensor:
        made = outputs_at(params)
        return made * math.nan if torch.equal((params or {})[name].detach(), there) else made

    return replace(ctx, outputs_at=bad)


def test_a_gradient_at_old_parameters_that_is_no_number_is_refused() -> None:
    problem = perceptron(rows=12)
    first = list(problem.model.named_parameters())[:2]
    optimizer = cast(VarianceReduced, optim.create("scsg", first, model=problem.model, anchor_batches=2))
    problem.step(optimizer, torch.arange(4))
    old = {name: optimizer.kept["old"][name] for name, _ in first}
    problem.losses(problem.model(problem.x[:4]), problem.y[:4]).mean().backward()
    before = [p.detach().clone() for p in problem.model.parameters()]
    with pytest.raises(NonFiniteStepError, match="old parameters"):
        optimizer.step(_spoiled(problem.context(torch.arange(4), 4), old))
    assert all(torch.equal(p, b) for p, b in zip(problem.model.parameters(), before, strict=True))


def test_a_corrected_gradient_that_is_no_number_is_refused() -> None:
    problem = least_squares(8, 2)
    optimizer = optim.create("svrg", problem.model, lr=1e-3)
    problem.step(optimizer, torch.arange(4))
    ctx = problem.context(torch.arange(4), 4)
    problem.model.weight.grad = torch.full((2,), math.inf, dtype=F64)
    with pytest.raises(NonFiniteStepError, match="corrected"):
        optimizer.step(ctx)


def test_a_table_of_nothing_has_no_row() -> None:
    table = GradientTable.of([torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 1)])
    assert table.places(torch.zeros(0, dtype=torch.int64)).shape == (0,)
    with pytest.raises(UserError, match="row key 0 is not one of the 0"):
        table.places(torch.tensor([0]))


def _linear(x: Tensor, weight: Tensor, bend: Any = lambda z: z) -> bool:
    ctx = StepContext(outputs_at=lambda params: bend(x @ cast(Any, params)["w"]), losses=lambda o: o, rows=len(x))
    return is_linear(ctx, {"w": weight}, {})


def test_linear_models_are_told_by_rounding_of_their_own_size() -> None:
    x, weight = _random(20, 3, dtype=torch.float32), torch.ones(3)
    assert _linear(x, weight)
    for size in (1e-9, 1e9):
        assert _linear(size * x, weight)
        assert not _linear(x, weight, lambda z, s=size: s * z * (1.0 + 1e-3 * z))
    x[3] = 0.0  # a row whose output is always 0 beside rows of rounding
    assert _linear(x, weight)
    assert _linear(x[:, :1].expand(20, 2), torch.tensor([300.0, -300.0]))  # of which little is left but rounding
    assert _linear(x[:0], weight)


def test_one_row_that_bends_makes_a_model_not_linear() -> None:
    x = _random(20, 3, dtype=torch.float32)
    bent = torch.zeros(20).index_fill_(0, torch.tensor([7]), 1.0)
    assert not _linear(x, torch.ones(3), lambda z: z + 0.1 * bent * z * z)


def test_one_of_very_many_outputs_that_bends_is_not_lost_beside_them() -> None:
    """Directions have no outliers that would hide it."""
    bent = torch.zeros(4000).index_fill_(0, torch.tensor([7]), 0.1)
    ctx = StepContext(
        outputs_at=lambda params: (z := cast(Any, params)["w"]) + bent * z.tanh(), losses=lambda o: o, rows=4000
    )
    assert not is_linear(ctx, {"w": torch.zeros(4000)}, {})


def test_an_anchor_over_a_row_that_is_no_number_is_refused() -> None:
    problem = least_squares(8, 2, condition=2.0)
    svrg = optim.create("svrg", problem.model, lr=1e-3)
    problem.x[5] = math.nan
    with pytest.raises(NonFiniteStepError, match="the full gradient"):
        problem.step(svrg, torch.arange(2))


def test_an_anchor_whose_loss_alone_is_no_number_is_refused() -> None:
    problem = least_squares(8, 2, condition=2.0)
    problem.losses = lambda outputs, y: outputs.flatten() + math.inf
    with pytest.raises(NonFiniteStepError, match="the full gradient"):
        problem.step(optim.create("svrg", problem.model, lr=1e-3), torch.arange(2))


def test_a_first_pass_over_a_row_that_is_no_number_keeps_no_table() -> None:
    problem = least_squares(8, 2, condition=2.0)
    saga: Any = optim.create("saga", problem.model, lr=1e-3)
    problem.x[5] = math.nan
    with pytest.raises(NonFiniteStepError, match="first pass"):
        problem.step(saga, torch.arange(4))
    assert "entries" not in saga.kept


def test_a_linear_models_table_has_a_number_for_every_output() -> None:
    model = nn.Linear(4, 3)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(10, 4, generator=generator), torch.randint(0, 3, (10,), generator=generator)
    problem = Problem(model, x, y, cross_entropies)
    needed = 10 * (8 + 3 * 4)
    problem.step(optim.create("saga", model, table_bytes=needed), torch.arange(4))
    with pytest.raises(UserError, match="table_bytes"):
        problem.step(optim.create("saga", model, table_bytes=needed - 1), torch.arange(4))


def test_two_ranks_know_each_others_rows() -> None:
    group = LocalGroup(2, timeout_s=20.0)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda r: GlobalRows.of(torch.arange(r + 1) + 5 * r, group.collective(r)), range(2)))
    for rows, own in zip(found, (slice(0, 1), slice(1, 3)), strict=True):
        assert rows.keys.tolist() == [0, 5, 6] and rows.counts == [1, 2] and rows.own == own


def test_a_row_that_became_no_number_does_not_enter_the_table() -> None:
    problem = least_squares(8, 2, condition=2.0)
    saga: Any = optim.create("saga", problem.model, lr=1e-3)
    problem.step(saga, torch.arange(4))
    before = saga.kept["entries"].clone()
    problem.x[1] = math.nan
    with pytest.raises(NonFiniteStepError, match="a row's gradient"):
        problem.step(saga, torch.arange(4))
    assert torch.equal(saga.kept["entries"], before)
