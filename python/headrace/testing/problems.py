"""Small problems with known answers, as a training loop would serve them: global batches dealt out to ranks.

A problem is the mean over n rows of losses(model(x_i), y_i), so that every rule - also one that needs the loss at other
parameters, row keys or full passes - can be given its context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from headrace.comm.base import Collective
from headrace.optim import Optimizer, StepContext
from headrace.optim.context import summed


@dataclass
class Problem:
    """See the module's docstring.

    Args:
        model: outputs [B, ...] of rows of x.
        x: [n, ...].
        y: [n, ...].
        losses: (outputs [B, ...], y [B, ...]) -> [B].
        minimum: the least mean loss, where it is known.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    losses: Callable[[Tensor, Tensor], Tensor]
    minimum: float | None = None

    @property
    def rows(self) -> int:
        """n."""
        return self.x.shape[0]

    def value(self) -> float:
        """Mean loss of all rows at the model's parameters."""
        with torch.no_grad():
            return float(self.losses(self.model(self.x), self.y).mean())

    def full_gradient(self) -> list[Tensor]:
        """Gradient of the mean loss, in parameter order."""
        loss = self.losses(self.model(self.x), self.y).mean()
        return list(torch.autograd.grad(loss, list(self.model.parameters())))

    def context(self, own: Tensor, rows: int, collective: Collective | None = None, **more: Any) -> StepContext:
        """The context of a batch of which this rank has rows `own` [B]."""
        x, y = self.x[own], self.y[own]

        def outputs_at(params: Mapping[str, Tensor] | None) -> Tensor:
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            made: Tensor = torch.func.functional_call(self.model, buffers | dict(params or {}), (x,))
            return made

        return StepContext(
            outputs_at=outputs_at,
            losses=lambda outputs: self.losses(outputs, y),
            rows=rows,
            keys=own + (1 << 40),
            collective=collective,
            **more,
        )

    def full_pass(self, collective: Collective | None, batch: int) -> Iterator[StepContext]:
        """All rows once, dealt out to ranks."""
        rank, size = (0, 1) if collective is None else (collective.rank, collective.size)
        own = torch.arange(rank, self.rows, size)
        for part in torch.tensor_split(own, max(1, -(-self.rows // (batch * size)))):
            yield self.context(part, part.shape[0], collective)

    def step(self, optimizer: Optimizer, ids: Tensor, collective: Collective | None = None) -> float:
        """One training step on global batch `ids` [B]: backward of the sum, sum over ranks, division, update.

        Returns:
            This rank's part of the batch's mean loss before the update.
        """
        rank, size = (0, 1) if collective is None else (collective.rank, collective.size)
        own = ids[rank::size]
        optimizer.zero_grad()
        outputs = self.model(self.x[own])
        loss = self.losses(outputs, self.y[own]).sum()
        loss.backward()
        params = [p for p in self.model.parameters() if p.grad is not None]
        for param, total in zip(params, summed([p.grad for p in params], collective), strict=True):  # type: ignore[misc]
            param.grad = total / ids.shape[0]
        ctx = self.context(
            own, ids.shape[0], collective,
            outputs=outputs.detach(), full_pass=lambda: self.full_pass(collective, 64),
        )  # fmt: skip
        optimizer.step(ctx)
        return float(loss.detach()) / ids.shape[0]

    def batches(self, batch: int, steps: int, seed: int = 0) -> Iterator[Tensor]:
        """Global batches without replacement inside an epoch: ids [batch]."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.rows, generator=generator)
        at = 0
        for _ in range(steps):
            if at + batch > self.rows:
                order, at = torch.randperm(self.rows, generator=generator), 0
            yield order[at : at + batch]
            at += batch

    def train(
        self, optimizer: Optimizer, *, batch: int, steps: int, seed: int = 0, collective: Collective | None = None
    ) -> list[float]:
        """Run `steps` steps; the mean loss of all rows before each and after the last."""
        values = [self.value()]
        for ids in self.batches(batch, steps, seed):
            self.step(optimizer, ids, collective)
            values.append(self.value())
        return values


class Linear(nn.Module):
    """x @ weight, weight [d] from zero: linear in its parameters."""

    def __init__(self, features: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[B, d] to [B]."""
        return x @ self.weight


def squared_errors(outputs: Tensor, y: Tensor) -> Tensor:
    """Half the squared distance of outputs [B, ...] and y [B, ...], a row: [B]."""
    return 0.5 * (outputs - y).square().reshape(outputs.shape[0], outputs.shape[1:].numel()).sum(1)


def log_losses(outputs: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy of logits [B] and labels [B]: [B]."""
    return nn.functional.binary_cross_entropy_with_logits(outputs, y, reduction="none")


def cross_entropies(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits [B, classes] and classes [B]: [B]."""
    return nn.functional.cross_entropy(outputs, y, reduction="none")


def least_squares(
    rows: int = 200, features: int = 8, condition: float = 10.0, noise: float = 0.0, seed: int = 0
) -> Problem:
    """Least squares whose mean Hessian X^T X / n has eigenvalues from 1/condition to 1 exactly: mu-strongly convex."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(rows, features, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=torch.float64))
    eigenvalues = torch.logspace(0.0, 1.0, features, base=1.0 / condition, dtype=torch.float64)
    x = rows**0.5 * (u * eigenvalues.sqrt()) @ v.T
    truth = torch.randn(features, generator=generator, dtype=torch.float64)
    y = x @ truth + noise * torch.randn(rows, generator=generator, dtype=torch.float64)
    solution = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    return Problem(Linear(features), x, y, squared_errors, float(squared_errors(x @ solution, y).mean()))


def logistic(rows: int = 400, features: int = 8, condition: float = 10.0, seed: int = 0) -> Problem:
    """Logistic regression on columns whose scales spread by sqrt(condition), labels drawn from the model: not
    separable. The minimum is found by Newton's method in float64."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0.0, -0.5, features, base=condition, dtype=torch.float64)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64) * scales
    truth = torch.randn(features, generator=generator, dtype=torch.float64) / scales.sqrt()
    y = (torch.rand(rows, generator=generator, dtype=torch.float64) < torch.sigmoid(x @ truth)).double()
    w = torch.zeros(features, dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        w -= torch.linalg.solve((x.T * (p * (1 - p))) @ x, x.T @ (p - y))
    return Problem(Linear(features), x, y, log_losses, float(log_losses(x @ w, y).mean()))


class _Rosenbrock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        residuals = torch.stack([10.0 * (self.at[1] - self.at[0] ** 2), 1.0 - self.at[0]])
        return residuals[x]


def rosenbrock() -> Problem:
    """Rosenbrock's valley from (-1.2, 1) as two residuals; the minimum is 0 at (1, 1).

    H. H. Rosenbrock, "An automatic method for finding the greatest or least value of a function", 1960.
    """
    return Problem(_Rosenbrock(), torch.arange(2), torch.zeros(2, dtype=torch.float64), squared_errors, 0.0)


def perceptron(
    widths: Sequence[int] = (6, 8, 5, 3), rows: int = 96, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Problem:
    """Classes from a small net with tanh units, inputs of uneven scale; the labels come from another net."""
    generator = torch.Generator().manual_seed(seed)

    def net() -> nn.Sequential:
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layer = nn.Linear(a, b, dtype=dtype)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(b, a, generator=generator, dtype=torch.float64) / a**0.5)
                layer.bias.copy_(0.1 * torch.randn(b, generator=generator, dtype=torch.float64))
            layers += [layer] if i == len(widths) - 2 else [layer, nn.Tanh()]
        return nn.Sequential(*layers)

    x = torch.randn(rows, widths[0], generator=generator, dtype=torch.float64).to(dtype)
    x *= torch.logspace(0.0, -1.0, widths[0], dtype=dtype)
    with torch.no_grad():
        y = (3.0 * net()(x)).argmax(1)
    return Problem(net(), x, y, cross_entropies)
