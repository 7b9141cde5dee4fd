"""Gossip on 8 ranks: the mean over ranks stays, the rest dies out as theory says, bytes go to neighbours only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from contract.collective_exam import on_ranks
from torch import Tensor

from headrace.comm import LocalCollective, Metered
from headrace.compress import COMPRESSORS
from headrace.compress.spec import CONTRACTION, VARIABLE
from headrace.strategies import REDUCERS, create
from headrace.strategies.choco import Choco, gamma_of_theory, measured_gamma, shrink, why_not
from headrace.strategies.compression import CompressionConfig, compressed
from headrace.strategies.mixing import GRAPHS, Mixing, spectral_gap

RANKS, SHAPE, TABLE = 8, (40, 30), (50, 3)
STAYING = sorted(name for name, graph in GRAPHS.items() if graph.static and graph.symmetric)
CODECS = sorted(name for name, spec in COMPRESSORS.items() if not why_not(spec))
SPARSER = {"ratio": 0.1}  # of codecs that have it: fewer turns


class Spy(Metered):
    """Notes to whom anything was sent."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.to: set[int] = set()
        self.known: list[bool] = []  # of every all-to-all, whether ranks know beforehand how much comes

    def alltoall(self, chunks: Sequence[Tensor], rows: Sequence[int] | None = None) -> list[Tensor]:
        self.known.append(rows is not None)
        self.to |= {j for j, chunk in enumerate(chunks) if chunk.numel() and j != self.rank}
        return super().alltoall(chunks, rows)


def starting(rank: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 * seed + rank))


def options_of(codec: str) -> dict[str, Any]:
    return {name: value for name, value in SPARSER.items() if name in COMPRESSORS[codec].defaults}


def gossip(c: Any, codec: str = "none", **options: Any) -> Any:
    cfg = CompressionConfig(name=codec, options=options_of(codec), min_numel=100)
    return create("gossip", compressed(cfg, REDUCERS["ordered"].factory(), 3), c, **options)


Update = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]


def turns(c: Any, strategy: Any, params: dict[str, Tensor], count: int, update: Update) -> list[dict[str, Tensor]]:
    """Steps by `update(turn, params)`, gradients that are subtracted; parameters before all and after each."""
    seen = [{name: p.clone() for name, p in params.items()}]
    for turn in range(count):
        grads = update(turn, params)
        strategy.before_update(params, grads)
        for name, grad in grads.items():
            params[name] -= grad.to_dense() if grad.is_sparse else grad
        strategy.on_parameters(params, turn, False)
        seen.append({name: p.clone() for name, p in params.items()})
    return seen


def rows(ids: list[int], values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([ids], dtype=torch.int64).reshape(1, -1), values, TABLE).coalesce()


def only_once(turn: int, start: Mapping[str, Tensor]) -> Update:
    """In one turn ranks go apart, in others nothing changes."""
    return lambda now, params: {n: (-x if now == turn else 0 * x) for n, x in start.items()}


@pytest.mark.parametrize("graph", sorted(GRAPHS))
def test_parameters_are_those_of_the_matrix(graph: str) -> None:
    """Against W applied to all ranks' parameters in float64; small and large parameters, a directed graph's too."""
    shapes = {"w": SHAPE, "b": (7,), "half": (5,)}

    def fn(c: LocalCollective) -> list[dict[str, Tensor]]:
        params = {name: torch.zeros(shape) for name, shape in shapes.items()}
        strategy = gossip(c, graph=graph, seed=4 if GRAPHS[graph].drawn else 0)
        step = lambda turn, _: {n: 0.1 * starting(c.rank, *shape, seed=turn) for n, shape in shapes.items()}  # noqa: E731
        return turns(c, strategy, params, 6, step)

    found = on_ranks(RANKS, fn)
    for name, shape in shapes.items():
        x = np.zeros((RANKS, int(np.prod(shape))))
        for turn in range(6):
            x -= np.stack([0.1 * starting(r, *shape, seed=turn).double().numpy().ravel() for r in range(RANKS)])
            x = Mixing(graph, RANKS, 4).matrix(turn) @ x
            got = np.stack([found[r][turn + 1][name].double().numpy().ravel() for r in range(RANKS)])
            np.testing.assert_allclose(got, x, atol=1e-6)


