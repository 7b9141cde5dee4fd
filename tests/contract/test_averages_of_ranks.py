"""Averages of weights (ema, swa) where ranks step on their own: all ranks test and export the same, the mean."""

from __future__ import annotations

import pytest
import torch
from contract.collective_exam import good, on_ranks
from torch import Tensor, nn

from headrace import optim
from headrace.comm import LocalCollective
from headrace.strategies import REDUCERS, STRATEGIES, create
from headrace.train.job import as_tested

WRAPPER = {"ema": {"decay": 0.5}}
NAMES = sorted(name for name, spec in STRATEGIES.items() if not spec.remote and spec.repeatable)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_tested_is_the_mean_of_ranks_averages(name: str) -> None:
    def fn(c: LocalCollective) -> tuple[list[Tensor], list[Tensor], bool]:
        model = nn.Linear(3, 2)
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()
        rule = optim.create("sgd", model, lr=1.0, wrappers=WRAPPER)
        strategy = create(name, REDUCERS["ordered"].factory(), c)
        for step in range(16):
            draw = torch.Generator().manual_seed(100 * step + c.rank)
            own = {n: torch.randn(p.shape, generator=draw) for n, p in model.named_parameters()}
            grads = strategy.on_gradients(own, step)
            values = {n: p.data for n, p in model.named_parameters()}
            strategy.before_update(values, grads)
            for n, param in model.named_parameters():
                param.grad = grads[n]
            rule.step()
            strategy.on_parameters(values, step, strategy.meets(step, step == 15))
        strategy.finish(values)
        averages = [average.clone() for _, average in rule.averages()]
        trained = [param.detach().clone() for param in model.parameters()]
        with as_tested(model, rule, strategy, {"dense": {"wrappers": WRAPPER}}):
            inside = [param.detach().clone() for param in model.parameters()]
        same = [torch.equal(a, b) for a, b in zip(trained, model.parameters(), strict=True)]
        kept = [torch.equal(a, b) for a, (_, b) in zip(averages, rule.averages(), strict=True)]
        return averages, inside, all(same + kept)

    found = good(on_ranks(3, fn))
    for at in range(2):
        averages = torch.stack([own[at] for own, *_ in found])
        assert all(torch.equal(inside[at], found[0][1][at]) for _, inside, _ in found)
        torch.testing.assert_close(found[0][1][at], averages.mean(0), atol=1e-5, rtol=1e-5)
        assert bool((averages - averages[0]).any()) != STRATEGIES[name].synchronous
    assert all(back for *_, back in found)
