"""Compressed sums over the registry of codecs: the same on all ranks, nothing lost, every byte accounted for."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from contract.collective_exam import good, on_ranks
from numpy.typing import NDArray
from torch import Tensor

from headrace.comm import LocalCollective, Metered
from headrace.comm.subgroup import Subgroup, parts_by
from headrace.compress import COMPRESSORS, Payload, create
from headrace.compress.feedback import VARIANTS, Feedback
from headrace.compress.spec import EXACT, OWN_FEEDBACK, OWN_MOMENTUM, SUMMABLE, VARIABLE
from headrace.strategies import REDUCERS
from headrace.strategies.compressed import EXCHANGES, CompressedConfig, CompressedReducer
from headrace.strategies.compression import CompressionConfig, compressed
from headrace.strategies.overlap import ByBuckets
from headrace.strategies.reducers import BucketReducer, ordered, ring

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"a": (40, 30), "small": (5,), "b": (1500,), "c": (2, 700)}
Grads = dict[str, Tensor]


def gradients(rank: int, step: int) -> Grads:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def true_sums(size: int, step: int) -> Grads:
    every = [gradients(rank, step) for rank in range(size)]
    return {name: torch.stack([g[name] for g in every]).double().sum(0) for name in SHAPES}


def reducer(name: str, exchange: str = "auto", variant: str = "none", bucket_bytes: int = 6000) -> CompressedReducer:
    cfg = CompressedConfig(exchange=exchange, min_numel=100, bucket_bytes=bucket_bytes, seed=3)
    return CompressedReducer(COMPRESSORS[name], Feedback(create(name), variant), ordered(), cfg)


def exchanges(name: str) -> list[str]:
    return [
        e
        for e in EXCHANGES
        if e == "allgather"
        or (e == "reduce_scatter" and OWN_MOMENTUM not in COMPRESSORS[name].traits)
        or (e == "allreduce" and SUMMABLE in COMPRESSORS[name].traits)
    ]


def variants(name: str) -> list[str]:
    return ["none"] if OWN_FEEDBACK in COMPRESSORS[name].traits else list(VARIANTS)


CASES = [(n, e, v) for n in sorted(COMPRESSORS) for e in exchanges(n) for v in variants(n)]


def steps(
    c: LocalCollective, made: ByBuckets, count: int = 4, settle: Callable[[int], bool] = lambda step: True
) -> list[Grads]:
    found = []
    for step in range(count):
        found.append(made.reduce(gradients(c.rank, step), c))
        made.settle(settle(step))
    return found


@pytest.mark.parametrize(("name", "exchange", "variant"), CASES)
def test_all_ranks_hold_the_same_bits_and_small_tensors_are_exact(name: str, exchange: str, variant: str) -> None:
    results = on_ranks(3, lambda c: steps(c, reducer(name, exchange, variant)))
    exact = on_ranks(
        3, lambda c: [REDUCERS["ordered"].factory().reduce(gradients(c.rank, step), c) for step in range(4)]
    )
    for step in range(4):
        for each in SHAPES:
            assert all(torch.equal(results[0][step][each], other[step][each]) for other in results[1:]), each
            assert results[0][step][each].shape == SHAPES[each]
        assert torch.equal(results[0][step]["small"], exact[0][step]["small"])
        if EXACT in COMPRESSORS[name].traits and variant != "ef21":
            assert all(torch.equal(results[0][step][each], exact[0][step][each]) for each in SHAPES)


@pytest.mark.parametrize("name", sorted(n for n in COMPRESSORS if "ef" in variants(n)))
@pytest.mark.parametrize("exchange", ["allgather", "reduce_scatter"])
def test_what_was_not_sent_is_still_held(name: str, exchange: str) -> None:
    """The sum of all gradients = the sum of all results + what ranks and owners remember."""

    def fn(c: LocalCollective) -> tuple[list[Grads], dict[str, Any]]:
        made = reducer(name, exchange, "ef")
        return steps(c, made), made.state_dict()["units"]

    results = on_ranks(3, fn)
    for each in ("a", "b", "c"):
        given = sum(true_sums(3, step)[each] for step in range(4)).reshape(-1)  # type: ignore[union-attr]
        got = sum(grads[each].double() for grads in results[0][0]).reshape(-1)  # type: ignore[union-attr]
        held = torch.zeros_like(got)
        starts = [0, *torch.tensor([len(t) for t in got.tensor_split(3)]).cumsum(0).tolist()]
        for rank, (_, units) in enumerate(results):
            if exchange == "allgather":
                held += units[each]["memory"].double()
                continue
            held += torch.cat([units[f"{each}#{j}"]["memory"] for j in range(3)]).double()
            held[starts[rank] : starts[rank + 1]] += units[f"{each}#owner"]["memory"].double()
        # What is scaled up by far, as randomk_unbiased, is remembered as large numbers of float32.
        torch.testing.assert_close(got + held, given, rtol=0, atol=2e-4 + 1e-6 * float(held.abs().max()))


Flat = NDArray[np.float32]


def top_tenth(x: Flat) -> Flat:
    sent = np.zeros_like(x)
    largest = np.argsort(-np.abs(x))[: -(-len(x) // 10)]
    sent[largest] = x[largest]
    return sent


CODECS: dict[str, tuple[dict[str, Any], Callable[[Flat], Flat]]] = {  # options, and the rule in NumPy
    "topk": ({"ratio": 0.1}, top_tenth),
    "signsgd": ({}, lambda x: np.where(x < 0, -1, 1).astype(np.float32) * np.abs(x).mean()),
    "fp16": ({}, lambda x: x.astype(np.float16).astype(np.float32)),
}
MEMORIES = {"ef": ("ef", 1.0), "ef, half kept": ("ef", 0.5), "ef, nothing kept": ("ef", 0.0), "ef21": ("ef21", 1.0)}


class Sender:
    """What all others hold of a sender's x: C(x + e) with e <- decay (x + e - C(x + e)), or g <- g + C(x - g)."""

    def __init__(self, codec: Callable[[Flat], Flat], variant: str, decay: float) -> None:
        self.codec, self.variant, self.decay = codec, variant, decay
        self.e = self.g = np.float32(0)

    def __call__(self, x: Flat) -> Flat:
        if self.variant == "ef21":
            self.g = self.g + self.codec(x - self.g)
            return self.g
        sent = self.codec(x + self.e)
        self.e = np.float32(self.decay) * (x + self.e - sent)
        return sent


