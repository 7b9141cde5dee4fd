"""Codecs by tensor: the same on all ranks, within the budget, the least error, nothing lost when they change."""

from __future__ import annotations

import io
import math
from collections import Counter
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from contract.collective_exam import good, on_ranks
from torch import Tensor

from headrace.comm import Collective, LocalCollective, Metered
from headrace.compress.base import generator_of
from headrace.compress.feedback import Feedback
from headrace.compress.ladder import SAMPLE, Rung, errors, ladder, sample
from headrace.compress.spec import CONTRACTION, UNBIASED
from headrace.errors import UserError
from headrace.optim import create
from headrace.strategies import create as create_strategy
from headrace.strategies.adaptive import ERRORS, Adaptive
from headrace.strategies.compression import CompressionConfig, check, compressed
from headrace.strategies.overlap import ByBuckets, Overlap
from headrace.strategies.reducers import ordered

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"a": (40, 30), "small": (5,), "b": (1500,), "c": (2, 700)}
Grads = dict[str, Tensor]
ALL = ("topk", "qsgd", "onebit", "int8_nearest", "fp16", "none")
CASES = [(e, f) for e in ("allgather", "reduce_scatter") for f in ("ef", "none", "ef21")]


def gradients(rank: int, step: int) -> Grads:
    """Alike at first; then "b" falls and "c" grows."""
    g = torch.Generator().manual_seed(1000 * step + rank)
    sizes = [1.0, 1.0, 3.0**-step, 3.0**step]
    return {name: s * torch.randn(shape, generator=g) for (name, shape), s in zip(SHAPES.items(), sizes, strict=True)}


def reducer(c: Collective, events: list[dict[str, Any]] | None = None, **settings: Any) -> Adaptive:
    settings["options"] = {"budget": 0.1, "interval": 4, "switch": False} | settings.get("options", {})
    cfg = CompressionConfig(name="auto", min_numel=100, **settings)
    check(cfg)
    made = compressed(cfg, ordered(6000), 3, c, "", events.append if events is not None else lambda event: None)
    assert isinstance(made, Adaptive)
    return made


def steps(c: Collective, made: ByBuckets, first: int, last: int) -> list[Grads]:
    found = []
    for step in range(first, last):
        found.append(made.reduce(gradients(c.rank, step), c))
        made.settle(True)
    return found


def saved(made: Adaptive) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@pytest.mark.parametrize(("exchange", "feedback"), CASES)
def test_ranks_agree_keep_the_budget_and_go_on_from_a_checkpoint(exchange: str, feedback: str) -> None:
    budget = 0.2 if feedback == "none" else 0.1  # there is little to choose from below that
    settings: dict[str, Any] = {"exchange": exchange, "feedback": feedback, "options": {"budget": budget}}

    def fn(c: LocalCollective) -> tuple[list[Grads], list[Grads], dict[str, str], list[dict[str, Any]]]:
        events: list[dict[str, Any]] = []
        made = reducer(c, events, **settings)
        whole = []
        for step in range(10):
            before = made.numbers["in"], made.numbers["out"]
            whole += steps(c, made, step, step + 1)
            assert made.numbers["out"] - before[1] <= budget * (made.numbers["in"] - before[0])
            if step == 4:
                made.reduce(gradients(c.rank, 50), c)  # given up: as if it had not been
                made.settle(False)
                state = saved(made)
        resumed = reducer(c, **settings)
        resumed.load_state_dict(state)
        rest = steps(c, resumed, 5, 10)
        assert (made.figures()["turns"], resumed.figures()["turns"], resumed.turns) == (10, 5, 10)
        assert resumed.labels() == made.labels() and resumed.state_dict()["measured"] == made.state_dict()["measured"]
        return whole, rest, made.labels(), events

    results = good(on_ranks(3, fn))
    whole, _, labels, events = results[0]
    assert all(r[2] == labels and r[3] == events for r in results)
    decisions = [e for e in events if "bytes" in e]
    assert [e["turn"] for e in decisions] == [1, 2, 4, 8] and all(e["bytes"] <= e["budget"] for e in decisions)
    assert sum(bool(e["layers"]) for e in decisions) > 1, "codecs were to change"
    for other, rest, _, _ in results:
        for step in range(10):
            assert all(torch.equal(whole[step][n], other[step][n]) for n in SHAPES)
            assert all(torch.equal(whole[step][n], rest[step - 5][n]) for n in SHAPES if step > 4)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_memory_fades_under_every_codec_that_is_chosen(decay: float) -> None:
    """e <- decay (x + e - sent), summed over ranks, whatever the codec of the tensor is at the time."""

    def fn(c: LocalCollective) -> tuple[list[Grads], list[Grads], dict[str, int]]:
        made, found, held = reducer(c, exchange="allgather", decay=decay), [], []
        for step in range(9):
            found += steps(c, made, step, step + 1)
            units = made.state_dict()["units"]
            held.append({n: units[n]["memory"].view(SHAPES[n]) for n in ("a", "b", "c")})
        return found, held, made.labels()

    results = good(on_ranks(2, fn))
    assert len(set(results[0][2].values())) > 1, "codecs were to differ"
    for step in range(9):
        for n in ("a", "b", "c"):
            given = sum(gradients(rank, step)[n] for rank in range(2))
            before = sum(held[step - 1][n] for _, held, _ in results) if step else 0
            now = sum(held[step][n] for _, held, _ in results)
            scale = float(given.abs().max())  # type: ignore[union-attr]
            torch.testing.assert_close(
                now, decay * (given + before - results[0][0][step][n]), rtol=0, atol=1e-5 * max(1.0, scale)
            )


