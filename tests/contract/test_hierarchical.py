"""Sums in two tiers: what a sum in one is, the same on all ranks, and little between hosts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from contract.collective_exam import good, on_ranks
from torch import Tensor

from headrace.comm import Collective, LocalCollective, Metered
from headrace.comm.sums import in_order
from headrace.compress import COMPRESSORS
from headrace.compress.spec import EXACT, OWN_FEEDBACK, SUMMABLE, VARIABLE
from headrace.errors import UserError
from headrace.strategies.adaptive import Tell
from headrace.strategies.compression import CompressionConfig, compressed
from headrace.strategies.overlap import ByBuckets, Overlap
from headrace.strategies.reducers import ordered

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"a": (40, 30), "small": (5,), "b": (1501,), "c": (2, 700)}
Grads = dict[str, Tensor]
APART = {"one": "aaaa", "two": "aabb", "mixed": "abab", "alone": "abcd", "three": "abcabc"}


def gradients(rank: int, step: int) -> Grads:
    g = torch.Generator().manual_seed(1000 * step + rank)
    found = {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}
    ids = torch.randint(0, 50, (1, 20), generator=g)
    return found | {"table": torch.sparse_coo_tensor(ids, torch.ones(20, 3), (50, 3), check_invariants=False)}


def reducer(
    c: Collective, hosts: str, name: str, min_numel: int = 100, tell: Tell = lambda event: None, **settings: Any
) -> ByBuckets:
    cfg = CompressionConfig(name=name, hierarchical=True, min_numel=min_numel, **settings)
    return compressed(cfg, ordered(6000), 3, c, hosts[c.rank], tell)


def steps(c: Collective, made: ByBuckets, count: int) -> list[Grads]:
    found = []
    for step in range(count):
        found.append(made.reduce(gradients(c.rank, step), c))
        made.settle(True)
    return found


def dense(g: Tensor) -> Tensor:
    return g.to_dense() if g.is_sparse else g


def same(a: Grads, b: Grads) -> bool:
    return list(a) == list(b) and all(torch.equal(dense(a[name]), dense(b[name])) for name in a)


@pytest.mark.parametrize("layout", sorted(APART))
@pytest.mark.parametrize("name", ["none", "bf16"])
def test_is_the_exact_sum_to_rounding_and_the_same_on_all_ranks(layout: str, name: str) -> None:
    hosts = APART[layout]
    results = on_ranks(len(hosts), lambda c: steps(c, reducer(c, hosts, name), 2))
    exact = on_ranks(len(hosts), lambda c: [ordered().reduce(gradients(c.rank, s), c) for s in range(2)])[0]
    for step in range(2):
        assert all(same(results[0][step], other[step]) for other in results[1:])
        assert torch.equal(results[0][step]["small"], exact[step]["small"])
        assert torch.equal(results[0][step]["table"].to_dense(), exact[step]["table"].to_dense())
        for each, shape in SHAPES.items():
            assert results[0][step][each].shape == shape
            rounding = 2e-6 if name == "none" or layout == "one" else 0.1
            torch.testing.assert_close(results[0][step][each], exact[step][each], rtol=0, atol=rounding)
    assert torch.equal(results[0][0]["b"], exact[0]["b"]) == (layout == "one" or (name, layout) == ("none", "alone"))


@pytest.mark.parametrize(
    ("name", "feedback"),
    [
        (name, feedback)
        for name in sorted(COMPRESSORS)
        for feedback in ("auto", "ef21")
        if feedback == "auto" or OWN_FEEDBACK not in COMPRESSORS[name].traits
    ],
)
def test_ranks_agree_under_every_codec(name: str, feedback: str) -> None:
    """min_numel 1: some ranks have chunks of no number at all."""
    results = on_ranks(4, lambda c: steps(c, reducer(c, "aabb", name, 1, feedback=feedback), 3))
    assert all(same(results[0][step], other[step]) for step in range(3) for other in results[1:])


def test_a_tensor_of_one_number_has_a_place_with_nothing() -> None:
    def fn(c: LocalCollective) -> Tensor:
        return reducer(c, "aabb", "bf16", 1).reduce({"x": torch.tensor([2.0])}, c)["x"]

    assert [x.tolist() for x in on_ranks(4, fn)] == [[8.0]] * 4


class ByHost(Metered):
    """Counts bytes that leave the host; all that reducers in tiers do between ranks is alltoall."""

    def __init__(self, inner: Collective, hosts: str) -> None:
        super().__init__(inner)
        self.hosts, self.between, self.within = hosts, 0, 0

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        for to, chunk in enumerate(chunks):
            if self.hosts[to] != self.hosts[self.rank]:
                self.between += chunk.nbytes
            elif to != self.rank:
                self.within += chunk.nbytes
        return super().alltoall(chunks, rows)


@pytest.mark.parametrize("name", sorted(n for n, spec in COMPRESSORS.items() if VARIABLE not in spec.traits))
@pytest.mark.parametrize("hosts", ["aabb", "abab", "aaabbb", "aabbcc"])
def test_bytes_are_those_of_the_formula(name: str, hosts: str) -> None:
    numbers, per_host, count = 1200, hosts.count("a"), len(set(hosts))

    def fn(c: LocalCollective) -> tuple[int, int, int, float]:
        metered = ByHost(c, hosts)
        made = reducer(metered, hosts, name)
        metered.sent.clear()
        made.reduce({"a": gradients(c.rank, 0)["a"]}, metered)
        assert set(k for k, v in metered.sent.items() if v) <= {"alltoall"}
        return metered.within, metered.between, metered.sent_bytes, made.figures().get("bytes_after", 0)

    for within, between, sent, out in on_ranks(len(hosts), fn):
        assert within == 2 * 4 * numbers * (per_host - 1) // per_host and sent == within + between
        chunk = numbers // per_host
        if name == "none":
            assert between == 2 * (count - 1) * 4 * chunk // count
        elif SUMMABLE in COMPRESSORS[name].traits:
            assert out < 4 * chunk and between == 2 * (count - 1) * out // count
        elif count == 2:
            assert out < 4 * chunk and between == out


@pytest.mark.parametrize("hosts", ["aabb", "abab", "aabbcc", "abcabc"])
@pytest.mark.parametrize("name", ["topk", "onebit"])
def test_what_was_not_sent_is_still_held(name: str, hosts: str) -> None:
    """The sum of all gradients = the sum of all results + what ranks remember of their chunks: by all-gather between
    two hosts; between three by reduce-scatter, whose owners remember too."""

    def fn(c: LocalCollective) -> tuple[list[Grads], dict[str, Any]]:
        made = reducer(c, hosts, name, feedback="ef")
        return steps(c, made, 4), made.state_dict()["between"]["units"]

    results, apart = good(on_ranks(len(hosts), fn)), len(set(hosts))
    for each in ("a", "b", "c"):
        every = [gradients(rank, step)[each].double() for rank in range(len(hosts)) for step in range(4)]
        given, got = sum(every).reshape(-1), sum(grads[each].double() for grads in results[0][0]).reshape(-1)  # type: ignore[union-attr]
        held = torch.zeros_like(got)
        for rank, (_, units) in enumerate(results):
            place, host = hosts[:rank].count(hosts[rank]), sorted(set(hosts)).index(hosts[rank])
            chunk, unit = held.tensor_split(len(hosts) // apart)[place], f"{each}/{place}"
            if apart == 2:
                chunk += units[unit]["memory"].double()
                continue
            for part, j in zip(chunk.tensor_split(apart), range(apart), strict=True):
                part += units[f"{unit}#{j}"]["memory"].double()
            own = chunk.tensor_split(apart)[host]
            own += units[f"{unit}#owner"]["memory"].double()
        assert float(held.norm()) > 0.1 * float(given.norm()), "something was left out"
        torch.testing.assert_close(got + held, given, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("feedback", "decay"), [("ef", 1.0), ("ef", 0.5), ("ef21", 1.0)])
@pytest.mark.parametrize("hosts", ["abab", "aabbcc"])
def test_between_hosts_it_is_the_sum_in_one_tier_of_each_places_chunks(hosts: str, feedback: str, decay: float) -> None:
    """To the bit, memory included, over four steps: a rank of one tier for every host, with its host's sums."""
    settings: dict[str, Any] = {"feedback": feedback, "decay": decay}
    found = good(on_ranks(len(hosts), lambda c: steps(c, reducer(c, hosts, "topk", **settings), 4)))[0]
    names, each = sorted(set(hosts)), ("a", "b", "c")
    places = len(hosts) // len(names)

    def chunks(host: str, step: int, place: int) -> Grads:
        ranks = [gradients(rank, step) for rank, on in enumerate(hosts) if on == host]
        return {n: in_order([g[n].reshape(-1) for g in ranks]).tensor_split(places)[place] for n in each}

    def fn(c: LocalCollective) -> list[list[Grads]]:
        sums = []
        for place in range(places):
            made = compressed(CompressionConfig(name="topk", min_numel=1, **settings), ordered(6000), 3)
            sums.append([])
            for step in range(4):
                sums[-1].append(made.reduce(chunks(names[c.rank], step, place), c))
                made.settle(True)
        return sums

    wanted = good(on_ranks(len(names), fn))[0]
    for step in range(4):
        for n in each:
            assert torch.equal(found[step][n].reshape(-1), torch.cat([wanted[p][step][n] for p in range(places)])), n


