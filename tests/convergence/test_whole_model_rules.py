"""Whole-model rules in the training loop: two ranks, dropout, tables beside them, a stop and a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
from convergence.test_train_local import Job, run

from headrace.train.loop import FitConfig


@pytest.mark.parametrize("name", ["lbfgs", "hessian_free", "natural_gradient"])
def test_stopped_and_resumed_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    cfg = FitConfig(epochs=2, checkpoint_every=5)
    whole = run(Job(tmp_path / "whole", cfg=cfg, dense=name), 2)
    assert run(Job(tmp_path / "cut", cfg=cfg, dense=name, stop_at=7), 2)["stopped"] == "asked"
    second = run(Job(tmp_path / "cut", cfg=cfg, dense=name), 2)
    assert (second["sha"], second["metrics"]) == (whole["sha"], whole["metrics"])
    assert whole["metrics"]["auc"] > 0.7