class Given:
    """A switch that does as it was told: one letter a turn, c for compressed."""

    due = False

    def __init__(self, ways: str) -> None:
        self.ways, self.turns = ways, 0

    @property
    def engaged(self) -> bool:
        return self.ways[self.turns] == "c"

    def turn(self, seconds: float) -> None:
        self.turns += 1

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("ways", ["c", "a"])
def test_a_bucket_takes_one_exchange_compressed_or_not(size: int, ways: str) -> None:
    def fn(c: LocalCollective) -> tuple[Counter[str], bool]:
        metered, made = Metered(c), reducer(c, options={"interval": 100})
        made.switch = Given(ways + "c")  # type: ignore[assignment]
        made.bucket_bytes = 1 << 20
        summed = made.reduce(gradients(c.rank, 0), metered)
        return metered.calls, torch.equal(summed["small"], ordered().reduce(gradients(c.rank, 0), c)["small"])

    for calls, exact in on_ranks(size, fn):
        assert calls == ({"allgather": 1} if size == 2 else {"alltoall": 1, "allgather": 1}) and exact


@pytest.mark.parametrize("exchange", ["allgather", "reduce_scatter"])
@pytest.mark.parametrize("ways", ["cccccccccc", "ccccaacccac", "caaaaaaaaaa"])
def test_nothing_is_lost_when_codecs_change_or_compression_goes_off(exchange: str, ways: str) -> None:
    """The sum of all gradients = the sum of all results + what ranks and owners remember."""

    def fn(c: LocalCollective) -> tuple[list[Grads], dict[str, Any], int]:
        events: list[dict[str, Any]] = []
        made = reducer(c, events, exchange=exchange)
        made.switch = Given(ways + "c")  # type: ignore[assignment]
        found = steps(c, made, 0, len(ways))
        return found, made.state_dict()["units"], sum(bool(e["layers"]) for e in events if "bytes" in e)

    results = good(on_ranks(3, fn))
    assert results[0][2] > 1 or ways.startswith("ca")
    for name in ("a", "b", "c"):
        every = [gradients(rank, step)[name].double() for rank in range(3) for step in range(len(ways))]
        given, got = sum(every).reshape(-1), sum(g[name].double() for g in results[0][0]).reshape(-1)  # type: ignore[union-attr]
        held = torch.zeros_like(got)
        for rank, (_, units, _) in enumerate(results):
            memory = {unit: state["memory"].double() for unit, state in units.items() if "memory" in state}
            if exchange == "allgather":
                held += memory.get(name, 0.0)
            elif memory:
                held += torch.cat([memory[f"{name}#{j}"] for j in range(3)])
                held.tensor_split(3)[rank].add_(memory[f"{name}#owner"])
        assert bool(held.any()) == (ways[-1] == "c")
        torch.testing.assert_close(got + held, given, rtol=0, atol=2e-6 * float(given.abs().max()) * len(ways))


