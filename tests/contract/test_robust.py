"""Aggregation against slow references and planted attackers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contract.collective_exam import on_ranks
from torch import Tensor

from headrace.comm import LocalCollective, Metered
from headrace.errors import UserError
from headrace.strategies.aggregation import AGGREGATIONS, AggregationConfig, aggregated, check_aggregation
from headrace.strategies.overlap import Overlap
from headrace.strategies.reducers import ordered
from headrace.strategies.robust import choose, median, ranked, squares, trimmed_mean

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"a": (6, 7), "b": (3,), "c": (41,)}
TABLE = (30, 4)
Grads = dict[str, Tensor]
Vector = np.ndarray[Any, Any]


def gradients(rank: int, table: bool = False) -> Grads:
    """Rank 3 is far away; ids of the table repeat, and rank 1 touches nothing of it."""
    g = torch.Generator().manual_seed(rank)
    found = {name: torch.randn(shape, generator=g) * (1 if rank != 3 else 50) for name, shape in SHAPES.items()}
    if table:
        n = 0 if rank == 1 else 20
        ids, rows = torch.randint(0, TABLE[0], (1, n), generator=g), torch.randn(n, TABLE[1], generator=g)
        found["t"] = torch.sparse_coo_tensor(ids, rows, TABLE, check_invariants=False)
    return found


def vector(grads: Grads) -> Vector:
    return torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in grads.values()]).double().numpy()


def reduced(size: int, name: str, table: bool = False, bucket_bytes: int = 1 << 20, **options: Any) -> list[Grads]:
    def fn(c: LocalCollective) -> Grads:
        made = aggregated(AggregationConfig(name=name, options=options), ordered(bucket_bytes))
        return made.reduce(gradients(c.rank, table), c)

    results = on_ranks(size, fn)
    for other in results:
        assert not isinstance(other, Exception), other
        assert list(other) == list(results[0])
        for key, g in other.items():
            assert g.is_sparse == (key == "t") and g.shape == results[0][key].shape
            assert torch.equal(g.to_dense() if g.is_sparse else g, _dense(results[0][key])), key
    return results


def _dense(g: Tensor) -> Tensor:
    return g.to_dense() if g.is_sparse else g


def slow_krum(vectors: list[Vector], f: int, m: int) -> Vector:
    n, scores = len(vectors), []
    for i in range(n):
        apart = sorted(float(((vectors[i] - vectors[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(apart[: n - f - 2]))
    best = sorted(range(n), key=lambda i: (scores[i], i))[:m]
    return np.mean([vectors[i] for i in best], axis=0)


def slow_trimmed(vectors: list[Vector], trim: int) -> Vector:
    found = []
    for values in zip(*vectors, strict=True):
        kept = sorted(values)[trim : len(values) - trim]
        found.append(sum(kept) / len(kept))
    return np.array(found)


def slow_clipped(vectors: list[Vector], factor: float) -> Vector:
    norms = [float(np.sqrt((v**2).sum())) for v in vectors]
    limit = factor * sorted(norms)[(len(norms) - 1) // 2]
    return np.mean([v * min(1.0, limit / n) for v, n in zip(vectors, norms, strict=True)], axis=0)


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_median_and_trimmed_mean_are_those_of_every_coordinate(size: int) -> None:
    vectors = [vector(gradients(rank)) for rank in range(size)]
    np.testing.assert_allclose(vector(reduced(size, "median")[0]) / size, np.median(vectors, axis=0), rtol=1e-6)
    for trim in range(1, (size + 1) // 2):
        got = vector(reduced(size, "trimmed_mean", trim=trim)[0]) / size
        np.testing.assert_allclose(got, slow_trimmed(vectors, trim), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(("size", "faulty", "chosen"), [(3, 0, 1), (5, 1, 1), (5, 1, 4), (7, 2, 1), (7, 2, 3)])
def test_krum_is_the_papers(size: int, faulty: int, chosen: int, table: bool) -> None:
    vectors = [vector(gradients(rank, table)) for rank in range(size)]
    want = slow_krum(vectors, faulty, chosen)
    for bucket_bytes in (1, 1 << 20):
        got = reduced(size, "krum", table, bucket_bytes, faulty=faulty, chosen=chosen)[0]
        np.testing.assert_allclose(vector(got) / size, want, rtol=1e-5, atol=1e-6)
        if chosen == 1:
            assert any(torch.equal(got["a"], size * gradients(rank, table)["a"]) for rank in range(size))


def test_krum_sees_who_spoils_tables_alone() -> None:
    def fn(c: LocalCollective) -> Grads:
        ids = torch.arange(10)[None] + c.rank
        rows = torch.ones(10, 4) * (1 if c.rank != 2 else 1000)
        grads = {"dense": torch.ones(5) * (1 + c.rank * (c.rank != 2))}  # rank 2 has the most ordinary dense part
        grads["t"] = torch.sparse_coo_tensor(ids, rows, TABLE, check_invariants=False)
        return aggregated(AggregationConfig(name="krum"), ordered()).reduce(grads, c)

    got = on_ranks(5, fn)[0]
    assert float(got["t"].to_dense().max()) == 5.0


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(("size", "factor"), [(2, 1.0), (4, 0.5), (5, 1.0), (5, 3.0)])
def test_clipping_is_by_the_median_norm(size: int, factor: float, table: bool) -> None:
    vectors = [vector(gradients(rank, table)) for rank in range(size)]
    got = reduced(size, "norm_clip", table, factor=factor)[0]
    np.testing.assert_allclose(vector(got) / size, slow_clipped(vectors, factor), rtol=1e-5, atol=1e-6)
    if size == 5:
        assert not np.allclose(vector(got) / size, np.mean(vectors, axis=0))


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_row_sparse_gradients_are_refused_by_name_where_not_defined(name: str) -> None:
    made = aggregated(AggregationConfig(name=name), ordered())
    for error in on_ranks(3, lambda c: made.reduce(gradients(c.rank, True), c)):
        assert isinstance(error, UserError) and "gradient of t" in str(error)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_bytes_are_those_of_the_formula(name: str) -> None:
    size, numbers = 5, sum(int(np.prod(shape)) for shape in SHAPES.values())

    def fn(c: LocalCollective) -> int:
        metered = Metered(c)
        aggregated(AggregationConfig(name=name), ordered()).reduce(gradients(c.rank), metered)
        return metered.sent_bytes

    more = {"krum": 2 * (size - 1) * 8 * size * size, "norm_clip": size * 8 * (size - 1)}
    assert sum(on_ranks(size, fn)) == 2 * (size - 1) * 4 * numbers + more.get(name, 0)


def test_rows_of_krum_cost_what_they_cost_in_a_sum() -> None:
    def fn(c: LocalCollective) -> int:
        exact, robust = Metered(c), Metered(c)
        ordered().reduce(gradients(c.rank, True), exact)
        aggregated(AggregationConfig(name="krum"), ordered()).reduce(gradients(c.rank, True), robust)
        return robust.sent["allgather"] + robust.sent["alltoall"] - exact.sent["allgather"] - exact.sent["alltoall"]

    assert sum(on_ranks(5, fn)) == 2 * 4 * 8 * 25


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_an_exchange_during_backward_changes_no_bit(name: str) -> None:
    def fn(c: LocalCollective) -> tuple[Grads, Grads]:
        model = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Linear(9, 1))
        params = dict(model.named_parameters())
        overlap = Overlap(aggregated(AggregationConfig(name=name), ordered(40)), c, params)  # type: ignore[arg-type]
        with overlap.backward():
            model(torch.randn(6, 4, generator=torch.Generator().manual_seed(c.rank))).square().sum().backward()
        own = {key: p.grad for key, p in params.items() if p.grad is not None}
        found = overlap.reduce(own, c)
        overlap.close()
        return found, aggregated(AggregationConfig(name=name), ordered()).reduce(own, c)

    for overlapped, plain in on_ranks(3, fn):
        assert all(torch.equal(overlapped[key], plain[key]) for key in plain)


def test_half_precision_is_worked_on_in_float32() -> None:
    def fn(c: LocalCollective) -> Tensor:
        value = torch.tensor([256.0, 1.0, 2.0, 3.0, 1.0][c.rank], dtype=torch.bfloat16)
        made = aggregated(AggregationConfig(name="trimmed_mean"), ordered())
        return made.reduce({"x": value.repeat(7)}, c)["x"]

    got = on_ranks(5, fn)[0]
    assert got.dtype == torch.bfloat16 and torch.equal(got, torch.full((7,), 10.0, dtype=torch.bfloat16))


def test_numbers_that_are_not_finite() -> None:
    """One rank's are outvoted by medians and Krum; clipping lets them through, for the loop to see."""

    def fn(c: LocalCollective, name: str, bad: float) -> Tensor:
        grads = gradients(c.rank % 3)
        if c.rank == 2:
            grads["c"][5] = bad
        return aggregated(AggregationConfig(name=name), ordered()).reduce(grads, c)["c"]

    for bad in (torch.nan, torch.inf, -torch.inf):
        for name in AGGREGATIONS:
            got = on_ranks(5, lambda c, n=name, b=bad: fn(c, n, b))[0]
            assert bool(torch.isfinite(got).all()) == (name != "norm_clip"), (name, bad)


