"""Reducers against slow references: the order of every sum is what the documentation says."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from contract.collective_exam import Clicks, gradients, on_ranks, train
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.comm import CollectiveError, LocalCollective, LocalGroup, Metered
from headrace.comm.sums import sum_in_rank_order
from headrace.models.embedding import sum_rows
from headrace.strategies import REDUCERS, STRATEGIES, Overlap, create, pays
from headrace.strategies.reducers import buckets
from headrace.strategies.sparse import coalesced

SIZES = [1, 2, 3, 4]


def slow_sum_rows(ids: torch.Tensor, rows: torch.Tensor) -> dict[int, torch.Tensor]:
    """Row by row in order of occurrence."""
    sums: dict[int, torch.Tensor] = {}
    for i, row in zip(ids.tolist(), rows, strict=True):
        sums[i] = sums[i] + row if i in sums else row.clone()
    return sums


def slow_reference(size: int, step: int) -> dict[str, torch.Tensor]:
    """The sum over ranks of real gradients, element by element in rank order; tables row by row."""
    per_rank = [gradients(Clicks(torch.Generator().manual_seed(3)), r, step) for r in range(size)]
    total = {}
    for name, first in per_rank[0].items():
        if not first.is_sparse:
            sums = first.clone()
            for grads in per_rank[1:]:
                sums = sums + grads[name]
            total[name] = sums
            continue
        parts = [slow_sum_rows(g[name]._indices()[0], g[name]._values()) for g in per_rank]
        ids = torch.tensor([i for part in parts for i in part])
        rows = slow_sum_rows(ids, torch.stack([row for part in parts for row in part.values()]))
        total[name] = torch.zeros(first.shape)
        for i, row in rows.items():
            total[name][i] = row
    return total


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bucket_bytes", [1, 700, 1 << 20])
def test_ordered_has_the_bits_of_the_slow_sum(size: int, bucket_bytes: int) -> None:
    def fn(c: LocalCollective) -> dict[str, torch.Tensor]:
        reducer = REDUCERS["ordered"].factory(bucket_bytes=bucket_bytes)
        return reducer.reduce(gradients(Clicks(torch.Generator().manual_seed(3)), c.rank, 2), c)

    expected = slow_reference(size, 2)
    for got in on_ranks(size, fn):
        assert list(got) == list(expected)
        for name, want in expected.items():
            dense = got[name].to_dense() if got[name].is_sparse else got[name]
            assert torch.equal(dense, want), name
            assert got[name].is_sparse == name.startswith("tables")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wide", [None, torch.float32])
@pytest.mark.parametrize("n", [0, 1, 7, 1000, 150_000])
def test_sums_in_rank_order_number_by_number(size: int, wide: torch.dtype | None, n: int) -> None:
    """In half precision, where the order shows; two ranks need one round trip, and as many bytes as a ring."""

    def own(rank: int) -> torch.Tensor:
        return (torch.randn(n, generator=torch.Generator().manual_seed(rank)) * 2e4).clamp(-6e4, 6e4).half()

    def fn(c: LocalCollective) -> tuple[torch.Tensor, Metered]:
        given = own(c.rank)
        got = sum_in_rank_order(given, metered := Metered(c), wide)
        assert torch.equal(given, own(c.rank)) and (not n or got.data_ptr() != given.data_ptr())
        return got, metered

    want = own(0).to(wide or torch.float16)
    for rank in range(1, size):
        want = want + own(rank).to(want.dtype)
    want = want.clamp(-65504, 65504).half() if wide else want
    results = on_ranks(size, fn)
    for got, metered in results:
        assert got.dtype == torch.float16 and torch.equal(got, want)
        assert metered.calls == ({"allgather": 1} if size == 2 else {"alltoall": 1, "allgather": 1})
    assert sum(metered.sent_bytes for _, metered in results) == 2 * (size - 1) * 2 * n


@pytest.mark.parametrize("name", sorted(REDUCERS))
@pytest.mark.parametrize("size", SIZES)
def test_every_reducer_sums(name: str, size: int) -> None:
    def fn(c: LocalCollective) -> dict[str, torch.Tensor]:
        return REDUCERS[name].factory().reduce(gradients(Clicks(torch.Generator().manual_seed(3)), c.rank, 0), c)

    expected = slow_reference(size, 0)
    for got in on_ranks(size, fn):
        for key, want in expected.items():
            dense = got[key].to_dense() if got[key].is_sparse else got[key]
            torch.testing.assert_close(dense, want)


@pytest.mark.parametrize("name", sorted(n for n, spec in REDUCERS.items() if spec.same_bits))
def test_buckets_and_ranks_do_not_change_what_all_ranks_agree_on(name: str) -> None:
    for size in (2, 3):
        digests = {d for b in (1, 300, 1 << 22) for d in on_ranks(size, lambda c, b=b: train(c, name, b))}
        assert len(digests) == 1


@pytest.mark.parametrize("size", SIZES)
def test_an_exchange_during_backward_changes_no_bit(size: int) -> None:
    plain = on_ranks(size, lambda c: train(c, "ordered"))
    for bucket_bytes in (1, 200, 1 << 20):
        assert on_ranks(size, lambda c, b=bucket_bytes: train(c, "ordered", b, overlap=True)) == plain


class Chain(torch.nn.Module):
    """Three layers, of which the middle one can be left out of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor, used: tuple[int, ...]) -> torch.Tensor:
        for k in used:
            x = self.layers[k](x)
        return x.sum()