@pytest.mark.parametrize("error", ["absolute", "relative"])
def test_what_is_chosen_has_the_least_error_of_all_choices(error: str) -> None:
    """Against enumeration, with errors of whole tensors as the codecs make them."""
    names, large, budget = ("topk", "onebit", "int8_nearest", "fp16"), ("a", "b", "c"), 0.12

    def done(c: LocalCollective) -> tuple[dict[str, str], Grads]:
        made = reducer(
            c, exchange="allgather", options={"codecs": list(names), "error": error, "budget": budget}
        )  # fmt: skip
        found = steps(c, made, 0, 1)[0]
        return made.labels(), found

    labels, sums = on_ranks(2, done)[0]
    rungs = ladder(names, feedback=True)
    left: dict[str, list[float]] = {}
    for name in large:
        gs = [gradients(rank, 0)[name].reshape(-1) for rank in range(2)]
        energy = sum(float(g.double().square().sum()) for g in gs)
        left[name] = []
        for rung in rungs:
            lost = [rung.codec.decompress(rung.codec.compress(g, rung.codec.init(g))[0]) - g for g in gs]
            q = sum(float(x.double().square().sum()) for x in lost) / energy
            value = energy * q / (1 - min(q, 0.999))
            left[name].append(value / float(sums[name].double().square().sum()) if error == "relative" else value)
    numbers = {name: math.prod(SHAPES[name]) for name in large}
    room = budget * 4 * sum(numbers.values())
    best = min(
        (sum(left[n][r] for n, r in zip(large, choice, strict=True)), choice)
        for choice in product(range(len(rungs)), repeat=3)
        if sum(rungs[r].nbytes(numbers[n], torch.float32) for n, r in zip(large, choice, strict=True)) <= room
    )
    mine = sum(left[n][[r.label for r in rungs].index(labels[n])] for n in large)
    assert mine <= best[0] * 1.02
    assert len(set(labels.values())) > 1


def test_errors_of_rungs_are_those_of_the_codecs_on_all_of_a_tensor() -> None:
    g = torch.Generator().manual_seed(5)
    x = torch.randn(200_000, generator=g) * torch.rand(200_000, generator=g) ** 4
    rungs = ladder(ALL, feedback=True)
    some = [sample(x, SAMPLE, turn) for turn in range(6)]
    assert all(s.numel() == SAMPLE for s in some) and not torch.equal(some[0], some[1])
    found = torch.tensor([errors(s, rungs, turn) for turn, s in enumerate(some)]).double()
    means = found.sum(0) / sum(float(s.double().square().sum()) for s in some)
    energy = float(x.double().square().sum())
    for rung, mean in zip(rungs, means.tolist(), strict=True):
        payload, _ = rung.codec.compress(x, {"key": 1, "turn": 0})
        assert payload.nbytes == rung.nbytes(x.numel(), x.dtype)
        true = float((rung.codec.decompress(payload) - x).double().square().sum()) / energy
        assert mean == pytest.approx(true, rel=0.06, abs=1e-9), rung.label
        spec = rung.spec
        if CONTRACTION in spec.traits:
            assert mean < 1
    assert sample(x[:700], SAMPLE, 3).numel() == 700 and sample(x, 100, 3).numel() == 512


def test_errors_with_memory_are_those_of_many_turns() -> None:
    """q G / (1 - q) against the mean of what was wrong in turns of feedback with fresh gradients of one size."""
    for rung in ladder(("onebit", "topk", "qsgd"), feedback=True):
        if rung.label not in ("onebit", "topk 0.1", "qsgd 3"):
            continue
        feedback, whole, wrong, energy = Feedback(rung.codec), [], [], 0.0
        state = feedback.init(torch.zeros(4096)) | {"codec": {"key": 0, "turn": 0}}
        for turn in range(80):
            x = torch.randn(4096, generator=generator_of(7, turn))
            w = feedback.whole(x, state)
            sent = feedback.send(x, state)
            state = sent.state
            if turn >= 40:
                whole.append(w)
                wrong.append(float((rung.codec.decompress(sent.payload) - w).square().sum()))
                energy += float(x.square().sum()) / 40
        w_energy = sum(float(w.square().sum()) for w in whole) / 40
        q = sum(errors(w, [rung], 1)[0] for w in whole) / 40 / w_energy
        assert sum(wrong) / 40 == pytest.approx(q * energy / (1 - q), rel=0.1), rung.label


def test_lars_takes_trust_ratios_of_what_was_decoded_and_levels_follow_norms() -> None:
    """A layer's step has the length lr c |w| whatever noise its gradient has; a larger gradient gets no more bits."""

    def fn(c: LocalCollective, scale: float, error: str) -> tuple[dict[str, str], Grads, Grads]:
        made = reducer(c, feedback="none", options={"codecs": ["qsgd"], "error": error, "budget": 0.12})
        grads = {name: g * (scale if name == "a" else 1.0) for name, g in gradients(c.rank, 0).items()}
        sums = made.reduce(grads, c)
        made.settle(True)
        return made.labels(), grads, sums

    found = {key: good(on_ranks(3, partial(fn, scale=key[0], error=key[1])))[0]
             for key in product((1.0, 100.0), ERRORS)}  # fmt: skip
    assert found[1.0, "relative"][0] == found[100.0, "relative"][0]
    bits = {key: int(labels["a"].split()[1]) for key, (labels, *_) in found.items()}
    assert bits[100.0, "absolute"] > bits[1.0, "absolute"]
    generator = torch.Generator().manual_seed(1)
    params = {name: torch.nn.Parameter(torch.randn(SHAPES[name], generator=generator)) for name in ("a", "c")}
    before = {name: p.detach().clone() for name, p in params.items()}
    _, grads, sums = found[1.0, "relative"]
    for name, param in params.items():
        param.grad = sums[name].clone()
    create("lars", params.items(), lr=2.0, momentum=0.0, trust_coefficient=0.01).step()
    for name, param in params.items():
        moved, weight = (param.detach() - before[name]).norm(), before[name].norm()
        assert float(moved / weight) == pytest.approx(2.0 * 0.01, rel=1e-4)
        assert not torch.allclose(sums[name].norm(), 3 * grads[name].norm(), rtol=0.01)


