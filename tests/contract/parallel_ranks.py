"""Ranks as threads with a collective and a mailbox, models to cut, and the plain way to train them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from headrace import optim
from headrace.comm import LocalCollective, LocalGroup
from headrace.comm.mailbox import Mailbox


def on_ranks(size: int, fn: Callable[[LocalCollective, Mailbox], Any], timeout_s: float = 60.0) -> list[Any]:
    """Run `fn` on `size` threads; values or exceptions in rank order."""
    group = LocalGroup(size, timeout_s)

    def one(rank: int) -> Any:
        try:
            return fn(group.collective(rank), group.mailbox(rank))
        except BaseException as error:  # what pytest.raises did not see is no Exception
            group.abort(f"rank {rank} failed: {error!r}")
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def values_of(results: Sequence[Any]) -> list[Any]:
    """Results, none of which is an error."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)


def perceptron(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Eight layers, four of them with parameters."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for into, out in ((6, 10), (10, 9), (9, 7)):
        layers += [nn.Linear(into, out), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(7, 3), nn.Identity()).to(dtype)


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of every row."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def batch(step: int, rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs [rows, 6] and classes [rows]."""
    g = torch.Generator().manual_seed(100 + step)
    return torch.randn(rows, 6, generator=g).to(dtype), torch.randint(0, 3, (rows,), generator=g)


def trained_plainly(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], optimizer: Mapping[str, Any], clip: float | None = None
) -> tuple[dict[str, Tensor], list[float]]:
    """The sum of losses backward, divided by rows, a step: on the whole batch, with nothing of the pipeline."""
    options = dict(optimizer)
    rule = optim.create(options.pop("name"), model, **options)
    means = []
    for inputs, targets in batches:
        rule.zero_grad()
        total = losses(model(inputs), targets).sum()
        total.backward()
        means.append(float(total.detach()) / len(targets))
        for param in model.parameters():
            if param.grad is not None:
                param.grad /= len(targets)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        rule.step()
    return model.state_dict(), means


def close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float) -> None:
    """The same names, and numbers to a tolerance."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """To the bit."""
    return list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
