"""Models cut into stages: as even as can be, and together again the same."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headrace.comm import LocalGroup
from headrace.errors import UserError
from headrace.parallel.stages import assemble, cut, layers_of, measured_costs, pieces, stage_of


@settings(max_examples=80)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_no_cut_is_better(costs: list[int], data: st.DataObject) -> None:
    """Against all cuts: the slowest stage, then the sum of squares, then the first ends."""
    stages = data.draw(st.integers(1, len(costs)))
    cuts = []
    for ends in itertools.combinations(range(1, len(costs)), stages - 1):
        borders = [0, *ends, len(costs)]
        sums = [sum(costs[a:b]) for a, b in itertools.pairwise(borders)]
        cuts.append((max(sums), sum(each * each for each in sums), borders))
    ranges = cut(costs, stages)
    assert [each.start for each in ranges] + [len(costs)] == min(cuts)[2]
    assert all(one.stop == two.start for one, two in itertools.pairwise(ranges)) and ranges[-1].stop == len(costs)


@pytest.mark.parametrize(("costs", "stages"), [([1.0], 2), ([], 1), ([1.0, math.nan], 1), ([1.0, -1.0], 1), ([1.0], 0)])
def test_what_cannot_be_cut_is_refused(costs: list[float], stages: int) -> None:
    with pytest.raises(UserError, match=r"cannot be cut|costs of layers"):
        cut(costs, stages)


def test_stages_are_copies_under_the_names_of_the_whole() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made = [stage_of(plain, 3, stage) for stage in range(3)]
    states = [stage.state_dict() for stage in made]
    whole = assemble(states)
    assert list(whole) == list(plain.state_dict())
    assert all(torch.equal(whole[name], tensor) for name, tensor in plain.state_dict().items())
    x = torch.randn(5, 4)
    y = x
    for stage in made:
        y = stage(y)
    assert torch.equal(y, plain(x))
    with torch.no_grad():
        made[0].get_parameter("0.weight").zero_()
    assert bool(plain[0].weight.any())
    with pytest.raises(UserError, match=r"stage 1 holds 0\.bias"):
        assemble([states[0], states[0]])


def test_lists_have_numbers_for_names_and_other_models_are_refused() -> None:
    assert list(layers_of([nn.ReLU(), nn.Tanh()])) == ["0", "1"]
    with pytest.raises(UserError, match="Linear cannot be cut"):
        layers_of(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="2 costs were given for 1 layers"):
        stage_of([nn.ReLU()], 1, 0, (1.0, 2.0))


class Residual(nn.Sequential):
    """Does more than run its layers one after the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def test_sequences_that_do_more_than_run_their_layers_are_refused() -> None:
    hooked = nn.Sequential(nn.ReLU())
    hooked.register_forward_hook(lambda module, args, output: 2.0 * output)
    for model in (Residual(nn.ReLU()), hooked):
        with pytest.raises(UserError, match="nothing says in which order"):
            stage_of(model, 1, 0)
    (inner,) = stage_of(nn.Sequential(Residual(nn.ReLU())), 1, 0).children()
    assert isinstance(inner, Residual)  # as one layer it is called as it is


def test_layers_may_have_names() -> None:
    named = nn.Sequential(OrderedDict(first=nn.Linear(2, 2), seed=nn.Tanh()))
    made, x = stage_of(named, 1, 0), torch.ones(3, 2)
    assert list(made.state_dict()) == list(named.state_dict()) and torch.equal(made(x), named(x))
    for name in ("part", "device", "trained"):
        with pytest.raises(UserError, match=f"cannot be called {name}"):
            stage_of(nn.Sequential(OrderedDict({"0": nn.Tanh(), name: nn.Tanh()})), 2, 0)


def test_layers_that_share_parameters_stay_together() -> None:
    table = nn.Linear(3, 3)
    shared = nn.Sequential(table, nn.ReLU(), table)
    with pytest.raises(UserError, match=r"stages 0 and 1 share a parameter: 0\.weight is 2\.weight"):
        stage_of(shared, 2, 0)
    assert len(list(stage_of([table, table, nn.ReLU()], 2, 0, (1.0, 1.0, 2.0)).parameters())) == 2


def test_measured_costs_are_of_rank_0_and_leave_the_model_as_it_was() -> None:
    plain = nn.Sequential(nn.Identity(), nn.Linear(300, 3000), nn.ReLU(inplace=True), nn.BatchNorm1d(3000))
    plain.append(nn.Dropout(0.5))
    random = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    costs = measured_costs(plain, torch.zeros(64, 300), LocalGroup(1).collective(0))
    assert torch.equal(torch.get_rng_state(), random)
    assert len(costs) == 5 and all(cost >= 0.0 for cost in costs)
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())
    assert all(param.grad is None for param in plain.parameters())


@given(st.integers(1, 20), st.integers(1, 20))
def test_pieces_are_all_rows_in_order(rows: int, count: int) -> None:
    x = torch.arange(rows * 2).view(rows, 2)
    if rows < count:
        with pytest.raises(UserError, match="cannot be cut into"):
            pieces(x, count)
        return
    alone, paired = pieces(x, count), pieces((x, x[:, 0]), count)
    assert torch.equal(torch.cat(alone), x) and len(alone) == count  # type: ignore[arg-type]
    assert torch.equal(torch.cat([ids for _, ids in paired]), x[:, 0])
    assert max(map(len, alone)) - min(map(len, alone)) <= 1


def test_pieces_need_equal_rows() -> None:
    with pytest.raises(UserError, match=r"\[2, 3\] rows"):
        pieces((torch.zeros(2), torch.zeros(3)), 1)
