"""What --plan says: bytes of float32 gradients, what rules do beside the measured steps, a bad number in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed.ctr_lake import make_ctr_lake, small_config, small_job

from headrace.errors import UserError
from headrace.launch import launch, values
from headrace.parallel.parallel_config import ParallelConfig
from headrace.pipelines.train_config import (
    CompressionConfig,
    DenseRuleConfig,
    LoopSettings,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    StrategyConfig,
)
from headrace.train.estimate import Estimate, estimate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ctr_lake(tmp_path_factory.mktemp("lake"), {"train": 1000, "validation": 100, "test": 100})


def planned(lake: Path, tmp_path: Path, dense: dict[str, Any] | None = None, **train: Any) -> Estimate:
    rule = DenseRuleConfig(**({"name": "sgd"} | (dense or {})))
    settings = LoopSettings(batch_size=64, **train)
    cfg = small_config(lake, optimizer=OptimizerConfig(dense=rule), train=settings)
    return estimate(small_job(cfg, tmp_path / "run"), ranks=2, threads=1, launcher="local")


def test_gradients_are_float32_whatever_parameters_are(lake: Path, tmp_path: Path) -> None:
    plain, half = tmp_path / "plain", tmp_path / "half"
    plain.mkdir()
    half.mkdir()
    a = planned(lake, plain)
    b = planned(lake, half, precision=PrecisionConfig(compute="bf16", parameters="bf16"))
    assert a.wire_bytes_per_step == b.wire_bytes_per_step
    dense = a.parameters - a.embedding_bytes // 4
    assert b.memory_bytes == a.memory_bytes + 2 * dense  # parameters 2 bytes less, masters 4 more, gradients as before
    assert a.not_in_it == b.not_in_it == ()


@pytest.mark.parametrize(
    ("changes", "wire", "kept"),
    [
        ({"strategy": StrategyConfig(name="hogwild")}, "were it all-reduce and not hogwild", "what hogwild sends"),
        ({"compression": CompressionConfig(name="topk")}, "of them of embedding tables", "memory that topk keeps"),
        ({"compression": CompressionConfig(name="dgc")}, "of them of embedding tables", "memory that dgc keeps"),
    ],
)
def test_what_is_not_counted_is_said(lake: Path, tmp_path: Path, changes: dict[str, Any], wire: str, kept: str) -> None:
    cfg = small_config(lake, train=LoopSettings(batch_size=64), **changes)
    lines = estimate(small_job(cfg, tmp_path / "two"), ranks=2, threads=1, launcher="local").lines()
    assert any(line.startswith("on the wire") and line.endswith(wire) for line in lines)
    assert any(line.startswith(f"not in it       {kept}") for line in lines)
    alone = estimate(small_job(cfg, tmp_path / "one"), ranks=1, threads=1, launcher="local")
    assert "memory" not in " ".join(alone.not_in_it)


def test_bytes_are_those_of_the_settings(lake: Path, tmp_path: Path) -> None:
    """What two ranks as threads send in a step, by the same settings."""
    codecs = {"none": CompressionConfig(), "int8": CompressionConfig(name="int8", min_numel=64)}
    for name, compression in codecs.items():
        cfg = small_config(lake, compression=compression, train=LoopSettings(batch_size=64, epochs=1))
        made = estimate(small_job(cfg, tmp_path / name), ranks=2, threads=1, launcher="local")
        answers = values(launch(small_job(cfg, tmp_path / f"{name}-run"), 2, launcher="local"))
        sent = sum(a["bytes_sent"] - a["bytes_of_tables"] - a["bytes_of_evaluation"] for a in answers) / 2
        tables = sum(a["bytes_of_tables"] for a in answers) / 2
        steps = answers[0]["steps"]
        dense = made.wire_bytes_per_step - made.wire_table_bytes_per_step
        assert sent / steps == pytest.approx(dense, abs=200)  # control words, digests at the end
        assert tables / steps == pytest.approx(made.wire_table_bytes_per_step, rel=0.05)
    wide = small_config(lake, model=ModelConfig(embedding_dim=4, hidden=[512, 256]), train=LoopSettings(batch_size=64))
    made = estimate(small_job(wide, tmp_path / "wide"), ranks=2, threads=1, launcher="local")
    assert made.wire_table_bytes_per_step < 0.1 * made.wire_bytes_per_step  # a task of over 90 % dense bytes


@pytest.mark.parametrize(
    ("dense", "train", "said"),
    [
        ({"name": "svrg"}, {}, ["passes over all rows", "a pass over all rows every inner_epochs", "exchanges"]),
        ({"name": "saga"}, {}, ["passes over all rows", "memory that grows with the rows", "exchanges"]),
        ({"name": "shampoo"}, {}, ["work at intervals (shampoo: interval 10)"]),
        ({"name": "kfac"}, {"accumulate": 2}, ["inverse_interval 10", "exchanges", "kfac evaluates it in one piece"]),
        ({"name": "adam", "wrappers": ["sam"]}, {"accumulate": 2}, ["exchanges", "adam with sam evaluates it"]),
        ({"name": "adam", "wrappers": ["ema"]}, {"accumulate": 2}, []),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_is_not_in_the_figures_is_said(
    lake: Path, tmp_path: Path, dense: dict[str, Any], train: dict[str, Any], said: list[str]
) -> None:
    made = planned(lake, tmp_path, dense, **train)
    shown = [line for line in made.lines() if line.startswith("not in it ")]
    assert bool(shown) == bool(said)
    for words in said:
        assert any(words in line for line in shown), (words, shown)
    assert ("one piece" in str(shown)) == any("evaluates" in words for words in said)


def test_a_bad_number_in_a_measured_step_is_told_in_words(lake: Path, tmp_path: Path) -> None:
    dense = {"name": "adam", "wrappers": ["sam"], "options": {"sam": {"rho": 1e30}}}
    with pytest.raises(UserError, match=r"not a finite number in measured step 0(.|\n)*--optimizer\.dense\.lr"):
        planned(lake, tmp_path, dense)
    other = tmp_path / "other"
    other.mkdir()
    assert planned(lake, other, dense, on_nonfinite="skip").seconds_per_step > 0


def test_sharded_tables_are_a_ranks_part_of_them(lake: Path, tmp_path: Path) -> None:
    """Against the replicated plan; 26 columns round their rows up."""
    cfg = small_config(lake, train=LoopSettings(batch_size=64))
    whole = estimate(small_job(cfg, tmp_path / "whole"), ranks=4, threads=1, launcher="local")
    sharded = small_job(cfg, tmp_path / "parts", parallel=ParallelConfig(tables="sharded"))
    part = estimate(sharded, ranks=4, threads=1, launcher="local")
    assert (part.parameters, part.embedding_bytes) == (whole.parameters, whole.embedding_bytes)
    assert whole.shard_bytes == 0 and "a rank" not in whole.lines()[3]
    assert whole.embedding_bytes / 4 <= part.shard_bytes <= whole.embedding_bytes / 4 + 26 * 4 * 5
    assert any("MB a rank" in line and line.startswith("embedding") for line in part.lines())
    dense = 2 * 3 * (whole.parameters * 4 - whole.embedding_bytes) // 4
    touched = (whole.wire_bytes_per_step - dense) // (3 * (8 + 4 * 5))
    assert 0 < touched < 64 * 26 and part.wire_bytes_per_step == dense + 3 * (touched * (4 + 2 * 4 * 5) // 4)
    rows = (whole.embedding_bytes - part.shard_bytes) // (4 * 5)
    accumulators, lookups = 4 * rows, 4 * touched * 4 * 5
    assert whole.memory_bytes - part.memory_bytes == rows * 4 * 5 + accumulators - lookups