def slow_sums(size: int, exchange: str, made: Callable[[], Sender], count: int) -> list[dict[str, Flat]]:
    """Every rank's senders, and with reduce_scatter the owners' of the sums of their chunks."""
    sender: defaultdict[tuple[str, ...], Sender] = defaultdict(made)
    found: list[dict[str, Flat]] = []
    for step in range(count):
        found.append({})
        every = [gradients(rank, step) for rank in range(size)]
        for name in ("a", "b", "c"):
            flat = [g[name].numpy().ravel() for g in every]
            if exchange == "allgather":
                found[-1][name] = np.sum([sender[name, str(r)](x) for r, x in enumerate(flat)], axis=0)
                continue
            parts = []
            for j in range(size):
                chunks = [np.array_split(x, size)[j] for x in flat]
                total = np.sum([sender[name, str(r), str(j)](x) for r, x in enumerate(chunks)], axis=0)
                parts.append(sender[name, "owner", str(j)](total))
            found[-1][name] = np.concatenate(parts)
    return found


def same_sums(found: list[Grads], wanted: list[dict[str, Flat]]) -> None:
    for step, want in enumerate(wanted):
        for each, value in want.items():
            np.testing.assert_allclose(found[step][each].numpy().ravel(), value, rtol=0, atol=2e-5, err_msg=each)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("exchange", ["allgather", "reduce_scatter"])
