"""Ranks that step on their own: what they agree on, what a stop, a bad number and a checkpoint do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from convergence.local_rows import ROWS, run
from convergence.test_train_local import Job

from headrace.strategies import STRATEGIES
from headrace.strategies.compression import CompressionConfig
from headrace.train.fit_config import FitConfig

LOCAL = {"name": "local_sgd", "steps": 4}


def job(**settings: Any) -> Job:
    settings = {"cfg": FitConfig(epochs=3, checkpoint_every=5, eval_every=7), "strategy": LOCAL} | settings
    return Job(**settings)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_learns_and_ends_with_one_model(name: str) -> None:
    """With its defaults; `run` compares the ranks' answers, the bits of their parameters among them."""
    found = run(job(strategy={"name": name}), ranks=2)
    assert found["metrics"]["auc"] > 0.75 and found["metrics"]["normalized_entropy"] < 0.9


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_stops_and_goes_on(name: str, tmp_path: Path) -> None:
    """To the end, every row once."""
    cfg = FitConfig(epochs=2, checkpoint_every=4)
    settings: dict[str, Any] = {"strategy": {"name": name}, "cfg": cfg}
    stopped = run(job(directory=tmp_path, stop_at=2, **settings), ranks=2)
    assert stopped["stopped"] == "asked" and 0 < stopped["step"] < 20
    found = run(job(directory=tmp_path, **settings), ranks=2)
    assert found["step"] == 20 and [audit["rows"] + audit["dropped"] for audit in found["audits"]] == [ROWS] * 2


def test_rounds_of_one_step_are_all_reduce() -> None:
    """With a rule without memory: the mean of the updates is the update of the mean."""
    settings: dict[str, Any] = {"dense": "sgd", "sparse": "sgd", "lrs": (0.1, 0.5), "cfg": FitConfig(epochs=2)}
    single, every = (run(job(strategy=s, **settings), ranks=4) for s in (LOCAL | {"steps": 1}, {"name": "allreduce"}))
    assert single["metrics"]["logloss"] == pytest.approx(every["metrics"]["logloss"], rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"growth": 1.5, "max_steps": 16},
        {"sync_steps": 10, "steps": 8},
        {"outer_lr": 0.7, "outer_momentum": 0.5, "nesterov": True},
    ],
    ids=["fixed", "growing", "post-local", "outer momentum"],
)
def test_learns(options: dict[str, Any]) -> None:
    metrics = run(job(strategy=LOCAL | options), ranks=2)["metrics"]
    assert metrics["auc"] > 0.75 and metrics["normalized_entropy"] < 0.9


@pytest.mark.parametrize("codec", ["none", "bf16"])
def test_a_resumed_run_is_the_uninterrupted_one(codec: str, tmp_path: Path) -> None:
    """Checkpoints fall between rounds, the stop on a round's end."""
    settings: dict[str, Any] = {
        "strategy": LOCAL | {"outer_momentum": 0.3}, "compression": CompressionConfig(name=codec, min_numel=64),
        "source": {"rows": 1000},
    }  # fmt: skip
    whole = run(job(**settings), ranks=2)
    stopped = run(job(directory=tmp_path, stop_at=6, **settings), ranks=2)
    assert stopped["stopped"] == "asked" and stopped["sha"] != whole["sha"]
    (tmp_path / sorted(p.name for p in tmp_path.iterdir())[-1]).rename(tmp_path / "away")  # that of the stop itself
    assert run(job(directory=tmp_path, **settings), ranks=2)["sha"] == whole["sha"]


def test_a_rank_with_a_bad_number_leaves_its_own_step_out() -> None:
    events: list[dict[str, Any]] = []
    cfg = FitConfig(epochs=1, on_nonfinite="skip")
    found = run(job(cfg=cfg, source={"spoil": (2, 1)}), ranks=2, events=events)
    told = [event for event in events if event["type"] == "nonfinite"]
    assert found["skipped"] == 1 and [event["ranks"] for event in told] == [[1]]
    assert told[0]["step"] == 3, "they hear of it at the end of the round"


def test_a_bad_number_stops_all_ranks_in_the_round() -> None:
    from headrace.launch import RankFailed

    with pytest.raises(RankFailed, match="not a finite number in step 3 on rank 1"):
        run(job(source={"spoil": (2, 1)}), ranks=2)
