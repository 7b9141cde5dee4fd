"""The loop on threads: learns, gives the same bits after a stop, skips or stops on bad numbers, proves what it read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from convergence.local_rows import CARDS, ROWS, Source, run

from headrace import models, optim
from headrace.catalog.fingerprint import key_sum
from headrace.launch import RankFailed, Worker
from headrace.models.embedding import FusedEmbedding
from headrace.optim.schedules import ScheduleConfig
from headrace.parallel.sharded_tables import ShardedEmbedding
from headrace.strategies import REDUCERS, STRATEGIES, Equipment, create
from headrace.strategies.aggregation import AggregationConfig, aggregated
from headrace.strategies.compression import CompressionConfig, compressed
from headrace.strategies.pushes import push_codecs
from headrace.train.checkpoint import CheckpointStore
from headrace.train.fit_config import FitConfig
from headrace.train.loop import Hooks, fit
from headrace.train.precision import PrecisionConfig


@dataclass
class Job:
    """A rank's function: DeepFM on the source."""

    directory: Path | None = None
    cfg: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, checkpoint_every=5, eval_every=7))
    stop_at: int | None = None
    model: str = "deepfm"
    dense: str = "adam"
    source: dict[str, Any] = field(default_factory=dict)
    keep: int = 20
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    strategy: dict[str, Any] = field(default_factory=lambda: {"name": "allreduce"})
    sparse: str = "rowwise_adagrad"
    lrs: tuple[float, float] = (0.02, 0.1)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    sharded: bool = False
    wrappers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, worker: Worker) -> dict[str, Any]:
        table = partial(ShardedEmbedding, rank=worker.rank, size=worker.size) if self.sharded else FusedEmbedding
        with worker.alone():
            model = models.create(
                self.model, CARDS, 13, embedding_dim=4, hidden=(16,), bottom=(8,), dropout=0.1, seed=1, table=table
            )
        optimizer = self.optimizer(model)
        source = Source(worker.rank, worker.size, **self.source)
        reducer: Any = aggregated(self.aggregation, REDUCERS["ordered"].factory())
        if self.aggregation.name == "none":
            host = f"host {worker.rank % 2}"
            reducer = compressed(self.compression, reducer, 4, worker.collective, host)
        steps = 0

        def asked() -> bool:
            nonlocal steps
            steps += 1
            return self.stop_at is not None and steps > self.stop_at and worker.rank == worker.size - 1

        equipment = self.equipment(model, worker, asked) if STRATEGIES[self.strategy["name"]].remote else None
        strategy = create(reducer=reducer, collective=worker.collective, equipment=equipment, **self.strategy)
        hooks = Hooks(
            validation=source.whole,
            store=CheckpointStore(self.directory, self.keep) if self.directory else None,
            should_stop=asked,
            rows=ROWS,
            fingerprint=key_sum(source.data["key"]),
        )
        result = fit(model, source, optimizer, strategy, worker.collective, self.cfg, worker.emit, hooks)
        assert self.sharded or not model.embedding or not model.embedding.weight[model.embedding.offsets].any()
        metrics = result.evaluation.metrics.to_dict() if result.evaluation else None
        return {
            "sha": result.weights_sha256,
            "stopped": result.stopped,
            "metrics": metrics,
            "step": result.cursor.global_step,
            "skipped": result.cursor.skipped,
            "halved": 0 < 2 * strategy.figures().get("bytes_after", 0) <= strategy.figures().get("bytes_before", 0),
            "compressed": strategy.figures().get("bytes_before", 0) > 0,
            "audits": [a.to_dict() for a in result.audits],
        }

    def optimizer(self, model: Any) -> optim.Optimizer:
        """Of a model, or of a server's part of one."""
        dense = {"name": self.dense, "lr": self.lrs[0], "wrappers": self.wrappers}
        return optim.create_parts(model, {"dense": dense, "sparse": {"name": self.sparse, "lr": self.lrs[1]}})

    def equipment(self, model: models.ClickModel, worker: Worker, asked: Callable[[], bool]) -> Equipment:
        tables = {id(p) for p in model.sparse_parameters()}
        return Equipment(
            mailbox=worker.mailbox(),
            optimizer=self.optimizer,
            tables=frozenset(name for name, p in model.named_parameters() if id(p) in tables),
            codecs=push_codecs(self.compression, 4),
            should_stop=asked,
            on_event=worker.emit,
        )


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_model_learns(name: str) -> None:
    metrics = run(Job(model=name))["metrics"]
    assert metrics["auc"] > 0.75
    assert metrics["normalized_entropy"] < 0.9


