"""LARS, LAMB and 8-bit state beyond their exam: tensors of many blocks, layouts, exclusions, empty layers, bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from headrace.compress.dynamic_tree import BLOCK, dequantize, quantize, scales_like, tree_values
from headrace.errors import UserError
from headrace.optim import OPTIMIZERS, cache_blocks, create, scaling
from headrace.testing import optim_exam
from headrace.testing.exams import EXAMS
from headrace.testing.exams.large_batch import decode, round_trip

FAMILY = ("lars", "lamb", "adam_8bit")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["lars", "lamb"])
@pytest.mark.parametrize("size", [4, 1 << 62])
def test_rules_are_followed_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    monkeypatch.setattr(cache_blocks, "ONE_THREAD", size)
    optim_exam.follows_its_rule(name, OPTIMIZERS[name], replace(EXAMS[name], whole=()))


@pytest.mark.parametrize(("name", "more"), [("lamb", {"state_bits": 8}), ("adam_8bit", {}), ("lars", {}), ("lamb", {})])
def test_many_blocks_of_quantized_state_follow_the_rule(
    monkeypatch: pytest.MonkeyPatch, name: str, more: dict[str, int]
) -> None:
    monkeypatch.setattr(cache_blocks, "ONE_THREAD", 2 * BLOCK)
    monkeypatch.setattr(optim_exam, "SHAPES", ((3, 3 * BLOCK // 2 + 5),))
    monkeypatch.setattr(optim_exam, "STEPS", 4)
    exam = replace(EXAMS[name], options={**EXAMS[name].options, **more}, whole=())
    optim_exam.follows_its_rule(name, OPTIMIZERS[name], exam)


@pytest.mark.parametrize("size", [8, 1 << 16])
@pytest.mark.parametrize("name", FAMILY)
def test_other_layouts_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    monkeypatch.setattr(cache_blocks, "ONE_THREAD", size)
    made = []
    for turned in (False, True):
        generator = torch.Generator().manual_seed(0)
        w, g = (torch.randn(5, 7, generator=generator) for _ in range(2))
        param = nn.Parameter(w.t().contiguous().t() if turned else w)
        optimizer = create(name, [param])
        for factor in (1.0, -0.3):
            param.grad = factor * g
            optimizer.step()
        made.append(param.detach().contiguous())
    assert torch.equal(*made)


@pytest.mark.parametrize("size", [1, 1 << 16])
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_biases_norms_and_named_layers_go_without_ratio_and_decay(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    monkeypatch.setattr(cache_blocks, "ONE_THREAD", size)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = create(name, model, lr=0.1, weight_decay=0.5, exclude=("2.*",))
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    # Without gradient only decay moves a layer; LARS has no ratio there and decays by lr.
    assert moved == {"0.weight"}


def test_patterns_without_names_are_refused() -> None:
    param = nn.Parameter(torch.ones(2, 2))
    param.grad = torch.ones(2, 2)
    with pytest.raises(UserError, match="named_parameters"):
        create("lamb", [param], exclude=("*.bias",)).step()


@pytest.mark.parametrize("options", [{"state_bits": 16}, {"phi_bounds": (2.0, 1.0)}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        create("lamb", [nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_layers_at_zero_have_ratio_one(name: str) -> None:
    param = nn.Parameter(torch.zeros(2, 2))
    param.grad = torch.full((2, 2), 3.0)
    create(name, [param], lr=0.1).step()
    step = 0.3 if name == "lars" else 0.1
    assert torch.allclose(param, torch.full((2, 2), -step), rtol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("size", [BLOCK, 1 << 16])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25, 1e38])
def test_no_gradient_makes_nan(monkeypatch: pytest.MonkeyPatch, name: str, size: int, scale: float) -> None:
    monkeypatch.setattr(cache_blocks, "ONE_THREAD", size)
    param = nn.Parameter(torch.randn(3, BLOCK))
    optimizer = create(name, [param])
    for factor in (1.0, scale, 1.0):
        param.grad = factor * torch.randn(3, BLOCK).clamp(-1, 1)
        optimizer.step()
    assert bool(param.isfinite().all())


def test_norms_hold_where_squares_do_not() -> None:
    param = nn.Parameter(torch.full((4, 4), 1.0))
    moves = []
    for scale in (1e-30, 1.0, 1e30):
        param = nn.Parameter(torch.full((4, 4), 1.0))
        param.grad = torch.full((4, 4), scale)
        create("lars", [param], lr=1.0, trust_coefficient=0.1).step()
        moves.append(1.0 - float(param.detach()[0, 0]))
    assert moves == pytest.approx([0.1] * 3, rel=1e-5)


def test_lars_keeps_its_velocity_through_any_rates_and_block_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is v / s and s: rates of 0 and from 1e-20 to 1e20, and blocks of other sizes."""
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(4, 6)), np.zeros((4, 6))
    param = nn.Parameter(torch.tensor(w))
    optimizer = create("lars", [param], momentum=0.7, weight_decay=0.1, trust_coefficient=0.5)
    for size, lr in ((4, 0.1), (4, 0.0), (4, 0.3), (4, 1e-20), (4, 0.2), (999, 0.1), (4, 0.4), (4, 1e20), (4, 0.1)):
        monkeypatch.setattr(cache_blocks, "ONE_THREAD", size)
        g = rng.normal(size=w.shape) * 1e-3
        s = lr * 0.5 * np.linalg.norm(w) / (np.linalg.norm(g) + 0.1 * np.linalg.norm(w))
        v = 0.7 * v + s * (g + 0.1 * w)
        w = w - v
        optimizer.param_groups[0]["lr"] = lr
        param.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(param.detach().numpy(), w, rtol=1e-10)


