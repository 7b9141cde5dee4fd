"""Tables of gradients: rows found by key, repeats and padding, bounds, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headrace import models, optim
from headrace.data.batch import PAD_KEY
from headrace.errors import UserError
from headrace.optim import StepContext
from headrace.optim.gradient_table import PADDING_KEY, GradientTable, first_of_each
from headrace.optim.row_gradients import full_rows, is_linear, linear_rows
from headrace.optim.saga import SAGA
from headrace.testing.problems import Problem, cross_entropies, least_squares, perceptron, squared_errors

LR = 0.05


def test_padding_is_the_batches_padding() -> None:
    assert PADDING_KEY == PAD_KEY


def test_rows_are_found_by_key_in_any_order() -> None:
    keys = torch.tensor([7, -5, 1 << 62, 3])
    table = GradientTable.of([keys[:1], keys[1:]], [torch.tensor([[0.0]]), torch.tensor([[1.0], [2.0], [3.0]])])
    asked = torch.tensor([3, 7, 1 << 62, -5, 7])
    assert table.entries[table.places(asked)][:, 0].tolist() == [3.0, 0.0, 2.0, 1.0, 0.0]
    assert first_of_each(table.places(asked)).tolist() == [True, True, True, True, False]
    for unknown in (4, (1 << 62) + 1, -6):
        with pytest.raises(UserError, match=f"row key {unknown} is not one of the 4"):
            table.places(torch.tensor([7, unknown]))


def test_a_key_that_comes_twice_in_the_pass_is_named() -> None:
    with pytest.raises(UserError, match="row key 9 comes twice"):
        GradientTable.of([torch.tensor([9, 2]), torch.tensor([9])], [torch.zeros(2, 1), torch.zeros(1, 1)])


class Saga:
    """SAGA in NumPy on least squares; a batch may hold a row more than once."""

    def __init__(self, problem: Problem) -> None:
        self.x, self.y = problem.x.numpy(), problem.y.numpy()
        self.w = np.zeros(self.x.shape[1])
        self.table = self._gradients(np.arange(len(self.x)))

    def _gradients(self, ids: Any) -> Any:
        return self.x[ids] * (self.x[ids] @ self.w - self.y[ids])[:, None]

    def step(self, ids: Any) -> None:
        """One batch."""
        new = self._gradients(ids)
        move = (new - self.table[ids]).mean(0) + self.table.mean(0)
        self.table[ids] = new
        self.w = self.w - LR * move


@pytest.mark.parametrize("table", ["linear", "full"])
def test_a_row_that_comes_twice_in_a_batch_is_entered_once(table: str) -> None:
    problem = least_squares(10, 3, noise=1.0)
    optimizer, reference = optim.create("saga", problem.model, lr=LR, table=table), Saga(problem)
    for ids in ([0, 1, 2], [3, 3, 5], [5, 5, 5], [3, 4, 0], [1, 9, 1], [1, 3, 5]):
        problem.step(optimizer, torch.tensor(ids))
        reference.step(np.array(ids))
        np.testing.assert_allclose(problem.model.weight.detach().numpy(), reference.w, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("table", ["linear", "full"])
def test_the_mean_stays_that_of_the_table(table: str) -> None:
    """In float32, where every step's change of the mean is near its rounding."""
    problem = least_squares(64, 3, noise=1.0)
    problem.model.float()
    problem.x, problem.y = problem.x.float(), problem.y.float()
    optimizer = optim.create("saga", problem.model, lr=LR, table=table)
    for ids in problem.batches(4, 400):
        problem.step(optimizer, ids)
    kept = cast(SAGA, optimizer).kept
    entries = kept["entries"].double()
    held = entries.mean(0) if table == "full" else (problem.x.double() * entries).mean(0)
    torch.testing.assert_close(kept["mean"]["weight"], held, rtol=0, atol=1e-6)


