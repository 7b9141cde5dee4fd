"""Making optimizers: names, options, parts, errors. What optimizers do is in test_optim_exam."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from headrace import models, optim
from headrace.errors import UserError
from headrace.optim.adafactor import _rms
from headrace.optim.base import RuleOptimizer
from headrace.optim.spec import ACCEPTS_SPARSE, DENSE_ONLY

PARTS = {"dense": {"name": "adamw", "lr": 0.01}, "sparse": {"name": "rowwise_adagrad", "lr": 0.1}}


@pytest.mark.parametrize("name", sorted(name for name, spec in optim.OPTIMIZERS.items() if DENSE_ONLY in spec.traits))
def test_dense_only_rules_are_refused_for_a_model_with_tables(name: str) -> None:
    model = models.create("fm", {"c1": 5}, 2)
    with pytest.raises(UserError, match="--optimizer.sparse.name rowwise_adagrad"):
        optim.create(name, model)


def test_weight_decay_on_row_sparse_gradients_is_refused() -> None:
    param = nn.Parameter(torch.zeros(3, 2))
    param.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2), check_invariants=True)
    with pytest.raises(UserError, match="weight decay"):
        optim.create("sgd", [param], row_sparse=True, weight_decay=0.1).step()


RULES = sorted(
    n for n, s in optim.OPTIMIZERS.items() if isinstance(s.factory, type) and issubclass(s.factory, RuleOptimizer)
)


@pytest.mark.parametrize("name", RULES)
def test_a_tensor_without_numbers_is_left_alone(name: str) -> None:
    params = [nn.Parameter(torch.zeros(shape)) for shape in ((0, 3), (3, 0), (0,))]
    optimizer = optim.create(name, params)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("name", sorted(n for n, s in optim.OPTIMIZERS.items() if ACCEPTS_SPARSE in s.traits))
def test_a_row_sparse_gradient_without_rows_moves_nothing(name: str) -> None:
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = optim.create(name, [param], row_sparse=True)
    for rows in (torch.tensor([[1]]), torch.zeros(1, 0, dtype=torch.int64)):
        before = param.detach().clone()
        param.grad = torch.sparse_coo_tensor(
            rows, torch.ones(rows.shape[1], 2), (3, 2), check_invariants=True
        ).coalesce()
        optimizer.step()
        assert torch.equal(param, before) == (rows.shape[1] == 0)


def test_muon_takes_hidden_matrices_only() -> None:
    shapes = {
        "layers.0.multihead_attn.out_proj.weight": (4, 4), "overhead.weight": (4, 3), "conv.weight": (4, 2, 2),
        "lm_head.weight": (4, 4), "head.weight": (4, 4), "tok_embeddings.weight": (4, 4), "embed.weight": (4, 4),
        "top.4.weight": (1, 4), "factors.weight": (4, 1), "top.4.bias": (1,),
    }  # fmt: skip
    params = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    for param in params.values():
        param.grad = torch.ones_like(param)
    for names, hidden in ((None, list(shapes)[:3]), (("*.0.*.weight", "conv"), list(shapes)[1:2] + list(shapes)[3:7])):
        optimizer = optim.create("muon", params.items(), **({"adam_names": names} if names else {}))
        optimizer.step()
        assert [name for name, param in params.items() if "m" in optimizer.state[param]] == hidden


def test_root_mean_squares_of_large_tensors_are_right() -> None:
    assert float(_rms(torch.full((1 << 24,), 0.1))) == pytest.approx(0.1, rel=1e-6)


def test_mistakes_are_named() -> None:
    param = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(UserError, match="did you mean adam"):
        optim.create("adm", param)
    with pytest.raises(UserError, match="no option 'momentum'"):
        optim.create("adam", param, momentum=0.9)
    with pytest.raises(UserError, match="lr must be"):
        optim.create("sgd", param, lr=-1.0)
    with pytest.raises(UserError, match=r"betas\[1\]"):
        optim.create("adam", param, betas=(0.9, 1.0))
    with pytest.raises(UserError, match="lr must be of type float, like 0.001, not 'fast'"):
        optim.create("adam", param, lr="fast")
    with pytest.raises(UserError, match=r"betas must be a list like \[0.9, 0.999\]"):
        optim.create("adam", param, betas=[0.9])
    with pytest.raises(UserError, match=r"did you mean sam"):
        optim.create("adam", param, wrappers={"samm": {}})
    with pytest.raises(UserError, match=r"sam has no option 'lr'"):
        optim.create("adam", param, wrappers={"sam": {"lr": 1.0}})
    with pytest.raises(UserError, match=r"all rows of the embedding tables"):
        optim.create("sgd", param, row_sparse=True, wrappers={"ema": {}})


def _trained(model: nn.Module, optimizer: optim.Optimizer, steps: range) -> None:
    for step in steps:
        ids = torch.randint(0, 5, (4, 1), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(torch.ones(4, 2), ids).square().sum().backward()
        optimizer.step()


def test_parts_are_one_optimizer_with_one_state_and_one_schedule() -> None:
    whole, half = (models.create("fm", {"c1": 5}, 2, seed=1) for _ in range(2))
    a, b = optim.create_parts(whole, PARTS), optim.create_parts(half, PARTS)
    _trained(whole, a, range(6))
    _trained(half, b, range(3))
    saved = copy.deepcopy(b.state_dict())
    b = optim.create_parts(half, {"dense": PARTS["dense"] | {"lr": 0.3}, "sparse": PARTS["sparse"]})
    b.load_state_dict(saved)
    _trained(half, b, range(3, 6))
    for p, q in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(p, q)
    before = [p.detach().clone() for p in half.parameters()]
    for group in b.param_groups:
        group["lr"] = 0.0
    _trained(half, b, range(6, 7))
    assert all(torch.equal(p, q) for p, q in zip(half.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="parts"):
        b.load_state_dict({"parts": {"dense": {}}})


def test_a_part_without_an_optimizer_is_named() -> None:
    with pytest.raises(UserError, match=r"--optimizer\.sparse\.name"):
        optim.create_parts(models.create("fm", {"c1": 5}, 2), {"dense": {"name": "adam"}})


def test_registry_is_described() -> None:
    for spec in optim.OPTIMIZERS.values():
        assert all((spec.paper, spec.rule, spec.use, spec.state, spec.cost))
        assert "lr" in spec.defaults
