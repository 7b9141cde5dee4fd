"""The loop with compressed gradients: learns as without, goes on with the same bits, forgets steps not made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from convergence.local_rows import run
from convergence.test_train_local import Job

from headrace.compress import COMPRESSORS
from headrace.compress.spec import OWN_MOMENTUM
from headrace.strategies.compression import CompressionConfig
from headrace.train.fit_config import FitConfig

NAMES = sorted(name for name in COMPRESSORS if name != "none")


def job(name: str, feedback: str = "auto", **settings: Any) -> Job:
    settings = {"cfg": FitConfig(epochs=3, checkpoint_every=5)} | settings
    return Job(compression=CompressionConfig(name=name, feedback=feedback, min_numel=64), dense=_rule(name), **settings)


def _rule(name: str) -> str:
    return "sgd" if OWN_MOMENTUM in COMPRESSORS[name].traits else "adam"


RUNS = [*((name, "auto", 2) for name in NAMES), ("topk", "ef21", 2), ("topk", "ef21", 3)]  # codec, feedback, ranks


@pytest.mark.parametrize(("name", "feedback", "ranks"), RUNS)
def test_learns_with_far_fewer_bytes(name: str, feedback: str, ranks: int) -> None:
    exact = run(job("none") if _rule(name) == "adam" else Job(dense="sgd"))["metrics"]
    found = run(job(name, feedback), ranks=ranks)
    assert found["metrics"]["logloss"] < 1.05 * exact["logloss"], (found["metrics"], exact)
    assert found["halved"]


@pytest.mark.parametrize(("name", "feedback", "ranks"), RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, feedback: str, ranks: int, tmp_path: Path) -> None:
    whole = run(job(name, feedback), ranks=ranks)
    stopped = run(job(name, feedback, directory=tmp_path, stop_at=13), ranks=ranks)
    assert stopped["stopped"] == "asked" and stopped["sha"] != whole["sha"]
    assert run(job(name, feedback, directory=tmp_path), ranks=ranks)["sha"] == whole["sha"]


def test_a_bad_step_is_as_if_it_had_not_been() -> None:
    """The rank with a good gradient has sent nothing and remembers nothing of it."""
    cfg = FitConfig(epochs=1, on_nonfinite="skip")
    found = run(job("bf16", cfg=cfg, source={"spoil": (3, 1)}), ranks=2)
    assert found["skipped"] == 1 and found["metrics"]["auc"] > 0.6