@pytest.mark.parametrize("name", sorted(CODECS))
def test_sums_are_those_of_the_rule_with_its_memory(name: str, exchange: str, memory: str, size: int) -> None:
    """In NumPy, over six steps of gradients that change; made of settings, as a run's are."""
    (options, rule), (variant, decay) = CODECS[name], MEMORIES[memory]
    cfg = CompressionConfig(
        name=name, options=options, feedback=variant, decay=decay, exchange=exchange, min_numel=100
    )  # fmt: skip
    found = good(on_ranks(size, lambda c: steps(c, compressed(cfg, ordered(6000), 3), 6)))[0]
    same_sums(found, slow_sums(size, exchange, lambda: Sender(rule, variant, decay), 6))


@pytest.mark.parametrize("size", [2, 3])
def test_sums_of_casts_that_follow_changes_do_not_drift(size: int) -> None:
    """What the sum of changes would lose by being rounded once more on the way, nobody would remember."""
    cfg = CompressionConfig(name="fp16", feedback="ef21", min_numel=100)
    found = good(on_ranks(size, lambda c: steps(c, compressed(cfg, ordered(6000), 3), 6)))[0]
    kind = "allgather" if size == 2 else "reduce_scatter"
    same_sums(found, slow_sums(size, kind, lambda: Sender(CODECS["fp16"][1], "ef21", 1.0), 6))


@pytest.mark.parametrize(("name", "exchange", "variant"), CASES)
def test_a_step_that_was_given_up_leaves_nothing_and_a_saved_state_goes_on(
    name: str, exchange: str, variant: str
) -> None:
    def fn(c: LocalCollective) -> tuple[list[Grads], list[Grads], Grads]:
        made = reducer(name, exchange, variant)
        first = steps(c, made, 2)
        made.reduce(gradients(c.rank, 9), c)
        made.settle(False)
        file = io.BytesIO()
        torch.save(made.state_dict(), file)
        file.seek(0)
        resumed = reducer(name, exchange, variant)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        return first, steps(c, reducer(name, exchange, variant), 3), resumed.reduce(gradients(c.rank, 2), c)

    for _, whole, resumed in on_ranks(3, fn):
        assert all(torch.equal(whole[2][each], resumed[each]) for each in SHAPES)


@pytest.mark.parametrize(("exchange", "variant"), sorted({(e, v) for n, e, v in CASES if n == "bf16"}))
def test_memory_follows_the_scale_of_the_loss(exchange: str, variant: str) -> None:
    """Gradients of a loss scaled by 4 from the second step on: 4 times the sums, to the bit."""

    def fn(c: LocalCollective, scale: float) -> list[Grads]:
        made = reducer("bf16", exchange, variant)
        first = made.reduce(gradients(c.rank, 0), c)
        made.settle(True, scale)
        return [first, made.reduce({name: scale * g for name, g in gradients(c.rank, 1).items()}, c)]

    plain, scaled = (on_ranks(3, partial(fn, scale=scale))[0] for scale in (1.0, 4.0))
    assert all(torch.equal(4 * plain[1][name], scaled[1][name]) for name in SHAPES)


