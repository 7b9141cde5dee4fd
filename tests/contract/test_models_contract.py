"""What every model of the registry promises to the loop, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace import models
from headrace.errors import UserError
from headrace.train.export import load_model, save_model

CARDS = {"c1": 50, "c2": 9}
OPTIONS = {"embedding_dim": 4, "hidden": (8,), "bottom": (8,), "seed": 2}


def inputs(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sparse = torch.stack([torch.randint(0, n, (rows,), generator=generator) for n in CARDS.values()], dim=1)
    return torch.randn(rows, 13, generator=generator), sparse


@pytest.fixture(params=sorted(models.MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rows_do_not_see_each_other(name: str) -> None:
    model, (dense, sparse) = models.create(name, CARDS, 13, **OPTIONS).eval(), inputs(32)
    together = model(dense, sparse)
    torch.testing.assert_close(together[5:6], model(dense[5:6], sparse[5:6]))
    assert model(dense[:0], sparse[:0]).shape == (0,)


def test_every_parameter_learns_and_gradients_match_finite_differences(name: str) -> None:
    model, (dense, sparse) = models.create(name, CARDS, 13, **OPTIONS).double(), inputs(16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double())
    dense = dense.double()
    model(dense, sparse).square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        place = int(grad.abs().reshape(-1).argmax())
        assert grad.reshape(-1)[place] != 0
        flat, step, values = parameter.data.reshape(-1), 1e-6, []
        for move in (step, -2 * step):
            flat[place] += move
            values.append(float(model(dense, sparse).square().sum().detach()))
        flat[place] += step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(grad.reshape(-1)[place]), rel=1e-4)


def test_exported_and_loaded_scores_the_same_bits(name: str, tmp_path: Path) -> None:
    settings = {"name": name, "cardinalities": CARDS, "num_dense": 13, "dense_mean": [0.5] * 13, **OPTIONS}
    options = {key: value for key, value in settings.items() if key not in ("name", "cardinalities", "num_dense")}
    model, (dense, sparse) = models.create(name, CARDS, 13, **options).eval(), inputs(20)
    save_model(model, tmp_path, settings, {"table": {"version": 3}})
    loaded, about = load_model(tmp_path)
    assert about["table"] == {"version": 3}
    assert torch.equal(loaded(dense, sparse), model(dense, sparse))


def test_damaged_export_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model in"):
        load_model(tmp_path)
    settings = {"name": "fm", "cardinalities": CARDS, "num_dense": 13}
    save_model(models.create("fm", CARDS, 13), tmp_path, settings, {})
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="is no model of ours"):
        load_model(tmp_path)