def test_buckets_leave_during_backward_the_last_parameters_first() -> None:
    def fn(c: LocalCollective) -> list[str]:
        model, order, on_its_way = Chain(), [], threading.Event()
        reducer = REDUCERS["ordered"].factory(bucket_bytes=1)

        class Watched(type(reducer)):  # type: ignore[misc]
            def reduce_bucket(self, bucket: dict[str, torch.Tensor], collective: LocalCollective) -> object:
                order.extend(bucket)
                on_its_way.set()
                return super().reduce_bucket(bucket, collective)

        overlap = Overlap(Watched(reducer.sum_flat, 1), c, dict(model.named_parameters()))

        def wait(grad: torch.Tensor) -> None:
            # Holds backward up before the first layer's gradient until the last layer's is on its way.
            assert on_its_way.wait(20)

        model.layers[0].weight.register_hook(wait)
        with overlap.backward():
            model(torch.ones(2, 4), (0, 1, 2)).backward()
        overlap.close()
        return order

    assert on_ranks(2, fn) == [["layers.2.weight", "layers.1.weight", "layers.0.weight"]] * 2


def test_a_parameter_without_gradient_holds_nothing_up() -> None:
    def fn(c: LocalCollective) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = Chain()
        overlap = Overlap(REDUCERS["ordered"].factory(bucket_bytes=100), c, dict(model.named_parameters()))
        with overlap.backward():
            model(torch.full((2, 4), 1.0 + c.rank), (0, 2)).backward()
        own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        summed = overlap.reduce(own, c)
        overlap.close()
        expected = REDUCERS["ordered"].factory().reduce(own, c)
        assert summed.keys() == {"layers.0.weight", "layers.2.weight"}
        assert all(torch.equal(summed[name], expected[name]) for name in expected)
        return summed

    first, second = on_ranks(2, fn)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_failed_exchange_and_a_failed_backward_are_raised_and_the_next_step_is_clean() -> None:
    def fn(c: LocalCollective) -> str:
        model = Chain()
        overlap = Overlap(REDUCERS["ordered"].factory(bucket_bytes=1), c, dict(model.named_parameters()))
        with pytest.raises(ZeroDivisionError), overlap.backward():
            raise ZeroDivisionError
        if c.rank == 1:
            c._group.leave(1)
            return ""
        with pytest.raises(CollectiveError) as caught, overlap.backward():
            model(torch.ones(2, 4), (0, 1, 2)).backward()
        overlap.close()
        return str(caught.value)

    assert on_ranks(2, fn) == ["rank 1 ended while others wait for it", ""]


@pytest.mark.parametrize(("wanted", "hosts", "expected"), [
    ("on", "aa", True), ("off", "ab", False), ("auto", "aa", False), ("auto", "ab", True),
])  # fmt: skip
def test_overlap_is_chosen_by_all_ranks_alike(wanted: str, hosts: str, expected: bool) -> None:
    assert on_ranks(2, lambda c: pays(wanted, c, hosts[c.rank])) == [expected] * 2