@pytest.mark.parametrize(("name", "exchange"), sorted({(n, e) for n, e, _ in CASES}))
@pytest.mark.parametrize("size", [2, 4])
def test_bytes_are_those_of_the_formula(name: str, exchange: str, size: int) -> None:
    def fn(c: LocalCollective) -> tuple[int, dict[str, int]]:
        metered, made, by_unit = Metered(c), reducer(name, exchange, bucket_bytes=1 << 20), {}
        send = made.sent

        def noted(unit: str, x: Tensor, rank: int) -> Payload:
            payload = send(unit, x, rank)
            by_unit[unit] = payload.nbytes
            return payload

        made.sent = noted  # type: ignore[method-assign]
        made.reduce({k: g for k, g in gradients(c.rank, 0).items() if k != "small"}, metered)
        assert made.numbers["out"] == sum(by_unit.values())
        return metered.sent_bytes, by_unit

    sizes = 8 * 3 if VARIABLE in COMPRESSORS[name].traits else 0
    for rank, (sent, by_unit) in enumerate(on_ranks(size, fn)):
        out = sum(by_unit.values())
        if exchange == "allgather":
            assert sent == (size - 1) * (out + sizes)
        elif exchange == "allreduce":
            assert abs(sent - 2 * (size - 1) * out / size) <= 8 * size
        else:  # chunks to their owners but the own one; the sum of that to all others
            chunks = sum(n for unit, n in by_unit.items() if not unit.endswith(("#owner", f"#{rank}")))
            owned = sum(n for unit, n in by_unit.items() if unit.endswith("#owner"))
            assert sent == chunks + (size - 1) * (owned + 2 * sizes)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("name", "exchange"),
    [(n, e) for n in ("qsgd", "threshold", "int8", "randomk") for e in exchanges(n)],
)
def test_small_tensors_go_along_exactly(name: str, exchange: str, dtype: torch.dtype, size: int) -> None:
    """No operation of their own where that takes no more bytes; always their bytes, and the bits of their sum."""
    small = {"none": (0,), "one": (), "few": (5,), "more": (3, 7)}

    def fn(c: LocalCollective) -> tuple[Grads, Grads, list[Metered]]:
        generator = torch.Generator().manual_seed(c.rank)
        large = {n: g.to(dtype) for n, g in gradients(c.rank, 0).items() if n != "small"}
        few = {n: torch.randn(shape, generator=generator).to(dtype) for n, shape in small.items()}
        mixed = {"one": few["one"], "a": large["a"], **few, **large}
        meters = [Metered(c), Metered(c)]
        reducer(name, exchange, bucket_bytes=1 << 20).reduce(large, meters[0])
        found = reducer(name, exchange, bucket_bytes=1 << 20).reduce(mixed, meters[1])
        return found, ordered().reduce(few, c), meters

    results = on_ranks(size, fn)
    for found, exact, (without, whole) in results:
        assert all(torch.equal(found[n], exact[n]) and found[n].shape == small[n] for n in small)
        assert all(torch.equal(found[n], results[0][0][n]) for n in found)
        apart = exchange == "allreduce" or (exchange == "allgather" and size == 4)
        more = {k: n - without.calls[k] for k, n in whole.calls.items()}
        assert sum(more.values()) == ((1 if size == 2 else 2) if apart else 0)
    sent = [sum(meters[i].sent_bytes for *_, meters in results) for i in (0, 1)]
    told = VARIABLE in COMPRESSORS[name].traits and not apart  # the size of what goes along
    sizes = told * 8 * size * (size - 1) * (2 if exchange == "reduce_scatter" else 1)
    assert sent[1] - sent[0] == 2 * (size - 1) * (1 + 5 + 21) * dtype.itemsize + sizes


def interleaved(rank: int, large: torch.dtype, small: torch.dtype) -> tuple[Grads, Grads]:
    """Weights, each more than a bucket or a part of it, and a bias after each."""
    generator = torch.Generator().manual_seed(rank)
    weights = {f"{i}.weight": torch.randn(30, 40 - 5 * i, generator=generator).to(large) for i in range(4)}
    return weights, {f"{i}.bias": torch.randn(3 + i, generator=generator).to(small) for i in range(4)}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.float16, torch.float32)])
@pytest.mark.parametrize("made", ["fp16", "int8 allgather", "int8 reduce_scatter", "powersgd", "hierarchical", "vote"])
def test_small_tensors_between_large_ones_take_one_sum_at_most(
    made: str, types: tuple[torch.dtype, torch.dtype], size: int
) -> None:
    """Whatever the buckets: a weight of one closes it, a change of type as well."""
    name, _, exchange = made.partition(" ")
    cfg = {
        "powersgd": CompressionConfig(name="powersgd"),
        "hierarchical": CompressionConfig(name="int8", hierarchical=True),
        "vote": CompressionConfig(name="signsgd", exchange="vote"),
    }.get(name, CompressionConfig(name=name, exchange=exchange or "auto"))
    cfg.min_numel = 100

    def fn(c: LocalCollective) -> tuple[Grads, Grads, int]:
        weights, biases = interleaved(c.rank, *types)
        calls = []
        for grads in (weights, {n: {**weights, **biases}[n] for n in sorted([*weights, *biases])}):
            metered = Metered(c)
            reducer = compressed(cfg, ordered(4000), 3, metered, f"host {c.rank % 2}")
            before = metered.calls.total()
            found = reducer.reduce(grads, metered)
            calls.append(metered.calls.total() - before)
        return found, ordered().reduce(biases, c), calls[1] - calls[0]

    along = types[0] == types[1] and (
        made in ("int8 reduce_scatter", "powersgd", "vote") or (made.split()[-1] == "allgather" and size == 2)
    )
    for found, exact, more in on_ranks(size, fn):
        assert all(torch.equal(found[n], exact[n]) for n in exact)
        assert more == (0 if along else 1 if size == 2 else 2)


