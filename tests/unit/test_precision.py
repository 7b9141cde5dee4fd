"""The scale of the loss is GradScaler's; masters keep what parameters of half precision would lose."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch
from torch import nn

from headrace import optim
from headrace.errors import UserError
from headrace.optim.master_weights import MasterWeights
from headrace.testing.problems import perceptron
from headrace.train.precision import LossScaler, PrecisionConfig, cast_parameters


def test_the_scale_moves_as_torchs_does_also_when_saved_at_every_step() -> None:
    config = PrecisionConfig(compute="fp16", initial_scale=2.0**40, growth=4.0, backoff=0.25, growth_every=3)
    ours = LossScaler(config)
    assert not ours.begun
    ours.begin(1)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_factor=4.0, backoff_factor=0.25, growth_interval=3)
    param = nn.Parameter(torch.ones(1))
    optimizer, rng = torch.optim.SGD([param], lr=0.0), random.Random(1)
    for step in range(60):
        bad = rng.random() < 0.3
        theirs.scale(param.sum()).backward()
        param.grad = torch.full((1,), math.inf) if bad else torch.ones(1)
        theirs.step(optimizer)
        theirs.update()
        assert ours.overflow() if bad else ours.passed() is None
        assert ours.scale == theirs.get_scale(), step
        saved, ours = ours.state_dict(), LossScaler(config)
        ours.load_state_dict(saved)


def test_the_first_scale_is_one_of_the_mean_and_below_a_scale_of_one_an_overflow_is_no_matter_of_scaling() -> None:
    scaler = LossScaler(PrecisionConfig(compute="fp16", initial_scale=8.0))
    scaler.begin(1000)
    assert scaler.scale == 8.0 / 1024
    assert [scaler.overflow() for _ in range(4)] == [True, True, True, False]
    assert scaler.scale == 1.0 / 1024


@pytest.mark.parametrize("compute", ["float32", "bf16"])
def test_without_fp16_nothing_is_scaled(compute: str) -> None:
    scaler = LossScaler(PrecisionConfig(compute=compute))
    assert scaler.begun
    assert not scaler.overflow()
    scaler.passed()
    assert (scaler.scale, scaler.state_dict()) == (1.0, {})


@pytest.mark.parametrize(
    "settings",
    [{"compute": "fp8"}, {"parameters": "bf16"}, {"compute": "fp16", "parameters": "bf16"}, {"growth": 3.0},
     {"backoff": 1.0}, {"initial_scale": 0.0}, {"initial_scale": math.inf}, {"growth_every": 0}],
)  # fmt: skip
def test_mistakes_are_told(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        PrecisionConfig(**settings)


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_gradients_of_cast_parameters_add_up_in_float32(compute: str) -> None:
    layer = nn.Linear(3, 2)
    config = PrecisionConfig(compute=compute, parameters=compute)
    cast_parameters(layer.parameters(), config)
    for _ in range(2):
        with config.autocast("cpu"):
            out = layer(torch.ones(4, 3))
        out.float().sum().backward()
    assert layer.weight.dtype == (torch.bfloat16 if compute == "bf16" else torch.float16)
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad, torch.full((2, 3), 8.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_keep_updates_that_are_too_small_for_the_parameter(dtype: torch.dtype) -> None:
    with_masters, without = (nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2))
    a = optim.create("sgd", [("w", with_masters)], lr=1e-4)
    assert isinstance(a, MasterWeights)
    b = torch.optim.SGD([without], lr=1e-4)
    for _ in range(1000):
        with_masters.grad, without.grad = (torch.ones(3, dtype=dtype) for _ in range(2))
        a.step()
        b.step()
    assert bool((without == 1.0).all())
    torch.testing.assert_close(with_masters.float(), torch.full((3,), 0.9), rtol=4e-3, atol=0.0)
    torch.testing.assert_close(a.state_dict()["masters"][0], torch.full((3,), 0.9), rtol=1e-4, atol=0.0)


def test_a_rule_on_masters_is_the_rule_in_float32_and_resumes_to_the_same_bits() -> None:
    wrappers = {"lookahead": {"k": 2}, "ema": {"decay": 0.5}}
    half, plain = perceptron(dtype=torch.float32), perceptron(dtype=torch.float32)
    for p, q in zip(half.model.parameters(), plain.model.parameters(), strict=True):
        p.data = p.data.bfloat16()
        q.data = p.data.float()

    def make(model: nn.Module) -> optim.Optimizer:
        return optim.create("adam", model, lr=0.01, layer_decay=0.5, wrappers=wrappers)

    a, b = make(half.model), make(plain.model)
    for step in range(8):
        for group_a, group_b in zip(a.param_groups, b.param_groups, strict=True):
            group_a["lr"] = group_b["lr"] = 0.01 / (step + 1)  # as a schedule does
        for p, q in zip(half.model.parameters(), plain.model.parameters(), strict=True):
            q.grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(step)).bfloat16().float()
            p.grad = q.grad.bfloat16()
        if step == 4:
            saved = copy.deepcopy(a.state_dict())
            a = make(half.model)
            a.load_state_dict(saved)
            for group in a.param_groups:
                group["lr"] = 0.01 / (step + 1)
        a.step()
        b.step()
    for p, q in zip(half.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, q.bfloat16())
    for (p, x), (_, y) in zip(a.averages(), b.averages(), strict=True):
        assert p.dtype == torch.bfloat16
        assert torch.equal(x, y)
    with optim.averaged(a):
        assert all(p.dtype == torch.bfloat16 for p in half.model.parameters())
    with pytest.raises(ValueError, match="no master weights"):
        a.load_state_dict(b.state_dict())
