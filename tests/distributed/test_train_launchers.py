"""The same seed gives the same bits as threads, under Horovod and under torch.distributed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from distributed.ctr_lake import make_ctr_lake

from headrace.pipelines import train_ctr
from headrace.pipelines.train_config import LoopSettings, ModelConfig, TrackingConfig
from headrace.report import Report
from headrace.train.events import read_events

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="module")
def ctr_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ctr_lake(tmp_path_factory.mktemp("lake"), {"train": 1500, "validation": 200, "test": 200})


def config(lake: Path, **changes: Any) -> train_ctr.Config:
    plain = train_ctr.Config(
        lake=str(lake),
        ranks=2,
        launcher="local",
        threads=1,
        device="cpu",
        model=ModelConfig(embedding_dim=4, hidden=[16]),
        train=LoopSettings(batch_size=128, epochs=2, checkpoint_every=4),
        tracking=TrackingConfig(enabled=False),
    )
    return dataclasses.replace(plain, **changes)


def train(spark: SparkSession | None, cfg: train_ctr.Config) -> dict[str, Any]:
    report = train_ctr.run(spark, cfg, Report("train-ctr", progress="none"))
    fingerprints = [
        event["fingerprint"]
        for event in read_events(Path(report.paths["run"]) / "events.jsonl")
        if event["type"] == "batches"
    ]
    return report.results | {"fingerprints": fingerprints}


@pytest.fixture(scope="module")
def by_threads(ctr_lake: Path) -> dict[str, Any]:
    return train(None, config(ctr_lake))


@pytest.mark.parametrize("launcher", ["horovod", "torch"])
def test_same_bits_under_every_launcher(
    spark: SparkSession, ctr_lake: Path, by_threads: dict[str, Any], launcher: str
) -> None:
    result = train(spark, config(ctr_lake, launcher=launcher))
    same = ("weights_sha256", "test_auc", "test_logloss", "audits", "fingerprints")
    assert {name: result[name] for name in same} == {name: by_threads[name] for name in same}


def test_global_batches_do_not_depend_on_the_number_of_ranks(ctr_lake: Path, by_threads: dict[str, Any]) -> None:
    assert len(by_threads["fingerprints"]) == 3
    for ranks in (1, 4):
        result = train(None, config(ctr_lake, ranks=ranks))
        assert result["fingerprints"] == by_threads["fingerprints"]
        assert result["audits"] == by_threads["audits"]
        assert result["test_logloss"] == pytest.approx(by_threads["test_logloss"], abs=1e-4)
