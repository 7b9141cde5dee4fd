"""The majority vote against a count of hands, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from contract.collective_exam import on_ranks
from torch import Tensor

from headrace.comm import LocalCollective, Metered
from headrace.compress import COMPRESSORS, create
from headrace.compress.feedback import Feedback
from headrace.errors import UserError
from headrace.strategies.compressed import CompressedConfig
from headrace.strategies.majority import MajorityVote
from headrace.strategies.reducers import ordered

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"a": (31, 7), "small": (5,), "b": (100,), "c": (3, 67)}
CODECS = ("signsgd", "signsgd_unscaled")
Grads = dict[str, Tensor]


def gradients(rank: int, step: int = 0) -> Grads:
    """Whole numbers, zeros among them, so that ties and absent opinions are many."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return {name: torch.randint(-2, 3, shape, generator=generator).float() for name, shape in SHAPES.items()}


def vote(name: str, bucket_bytes: int = 1 << 20, variant: str = "none") -> MajorityVote:
    cfg = CompressedConfig(min_numel=50, bucket_bytes=bucket_bytes)
    return MajorityVote(COMPRESSORS[name], Feedback(create(name), variant), ordered(), cfg)


def counted(name: str, ranks: list[Tensor]) -> Tensor:
    """Hands up, one number at a time."""
    means = [float(x.abs().double().mean()) for x in ranks]
    scale = sum(means) if name == "signsgd" else len(ranks) * float(any(means))
    flat = [x.reshape(-1).tolist() for x in ranks]
    against = [sum(x < 0 for x in each) for each in zip(*flat, strict=True)]
    signs = [-1.0 if 2 * hands > len(ranks) else 1.0 for hands in against]
    return torch.tensor(signs).view(ranks[0].shape) * scale


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("bucket_bytes", [1, 1500, 1 << 20])
def test_the_majority_has_it(name: str, size: int, bucket_bytes: int) -> None:
    results = on_ranks(size, lambda c: vote(name, bucket_bytes).reduce(gradients(c.rank), c))
    every = [gradients(rank) for rank in range(size)]
    for each, shape in SHAPES.items():
        wanted = counted(name, [g[each] for g in every])
        if each == "small":
            wanted = torch.stack([g[each] for g in every]).sum(0)
        for got in results:
            assert got[each].shape == shape and torch.equal(got[each], results[0][each])
            torch.testing.assert_close(got[each], wanted, rtol=1e-6, atol=0)


def test_a_tie_and_zero_are_for_plus() -> None:
    def fn(c: LocalCollective) -> Tensor:
        x = torch.tensor([1.0, -1.0]).repeat(40) * (1 if c.rank else -1)
        x[:8] = 0
        return vote("signsgd_unscaled").reduce({"x": x}, c)["x"]

    assert all(torch.equal(got, torch.full((80,), 2.0)) for got in on_ranks(2, fn))


@pytest.mark.parametrize("name", CODECS)
def test_one_rank_with_nothing_and_all_with_nothing(name: str) -> None:
    def fn(c: LocalCollective) -> Grads:
        some = torch.full((60,), -3.0 if c.rank else 0.0)
        return vote(name).reduce({"none": torch.zeros(60), "some": some}, c)

    for got in on_ranks(3, fn):
        assert not got["none"].any()
        assert torch.equal(got["some"], torch.full((60,), -6.0 if name == "signsgd" else -3.0))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_on_one_rank_is_seen_by_all(name: str, bad: float) -> None:
    def fn(c: LocalCollective) -> Grads:
        grads = gradients(c.rank)
        if c.rank == 1:
            grads["b"][77] = bad
        return vote(name).reduce(grads, c)

    for got in on_ranks(3, fn):
        assert not got["b"].isfinite().any() and got["a"].isfinite().all() and got["c"].isfinite().all()


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("small", "dtype"), [(0, torch.float32), (5, torch.float32), (5, torch.float16)])
def test_a_bit_a_number_goes_and_a_bit_comes(size: int, small: int, dtype: torch.dtype) -> None:
    """Small tensors go along as they are."""

    def fn(c: LocalCollective) -> tuple[int, int]:
        metered, made = Metered(c), vote("signsgd")
        grads = {name: g.to(dtype) for name, g in gradients(c.rank).items() if small or name != "small"}
        summed = made.reduce(grads, metered)
        assert metered.calls == {"alltoall": 1, "allgather": 1}
        assert not small or torch.equal(summed["small"], ordered().reduce({"small": grads["small"]}, c)["small"])
        return metered.sent_bytes, made.numbers["out"]

    signs = sum(math.ceil(math.prod(shape) / 8) for name, shape in SHAPES.items() if name != "small")
    results = on_ranks(size, fn)
    assert sum(sent for sent, _ in results) == (size - 1) * (2 * signs + size * 3 * 4 + 2 * small * dtype.itemsize)
    assert {out for _, out in results} == {signs + 3 * 4}


def test_feedback_remembers_what_the_own_vote_left_out_if_the_step_is_made() -> None:
    def fn(c: LocalCollective) -> tuple[Tensor, Tensor]:
        made = vote("signsgd", variant="ef")
        given, sent = torch.zeros(100), torch.zeros(100)
        for step in range(4):
            x = gradients(c.rank, step)["b"]
            before = made.kept("b")
            whole = x + (torch.zeros(100) if before is None else before["memory"])
            made.reduce({"b": x}, c)
            made.settle(step != 2)
            if step != 2:
                given += x
                sent += torch.where(whole < 0, -1.0, 1.0) * whole.abs().mean()
        return given, sent + made.state_dict()["units"]["b"]["memory"]

    for given, accounted in on_ranks(2, fn):
        torch.testing.assert_close(accounted, given, rtol=0, atol=1e-5)


def test_other_codecs_and_accumulating_feedback_are_refused() -> None:
    with pytest.raises(UserError, match="one of signs"):
        MajorityVote(COMPRESSORS["topk"], Feedback(create("topk")), ordered(), CompressedConfig())
    with pytest.raises(UserError, match="ef21"):
        vote("signsgd", variant="ef21")