def test_a_step_given_up_leaves_nothing_and_a_saved_state_goes_on() -> None:
    def fn(c: LocalCollective) -> tuple[Grads, Grads, Grads, Grads]:
        made = reducer(c, "aabb", "bf16")
        steps(c, made, 2)
        made.reduce(gradients(c.rank, 9), c)
        made.settle(False)
        file = io.BytesIO()
        torch.save(made.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        resumed, moved, fresh = reducer(c, "aabb", "bf16"), reducer(c, "abab", "bf16"), reducer(c, "abab", "bf16")
        resumed.load_state_dict(state)
        moved.load_state_dict(state)
        whole = steps(c, reducer(c, "aabb", "bf16"), 3)[2]
        step = gradients(c.rank, 2)
        return whole, resumed.reduce(step, c), moved.reduce(step, c), fresh.reduce(step, c)

    for whole, resumed, moved, fresh in on_ranks(4, fn):
        assert same(whole, resumed) and not same(whole, fresh)
        assert same(moved, fresh), "chunks of other places are of no use"
    with pytest.raises(ValueError, match="two tiers"):
        raise on_ranks(1, lambda c: reducer(c, "a", "none").load_state_dict({"units": {}}))[0]


def test_a_memory_that_is_lost_is_told() -> None:
    def fn(c: LocalCollective) -> list[list[dict[str, Any]]]:
        events: list[list[dict[str, Any]]] = []
        for name, now in (("bf16", "abab"), ("bf16", "aabb"), ("none", "abab")):
            made = reducer(c, "aabb", name)
            steps(c, made, 1)
            events.append([])
            reducer(c, now, name, tell=events[-1].append).load_state_dict(made.state_dict())
        return events

    for lost, kept, none in on_ranks(4, fn):
        assert [(event["type"], event["what"]) for event in lost] == [("reset", "memory of compressed gradients")]
        assert not kept and not none, "there was nothing to lose without a codec"


def test_memory_follows_the_scale_of_the_loss() -> None:
    def fn(c: LocalCollective, scale: float) -> Grads:
        made = reducer(c, "aabb", "bf16")
        made.reduce(gradients(c.rank, 0), c)
        made.settle(True, scale)
        return made.reduce({name: scale * g for name, g in gradients(c.rank, 1).items() if name != "table"}, c)

    plain, scaled = on_ranks(4, lambda c: fn(c, 1.0))[0], on_ranks(4, lambda c: fn(c, 4.0))[0]
    assert all(torch.equal(4 * plain[name], scaled[name]) for name in SHAPES)


def test_hosts_with_unequal_numbers_of_ranks_are_refused() -> None:
    def fn(c: LocalCollective) -> str:
        with pytest.raises(UserError) as caught:
            reducer(c, "aab", "bf16")
        return str(caught.value)

    assert all("a: 2, b: 1" in words for words in on_ranks(3, fn))


def test_an_exchange_during_backward_changes_no_bit() -> None:
    def fn(c: LocalCollective) -> tuple[Grads, Grads]:
        model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 30))
        params = dict(model.named_parameters())
        overlap = Overlap(reducer(c, "abab", "bf16"), c, params)
        with overlap.backward():
            model(torch.randn(6, 30, generator=torch.Generator().manual_seed(c.rank))).square().sum().backward()
        own = {key: p.grad for key, p in params.items() if p.grad is not None}
        found = overlap.reduce(own, c)
        overlap.close()
        return found, reducer(c, "abab", "bf16").reduce(own, c)

    for overlapped, plain in on_ranks(4, fn):
        assert same(overlapped, plain)


def test_exact_codecs_are_exact_between_hosts() -> None:
    """To the bit what the sum without a codec is."""
    plain = on_ranks(4, lambda c: steps(c, reducer(c, "aabb", "none"), 1))[0]
    for name in (n for n, spec in COMPRESSORS.items() if EXACT in spec.traits and n != "none"):
        assert same(plain[0], on_ranks(4, lambda c, n=name: steps(c, reducer(c, "aabb", n), 1))[0][0])


def test_another_collective_is_refused() -> None:
    def fn(c: LocalCollective) -> str:
        with pytest.raises(ValueError, match="another collective") as caught:
            reducer(c, "ab", "bf16").reduce({}, Metered(c))
        return str(caught.value)

    assert len(on_ranks(2, fn)) == 2
