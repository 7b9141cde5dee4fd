"""Local SGD in float64 against its rules written out in NumPy: the outer step, and in which steps ranks meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contract.collective_exam import good, on_ranks
from numpy.typing import NDArray
from torch import Tensor

from headrace.comm import LocalCollective, Metered
from headrace.strategies import REDUCERS, create
from headrace.strategies.sparse import with_rows

pytestmark = pytest.mark.usefixtures("one_thread")
Numbers = dict[str, NDArray[np.float64]]
RANKS, ROWS, RATE, TABLE = 3, 8, 0.3, "table"
SHAPES = {"weight": (5, 2), "bias": (2,), TABLE: (30, 2)}


def start() -> Numbers:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def gradients(rank: int, step: int, at: Numbers) -> tuple[Numbers, NDArray[np.int64]]:
    """Of |x weight + bias + table[ids] - y|^2 / 2, the mean over rows that are each rank's own; rows that were met."""
    rng = np.random.default_rng([rank, step])
    x, y = rng.normal(size=(ROWS, 5)), rng.normal(size=(ROWS, 2)) + rank
    ids = rng.choice(SHAPES[TABLE][0], ROWS, replace=False)
    wrong = (x @ at["weight"] + at["bias"] + at[TABLE][ids] - y) / ROWS
    found = {"weight": x.T @ wrong, "bias": wrong.sum(0), TABLE: np.zeros(SHAPES[TABLE])}
    found[TABLE][ids] = wrong
    return found, np.sort(ids)


def stepped(strategy: Any, rank: int, step: int, params: dict[str, Tensor], last: bool = False) -> None:
    """One step of plain SGD on a rank's own rows, and what the strategy makes of it."""
    found, ids = gradients(rank, step, {name: param.numpy() for name, param in params.items()})
    grads = {name: torch.from_numpy(g) for name, g in found.items()}
    grads[TABLE] = with_rows(torch.from_numpy(ids), grads[TABLE][ids], params[TABLE])
    strategy.before_update(params, grads)
    for name, g in found.items():
        params[name] -= RATE * torch.from_numpy(g)
    strategy.on_parameters(params, step, strategy.meets(step, last))


def local_sgd(c: Any, **options: Any) -> Any:
    return create("local_sgd", REDUCERS["ordered"].factory(), c, **options)


def by_the_rule(count: int, steps: int, rate: float, momentum: float, nesterov: bool) -> Numbers:
    """SlowMo and DiLoCo: SGD whose gradient is what all had after the last round, less the mean of what became of it.

    Of tables the mean alone.
    """
    x, u = start(), {name: np.zeros(shape) for name, shape in SHAPES.items()}
    own = [start() for _ in range(RANKS)]
    for step in range(count):
        for rank, at in enumerate(own):
            for name, g in gradients(rank, step, at)[0].items():
                at[name] = at[name] - RATE * g
        if (step + 1) % steps and step + 1 < count:
            continue
        for name in SHAPES:
            outer = x[name] - sum(at[name] for at in own) / RANKS
            u[name] = momentum * u[name] + outer
            way = outer + momentum * u[name] if nesterov else u[name]
            x[name] = x[name] - (outer if name == TABLE else rate * way)
        own = [dict(x) for _ in range(RANKS)]
    return x