def test_ranks_agree_and_prove_their_rows() -> None:
    events: list[dict[str, Any]] = []
    one, four = run(Job(cfg=FitConfig(epochs=3)), 1), run(Job(cfg=FitConfig(epochs=3)), 4, events)
    assert one["metrics"]["logloss"] == pytest.approx(four["metrics"]["logloss"], abs=0.05)  # dropout masks differ
    assert [a["rows"] + a["dropped"] for a in four["audits"]] == [ROWS] * 3
    assert one["audits"] == four["audits"]
    assert sum(event["type"] == "epoch" for event in events) == 3


@pytest.mark.parametrize("stop_at", [1, 4, 7, 10, 23])
def test_stopped_and_resumed_gives_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    whole = run(Job(tmp_path / "whole"), 2)
    first = run(Job(tmp_path / "cut", stop_at=stop_at), 2)
    assert first["stopped"] == "asked"
    assert first["step"] <= stop_at + 1
    events: list[dict[str, Any]] = []
    second = run(Job(tmp_path / "cut"), 2, events)
    assert events[0]["type"] == "resume"
    assert {k: second[k] for k in ("sha", "metrics", "audits", "stopped")} == {
        k: whole[k] for k in ("sha", "metrics", "audits", "stopped")
    }


def test_a_rule_that_looks_into_layers_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """K-FAC on DeepFM, two ranks: layers, dense columns' factors that are used by other means, tables beside them."""
    whole = run(Job(tmp_path / "whole", dense="kfac"), 2)
    assert whole["metrics"]["auc"] > 0.75
    assert run(Job(tmp_path / "cut", dense="kfac", stop_at=4), 2)["step"] == 5
    assert run(Job(tmp_path / "cut", dense="kfac"), 2)["sha"] == whole["sha"]


def test_bad_number_stops_all_ranks_with_a_clean_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match=r"not a finite number in step 3 on rank 1"):
        run(Job(tmp_path, source={"spoil": (3, 1)}), 2)
    events: list[dict[str, Any]] = []
    healed = run(Job(tmp_path), 2, events)
    assert (events[0]["type"], events[0]["epoch"], events[0]["step"]) == ("resume", 0, 3)
    assert healed["sha"] == run(Job(), 2)["sha"]


def test_bad_number_is_skipped_by_all_ranks() -> None:
    events: list[dict[str, Any]] = []
    result = run(Job(cfg=FitConfig(epochs=2, on_nonfinite="skip"), source={"spoil": (3, 1)}), 2, events)
    bad = [event for event in events if event["type"] == "nonfinite"]
    assert [event["ranks"] for event in bad] == [[1], [1]]
    assert result["skipped"] == 2
    assert [a["rows"] + a["dropped"] for a in result["audits"]] == [ROWS] * 2


def test_lost_row_is_a_loud_error() -> None:
    with pytest.raises(RankFailed, match="did NOT read every row once"):
        run(Job(source={"lose": True}), 2)


def test_early_stopping_and_resume_after_it(tmp_path: Path) -> None:
    cfg = FitConfig(epochs=40, eval_every=2, patience=2, schedule=ScheduleConfig(name="linear", warmup=3))
    result = run(Job(tmp_path, cfg=cfg))
    assert result["stopped"] == "early"
    assert run(Job(tmp_path, cfg=cfg))["sha"] == result["sha"]


def test_another_number_of_ranks_resumes(tmp_path: Path) -> None:
    run(Job(tmp_path, stop_at=4), 2)
    events: list[dict[str, Any]] = []
    result = run(Job(tmp_path), 4, events)
    assert [event["type"] for event in events[:2]] == ["reset", "resume"]
    assert [a["rows"] + a["dropped"] for a in result["audits"]] == [ROWS] * 3


def test_bf16_learns() -> None:
    assert run(Job(cfg=FitConfig(epochs=3, precision=PrecisionConfig(compute="bf16"))))["metrics"]["auc"] > 0.75