@pytest.mark.parametrize("graph", sorted(GRAPHS))
def test_the_mean_of_every_row_stays_whoever_touched_it(graph: str) -> None:
    """Rank r touches rows 5 r to 5 r + 4, all ranks row 45, nobody the last ones; what W does to row 45 is known."""

    def fn(c: LocalCollective) -> tuple[list[dict[str, Tensor]], Any]:
        spy = Spy(c)
        strategy = gossip(spy, graph=graph, steps=2)
        params = {"t": torch.ones(TABLE), "u": torch.zeros(TABLE)}

        def step(turn: int, now: Mapping[str, Tensor]) -> dict[str, Tensor]:
            ids = [5 * c.rank + turn % 5, 45]
            return {n: rows(ids, starting(c.rank, 2, TABLE[1], seed=turn)) for n in now}

        return turns(spy, strategy, params, 8, step), spy.to

    found = on_ranks(RANKS, fn)
    mixing, row = Mixing(graph, RANKS), np.zeros((RANKS, TABLE[1]))
    for turn in range(8):
        steps = [starting(r, 2, TABLE[1], seed=turn).double() for r in range(RANKS)]
        means = [torch.stack([seen[at]["t"] for seen, _ in found]).double().mean(0) for at in (turn, turn + 1)]
        want = means[0].clone()
        for r, step in enumerate(steps):
            want[5 * r + turn % 5] -= step[0] / RANKS
            want[45] -= step[1] / RANKS
        torch.testing.assert_close(means[1], want, atol=1e-6, rtol=0)
        row -= torch.stack(steps)[:, 1].numpy()
        if turn % 2:
            w = mixing.matrix(turn // 2)
            row = (w + w.T) / 2 @ row
        got = np.stack([seen[turn + 1]["u"][45].numpy() for seen, _ in found])
        np.testing.assert_allclose(got, row, atol=2e-6)
    assert all(torch.equal(seen[-1]["t"][46:], torch.ones(4, 3)) for seen, _ in found)
    for rank, (_, to) in enumerate(found):
        assert to == {j for t in range(4) for j in mixing.mutual(rank, t)}


@pytest.mark.parametrize("graph", sorted(GRAPHS))
def test_a_rank_that_hears_nobody_still_does_as_the_others(graph: str) -> None:
    """Of an odd number of ranks one has no partner in random pairs; transports with sizes tell them by a call more."""

    def fn(c: LocalCollective) -> list[bool]:
        spy = Spy(c)
        params = {"w": torch.zeros(SHAPE), "t": torch.ones(TABLE)}
        update = lambda turn, _: {"w": starting(c.rank, *SHAPE), "t": rows([c.rank], starting(c.rank, 1, 3))}  # noqa: E731
        turns(spy, gossip(spy, graph=graph), params, 3, update)
        return spy.known

    found = on_ranks(3, fn)
    assert found == [[True, False, True] * 3] * 3


@pytest.mark.parametrize("graph", STAYING)
def test_ranks_come_together_at_the_rate_of_the_gap(graph: str) -> None:
    def fn(c: LocalCollective) -> list[dict[str, Tensor]]:
        start = {"w": starting(c.rank, *SHAPE)}
        return turns(c, gossip(c, graph=graph), {"w": torch.zeros(SHAPE)}, 16, only_once(0, start))

    found = on_ranks(RANKS, fn)
    stacks = [torch.stack([seen[at]["w"] for seen in found]).double() for at in range(1, 17)]
    apart = [float((x - x.mean(0)).norm()) for x in stacks]
    factor = 1 - spectral_gap(Mixing(graph, RANKS).matrix(0))
    assert all(b <= factor * a + 1e-4 for a, b in itertools.pairwise(apart)), (apart, factor)
    if factor > 0.1:  # the slowest part is what is left
        assert (apart[15] / apart[9]) ** (1 / 6) == pytest.approx(factor, abs=0.03)
    torch.testing.assert_close(stacks[-1].mean(0), stacks[0].mean(0), atol=1e-6, rtol=0)


def test_one_peer_of_8_agrees_after_three_turns() -> None:
    def fn(c: LocalCollective) -> Tensor:
        start = {"w": starting(c.rank, *SHAPE)}
        return turns(c, gossip(c, graph="one_peer"), {"w": torch.zeros(SHAPE)}, 3, only_once(0, start))[-1]["w"]

    found = on_ranks(RANKS, fn)
    want = torch.stack([starting(r, *SHAPE) for r in range(RANKS)]).mean(0)
    for each in found:
        torch.testing.assert_close(each, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("codec", ["none", "topk"])
def test_consensus_is_the_mean_for_a_while_and_the_end_is_it(codec: str) -> None:
    def fn(c: LocalCollective) -> tuple[bool, bool, dict[str, Tensor], dict[str, Tensor]]:
        strategy, params = gossip(c, codec), {"w": torch.zeros(SHAPE), "t": torch.ones(TABLE)}
        turns(c, strategy, params, 3, lambda turn, now: {
            "w": starting(c.rank, *SHAPE, seed=turn), "t": rows([c.rank, 20], starting(c.rank, 2, 3, seed=turn)),
        })  # fmt: skip
        own = {name: p.clone() for name, p in params.items()}
        with strategy.consensus(params):
            inside = {name: p.clone() for name, p in params.items()}
        back = all(torch.equal(own[name], params[name]) for name in own)
        strategy.finish(params)
        return back, all(torch.equal(inside[name], params[name]) for name in own), own, params

    found = on_ranks(RANKS, fn)
    for back, same, _, params in found:
        assert back and same
        for name, value in params.items():
            assert torch.equal(value, found[0][3][name])
            torch.testing.assert_close(value, torch.stack([own[name] for *_, own, _ in found]).mean(0))


def quadratic(c: Any, strategy: Any, count: int, lr_until: int) -> list[Tensor]:
    """Gradient steps of |x - b_r|^2 / 2 with a rate of 0.1, then of 0."""
    params, target = {"w": torch.zeros(SHAPE)}, starting(c.rank, *SHAPE)
    step = lambda turn, now: {"w": 0.1 * (turn < lr_until) * (now["w"] - target)}  # noqa: E731
    return [seen["w"] for seen in turns(c, strategy, params, count, step)]


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_gossip_agrees_on_the_mean(codec: str) -> None:
    """By every codec: the mean of ranks makes the steps of the mean objective, and where these end ranks come together
    linearly; bytes are those of payloads, to each neighbour."""
    count, until = 80, 15

    def fn(c: LocalCollective) -> tuple[list[Tensor], Any, dict[str, float]]:
        spy = Spy(c)
        strategy = gossip(spy, codec, graph="torus")
        return quadratic(spy, strategy, count, until), spy, strategy.figures()

    found = on_ranks(4, fn)
    stacks = [torch.stack([seen[at] for seen, *_ in found]).double() for at in range(count + 1)]
    best = torch.stack([starting(r, *SHAPE) for r in range(4)]).double().mean(0)
    for at, x in enumerate(stacks):
        want = best * (1 - 0.9 ** min(at, until))
        torch.testing.assert_close(x.mean(0), want, atol=2e-5, rtol=0)
    apart = [float((x - x.mean(0)).norm()) for x in stacks]
    assert apart[-1] < 0.35 * apart[until], apart[until::20]
    for a, b in ((until, 48), (48, count)):  # linearly: in the second half as in the first, but for float32's error
        assert apart[b] <= 0.95 * apart[a] + 1e-3
    for rank, (_, spy, figures) in enumerate(found):
        assert spy.to == set(Mixing("torus", 4).heard(rank, 0)) and len(spy.to) == 2
        if codec != "none":
            sizes = 8 * count if VARIABLE in COMPRESSORS[codec].traits else 0
            assert spy.sent["alltoall"] == len(spy.to) * (figures["bytes_after"] + sizes)
            assert figures["bytes_before"] == count * 4 * 1200
        else:
            assert spy.sent["alltoall"] == len(spy.to) * count * 4 * 1200


def test_without_loss_and_gamma_1_compressed_gossip_is_gossip() -> None:
    def plain(c: LocalCollective) -> list[Tensor]:
        return quadratic(c, gossip(c), 12, 6)

    def exact(c: LocalCollective) -> list[Tensor]:
        strategy = gossip(c, "bf16")
        strategy.choco.spec, strategy.choco.codec = COMPRESSORS["none"], COMPRESSORS["none"].factory()
        return quadratic(c, strategy, 12, 6)

    for want, got in zip(on_ranks(RANKS, plain), on_ranks(RANKS, exact), strict=True):
        for a, b in zip(want, got, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "codec", [n for n in CODECS if CONTRACTION in COMPRESSORS[n].traits and "ratio" in options_of(n)]
)
def test_with_gamma_of_theory_errors_shrink_as_theory_says(codec: str) -> None:
    """Koloskova et al. 2019, theorem 2: e_t = sum |x_r - mean|^2 + |x_r - h_r|^2 shrinks by 1 - gap^2 delta / 82."""
    weights, delta, count = Mixing("complete", 4).matrix(0), 0.1, 60
    gamma = gamma_of_theory(weights, delta)

    def fn(c: LocalCollective) -> list[tuple[Tensor, Tensor]]:
        strategy, params = gossip(c, codec, graph="complete", gamma=gamma), {"w": torch.zeros(SHAPE)}
        start, seen = {"w": starting(c.rank, *SHAPE)}, []
        for turn in range(count):
            turns(c, strategy, params, 1, only_once(0 if turn == 0 else 1, start))
            seen.append((params["w"].double(), strategy.choco._kept["w"]["known"].view(SHAPE).clone()))
        return seen

    found = on_ranks(4, fn)
    errors = []
    for at in range(count):
        x, h = (torch.stack([seen[at][k] for seen in found]) for k in (0, 1))
        errors.append(float((x - x.mean(0)).square().sum() + (x - h).square().sum()))
    rate = 1 - spectral_gap(weights) ** 2 * delta / 82
    for at, error in enumerate(errors):
        assert error <= 1.05 * errors[0] * rate**at
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("codec", CODECS)
def test_gamma_is_measured_between_nothing_and_1(codec: str) -> None:
    spec = COMPRESSORS[codec]
    options = {**spec.defaults, **options_of(codec)}
    gamma = measured_gamma(spec, spec.factory(**options), options)
    assert 0 < gamma <= 1
    if spec.delta is not None:
        assert gamma >= 0.25 * spec.delta(4096, options)
    assert shrink(spec, options, 4096) <= 1


def test_choco_keeps_two_wide_numbers_a_parameter_whatever_the_graph() -> None:
    def fn(c: LocalCollective) -> int:
        strategy = gossip(c, "topk", graph="complete")
        quadratic(c, strategy, 2, 1)
        kept = strategy.choco.state_dict()["units"]["w"]
        return sum(value.nbytes for value in kept.values() if isinstance(value, Tensor))

    assert on_ranks(4, fn) == [16 * 1200] * 4


def test_is_made_of_a_codec_only() -> None:
    from headrace.comm import LocalGroup

    c = LocalGroup(1).collective(0)
    assert gossip(c).choco is None
    assert isinstance(gossip(c, "topk").choco, Choco)