def padded(problem: Problem, ids: Tensor, junk: Tensor) -> StepContext:
    """Rows ids and, as padding, as many other rows as junk has, with no key and no loss."""
    x = torch.cat([problem.x[ids], torch.full_like(problem.x[junk], 3.0)])
    y = torch.cat([problem.y[ids], torch.zeros_like(problem.y[junk])])
    real = torch.arange(len(x)) < len(ids)

    def losses(outputs: Tensor) -> Tensor:
        return torch.where(real, problem.losses(outputs, y), torch.zeros(len(x), dtype=x.dtype))

    def passes() -> Iterator[StepContext]:
        yield padded(problem, torch.arange(problem.rows), torch.arange(4))

    return StepContext(
        outputs_at=lambda params: torch.func.functional_call(problem.model, dict(params or {}), (x,)),
        losses=losses,
        rows=len(ids),
        keys=torch.where(real, torch.cat([ids, junk]), PAD_KEY),
        full_pass=passes,
    )


@pytest.mark.parametrize("name", ["sag", "saga", "svrg", "sarah", "scsg"])
@pytest.mark.parametrize("make", [lambda: least_squares(12, 3, noise=1.0), lambda: perceptron(rows=12)])
def test_padding_changes_nothing(name: str, make: Any) -> None:
    plain, filled = make(), make()
    a, b = (optim.create(name, problem.model, lr=LR) for problem in (plain, filled))
    for ids in plain.batches(4, 9):
        plain.step(a, ids)
        ctx = padded(filled, ids, torch.tensor([1, 1, 2]))
        b.zero_grad()
        ctx.loss_at().backward()
        b.step(ctx)
    for p, q in zip(plain.model.parameters(), filled.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_both_forms_are_the_rows_gradients() -> None:
    """Entries and totals of several outputs and parameters, against one backward a row."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 4, generator=generator, dtype=torch.float64)
    problem = Problem(nn.Linear(4, 3, dtype=torch.float64), x, torch.arange(70) % 3, cross_entropies)
    params = dict(problem.model.named_parameters())
    ctx = problem.context(torch.arange(70), 70)
    assert is_linear(ctx, params, {})
    losses = [problem.context(torch.tensor([i]), 1).loss_at() for i in range(70)]
    every = [torch.autograd.grad(loss, list(params.values())) for loss in losses]
    weights = torch.randn(70, 1, generator=generator, dtype=torch.float64)
    full, linear = full_rows(ctx, params), linear_rows(ctx, params)
    assert linear.entries.shape == (70, 3)
    torch.testing.assert_close(full.entries, torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in every]))
    for rows in (full, linear):
        totals = rows.total(rows.entries * weights)
        for i, name in enumerate(params):
            want = sum(w * row[i] for w, row in zip(weights[:, 0], every, strict=True))
            torch.testing.assert_close(totals[name], want)


class Curved(nn.Module):
    """Outputs bent a little, or along few rays only."""

    def __init__(self, bend: str) -> None:
        super().__init__()
        self.weight, self.bend = nn.Parameter(torch.zeros(3)), bend

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.weight
        return {"line": z + 1.0, "tanh": (1e-3 * z).tanh(), "relu": z.relu(), "square": z + 1e-4 * z * z}[self.bend]


@pytest.mark.parametrize("bend", ["line", "tanh", "relu", "square"])
def test_linear_models_are_told_from_others(bend: str) -> None:
    model = Curved(bend)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    problem = Problem(model, x, torch.zeros(20), squared_errors)
    ctx = problem.context(torch.arange(20), 20)
    assert is_linear(ctx, dict(model.named_parameters()), {}) == (bend == "line")


def test_click_models_that_are_linear_in_their_dense_part() -> None:
    """The Jacobian must not depend on the tables that others train, either."""
    for name, want in {"logistic": True, "fm": False, "deepfm": False, "dlrm": False}.items():
        model = models.create(name, {"c1": 5, "c2": 4}, 3, embedding_dim=2, hidden=(4,), bottom=(4,), seed=1)
        dense = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        ids = torch.arange(32).reshape(16, 2) % 4

        def outputs_at(params: Any, model: nn.Module = model, inputs: Any = (dense, ids)) -> Tensor:
            return torch.func.functional_call(model, dict(params or {}), inputs)

        ctx = StepContext(outputs_at=outputs_at, losses=lambda o: o, rows=16)
        own = {id(p) for p in model.dense_parameters()}
        named = dict(model.named_parameters())
        mine = {n: p for n, p in named.items() if id(p) in own}
        others = {n: p for n, p in named.items() if id(p) not in own}
        assert is_linear(ctx, mine, others) == want, name


def test_a_table_past_its_bound_is_refused_before_it_is_made() -> None:
    """What a row takes, what there is room for, and what else can be done."""
    problem = perceptron(rows=96)
    parameters = sum(p.numel() for p in problem.model.parameters())
    row = 8 + 8 * parameters
    optimizer = optim.create("saga", problem.model, table_bytes=95 * row)
    with pytest.raises(UserError, match=rf"{row:,} bytes a training row .* {parameters:,} parameters.* 95(?s:.*)svrg"):
        problem.step(optimizer, torch.arange(16))
    problem.step(optim.create("saga", problem.model, table_bytes=96 * row), torch.arange(16))
    line = least_squares(50, 4)
    line.step(optim.create("sag", line.model, table_bytes=50 * 16), torch.arange(5))
    with pytest.raises(UserError, match=r"16 bytes a training row here \(numbers for the outputs"):
        line.step(optim.create("sag", line.model, table_bytes=50 * 16 - 1), torch.arange(5))


def test_what_cannot_be_done_is_said() -> None:
    problem = least_squares(8, 2)
    with pytest.raises(UserError, match="table must be one of auto, linear, full"):
        optim.create("saga", problem.model, table="scalar")
    net = perceptron(rows=8)
    with pytest.raises(UserError, match="not affine"):
        net.step(optim.create("sag", net.model, table="linear"), torch.arange(4))
    with pytest.raises(UserError, match="give it the model"):
        optim.create("svrg", problem.model.parameters())
    with pytest.raises(UserError, match="pick"):
        optim.create("svrg", problem.model, pick="best")
    with pytest.raises(UserError, match="SARAH+"):
        optim.create("sarah", problem.model, gamma=0.1, pick="random")
    with pytest.raises(UserError, match="length"):
        optim.create("svrg", problem.model, inner_epochs=0.0)
    with pytest.raises(UserError, match="anchor_batches"):
        optim.create("scsg", problem.model, anchor_batches=0)


def test_steps_without_what_they_need_are_refused() -> None:
    problem = least_squares(8, 2)
    problem.losses(problem.model(problem.x), problem.y).sum().backward()
    ctx = problem.context(torch.arange(8), 8)
    with pytest.raises(UserError, match="no context"):
        optim.create("svrg", problem.model).step()
    with pytest.raises(UserError, match="goes through all training rows"):
        optim.create("svrg", problem.model).step(ctx)
    nameless = StepContext(outputs_at=ctx.outputs_at, losses=ctx.losses, rows=8, full_pass=lambda: iter([ctx]))
    with pytest.raises(UserError, match="these rows have none"):
        optim.create("saga", problem.model).step(nameless)


@pytest.mark.parametrize(
    ("layer", "why"),
    [(nn.Dropout(0.1), "dropout 0"), (nn.BatchNorm1d(3), "mixes the rows"), (nn.LSTM(3, 3, 2, dropout=0.2), "draws")],
)
def test_layers_that_make_a_rows_loss_another_function_are_refused(layer: nn.Module, why: str) -> None:
    for name in ("saga", "svrg", "scsg"):
        with pytest.raises(UserError, match=why):
            optim.create(name, nn.Sequential(nn.Linear(3, 3), layer))
    optim.create("saga", nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0), nn.LayerNorm(3)))