@pytest.mark.parametrize(
    ("momentum", "nesterov", "rate"),
    [(0.0, False, 1.0), (0.0, False, 0.6), (0.8, False, 1.0), (0.5, False, 0.7), (0.9, True, 1.0), (0.4, True, 1.3)],
)
def test_parameters_are_those_of_the_published_rule(momentum: float, nesterov: bool, rate: float) -> None:
    """Four rounds of 3 steps, and what is left at the end, 2 steps, as a fifth."""
    count, steps = 14, 3

    def fn(c: LocalCollective) -> dict[str, Tensor]:
        strategy = local_sgd(c, steps=steps, outer_lr=rate, outer_momentum=momentum, nesterov=nesterov)
        params = {name: torch.from_numpy(x) for name, x in start().items()}
        for step in range(count):
            stepped(strategy, c.rank, step, params)
        strategy.finish(params)
        return params

    found, want = good(on_ranks(RANKS, fn)), by_the_rule(count, steps, rate, momentum, nesterov)
    for name, value in want.items():
        assert all(torch.equal(other[name], found[0][name]) for other in found), "ranks end with one model"
        np.testing.assert_allclose(found[0][name].numpy(), value, rtol=0, atol=1e-12, err_msg=name)


LONGEST = "post-local, then growing"
MEETINGS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "every third": ({"steps": 3}, [2, 5, 8, 11, 14, 17, 20, 23, 26, 29]),
    "post-local": ({"steps": 8, "sync_steps": 5}, [0, 1, 2, 3, 4, 12, 20, 28]),
    "doubling": ({"steps": 2, "growth": 2.0, "max_steps": 8}, [1, 5, 13, 21, 29]),  # 2, 4, 8, 8, 8
    "growing by parts": ({"steps": 2, "growth": 1.5, "max_steps": 5}, [1, 4, 8, 13, 18, 23, 28]),  # 2, 3, 4, 5, ...
    "growing without end": ({"steps": 1, "growth": 2.0}, [0, 2, 6, 14]),  # 1, 2, 4, 8, and 16 not before step 30
    LONGEST: ({"steps": 2, "growth": 2.0, "max_steps": 8, "sync_steps": 3}, [0, 1, 2, 4, 8, 16, 24]),
}


@pytest.mark.parametrize(("kind", "resumed"), [*((kind, False) for kind in MEETINGS), (LONGEST, True)])
def test_ranks_meet_in_these_steps_and_in_no_other(kind: str, resumed: bool) -> None:
    """As seen from outside: there they use the collective, and have the same parameters; resumed, at every step."""
    options, expected = MEETINGS[kind]

    def fn(c: LocalCollective) -> tuple[list[int], list[dict[str, Tensor]]]:
        metered = Metered(c)
        strategy = local_sgd(metered, **options)
        params = {name: torch.from_numpy(x) for name, x in start().items()}
        strategy.before_update(params, {TABLE: with_rows(torch.arange(0), params[TABLE][:0], params[TABLE])})
        used, seen = [], []  # the first step alone asks which parameters are tables: that was it
        for step in range(30):
            before = metered.calls.total()
            stepped(strategy, c.rank, step, params)
            used += [step] * (metered.calls.total() > before)
            seen.append({name: param.clone() for name, param in params.items()})
            if resumed:
                state, strategy = strategy.state_dict(), local_sgd(metered, **options)
                strategy.load_state_dict(state)
        return used, seen

    found = good(on_ranks(RANKS, fn))
    assert [used for used, _ in found] == [expected] * RANKS
    same = [all(torch.equal(seen[step][n], found[0][1][step][n]) for _, seen in found for n in SHAPES)
            for step in range(30)]  # fmt: skip
    assert [step for step, met in enumerate(same) if met] == expected


def test_the_last_step_of_an_epoch_ends_a_round_of_any_length() -> None:
    """And the next round is a whole one, longer as after any other."""

    def fn(c: LocalCollective) -> list[int]:
        metered = Metered(c)
        strategy = local_sgd(metered, steps=3, growth=2.0, max_steps=12)
        params = {name: torch.from_numpy(x) for name, x in start().items()}
        used = []
        for step in range(24):
            stepped(strategy, c.rank, step, params, last=step in (4, 19))
            used.append(metered.calls.total())
        return [step for step in range(1, 24) if used[step] > used[step - 1]]

    assert good(on_ranks(RANKS, fn)) == [[2, 4, 16, 19]] * RANKS  # 3, 6 cut short, 12, 12 cut short
