"""Variance reduction over ranks and in the loop: as one rank, with padding, stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from headrace import models, optim
from headrace.comm.base import Collective
from headrace.data.batch import PAD_KEY, Batch
from headrace.launch import LaunchOptions, RankFailed, Worker, launch, values
from headrace.optim.spec import NEEDS_FULL_PASS
from headrace.optim.variance_reduced import VarianceReduced
from headrace.strategies import REDUCERS, STRATEGIES
from headrace.testing.problems import least_squares, perceptron
from headrace.train.checkpoint import CheckpointStore
from headrace.train.loop import FitConfig, Hooks, fit

NAMES = [
    name for name, spec in optim.OPTIMIZERS.items()
    if isinstance(spec.factory, type) and issubclass(spec.factory, VarianceReduced)
]  # fmt: skip
ROWS, BATCH, CARDS = 250, 32, {"c1": 9, "c2": 5}


def on_ranks(work: Callable[[Collective], Any], ranks: int) -> list[Any]:
    """What every rank's work gives."""

    def job(worker: Worker) -> Any:
        return work(worker.collective)

    return values(launch(job, ranks, launcher="local", timeout_s=60, options=LaunchOptions()))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_ranks_are_one_rank(name: str, ranks: int) -> None:
    """Linear and full tables, shares of uneven size and (3 rows, 4 ranks) empty ones; all ranks hold the same bits."""
    more = {"anchor_batches": 2} if name == "scsg" else {}

    def trained(collective: Collective | None) -> list[list[float]]:
        found = []
        for problem in (least_squares(30, 4, noise=1.0), perceptron(rows=30)):
            optimizer = optim.create(name, problem.model, lr=0.05, weight_decay=0.1, **more)
            problem.train(optimizer, batch=7 if ranks == 2 else 3, steps=20, collective=collective)
            found.append(torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()]).tolist())
        return found

    alone, together = trained(None), on_ranks(trained, ranks)
    assert all(rank == together[0] for rank in together)
    for a, b in zip(alone, together[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@dataclass
class Source:
    """Rows in memory, dealt out to ranks; the last batch is filled up with padding."""

    rank: int
    size: int
    seen: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        dense = rng.normal(size=(ROWS, 3)).astype(np.float32)
        sparse = np.stack([rng.integers(1, n, ROWS) for n in CARDS.values()], axis=1)
        label = (rng.random(ROWS) < 1 / (1 + np.exp(-dense[:, 0] - 0.3 * sparse[:, 0]))).astype(np.float32)
        self.data = {"dense": dense, "sparse": sparse, "label": label, "key": np.arange(ROWS) << 40}

    def steps(self, epoch: int) -> int:
        return -(-ROWS // BATCH)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        order = np.random.default_rng(epoch).permutation(ROWS)
        self.seen = 0
        for step in range(start_step, self.steps(epoch)):
            rows = order[BATCH * step : BATCH * (step + 1)]
            real = torch.from_numpy((np.arange(BATCH) < len(rows))[self.rank :: self.size])
            whole = np.concatenate([rows, np.zeros(BATCH - len(rows), dtype=rows.dtype)])[self.rank :: self.size]
            tensors = {name: torch.from_numpy(value[whole]) for name, value in self.data.items()}
            tensors["key"] = torch.where(real, tensors["key"], PAD_KEY)
            self.seen += int(real.sum())
            yield Batch(tensors, None if bool(real.all()) else real, step)

    def audit(self, epoch: int) -> Any:
        return SimpleNamespace(
            seen=self.seen, dropped=0, key_sum=0, repeated=0
        )  # without a fingerprint nothing is proved


@dataclass
class Job:
    """A rank's function: a click model in the loop, the rule for its dense part."""

    model: str
    rule: str
    directory: Path | None = None
    stop_at: int = 10_000
    dropout: float = 0.0
    on_nonfinite: str = "stop"
    spoiled: int = 0  # the first so many passes over all rows see a bad one

    def __call__(self, worker: Worker) -> dict[str, Any]:
        options = {"embedding_dim": 2, "hidden": (4,), "dropout": self.dropout, "seed": 1}
        model = models.create(self.model, CARDS, 3, **options)
        rule = {"name": self.rule, "lr": 0.05, "weight_decay": 0.01} | (
            {"anchor_batches": 2} if self.rule == "scsg" else {}
        )
        optimizer = optim.create_parts(model, {"dense": rule, "sparse": {"name": "rowwise_adagrad", "lr": 0.1}})
        source = Source(worker.rank, worker.size)
        strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), worker.collective)
        steps = 0

        def asked() -> bool:
            nonlocal steps
            steps += 1
            return steps > self.stop_at

        passes = 0

        def training() -> Iterator[Batch]:
            nonlocal passes
            passes += 1
            whole = Source(worker.rank, worker.size)
            if passes <= self.spoiled:
                whole.data["dense"][7, 1] = np.nan  # of one rank's rows
            return whole.epoch(99)

        store = CheckpointStore(self.directory) if self.directory else None
        hooks = Hooks(training=training, store=store, should_stop=asked)
        cfg = FitConfig(epochs=3, on_nonfinite=self.on_nonfinite)
        result = fit(model, source, optimizer, strategy, worker.collective, cfg, worker.emit, hooks)
        weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).tolist()
        linear = optimizer.parts["dense"].kept.get("linear")
        return {
            "weights": weights, "sha": result.weights_sha256, "linear": linear, "skipped": result.cursor.skipped,
        }  # fmt: skip


def run(job: Job, ranks: int) -> dict[str, Any]:
    answers = values(launch(job, ranks, launcher="local", timeout_s=60, options=LaunchOptions()))
    assert all(answer == answers[0] for answer in answers)
    return dict(answers[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["logistic", "deepfm"])
def test_the_loop_stopped_and_resumed_gives_the_same_bits(tmp_path: Path, model: str, name: str) -> None:
    """Float32, tables trained by another rule, padding at the end of every epoch, two ranks."""
    whole = run(Job(model, name, tmp_path / "whole"), 2)
    run(Job(model, name, tmp_path / "cut", stop_at=11), 2)
    assert run(Job(model, name, tmp_path / "cut"), 2) == whole
    assert whole["linear"] == ({"logistic": True, "deepfm": False}[model] if name in ("sag", "saga") else None)
    assert np.isfinite(whole["weights"]).all()
    np.testing.assert_allclose(whole["weights"], run(Job(model, name), 1)["weights"], atol=2e-5)


PASSES = [name for name in NAMES if NEEDS_FULL_PASS in optim.OPTIMIZERS[name].traits]


@pytest.mark.parametrize("name", PASSES)
def test_a_bad_row_in_a_pass_is_skipped_by_all_ranks(name: str) -> None:
    made = run(Job("deepfm", name, spoiled=1, on_nonfinite="skip"), 2)
    assert made["skipped"] == 1
    assert np.isfinite(made["weights"]).all()


@pytest.mark.parametrize("name", PASSES)
def test_a_bad_row_in_a_pass_stops_all_ranks_with_a_clean_checkpoint(name: str, tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="not a finite number in step 0 on rank 0, 1"):
        run(Job("deepfm", name, tmp_path, spoiled=1), 2)
    assert run(Job("deepfm", name, tmp_path), 2) == run(Job("deepfm", name), 2)


def test_dropout_is_refused_before_anything_runs() -> None:
    with pytest.raises(RankFailed, match="--model.dropout 0"):
        run(Job("deepfm", "svrg", dropout=0.1), 1)
