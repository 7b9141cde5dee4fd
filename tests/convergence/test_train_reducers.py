"""The loop with PowerSGD, two tiers, coded rows and aggregation: learns, and goes on with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from convergence.local_rows import run
from convergence.test_train_local import Job
from torch import Tensor

from headrace.strategies import AllReduce
from headrace.strategies.aggregation import AggregationConfig
from headrace.strategies.compression import CompressionConfig
from headrace.train.fit_config import FitConfig

TIERS = {"hierarchical": True, "min_numel": 64}
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "powersgd": (2, {"compression": CompressionConfig(name="powersgd", options={"rank": 1}, min_numel=64)}),
    "rows_and_tiers": (4, {"compression": CompressionConfig(name="bf16", sparse="bf16", **TIERS)}),
    "krum": (5, {"aggregation": AggregationConfig(name="krum", options={"chosen": 4})}),
    "norm_clip": (3, {"aggregation": AggregationConfig(name="norm_clip")}),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_learns_and_resumes_as_the_uninterrupted_run(kind: str, tmp_path: Path) -> None:
    ranks, settings = KINDS[kind]
    settings = settings | {"cfg": FitConfig(epochs=3, checkpoint_every=5)}
    whole = run(Job(**settings), ranks=ranks)
    assert whole["metrics"]["auc"] > 0.75
    assert whole["halved"] == (kind in ("powersgd", "rows_and_tiers"))
    stopped = run(Job(directory=tmp_path, stop_at=13, **settings), ranks=ranks)
    assert stopped["stopped"] == "asked" and stopped["sha"] != whole["sha"]
    assert run(Job(directory=tmp_path, **settings), ranks=ranks)["sha"] == whole["sha"]


@pytest.mark.parametrize("kind", ["powersgd", "rows_and_tiers"])
def test_a_bad_step_is_as_if_it_had_not_been(kind: str) -> None:
    ranks, settings = KINDS[kind]
    cfg = FitConfig(epochs=1, on_nonfinite="skip")
    found = run(Job(cfg=cfg, source={"spoil": (3, 1)}, **settings), ranks=ranks)
    assert found["skipped"] == 1 and found["metrics"]["auc"] > 0.6


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_tables_are_refused_where_aggregation_is_not_defined_for_them(name: str) -> None:
    with pytest.raises(Exception, match="not defined for the row-sparse gradient"):
        run(Job(aggregation=AggregationConfig(name=name)), ranks=3)


@pytest.mark.parametrize("kind", ["sum", "krum", "norm_clip"])
def test_a_corrupted_rank_with_tables(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of one rank of five, tables included, turned round and ten times as large."""
    honest = AllReduce.on_gradients

    def corrupted(self: AllReduce, grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        own = {name: -10 * g for name, g in grads.items()} if self.collective.rank == 3 else grads
        return honest(self, own, step)

    monkeypatch.setattr(AllReduce, "on_gradients", corrupted)
    settings = {} if kind == "sum" else {"aggregation": AggregationConfig(name=kind)}
    found = run(Job(cfg=FitConfig(epochs=3), **settings), ranks=5)["metrics"]["auc"]
    assert found < 0.5 if kind == "sum" else found > 0.7, found