def test_an_exchange_while_backward_runs_decides_the_same() -> None:
    def fn(c: LocalCollective) -> None:
        params = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
        plain, inner = reducer(c), reducer(c)
        ahead = Overlap(inner, c, params)
        for step in range(5):
            grads = gradients(c.rank, step)
            loss = sum((params[name] * g).sum() for name, g in grads.items())
            for param in params.values():
                param.grad = None
            with ahead.backward():
                loss.backward()  # type: ignore[union-attr]
            found = ahead.reduce({name: p.grad for name, p in params.items() if p.grad is not None}, c)
            ahead.settle(True)
            expected = steps(c, plain, step, step + 1)[0]
            assert all(torch.equal(found[name], expected[name]) for name in SHAPES)
        ahead.close()
        assert inner.labels() == plain.labels() and len(set(plain.labels().values())) > 1

    good(on_ranks(3, fn))


def test_ranks_that_step_on_their_own_decide_where_they_meet() -> None:
    def fn(c: LocalCollective) -> tuple[int, Grads]:
        made = reducer(c)
        strategy = create_strategy("local_sgd", made, c, steps=2)
        params = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        for step in range(8):
            grads = gradients(c.rank, step)
            strategy.before_update(params, grads)
            for name, param in params.items():
                param -= 0.01 * grads[name]
            strategy.on_parameters(params, step, strategy.meets(step, last=False))
        return made.turns, params

    results = good(on_ranks(2, fn))
    assert [turns for turns, _ in results] == [4, 4]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in SHAPES)


@pytest.mark.parametrize("layout", ["aabb", "abab"])
def test_between_hosts_all_places_decide_alike(layout: str) -> None:
    def fn(c: LocalCollective) -> tuple[list[Grads], dict[str, str], float, float]:
        options = {"budget": 0.15, "interval": 4}
        cfg = CompressionConfig(name="auto", options=options, min_numel=100, hierarchical=True)
        made: Any = compressed(cfg, ordered(6000), 3, c, layout[c.rank])
        found = steps(c, made, 0, 8)
        figures = made.figures()
        assert made.inner.switch.seconds
        return found, made.inner.labels(), figures["turns_as_is"], figures["bytes_after"] / figures["bytes_before"]

    results = good(on_ranks(4, fn))
    for found, labels, as_is, share in results:
        assert all(torch.equal(found[7][n], results[0][0][7][n]) for n in SHAPES)
        assert list(labels.values()) == list(results[0][1].values())
        assert as_is == results[0][2] and (as_is or share <= 0.15)


def test_what_cannot_be_is_refused() -> None:
    def fn(c: LocalCollective) -> None:
        steps(c, reducer(c, options={"budget": 0.001}), 0, 1)

    error = on_ranks(2, fn)[0]
    assert isinstance(error, UserError) and "--compression.budget 0.001" in str(error) and "larger" in error.remedy

    def other(c: LocalCollective) -> None:
        made = reducer(c)
        steps(c, made, 0, 1)
        reducer(c, options={"codecs": ["qsgd", "none"]}).load_state_dict(made.state_dict())

    assert "other codecs" in str(on_ranks(2, other)[0])
    for feedback in (True, False):
        for rung in ladder([n for n in ALL if feedback or n in ("qsgd", "fp16", "none")], feedback):
            assert feedback or UNBIASED in rung.spec.traits or rung.label in ("fp16", "none")


def test_labels_say_what_sets_a_rung_apart() -> None:
    labels = [rung.label for rung in ladder(ALL, feedback=True)]
    assert len(set(labels)) == len(labels) and {"qsgd 7", "topk 0.01", "none"} <= set(labels)
    assert isinstance(ladder(["none"], feedback=False)[0], Rung)
