"""Every schedule is torch's, or its closed form; warm-up goes before any of them; plateau alone has state."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from headrace.errors import UserError
from headrace.optim.plateau import Plateau
from headrace.optim.schedules import NEEDS_VALIDATION, SCHEDULES, At, Rates, Schedule, ScheduleConfig, set_rates

TOTAL = 40
Make = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]

TORCH: dict[str, list[tuple[dict[str, Any], Make]]] = {
    "constant": [({}, lambda o: lr_scheduler.ConstantLR(o, 1.0))],
    "step": [({"every": 7, "gamma": 0.5}, lambda o: lr_scheduler.StepLR(o, 7, 0.5))],
    "multistep": [({"milestones": [11, 5], "gamma": 0.3}, lambda o: lr_scheduler.MultiStepLR(o, [5, 11], 0.3))],
    "exponential": [({"gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9))],
    "linear": [
        ({}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, TOTAL)),
        ({"end": 0.25}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.25, TOTAL)),
    ],
    "polynomial": [({"power": 3.0}, lambda o: lr_scheduler.PolynomialLR(o, TOTAL, 3.0))],
    "cosine": [
        ({"end": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, eta_min=0.02)),
        ({"period": 9}, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 9)),
        (
            {"period": 5, "growth": 2, "end": 0.1},
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 2, eta_min=0.02),
        ),
    ],
    "one_cycle": [
        ({}, lambda o: lr_scheduler.OneCycleLR(o, 0.2, TOTAL)),
        (
            {"rise": 0.4, "anneal": "linear", "start_div": 10.0, "end_div": 100.0, "three_phase": True},
            lambda o: lr_scheduler.OneCycleLR(
                o, 0.2, TOTAL, pct_start=0.4, anneal_strategy="linear", div_factor=10.0, final_div_factor=100.0,
                three_phase=True,
            ),
        ),
        (
            {"rise": 0.25, "three_phase": True, "low_momentum": 0.5, "high_momentum": 0.9},
            lambda o: lr_scheduler.OneCycleLR(
                o, 0.2, TOTAL, pct_start=0.25, three_phase=True, base_momentum=0.5, max_momentum=0.9
            ),
        ),
    ],
    "inverse_sqrt": [
        ({"timescale": 8}, lambda o: lr_scheduler.LambdaLR(o, lambda t: (1 + t / 8) ** -0.5)),
    ],
    "plateau": [({}, lambda o: lr_scheduler.ConstantLR(o, 1.0))],
}  # fmt: skip


def test_every_schedule_has_a_reference() -> None:
    assert set(TORCH) == set(SCHEDULES)


@pytest.mark.parametrize(("name", "case"), [(name, i) for name, cases in TORCH.items() for i in range(len(cases))])
def test_a_schedule_is_torchs(name: str, case: int) -> None:
    options, make = TORCH[name][case]
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    scheduler = make(theirs)
    ours = Schedule(ScheduleConfig(name=name, options=options))
    cycles = name == "one_cycle"
    for step in range(TOTAL):
        rates = ours.rates(step, 1, TOTAL)
        assert 0.2 * rates.factor == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9, abs=1e-12), step
        assert (rates.momentum is not None) == cycles
        if cycles:
            assert rates.momentum == pytest.approx(theirs.param_groups[0]["momentum"], rel=1e-9), step
        theirs.step()
        if step < TOTAL - 1:
            scheduler.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_goes_before_any_schedule_and_its_clock_starts_after_it(name: str) -> None:
    plain, warm = (Schedule(ScheduleConfig(name=name, warmup=w, options=TORCH[name][0][0])) for w in (0, 8))
    start = plain.rates(0, 1, TOTAL - 8).factor
    for step in range(8):
        assert warm.rates(step, 1, TOTAL).factor == pytest.approx(start * (step + 1) / 8)
    for step in range(8, TOTAL):
        assert warm.rates(step, 1, TOTAL) == plain.rates(step - 8, 1, TOTAL - 8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_by_epoch_a_schedule_stands_still_within_one(name: str) -> None:
    options = TORCH[name][0][0]
    by_epoch = Schedule(ScheduleConfig(name=name, by="epoch", warmup_epochs=1.0, options=options))
    by_step = Schedule(ScheduleConfig(name=name, options=options))
    for step in range(5, 20):  # 4 epochs of 5 steps, the first for warm-up
        assert by_epoch.rates(step, 4, 5) == by_step.rates(step // 5 - 1, 1, 3)


def test_warm_up_of_epochs_is_one_of_steps_and_sets_the_scale_of_the_inverse_root() -> None:
    half = Schedule(ScheduleConfig(name="inverse_sqrt", warmup_epochs=0.5))
    steps = Schedule(ScheduleConfig(name="inverse_sqrt", warmup=10))
    assert [half.rates(s, 2, 20) for s in range(40)] == [steps.rates(s, 2, 20) for s in range(40)]
    assert steps.rates(9, 2, 20).factor == 1.0
    assert steps.rates(40, 2, 20).factor == pytest.approx(0.5)  # Vaswani et al.: sqrt(10 / 40)


@pytest.mark.parametrize("mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 2])
def test_plateau_is_torchs_also_when_saved_after_every_loss(mode: str, cooldown: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0.05, threshold_mode=mode, cooldown=cooldown, min_lr=0.1, eps=0.0
    )
    options = {"factor": 0.5, "patience": 2, "threshold": 0.05, "threshold_mode": mode, "cooldown": cooldown,
               "end": 0.1}  # fmt: skip
    config = ScheduleConfig(name="plateau", options=options)
    ours, rng, seen = Schedule(config), random.Random(3), set()
    for i in range(60):
        loss = 1.0 / (1 + i / 10) + rng.uniform(-0.1, 0.1)
        theirs.step(loss)
        ours.judge(loss)
        saved, ours = ours.state_dict(), Schedule(config)
        ours.load_state_dict(saved)
        factor = ours.rates(0, 1, TOTAL).factor
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"]), i
        seen.add(factor)
    assert len(seen) > 3
    assert min(seen) == 0.1


def test_plateau_before_any_loss_is_json_and_no_figure_is_not_better() -> None:
    plateau = Plateau(factor=0.5, patience=0, threshold=0.0, threshold_mode="rel", cooldown=0, end=0.0)
    assert plateau.state_dict()["best"] is None
    schedule = Schedule(ScheduleConfig(name="plateau", options={"factor": 0.5, "patience": 0}))
    schedule.judge(None)
    assert schedule.rates(0, 1, 1).factor == 0.5
    assert not any(math.isinf(v) for v in schedule.state_dict().values() if isinstance(v, float))


def test_only_schedules_that_follow_validation_have_state() -> None:
    for name, spec in SCHEDULES.items():
        assert bool(Schedule(ScheduleConfig(name=name)).state_dict()) == (NEEDS_VALIDATION in spec.traits)
        assert all((spec.paper, spec.rule, spec.use))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "cosin"}, "did you mean cosine"),
        ({"name": "cosine", "options": {"perod": 3}}, r"no option 'perod'.*\n.*did you mean period\?"),
        ({"name": "cosine", "options": {"growth": 0.5}}, "growth at least 1"),
        ({"name": "step", "options": {"every": 0}}, "every must be above 0"),
        ({"name": "step", "options": {"every": 1.5}}, "every must be of type int"),
        ({"name": "one_cycle", "options": {"rise": 0.6, "three_phase": True}}, "below a half"),
        ({"name": "one_cycle", "options": {"anneal": "cosine"}}, "cos or linear"),
        ({"name": "plateau", "options": {"factor": 1.0}}, "between 0 and 1"),
        ({"name": "plateau", "options": {"end": -1e-9}}, "end must be a number of at least 0"),
        ({"name": "linear", "options": {"end": -0.1}}, "end must be a number of at least 0"),
        ({"name": "polynomial", "options": {"power": 0.0}}, "power must be above 0"),
        ({"name": "polynomial", "options": {"end": math.nan}}, "end must be a number of at least 0"),
        ({"name": "cosine", "options": {"end": math.inf}}, "end must be a number of at least 0"),
        ({"name": "inverse_sqrt", "options": {"timescale": -5}}, "timescale must be a number of at least 0"),
        ({"by": "row"}, "'row' is unknown"),
        ({"warmup": 3, "warmup_epochs": 1.0}, "not both"),
    ],
)
def test_mistakes_are_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        ScheduleConfig(**settings)


def test_rates_scale_what_groups_began_with_and_set_the_momentum_of_rules_that_have_one() -> None:
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    sgd = torch.optim.SGD([{"params": params[:1], "lr": 0.2, "momentum": 0.5}, {"params": params[1:2]}], lr=0.4)
    adam = torch.optim.Adam(params[2:], lr=0.1, betas=(0.9, 0.99))
    for factor, momentum in ((0.5, None), (0.25, 0.8), (1.0, 0.7)):
        for optimizer in (sgd, adam):
            set_rates(optimizer, Rates(factor, momentum))
        assert [group["lr"] for group in sgd.param_groups] == [0.2 * factor, 0.4 * factor]
        assert [group["momentum"] for group in sgd.param_groups] == [momentum or 0.5, 0.0]
        assert adam.param_groups[0]["lr"] == 0.1 * factor
        assert adam.param_groups[0]["betas"] == (momentum or 0.9, 0.99) and "momentum" not in adam.param_groups[0]


def test_defaults_are_those_of_their_sources_and_the_help_tells_them() -> None:
    """What a run without options has followed; torch's for plateau, He et al.'s steps, a warm-up of nothing."""
    defaults = {name: dict(spec.defaults) for name, spec in SCHEDULES.items()}
    assert defaults["step"] == {"every": 30, "gamma": 0.1} and defaults["multistep"] == {"milestones": (), "gamma": 0.1}
    assert defaults["exponential"] == {"gamma": 0.95} and defaults["linear"] == {"end": 0.0}
    assert defaults["polynomial"] == {"power": 2.0, "end": 0.0} and defaults["inverse_sqrt"] == {"timescale": 0}
    assert defaults["cosine"] == {"period": 0, "growth": 1.0, "end": 0.0}
    torchs = {"factor": 0.1, "patience": 10, "threshold": 1e-4, "threshold_mode": "rel", "cooldown": 0, "end": 0.0}
    assert defaults["plateau"] == torchs
    config = ScheduleConfig()
    assert (config.warmup, config.warmup_epochs, At(0, 1).warmup) == (0, 0.0, 0)
    assert "every 30, gamma 0.1" in str(ScheduleConfig.__doc__)
    for number in range(4):  # no warm-up: nothing rises
        assert Schedule(config).rates(number, 2, 2).factor == 1.0