@pytest.mark.parametrize("name", ["int8", "powersgd"])
def test_small_tensors_go_along_up_to_a_bucket(name: str) -> None:
    """What is not compressed may be large together: no message is larger than two buckets."""
    largest = []

    class Noting(Metered):
        def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
            largest.append(sum(c.nbytes for c in chunks))
            return super().alltoall(chunks, rows)

    def fn(c: LocalCollective) -> tuple[Grads, Grads]:
        weights, biases = interleaved(c.rank, torch.float32, torch.float32)
        many = {f"{i}.{n}": g for i in range(40) for n, g in biases.items()}
        cfg = CompressionConfig(name=name, min_numel=100)
        return compressed(cfg, ordered(1000), 3).reduce(weights | many, Noting(c)), ordered().reduce(many, c)

    for found, exact in on_ranks(3, fn):
        assert all(torch.equal(found[n], exact[n]) for n in exact)
    assert max(largest) <= 2400  # the first weight as 8 bits, or its factor, and a bucket


@pytest.mark.parametrize("name", ["qsgd", "signsgd"])
def test_small_tensors_are_summed_as_all_that_is_not_compressed(name: str) -> None:
    """`ring` leaves sums to the transport; and nothing of them is remembered."""

    def fn(c: LocalCollective, rest: BucketReducer) -> tuple[Metered, set[str]]:
        metered = Metered(c)
        made = compressed(CompressionConfig(name=name, min_numel=100), rest, 3)
        made.reduce(gradients(c.rank, 0), metered)
        made.settle(True)
        return metered, {unit.partition("#")[0] for unit in made.state_dict()["units"]}

    for metered, units in on_ranks(3, lambda c: fn(c, ring())):
        assert metered.calls["allreduce"] == 1 and units == {"a", "b", "c"}
    for metered, units in on_ranks(3, lambda c: fn(c, ordered())):
        assert metered.calls == {"alltoall": 1, "allgather": 1} and units == {"a", "b", "c"}


def test_parts_of_a_group_work_side_by_side() -> None:
    hosts = ["one", "two", "one", "two"]

    def fn(c: LocalCollective) -> tuple[Any, ...]:
        inside, across = parts_by(c, hosts[c.rank])
        x = torch.arange(3.0) + 10**c.rank
        return (
            inside.members, across.members, inside.allreduce(x), across.allgather(x[: c.rank + 1]),
            inside.broadcast(x, 1), inside.allgather_object(c.rank), across.alltoall([x[:1], x[1:]], None),
        )  # fmt: skip

    results = on_ranks(4, fn)
    assert [r[0] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3]] and results[0][1] == [0, 1]
    assert torch.equal(results[0][2], 2 * torch.arange(3.0) + 101) and torch.equal(results[3][2], results[1][2])
    assert [len(x) for x in results[2][3]] == [3, 3] and results[1][5] == [1, 3]
    assert torch.equal(results[0][4], torch.arange(3.0) + 100)
    assert torch.equal(results[1][6][0], torch.arange(1.0, 3) + 1)
    with pytest.raises(ValueError, match="as many ranks"):
        raise on_ranks(3, lambda c: caught(lambda: parts_by(c, "one" if c.rank else "two")))[0]
    with pytest.raises(ValueError, match="must be among"):
        Subgroup(on_ranks(1, lambda c: c)[0], [1])


def caught(act: Callable[[], Any]) -> Exception:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("no error")
