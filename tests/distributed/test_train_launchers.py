"""The whole of train-ctr with ranks as threads: the same bits as processes, the same batches at any number of ranks.

What the ranks do is compared between launchers in test_launch.py, the whole job on executors in test_local_cluster.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from distributed.ctr_lake import make_ctr_lake, small_config, small_job

from headrace.launch import launch, values
from headrace.pipelines import train_ctr
from headrace.pipelines.train_config import ModelConfig
from headrace.report import Report
from headrace.train.events import read_events

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="module")
def ctr_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ctr_lake(tmp_path_factory.mktemp("lake"), {"train": 1500, "validation": 200, "test": 200})


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
    return train(None, small_config(ctr_lake))


@pytest.mark.campaign
@pytest.mark.parametrize("launcher", ["horovod", "torch"])
def test_same_bits_under_every_launcher(
    spark: SparkSession, ctr_lake: Path, by_threads: dict[str, Any], launcher: str
) -> None:
    result = train(spark, small_config(ctr_lake, launcher=launcher))
    same = ("weights_sha256", "test_auc", "test_logloss", "audits", "fingerprints")
    assert {name: result[name] for name in same} == {name: by_threads[name] for name in same}


def test_global_batches_do_not_depend_on_the_number_of_ranks(ctr_lake: Path, by_threads: dict[str, Any]) -> None:
    assert len(by_threads["fingerprints"]) == 3
    for ranks in (1, 4):
        result = train(None, small_config(ctr_lake, ranks=ranks))
        assert result["fingerprints"] == by_threads["fingerprints"]
        assert result["audits"] == by_threads["audits"]
        assert result["test_logloss"] == pytest.approx(by_threads["test_logloss"], abs=1e-4)


@pytest.mark.parametrize("model", ["deepfm", "dlrm"])
def test_an_exchange_during_backward_changes_no_bit(ctr_lake: Path, tmp_path: Path, model: str) -> None:
    cfg = small_config(ctr_lake, model=ModelConfig(name=model, embedding_dim=4, hidden=[16, 8], bottom=[8]))
    digests = []
    for overlap in ("off", "on", "auto"):
        job = small_job(cfg, tmp_path / overlap, overlap=overlap, bucket_bytes=1000)
        digests += [rank["weights_sha256"] for rank in values(launch(job, 2, launcher="local"))]
    assert len(digests) == 6 and len(set(digests)) == 1
