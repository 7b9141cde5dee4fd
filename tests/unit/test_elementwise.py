"""Rules in blocks: every way of cutting gives the same, and weight decay is one for all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headrace import optim
from headrace.errors import UserError
from headrace.optim import OPTIMIZERS, cache_blocks, elementwise
from headrace.optim.spec import NEEDS_MODEL
from headrace.testing.exams import EXAMS
from headrace.testing.optim_exam import make

pytestmark = pytest.mark.usefixtures("one_thread")


ELEMENTWISE = [
    name
    for name, spec in OPTIMIZERS.items()
    if isinstance(spec.factory, type) and issubclass(spec.factory, elementwise.Elementwise)
]
SHAPES = [(3,), (40, 5), (2, 2), (1,), (7, 3), (), (33,), (0, 4)]


def _trained(
    name: str, options: dict[str, object], layout: torch.memory_format = torch.contiguous_format
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    params.append(nn.Parameter(torch.randn(2, 8, 4, 4, generator=generator).to(memory_format=layout)))
    optimizer = make(OPTIMIZERS[name], params, **options)
    for step in range(4):
        for i, param in enumerate(params):
            # The first tensor misses a step: its numbers are behind those of the others.
            param.grad = torch.randn(param.shape, generator=generator) if (step, i) != (1, 0) else None
        params[1].grad = torch.randn(40, 1, generator=generator).expand(40, 5)
        optimizer.step()
    return [param.detach() for param in params]


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("block", [7, 64, 150])
def test_blocks_of_any_size_give_what_whole_tensors_give(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in EXAMS[name].settings:
        monkeypatch.setattr(cache_blocks, "ONE_THREAD", 1 << 30)
        whole = _trained(name, options)
        monkeypatch.setattr(cache_blocks, "ONE_THREAD", block)
        for layout in (torch.contiguous_format, torch.channels_last):
            for p, q in zip(_trained(name, options, layout), whole, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_large_tensor_is_cut_and_small_ones_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[list[int]] = []

    class Watched(optim.lion.Lion):
        def rule(self, params, grads, states, options):  # type: ignore[no-untyped-def]
            sizes.append([p.numel() for p in params])
            super().rule(params, grads, states, options)

    monkeypatch.setattr(cache_blocks, "ONE_THREAD", 10)
    params = [nn.Parameter(torch.ones(n)) for n in (4, 5, 3, 24, 2)]
    for param in params:
        param.grad = torch.ones_like(param)
    Watched(params, **optim.lion.SPEC.defaults).step()
    assert sizes == [[4, 5], [3], [10], [10], [4], [2]]
    assert all(bool((p == 1.0 - 1e-4).all()) for p in params)


def test_other_devices_take_all_tensors_at_once() -> None:
    tensor = torch.ones(cache_blocks.MANY_THREADS + 1, device="meta")
    assert list(cache_blocks.packs([tensor, tensor[:3]], cache_blocks.block_size(tensor.device))) == [[0, 1]]


DECAYING = [n for n, spec in OPTIMIZERS.items() if "decoupled" in spec.defaults and NEEDS_MODEL not in spec.traits]


@pytest.mark.parametrize("name", DECAYING)
def test_decay_of_either_kind_without_a_gradient(name: str) -> None:
    """With a zero gradient at the first step decoupled decay is the whole step: the factor 1 - lr weight_decay."""
    param = nn.Parameter(torch.full((3, 2), 4.0))
    param.grad = torch.zeros(3, 2)
    optim.create(name, [param], lr=0.01, weight_decay=0.5, decoupled=True).step()
    torch.testing.assert_close(param.detach(), torch.full((3, 2), 4.0 * (1.0 - 0.01 * 0.5)))
    apart = param.detach().clone()
    optim.create(name, [param], lr=0.01, weight_decay=0.5, decoupled=False).step()
    assert bool((param < apart).all()), "L2 decay makes a gradient of its own"


def test_decay_of_groups_and_of_loaded_state() -> None:
    """torch's rules: each group has its own decay, and it is still there after a step and in the state."""
    a, b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    a.grad, b.grad = torch.zeros(2), torch.zeros(2)
    groups = [{"params": [a]}, {"params": [b], "weight_decay": 0.0}]
    optimizer = optim.create("momentum", groups, lr=0.1, weight_decay=1.0, decoupled=True)
    optimizer.step()
    again = optim.create("momentum", groups, lr=0.1, weight_decay=0.0)
    again.load_state_dict(optimizer.state_dict())
    again.step()
    torch.testing.assert_close(a.detach(), torch.full((2,), 0.81))
    assert bool((b == 1.0).all())
    assert [group["weight_decay"] for group in again.param_groups] == [1.0, 0.0]


def test_a_centred_variance_does_not_fall_below_zero() -> None:
    """The same large gradient again and again: torch's difference of means is of the size of rounding, or NaN."""
    param = nn.Parameter(torch.zeros(1000))
    optimizer = optim.create("rmsprop", [param], centered=True, alpha=0.9, eps=1.0)
    for _ in range(200):
        param.grad = torch.linspace(900.0, 1100.0, 1000)
        optimizer.step()
    assert bool(param.isfinite().all())
    assert float(optimizer.state[param]["v"].min()) >= 0.0


def test_adafactor_takes_gradients_near_the_ends_of_float32() -> None:
    for size in (1e-22, 1e-15, 1e15, 1e37):
        param = nn.Parameter(torch.ones(4, 3))
        optimizer = optim.create("adafactor", [param])
        for _ in range(3):
            param.grad = size * torch.arange(1.0, 13.0).view(4, 3)
            optimizer.step()
        assert bool(param.isfinite().all()), size
        assert size == 1e-22 or bool((param != 1.0).all()), size


def test_options_out_of_range() -> None:
    param = [nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(UserError, match=r"adam_betas\[0\]"):
        optim.create("muon", param, adam_betas=(1.0, 0.9))
    with pytest.raises(UserError, match="clip_threshold"):
        optim.create("adafactor", param, clip_threshold=0.0)
    with pytest.raises(UserError, match="beta2_decay"):
        optim.create("adafactor", param, beta2_decay=-0.8)