@pytest.mark.parametrize("signed", [True, False])
def test_values_are_those_of_the_bits(signed: bool) -> None:
    np.testing.assert_allclose(tree_values(signed), np.sort([decode(code, signed) for code in range(256)]), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signed", [True, False])
def test_the_middle_of_two_values_divides_them_to_the_last_bit(signed: bool, dtype: torch.dtype) -> None:
    """As a binary search does; 1 makes the block's scale 1."""
    middles = (tree_values(signed)[:-1] + tree_values(signed)[1:]) / 2
    middles[0] *= signed
    at = torch.tensor(middles, dtype=dtype)
    beside = [torch.nextafter(at, torch.full_like(at, end)) for end in (-2.0, 2.0)]
    x = torch.cat([at, *beside, torch.ones(1, dtype=dtype)])
    x = x if signed else x[x >= 0]
    codes, scales = torch.zeros(len(x), dtype=torch.uint8), scales_like(x)
    quantize(x, codes, scales, signed=signed)
    np.testing.assert_array_equal(codes.numpy(), np.searchsorted(at.numpy(), x.numpy(), side="left"))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("numel", [1, 2047, 2048, 5000])
def test_rounding_is_to_the_nearest_value_of_the_block(signed: bool, numel: int) -> None:
    rng = np.random.default_rng(numel)
    x = rng.normal(size=numel) * 10.0 ** rng.uniform(-8, 2, numel)
    x[::7] = 0.0
    x = x if signed else np.abs(x)
    codes, scales = torch.zeros(numel, dtype=torch.uint8), scales_like(torch.tensor(x))
    quantize(torch.tensor(x), codes, scales, signed=signed)
    back = dequantize(codes, scales, torch.float64, signed=signed).numpy()
    np.testing.assert_allclose(back, round_trip(x, signed), rtol=1e-14)
    # In the decade 10^-E of the block's largest numbers are 0.9 / 2^k apart, k = 6 - E or 7 - E bits.
    largest = np.repeat([np.abs(x[i : i + BLOCK]).max() for i in range(0, numel, BLOCK)], BLOCK)[:numel]
    decade = np.clip(np.floor(-np.log10(np.maximum(np.abs(x) / np.maximum(largest, 1e-300), 1e-300))), 0, 6)
    bound = np.maximum(0.45 * 2.0 ** (decade - 7 + signed) * 10.0**-decade, 3.25e-7)
    assert bool((np.abs(back - x) <= bound * largest * (1 + 1e-12)).all())
    assert signed or bool(((back > 0) == (x > 0)).all())


def test_8_bits_are_a_quarter_of_the_state_and_survive_saving() -> None:
    sizes = {}
    for bits in (8, 32):
        param = nn.Parameter(torch.randn(100, 2048))
        optimizer = create("lamb", [param], state_bits=bits)
        param.grad = torch.randn_like(param)
        optimizer.step()
        sizes[bits] = optimizer.state_bytes()
        other = create("lamb", [param], state_bits=bits)
        other.load_state_dict(optimizer.state_dict())
        for name, value in optimizer.state[param].items():
            loaded = other.state[param][name]
            assert loaded == value if name == "step" else torch.equal(loaded, value) and loaded.dtype == value.dtype
    assert sizes[8] == sizes[32] / 4 + 2 * 4 * 100


def test_learning_rates_scale_with_the_batch() -> None:
    assert scaling.linear(0.1, 8192, 256) == pytest.approx(3.2)
    assert scaling.sqrt(0.1, 1024, 256) == pytest.approx(0.2)
    assert scaling.scaled("none", 0.1, 8192, 256) == 0.1
    assert scaling.scaled("sqrt", 0.1, 512, 256) == pytest.approx(0.1 * math.sqrt(2))
    with pytest.raises(UserError, match="linear"):
        scaling.scaled("cubic", 0.1, 2, 1)
    with pytest.raises(UserError, match="row"):
        scaling.linear(0.1, 0, 256)