def test_rules_by_hand() -> None:
    x = torch.tensor([[1.0, 9.0], [100.0, 2.0], [3.0, -50.0], [2.0, 4.0]])
    assert median(x).tolist() == [2.5, 3.0] and trimmed_mean(x, 1).tolist() == [2.5, 3.0]
    assert median(x[:3]).tolist() == [3.0, 2.0]
    g = torch.Generator().manual_seed(0)
    for n in range(1, 10):
        some = torch.randn(n, 200, generator=g).round(decimals=1)
        assert torch.equal(torch.stack(ranked(some)), some.sort(dim=0).values)
    far = torch.tensor([[0.0], [1.0], [1.5], [1.2], [90.0]])
    assert squares(far)[0].tolist() == [0.0, 1.0, 2.25, pytest.approx(1.44), 8100.0]
    assert choose(squares(far), 1, 1) == [3] and choose(squares(far), 1, 3) == [1, 2, 3]
    assert choose(torch.zeros(5, 5), 1, 2) == [0, 1]


@pytest.mark.parametrize(("name", "options", "ranks", "words"), [
    ("median", {}, 1, "the median is the mean"), ("median", {}, 2, "the median is the mean"),
    ("trimmed_mean", {}, 2, "3 ranks or more"), ("trimmed_mean", {"trim": 3}, 6, "7 ranks or more"),
    ("trimmed_mean", {"trim": 0}, 6, "1 or more"), ("krum", {}, 4, "5 ranks or more"),
    ("krum", {"faulty": 2}, 6, "7 ranks or more"), ("krum", {"faulty": 0}, 2, "3 ranks or more"),
    ("krum", {"chosen": 5}, 5, "from 1 to"), ("krum", {"chosen": 0}, 5, "from 1 to"), ("krum", {"faulty": -1}, 5, "0"),
    ("norm_clip", {}, 1, "no others"), ("norm_clip", {"factor": 0.0}, 3, "more than 0"),
    ("norm_clip", {"trim": 1}, 3, "no option"), ("medain", {}, 3, "did you mean median"),
    ("none", {"trim": 1}, 3, "no options"),
])  # fmt: skip
def test_what_cannot_be_is_refused(name: str, options: dict[str, Any], ranks: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_aggregation(AggregationConfig(name=name, options=options), ranks)
    assert words in f"{caught.value} {caught.value.remedy}"


def test_what_can_be_is_not_refused() -> None:
    for name, options, ranks in (
        ("none", {}, 1), ("median", {}, 3), ("trimmed_mean", {"trim": 2}, 5), ("krum", {"faulty": 0}, 3),
        ("krum", {"chosen": 4}, 5), ("norm_clip", {"factor": 2}, 2),
    ):  # fmt: skip
        check_aggregation(AggregationConfig(name=name, options=options), ranks)
    with pytest.raises(UserError, match="row-sparse"):
        check_aggregation(AggregationConfig(name="median"), 3, tables=True)
    with pytest.raises(UserError, match="whole gradients"):
        check_aggregation(AggregationConfig(name="krum"), 5, overlap="on")
    check_aggregation(AggregationConfig(name="krum"), 5, tables=True)
    check_aggregation(AggregationConfig(name="median"), 5, overlap="on")


Attack = Callable[[Vector, torch.Generator], Vector]


def _flipped(honest: Vector, g: torch.Generator) -> Vector:
    return -10 * honest[0]


def _noise(honest: Vector, g: torch.Generator) -> Vector:
    return 100 * torch.randn(honest.shape[1], generator=g).double().numpy()


def _constant(honest: Vector, g: torch.Generator) -> Vector:
    return np.full(honest.shape[1], 100.0)


def _a_little(honest: Vector, g: torch.Generator) -> Vector:
    """Baruch et al. 2019: within the spread of honest ranks, in every coordinate to the same side."""
    return honest.mean(0) - 1.5 * honest.std(0)


RULES = {1: (5, {"trimmed_mean": {"trim": 1}, "krum": {"faulty": 1, "chosen": 3}}),
         2: (7, {"trimmed_mean": {"trim": 2}, "krum": {"faulty": 2, "chosen": 3}})}  # fmt: skip


def trained(size: int, faulty: int, attack: Attack | None, name: str, options: dict[str, Any]) -> float:
    """Mean loss of a logistic regression on all rows after training; ranks 1, 3 .. are corrupted."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(size * 64, 8, generator=g)
    labels = (rows @ torch.linspace(-2, 2, 8) + 0.5 * torch.randn(len(rows), generator=g) > 0).float()
    corrupt = [2 * k + 1 for k in range(faulty)] if attack else []

    def gradient(weight: Tensor, rank: int, step: int) -> Tensor:
        mine = torch.arange(rank, len(rows), size)
        picked = mine[torch.randint(0, len(mine), (32,), generator=torch.Generator().manual_seed(99 * step + rank))]
        return rows[picked].T @ (torch.sigmoid(rows[picked] @ weight) - labels[picked])

    def fn(c: LocalCollective) -> float:
        made, weight = aggregated(AggregationConfig(name=name, options=options), ordered()), torch.zeros(8)
        draws = torch.Generator().manual_seed(7 + c.rank)
        for step in range(30):
            own = gradient(weight, c.rank, step)
            if attack and c.rank in corrupt:
                honest = [gradient(weight, r, step).double().numpy() for r in range(size) if r not in corrupt]
                own = torch.from_numpy(attack(np.stack([own.double().numpy(), *honest]), draws)).float()
            weight = weight - made.reduce({"w": own}, c)["w"] / (32 * size)
        return float(torch.nn.functional.binary_cross_entropy_with_logits(rows @ weight, labels))

    losses = on_ranks(size, fn)
    assert len(set(losses)) == 1, losses
    return float(losses[0])


@pytest.mark.parametrize("faulty", [1, 2])
@pytest.mark.parametrize("attack", [_flipped, _noise, _constant, _a_little])
def test_training_learns_all_the_same(attack: Attack, faulty: int) -> None:
    size, options = RULES[faulty]
    clean = trained(size, faulty, None, "none", {})
    assert clean < 0.25
    for name in AGGREGATIONS:
        found = trained(size, faulty, attack, name, options.get(name, {}))
        # Krum takes corrupted gradients that lie between honest ones for the best: it learns, but more slowly.
        assert found < (1.8 if attack is _a_little else 1.6) * clean, (name, found, clean)
    if attack is not _a_little:  # which is made against medians and hardly moves a sum
        assert trained(size, faulty, attack, "none", {}) > 2.5 * clean
