"""Codecs of signs and of few numbers: options out of range, and what the exam does not ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.collective_exam import on_ranks
from torch import Tensor

from headrace.comm import LocalCollective, Metered
from headrace.compress import COMPRESSORS, Payload, PayloadError, create
from headrace.compress.dgc import DGC
from headrace.compress.feedback import Feedback
from headrace.compress.index_coding import decode_indices, encode_indices
from headrace.compress.signs import ascends, pack, pack_bit, scattered, unpack
from headrace.errors import UserError
from headrace.strategies.compressed import CompressedConfig, CompressedReducer
from headrace.strategies.reducers import ordered

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "options", "says"), [
    ("onebit", {"bucket": 0}, "at least 8"),
    ("onebit", {"bucket": 100}, "multiple of 8"),
    ("topk", {"ratio": 0.0}, "above 0 and at most 1"),
    ("topk", {"ratio": 1.5}, "at most 1"),
    ("topk", {"ratio": float("nan")}, "at most 1"),
    ("topk", {"selection": "some"}, "exact, sampled"),
    ("topk", {"values": "int8"}, "float32, float16"),
    ("randomk", {"ratio": -0.1}, "above 0"),
    ("randomk_unbiased", {"ratio": 2}, "at most 1"),
    ("threshold", {"tau": 0.0}, "above 0"),
    ("dgc", {"ratio": 0.0}, "above 0"),
    ("dgc", {"momentum": 1.0}, "below 1"),
    ("dgc", {"momentum": -0.5}, "at least 0"),
    ("dgc", {"warmup_turns": -1}, "at least 0"),
    ("dgc", {"clip": float("inf")}, "at least 0"),
])  # fmt: skip
def test_options_out_of_range_are_refused_with_what_to_do(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        create(name, **options)
    assert says in str(caught.value.remedy) and next(iter(options)) in caught.value.problem


def test_what_is_scaled_stays_within_its_type() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = torch.full((500,), 0.9 * torch.finfo(dtype).max, dtype=dtype)
        codec = create("randomk_unbiased")
        found = codec.decompress(codec.compress(x, codec.init(x))[0])
        assert found.isfinite().all() and found.max() >= 0.99 * torch.finfo(dtype).max


def test_the_warm_up_has_a_quarter_of_its_turns_at_each_sparsity() -> None:
    codec = create("dgc", warmup_turns=8)
    assert isinstance(codec, DGC)
    found = [round(1 - codec.ratio(done), 9) for done in range(10)]
    assert found == [0.75, 0.75, 0.9375, 0.9375, 0.984375, 0.984375, 0.996, 0.996, 0.999, 0.999]
    held_back = create("dgc", warmup_turns=8, ratio=0.1)
    assert isinstance(held_back, DGC)
    assert [round(held_back.ratio(done), 9) for done in (0, 1, 2, 9)] == [0.25, 0.25, 0.1, 0.1]


def test_a_shared_draw_is_needed_to_decode_and_is_not_sent() -> None:
    codec, x = create("randomk", ratio=0.1), torch.randn(500)
    payload, after = codec.compress(x, codec.init(x, key=3))
    assert payload.nbytes == 4 * 50 and payload.draw == (3, 0) and after == {"key": 3, "turn": 1}
    assert codec.compress(torch.empty(0), codec.init(x, key=3))[1] == after, "other ranks' part may not be empty"
    with pytest.raises(PayloadError, match="draw"):
        codec.decompress(Payload(payload.data, payload.shape, payload.dtype))


@pytest.mark.parametrize("exchange", ["allgather", "reduce_scatter", "allreduce"])
@pytest.mark.parametrize("numbers", [2, 50])
def test_ranks_draw_alike_in_every_exchange_also_where_a_rank_has_no_part(exchange: str, numbers: int) -> None:
    """All numbers differ, so a value at another place than it was drawn from would be seen."""

    def fn(c: LocalCollective) -> list[Tensor]:
        cfg = CompressedConfig(exchange=exchange, min_numel=1)
        made = CompressedReducer(COMPRESSORS["randomk"], Feedback(create("randomk", ratio=0.5)), ordered(), cfg)
        found = []
        for step in range(3):
            x = torch.arange(1.0, 1 + numbers) * (10 if step else 1)
            found.append(made.reduce({"x": x, "y": -x}, c)["x"])
            made.settle(True)
        return found

    results = on_ranks(3, fn)
    for step in range(3):
        assert all(torch.equal(results[0][step], other[step]) for other in results[1:])
        assert results[0][step].any()
    first, sums = results[0][0], 3 * torch.arange(1.0, 1 + numbers)
    assert ((first == 0) | (first == sums)).all(), "places were mixed up"


def test_a_codec_with_momentum_of_its_own_has_no_second_turn_at_owners() -> None:
    def fn(c: LocalCollective) -> tuple[int, int]:
        metered = Metered(c)
        made = CompressedReducer(COMPRESSORS["dgc"], Feedback(create("dgc"), "none"), ordered(), CompressedConfig())
        made.reduce({"x": torch.randn(5000)}, metered)
        return metered.sent_bytes, made.numbers["out"]

    assert all(sent == 2 * (out + 8) for sent, out in on_ranks(3, fn))


def test_top_k_keeps_no_more_bytes_than_allotted_whatever_comes() -> None:
    for x in (torch.full((5000,), 2.0), torch.zeros(5000), torch.arange(5000.0), torch.full((5000,), float("nan"))):
        for options in ({}, {"selection": "exact"}, {"values": "float16"}):
            codec = create("topk", **options)
            payload, _ = codec.compress(x, {})
            assert payload.nbytes == codec.nbytes(5000, x.dtype) < 5000 * 4 * 0.0133
            assert int((codec.decompress(payload) != 0).sum()) == (50 if x.any() else 0)


def test_flags_of_a_bit() -> None:
    numbers = torch.arange(269, dtype=torch.int64).to(torch.uint8)
    for bit in range(8):
        flags = (numbers >> bit & 1).view(torch.bool)
        assert torch.equal(pack_bit(numbers, bit), pack(flags))
        assert torch.equal(unpack(pack_bit(numbers, bit), 269), flags)


@pytest.mark.parametrize(("indices", "answer"), [
    ([], True), ([3], True), ([0, 7, 9], True), ([1, 1], False), ([0, 5, 4], False), ([2, 1, 3], False),
])  # fmt: skip
def test_whether_indices_ascend(indices: list[int], answer: bool) -> None:
    assert ascends(torch.tensor(indices, dtype=torch.int64)) is answer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_at_their_places_among_zeros(dtype: torch.dtype) -> None:
    """Also with memory in large pages, and where nothing has a place."""
    for n, k in ((1, 1), (700, 0), (700, 90), (1 << 21, 5000)):
        places = torch.randperm(n, generator=torch.Generator().manual_seed(n))[:k].sort().values
        values = torch.linspace(-3, 3, k, dtype=dtype)
        found = scattered(places, values, n)
        assert found.dtype == dtype and torch.equal(found[places], values)
        assert int(found.count_nonzero()) == int(values.count_nonzero())


@pytest.mark.parametrize("share", [0.5, 0.11, 0.0003])
def test_indices_of_many_blocks_come_back(share: float) -> None:
    """Lower bits over several bytes, and blocks whose last is not full."""
    n = 700_001
    indices = (torch.rand(n, generator=torch.Generator().manual_seed(2)) < share).nonzero().view(-1)
    coded = encode_indices(indices, len(indices) + 3, n)
    assert torch.equal(decode_indices(coded, len(indices) + 3, n), indices)
