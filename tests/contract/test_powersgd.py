"""PowerSGD against the paper's algorithms in NumPy float64, and against what a low-rank approximation must be."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contract.collective_exam import on_ranks
from torch import Tensor

from headrace.comm import LocalCollective, Metered
from headrace.strategies.overlap import Overlap
from headrace.strategies.powersgd import PowerSGD, PowerSGDConfig, orthonormal
from headrace.strategies.reducers import ordered

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"a": (40, 30), "small": (5,), "row": (1, 900), "c": (24, 3, 5)}
MATRICES = {"a": (40, 30), "c": (24, 15)}
Grads = dict[str, Tensor]


def gradients(rank: int, step: int) -> Grads:
    """One direction that all steps and ranks share, and noise."""
    g = torch.Generator().manual_seed(1000 * step + rank)
    fixed = torch.Generator().manual_seed(77)
    found = {}
    for name, shape in SHAPES.items():
        n = shape[0]
        m = int(np.prod(shape)) // n
        common = torch.randn(n, 1, generator=fixed) @ torch.randn(1, m, generator=fixed)
        found[name] = (common + 0.5 * torch.randn(n, m, generator=g)).view(shape)
    return found


def reducer(rank: int = 2, decay: float = 1.0, bucket_bytes: int = 1 << 20) -> PowerSGD:
    return PowerSGD(PowerSGDConfig(rank=rank, decay=decay, min_numel=100, seed=3), ordered(bucket_bytes))


def steps(c: Any, made: PowerSGD, count: int, of: Callable[[int, int], Grads] = gradients) -> list[Grads]:
    found = []
    for step in range(count):
        found.append(made.reduce(of(c.rank, step), c))
        made.settle(True)
    return found


def gram_schmidt(p: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As the paper has it: column by column."""
    basis = p.copy()
    for k in range(basis.shape[1]):
        for before in range(k):
            basis[:, k] -= (basis[:, before] @ basis[:, k]) * basis[:, before]
        basis[:, k] /= np.linalg.norm(basis[:, k])
    return basis


