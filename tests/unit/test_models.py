"""Models against slow references in float64, and the embedding's gradient against a dense one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace import models
from headrace.errors import UserError
from headrace.models.base import ClickModel
from headrace.models.embedding import FusedEmbedding, sum_rows
from headrace.models.layers import reseed_dropout

CARDS = {"c1": 7, "c2": 4, "c3": 11}
B, D = 9, 5


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(B, D, generator=generator)
    sparse = torch.stack([torch.randint(0, n, (B,), generator=generator) for n in CARDS.values()], dim=1)
    return dense, sparse


def make(name: str, **options: object) -> ClickModel:
    settings = {"embedding_dim": 3, "hidden": (6,), "bottom": (4,), "embedding_std": 0.5, "seed": 3} | options
    model = models.create(name, CARDS, D, dense_mean=[0.1] * D, dense_std=[2.0] * D, **settings)
    with torch.no_grad():
        for parameter in model.dense_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def rows_of(model: ClickModel, sparse: Tensor) -> np.ndarray:
    """[B, C, dim] by plain loops over the state dict."""
    table = model.state_dict()["embedding.weight"].double().numpy()
    starts = np.cumsum([0, *CARDS.values()])[:-1]
    return np.stack([[table[start + int(i)] for start, i in zip(starts, ids, strict=True)] for ids in sparse])


def mlp(model: ClickModel, part: str, x: np.ndarray, last_relu: bool) -> np.ndarray:
    state = {k: v.double().numpy() for k, v in model.state_dict().items() if k.startswith(f"{part}.")}
    numbers = sorted({int(k.split(".")[1]) for k in state})
    for n in numbers:
        x = x @ state[f"{part}.{n}.weight"].T + state[f"{part}.{n}.bias"]
        x = np.maximum(x, 0) if last_relu or n != numbers[-1] else x
    return x


def reference(name: str, model: ClickModel, dense: Tensor, sparse: Tensor) -> np.ndarray:
    x = (dense.double().numpy() - 0.1) / 2.0
    state = {k: v.double().numpy() for k, v in model.state_dict().items()}
    rows = rows_of(model, sparse)
    if name == "logistic":
        return x @ state["weight"] + state["bias"] + rows.sum((1, 2))
    if name == "dlrm":
        image = mlp(model, "bottom", x, True)
        vectors = np.concatenate([image[:, None], rows], axis=1)
        products = np.stack([(vectors[:, i] * vectors[:, j]).sum(1) for i, j in combinations(range(4), 2)], axis=1)
        return mlp(model, "top", np.concatenate([image, products], axis=1), False)[:, 0]
    factors = np.concatenate([state["factors.weight"][None] * x[:, :, None], rows[:, :, 1:]], axis=1)
    pairs = sum((factors[:, i] * factors[:, j]).sum(1) for i, j in combinations(range(factors.shape[1]), 2))
    logits = state["bias"] + x @ state["weight"] + rows[:, :, 0].sum(1) + pairs
    if name == "fm":
        return logits
    deep = mlp(model, "deep", np.concatenate([x, rows[:, :, 1:].reshape(B, -1)], axis=1), False)
    return logits + deep[:, 0]


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_forward_is_the_paper(name: str) -> None:
    model, (dense, sparse) = make(name), inputs()
    logits = model(dense, sparse)
    assert logits.shape == (B,)
    np.testing.assert_allclose(logits.detach().numpy(), reference(name, model, dense, sparse), atol=2e-5)


def test_embedding_gradient_is_the_dense_one_without_padding() -> None:
    table, (_, sparse) = FusedEmbedding(CARDS, 4), inputs()
    with torch.no_grad():
        table.weight.normal_(generator=torch.Generator().manual_seed(0))
    scale = torch.randn(B, len(CARDS), 4, generator=torch.Generator().manual_seed(2))
    (table(sparse) * scale).sum().backward()
    grad = table.weight.grad
    assert grad is not None
    assert grad.is_sparse
    ids = grad._indices()[0]
    assert bool((ids[1:] > ids[:-1]).all())
    plain = table.weight.detach().clone().requires_grad_()
    (plain[sparse + table.offsets] * scale).sum().backward()
    assert plain.grad is not None
    plain.grad[table.offsets] = 0.0
    torch.testing.assert_close(grad.to_dense(), plain.grad)
    assert not set(ids.tolist()) & set(table.offsets.tolist())


def test_sums_by_row_do_not_depend_on_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, values = torch.randint(0, 50, (5000,), generator=generator), torch.randn(5000, 3, generator=generator)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(sum_rows(rows, values))
    torch.set_num_threads(before)
    assert torch.equal(results[0][1], results[1][1])
    expected = torch.zeros(50, 3, dtype=torch.float64).index_add_(0, rows, values.double())
    torch.testing.assert_close(results[0][1].double(), expected[results[0][0]], atol=1e-4, rtol=1e-5)
    assert sum_rows(rows[:0], values[:0])[0].numel() == 0


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_initial_model(name: str) -> None:
    one, same = make(name), make(name)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert one.embedding is not None
    assert not one.embedding.weight[one.embedding.offsets].any()
    if name != "logistic":
        other = make(name, seed=4)
        assert not torch.equal(one.embedding.weight, other.embedding.weight)
    sparse = {id(p) for p in one.sparse_parameters()}
    assert len(sparse) == 1
    assert len(list(one.dense_parameters())) + 1 == len(list(one.parameters()))


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_without_categories_they_do_not_matter(name: str) -> None:
    model, (dense, sparse) = make(name, categories=False), inputs()
    assert not list(model.sparse_parameters())
    assert torch.equal(model(dense, sparse), model(dense, torch.ones_like(sparse)))
    assert not torch.equal(model(dense, sparse), model(dense + 1, sparse))


def test_dropout_is_a_function_of_seed_step_and_rank() -> None:
    model, (dense, sparse) = make("deepfm", dropout=0.5), inputs()

    def logits(step: int, rank: int) -> Tensor:
        reseed_dropout(model, 7, step, rank)
        return model(dense, sparse)

    model.train()
    assert torch.equal(logits(1, 0), logits(1, 0))
    assert not torch.equal(logits(1, 0), logits(2, 0))
    assert not torch.equal(logits(1, 0), logits(1, 1))
    model.eval()
    assert torch.equal(logits(1, 0), logits(2, 1))


def test_constant_columns_and_mistakes() -> None:
    dense, sparse = inputs()
    constant = models.create("logistic", CARDS, D, dense_mean=[1.0] * D, dense_std=[0.0] * D)
    assert bool(torch.isfinite(constant(dense, sparse)).all())
    with pytest.raises(UserError, match="did you mean deepfm"):
        models.create("deepfn", CARDS, D)
    with pytest.raises(UserError, match="did you mean hidden"):
        models.create("deepfm", CARDS, D, hiden=(3,))
    with pytest.raises(UserError, match="column c2 holds id 4, its table has 4 rows"):
        make("fm")(dense, torch.tensor([[1, 4, 0]] * B))
    with pytest.raises(UserError, match="no rows for the embedding of column c1"):
        models.create("fm", {"c1": 0}, D)