@pytest.mark.parametrize("name", sorted(REDUCERS))
def test_one_rank_is_no_reducer(name: str) -> None:
    grads = gradients(Clicks(torch.Generator().manual_seed(3)), 0, 0)
    got = REDUCERS[name].factory().reduce(grads, LocalGroup(1).collective(0))
    for key, grad in grads.items():
        if grad.is_sparse:
            assert got[key].is_coalesced() and not grad.is_coalesced()
            want = slow_sum_rows(grad._indices()[0], grad._values())
            assert got[key]._indices()[0].tolist() == sorted(want)
            assert all(torch.equal(row, want[i]) for i, row in zip(sorted(want), got[key]._values(), strict=True))
        else:
            assert got[key] is grad


def test_tables_are_never_sent_dense() -> None:
    rows, dim, touched = 1_000_000, 16, 10

    def fn(c: LocalCollective) -> tuple[int, int]:
        ids = torch.arange(touched) * 1000 + c.rank
        grad = torch.sparse_coo_tensor(ids[None], torch.ones(touched, dim), (rows, dim), check_invariants=False)
        metered = Metered(c)
        got = REDUCERS["ordered"].factory().reduce({"table": grad}, metered)
        return metered.sent_bytes, got["table"]._nnz()

    assert on_ranks(3, fn) == [(2 * touched * (8 + 4 * dim), 3 * touched)] * 3


def test_a_rank_without_rows_takes_part() -> None:
    def fn(c: LocalCollective) -> list[list[float]]:
        n = 2 * c.rank
        ids = torch.tensor([[3, 1] * c.rank], dtype=torch.int64).reshape(1, n)
        grad = torch.sparse_coo_tensor(ids, torch.ones(n, 2), (5, 2), check_invariants=False)
        summed: list[list[float]] = REDUCERS["ordered"].factory().reduce({"t": grad}, c)["t"].to_dense().tolist()
        return summed

    assert on_ranks(3, fn) == [[[0, 0], [3, 3], [0, 0], [3, 3], [0, 0]]] * 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]))
def test_sum_rows_keeps_the_order_of_equal_ids(ids: list[int], dim: int, dtype: torch.dtype) -> None:
    rows = torch.randn(len(ids), dim, generator=torch.Generator().manual_seed(len(ids)), dtype=dtype)
    got_ids, got = sum_rows(torch.tensor(ids, dtype=torch.int64), rows)
    want = slow_sum_rows(torch.tensor(ids), rows)
    assert got_ids.tolist() == sorted(want)
    assert all(torch.equal(row, want[i]) for i, row in zip(sorted(want), got, strict=True))


def test_sum_rows_at_the_size_of_a_batch_does_not_depend_on_threads() -> None:
    g = torch.Generator().manual_seed(0)
    ids, rows = (torch.rand(60_000, generator=g) ** 6 * 5000).long(), torch.randn(60_000, 17, generator=g)
    before = torch.get_num_threads()
    try:
        sums = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sums.append(sum_rows(ids, rows)[1])
    finally:
        torch.set_num_threads(before)
    want = slow_sum_rows(ids, rows)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], torch.stack([want[i] for i in sorted(want)]))


def test_coalesced_leaves_a_coalesced_gradient_alone() -> None:
    grad = torch.sparse_coo_tensor([[2, 0, 2]], torch.ones(3, 2), (4, 2)).coalesce()
    assert coalesced(grad) is grad


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=30), st.integers(1, 200))
def test_buckets_keep_order_and_bounds(tensors: list[tuple[int, bool]], limit: int) -> None:
    grads = {
        f"p{i}": torch.zeros(n, dtype=torch.float64 if wide else torch.float32) for i, (n, wide) in enumerate(tensors)
    }
    cut = list(buckets(grads, limit))
    assert [name for bucket in cut for name in bucket] == list(grads)
    for bucket in cut:
        assert len({g.dtype for g in bucket.values()}) == 1
        assert len(bucket) == 1 or sum(g.nbytes for g in bucket.values()) <= limit


@pytest.mark.parametrize("name", sorted(name for name, spec in STRATEGIES.items() if not spec.remote))
def test_strategy_state_is_json_and_its_own(name: str) -> None:
    strategy = create(name, REDUCERS["ordered"].factory(), LocalGroup(1).collective(0))
    state = json.loads(json.dumps(strategy.state_dict()))
    strategy.load_state_dict(state)
    assert strategy.state_dict() == state
    assert bool(state) == STRATEGIES[name].stateful
    with pytest.raises(ValueError, match="another strategy"):
        strategy.load_state_dict({"momentum of another": 1})