def paper(size: int, count: int, first: dict[str, Tensor]) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Algorithms 1 and 2 without momentum, as means; the result is what the update would use."""
    q = {name: start.double().numpy() for name, start in first.items()}
    error = {name: [np.zeros(shape) for _ in range(size)] for name, shape in MATRICES.items()}
    found = []
    for step in range(count):
        given = [gradients(rank, step) for rank in range(size)]
        updates = {}
        for name, shape in MATRICES.items():
            delta = [given[w][name].double().numpy().reshape(shape) + error[name][w] for w in range(size)]
            basis = gram_schmidt(np.mean([d @ q[name] for d in delta], axis=0))
            own = [d.T @ basis for d in delta]
            q[name] = np.mean(own, axis=0)
            updates[name] = basis @ q[name].T
            error[name] = [d - basis @ o.T for d, o in zip(delta, own, strict=True)]
        found.append(updates)
    return found


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_is_the_papers_algorithm(rank: int) -> None:
    first: dict[str, Tensor] = {}

    def fn(c: LocalCollective) -> list[Grads]:
        made = reducer(rank)
        if c.rank == 0:
            for name, shape in MATRICES.items():
                first[name] = made._matrix(name, torch.zeros(shape)).start
        return steps(c, made, 6)

    results = on_ranks(3, fn)
    for got, want in zip(results[0], paper(3, 6, first), strict=True):
        for name, shape in MATRICES.items():
            np.testing.assert_allclose(got[name].numpy().reshape(shape), 3 * want[name], rtol=0, atol=2e-4)


@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20])
def test_ranks_hold_the_same_bits_and_buckets_change_none(bucket_bytes: int) -> None:
    results = on_ranks(3, lambda c: steps(c, reducer(bucket_bytes=bucket_bytes), 3))
    whole = on_ranks(3, lambda c: steps(c, reducer(), 3))
    exact = on_ranks(3, lambda c: ordered().reduce(gradients(c.rank, 2), c))[0]
    for other in (*results, whole[0]):
        for name, shape in SHAPES.items():
            assert other[2][name].shape == shape
            assert torch.equal(other[2][name], results[0][2][name]), name
    assert all(torch.equal(results[0][2][name], exact[name]) for name in ("small", "row"))
    assert not torch.allclose(results[0][2]["a"], exact["a"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_of_that_rank_is_sent_exactly(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(5)
    left, right = torch.randn(40, 2, generator=g, dtype=dtype), torch.randn(2, 30, generator=g, dtype=dtype)

    def of(rank: int, step: int) -> Grads:
        return {"a": (left * torch.tensor([1.0 + rank, 2.0 - step], dtype=dtype)) @ right}

    for step, got in enumerate(on_ranks(3, lambda c: steps(c, reducer(2), 2, of))[0]):
        want = sum(of(rank, step)["a"] for rank in range(3))
        torch.testing.assert_close(got["a"], want, rtol=0, atol=1e-11 if dtype == torch.float64 else 5e-5)
        assert got["a"].dtype == dtype


def test_a_sum_of_lower_rank_is_not_counted_twice() -> None:
    """P has linearly dependent columns then: a basis that is none would add the same direction up twice."""
    g = torch.Generator().manual_seed(5)
    one = torch.randn(40, 1, generator=g) @ torch.randn(1, 30, generator=g)
    for scale in (1.0, 1e-18, 1e15):
        got = on_ranks(2, lambda c, s=scale: steps(c, reducer(4), 3, lambda *_: {"a": s * one}))[0]
        assert all(torch.allclose(x["a"], 2 * scale * one, rtol=0, atol=2e-5 * scale) for x in got)


def test_a_gradient_that_was_zero_is_sent_when_it_comes() -> None:
    """And does not depend on the first rows, which an arbitrary basis of nothing would look at."""
    g = torch.Generator().manual_seed(5)
    later = torch.randn(40, 1, generator=g) @ torch.randn(1, 30, generator=g)
    later[:8] = 0
    got = on_ranks(2, lambda c: steps(c, reducer(), 4, lambda _, step: {"a": later * (step >= 2)}))[0]
    assert not got[1]["a"].any()
    torch.testing.assert_close(got[3]["a"], 2 * later, rtol=0, atol=1e-4)


def test_the_warm_start_finds_the_best_approximation() -> None:
    g = torch.Generator().manual_seed(9)
    basis = torch.linalg.qr(torch.randn(40, 30, generator=g, dtype=torch.float64))
    other = torch.linalg.qr(torch.randn(30, 30, generator=g, dtype=torch.float64))
    values = torch.tensor([8.0, 4.0, 2.0] + [0.5] * 27, dtype=torch.float64)
    whole = ((basis.Q * values) @ other.Q.T).float()
    best = (basis.Q[:, :3] * values[:3]) @ other.Q[:, :3].T
    got = on_ranks(2, lambda c: steps(c, reducer(3, decay=0.0), 12, lambda *_: {"a": whole / 2}))[0]
    away = [float((x["a"].double() - best).norm()) for x in got]
    assert away[0] > 1.0 and away[-1] < 1e-4


def test_what_was_not_sent_is_still_held() -> None:
    def fn(c: LocalCollective) -> tuple[list[Grads], dict[str, Any]]:
        made = reducer()
        return steps(c, made, 8), made.state_dict()["units"]

    results = on_ranks(3, fn)
    for name, shape in MATRICES.items():
        given = sum(gradients(rank, step)[name].double() for rank in range(3) for step in range(8)).view(shape)
        got = sum(x[name].double() for x in results[0][0]).view(shape)
        held = sum(units[name]["memory"].double() for _, units in results)
        torch.testing.assert_close(got + held, given, rtol=0, atol=1e-4)
        assert float(held.norm()) > 1.0


def test_a_step_given_up_leaves_nothing_and_a_saved_state_goes_on() -> None:
    def fn(c: LocalCollective) -> tuple[list[Grads], Grads, bool]:
        made = reducer()
        steps(c, made, 2)
        made.reduce({name: g * torch.inf for name, g in gradients(c.rank, 9).items()}, c)
        made.settle(False)
        file = io.BytesIO()
        torch.save(made.state_dict(), file)
        file.seek(0)
        resumed = reducer()
        resumed.load_state_dict(torch.load(file, weights_only=True))
        return steps(c, reducer(), 3), resumed.reduce(gradients(c.rank, 2), c), set(made._kept) == set(MATRICES)

    for whole, resumed, named in on_ranks(3, fn):
        assert all(torch.equal(whole[2][name], resumed[name]) for name in SHAPES) and named
    with pytest.raises(ValueError, match="not compressed then"):
        reducer().load_state_dict({})


def test_memory_follows_the_scale_of_the_loss() -> None:
    def fn(c: LocalCollective, scale: float) -> Grads:
        made = reducer()
        made.reduce(gradients(c.rank, 0), c)
        made.settle(True, scale)
        return made.reduce({name: scale * g for name, g in gradients(c.rank, 1).items()}, c)

    plain, scaled = on_ranks(2, lambda c: fn(c, 1.0))[0], on_ranks(2, lambda c: fn(c, 4.0))[0]
    assert all(torch.equal(4 * plain[name], scaled[name]) for name in SHAPES)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_arrives(bad: float) -> None:
    def fn(c: LocalCollective) -> Grads:
        grads = gradients(c.rank, 0)
        if c.rank == 1:
            grads["a"][3, 4] = bad
        made = reducer()
        summed = made.reduce(grads, c)
        made.settle(True)
        assert all(torch.isfinite(x).all() for state in made._kept.values() for x in state.values())
        return summed

    for got in on_ranks(2, fn):
        assert not torch.isfinite(got["a"]).all() and torch.isfinite(got["c"]).all()


@pytest.mark.parametrize(("size", "dtype"), [(2, torch.float32), (4, torch.float64), (2, torch.bfloat16)])
@pytest.mark.parametrize("small", [(), ("small",)])
def test_bytes_are_those_of_the_formula(size: int, dtype: torch.dtype, small: tuple[str, ...]) -> None:
    """Small tensors of the type that matrices are multiplied in take no operation of their own."""

    def fn(c: LocalCollective) -> tuple[int, dict[str, int], float]:
        metered, made = Metered(c), reducer()
        made.reduce({name: gradients(c.rank, 0)[name].to(dtype) for name in (*MATRICES, *small)}, metered)
        return metered.sent_bytes, dict(metered.calls), made.figures()["bytes_after"]

    results = on_ranks(size, fn)
    expected = max(4, dtype.itemsize) * sum(2 * (n + m) for n, m in MATRICES.values())
    whole = expected + dtype.itemsize * sum(math.prod(SHAPES[name]) for name in small)
    assert sum(sent for sent, _, _ in results) == 2 * (size - 1) * whole  # ranks' chunks differ by a number
    sums = 2 + (bool(small) and dtype == torch.bfloat16)
    for sent, calls, out in results:
        assert abs(sent - 2 * (size - 1) * whole / size) <= 8 * size
        assert calls == ({"allgather": sums} if size == 2 else {"alltoall": sums, "allgather": sums})
        assert out == expected


def test_half_precision_is_worked_on_in_float32() -> None:
    def fn(c: LocalCollective, dtype: torch.dtype) -> Grads:
        made = reducer()
        return steps(c, made, 3, lambda r, s: {n: gradients(r, s)[n].bfloat16().to(dtype) for n in MATRICES})[2]

    half, full = (on_ranks(2, lambda c, d=d: fn(c, d))[0] for d in (torch.bfloat16, torch.float32))
    assert all(half[name].dtype == torch.bfloat16 for name in MATRICES)
    assert all(torch.equal(half[name], full[name].bfloat16()) for name in MATRICES)


def test_one_rank_is_left_alone() -> None:
    grads = gradients(0, 0)
    got = on_ranks(1, lambda c: reducer().reduce(grads, c))[0]
    assert all(got[name] is grads[name] for name in SHAPES)


def test_an_exchange_during_backward_changes_no_bit() -> None:
    def fn(c: LocalCollective, overlap: bool) -> list[Grads]:
        model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Tanh(), torch.nn.Linear(40, 30))
        params, first = dict(model.named_parameters()), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for param in params.values():  # ranks are threads, and torch's own generator is theirs together
                param.copy_(0.3 * torch.randn(param.shape, generator=first))
        made: Any = reducer(bucket_bytes=2000)
        made = Overlap(made, c, params) if overlap else made
        found = []
        for step in range(3):
            model.zero_grad()
            x = torch.randn(8, 30, generator=torch.Generator().manual_seed(10 * step + c.rank))
            if overlap:
                with made.backward():
                    model(x).square().sum().backward()
            else:
                model(x).square().sum().backward()
            found.append(made.reduce({name: p.grad for name, p in params.items()}, c))
            made.settle(True)
        return found

    plain, overlapped = on_ranks(2, lambda c: fn(c, False)), on_ranks(2, lambda c: fn(c, True))
    for a, b in zip(plain[0], overlapped[1], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_basis_does_not_turn_with_signs() -> None:
    p = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    basis = orthonormal(p)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), rtol=0, atol=1e-6)
    assert (torch.diagonal(basis.T @ p) > 0).all()
    np.testing.assert_allclose(basis.numpy(), gram_schmidt(p.double().numpy()), rtol=0, atol=1e-6)
