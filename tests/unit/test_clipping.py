"""Clipping is torch's, or the paper's in NumPy; a row-sparse gradient is clipped as the dense one it stands for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from contract.collective_exam import on_ranks
from torch import Tensor, nn

from headrace.comm.local import LocalCollective
from headrace.errors import UserError
from headrace.optim.clipping import CLIPPINGS, Clipped, ClippingConfig, Shards, clip, clip_gradients, global_norm

SHAPES = {"table": (9, 4), "top.weight": (5, 3), "top.bias": (5,), "conv": (2, 3, 2, 2), "scale": ()}
LIMITS = {"value": 0.5, "norm": 2.0, "adaptive": 0.3}


def made(seed: int = 0, size: float = 1.0) -> dict[str, nn.Parameter]:
    """Parameters with gradients; some units of the weights are zero, some rows of the table have no gradient."""
    generator = torch.Generator().manual_seed(seed)
    params = {n: nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for n, s in SHAPES.items()}
    for param in params.values():
        param.grad = size * torch.randn(param.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        params["table"][2] = 0.0
    params["table"].grad[[0, 5, 8]] = 0.0
    return params


def grads(params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.grad.to_dense().clone() for name, p in params.items() if p.grad is not None}


def sparsely(params: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    grad = params["table"].grad
    assert grad is not None
    params["table"].grad = None
    rows = grad.abs().sum(1).nonzero()[:, 0]
    params["table"].grad = torch.sparse_coo_tensor(
        rows[None], grad[rows], grad.shape, is_coalesced=True, check_invariants=True
    )
    return params


def adaptive_reference(weights: np.ndarray[Any, Any], grad: np.ndarray[Any, Any], limit: float, eps: float) -> Any:
    """Brock et al. 2021, eq. 3, unit after unit."""
    if weights.ndim < 2:
        weights, grad = weights.reshape(1, -1), grad.reshape(1, -1)
        return adaptive_reference(weights, grad, limit, eps)[0]
    out = grad.copy()
    for i in range(len(weights)):
        w, g = math.sqrt((weights[i] ** 2).sum()), math.sqrt((grad[i] ** 2).sum())
        if g / max(w, eps) > limit:
            out[i] = limit * max(w, eps) / g * grad[i]
    return out


def expected(rule: str, params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    copies = [nn.Parameter(p.detach().clone()) for p in params.values()]
    for copy, grad in zip(copies, grads(params).values(), strict=True):
        copy.grad = grad
    if rule == "value":
        nn.utils.clip_grad_value_(copies, LIMITS[rule], foreach=False)
    elif rule == "norm":
        nn.utils.clip_grad_norm_(copies, LIMITS[rule], foreach=False)
    else:
        return {
            name: torch.tensor(adaptive_reference(p.detach().numpy(), p.grad.numpy(), LIMITS[rule], 1e-3)).view(p.shape)
            for name, p in params.items()
        }
    return {name: copy.grad for name, copy in zip(params, copies, strict=True) if copy.grad is not None}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rule", CLIPPINGS)
def test_clipped_as_the_reference(rule: str, sparse: bool) -> None:
    params = made()
    wanted, before = expected(rule, params), grads(params)
    done = clip(sparsely(params) if sparse else params, ClippingConfig(rule=rule, limit=LIMITS[rule]))
    assert done.clipped
    assert done.norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in before.values())), rel=1e-12)
    for name, grad in grads(params).items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-6, atol=0.0)  # torch adds 1e-6 to the norm


@pytest.mark.parametrize("rule", CLIPPINGS)
def test_what_is_small_keeps_its_bits(rule: str) -> None:
    params = sparsely(made(size=1e-6))
    before = grads(params)
    done = clip(params, ClippingConfig(rule=rule, limit=LIMITS[rule]))
    assert not done.clipped
    assert all(torch.equal(before[name], grad) for name, grad in grads(params).items())


@pytest.mark.parametrize("rule", CLIPPINGS)
def test_excluded_parameters_have_no_part_in_it(rule: str) -> None:
    params, without = made(), made()
    before = grads(params)
    left = {name: p for name, p in without.items() if not name.startswith("top.")}
    config = ClippingConfig(rule=rule, limit=LIMITS[rule], exclude=("top.*",))
    assert clip(params, config) == clip(left, ClippingConfig(rule=rule, limit=LIMITS[rule]))
    for name, grad in grads(params).items():
        assert torch.equal(grad, before[name] if name.startswith("top.") else grads(left)[name])


def test_nothing_is_done_without_a_rule_and_to_parameters_without_gradient() -> None:
    params = made()
    before = grads(params)
    assert clip(params, ClippingConfig()) == (0.0, False)
    params["conv"].grad = None
    assert clip(params, ClippingConfig(rule="norm", limit=1e9)).norm > 0.0
    assert all(torch.equal(before[name], grad) for name, grad in grads(params).items())


def test_gradients_are_clipped_to_1_where_no_limit_is_given() -> None:
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    assert clip({"w": param}, ClippingConfig(rule="norm")) == (5.0, True)
    torch.testing.assert_close(param.grad, torch.tensor([0.6, 0.8]))


def test_a_norm_too_large_for_float32_is_still_one() -> None:
    param = nn.Parameter(torch.zeros(4))
    param.grad = torch.full((4,), 1e30)
    done = clip({"w": param}, ClippingConfig(rule="norm", limit=1.0))
    assert done.norm == pytest.approx(2e30)
    torch.testing.assert_close(param.grad, torch.full((4,), 0.5))
    assert global_norm([]) == 0.0


def test_gradients_of_a_rules_own_are_clipped_too() -> None:
    params = made()
    own = {"conv": torch.full(SHAPES["conv"], 9.0, dtype=torch.float64)}
    before = grads(params)
    assert clip_gradients(params, own, ClippingConfig(rule="value", limit=1.0)).clipped
    assert bool((own["conv"] == 1.0).all())
    assert all(torch.equal(before[name], grad) for name, grad in grads(params).items())


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="did you mean norm"):
        ClippingConfig(rule="norn")
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="limit above 0"):
            ClippingConfig(rule="norm", limit=bad)


@pytest.mark.parametrize("limit", [1.0, 100.0])
def test_ranks_that_hold_rows_of_a_table_clip_by_the_norm_of_all(limit: float) -> None:
    """Three ranks with 3 rows of the table each, and the rest on all of them: as one that has everything."""
    whole = made()
    told = clip(whole, ClippingConfig(rule="norm", limit=limit))

    def part(collective: LocalCollective) -> tuple[Clipped, dict[str, Tensor]]:
        params = made()
        rows = slice(3 * collective.rank, 3 * collective.rank + 3)
        own = nn.Parameter(params["table"].detach()[rows])
        own.grad = grads(params)["table"][rows]
        params["table"] = own
        return clip(params, ClippingConfig(rule="norm", limit=limit), Shards(frozenset({"table"}), collective)), grads(
            params
        )

    parts = on_ranks(3, part)
    for clipped, found in parts:
        assert clipped.clipped == told.clipped == (limit == 1.0) and clipped.norm == pytest.approx(told.norm, rel=1e-12)
        for name in SHAPES:
            if name != "table":
                torch.testing.assert_close(found[name], grads(whole)[name])
    torch.testing.assert_close(torch.cat([found["table"] for _, found in parts]), grads(whole)["table"])


def test_one_rank_that_clips_is_told_to_all() -> None:
    """By value only the rank with the large number changes anything."""

    def part(collective: LocalCollective) -> bool:
        table = nn.Parameter(torch.zeros(2, 2))
        table.grad = torch.full((2, 2), 0.1 if collective.rank else 9.0)
        return clip(
            {"table": table}, ClippingConfig(rule="value", limit=1.0), Shards(frozenset({"table"}), collective)
        ).clipped

    assert on_ranks(2, part) == [True, True]
