"""A small silver/ctr without Spark: written by delta-rs, with a planted logistic model, to test training alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties, write_deltalake

from headrace.catalog.spec import load
from headrace.pipelines import train_ctr
from headrace.pipelines.splits import pin_splits
from headrace.pipelines.train_config import LoopSettings, ModelConfig, TrackingConfig
from headrace.report import Report
from headrace.train.job import TrainJob

SIZES = {f"c{n}": 3 + 5 * n for n in range(1, 27)}


def make_ctr_lake(lake: Path, rows: dict[str, int] | None = None, seed: int = 5) -> Path:
    """Write silver/ctr at version 1; `rows` by split."""
    rng = np.random.default_rng(seed)
    effects = {name: rng.normal(scale=0.5, size=size) for name, size in SIZES.items()}
    rows = rows or {"train": 2200, "validation": 300, "test": 500}
    parts = [_rows(rng, effects, split, count, day) for day, (split, count) in enumerate(rows.items())]
    path = load("silver/ctr").path(str(lake))
    mine = {"cardinalities": SIZES, "vocabulary_version": None, "transform": {"ints": "log"}, "bronze_version": 1}
    table = pa.concat_tables(parts)
    write_deltalake(path, table.slice(0, 0), partition_by=["split"])
    properties = CommitProperties(custom_metadata={"userMetadata": json.dumps({"headrace": mine})})
    write_deltalake(path, table, mode="append", partition_by=["split"], commit_properties=properties)
    return lake


def small_config(lake: Path, **changes: Any) -> train_ctr.Config:
    """Two ranks as threads, two epochs of 11 steps, a small DeepFM."""
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


def small_job(cfg: train_ctr.Config, directory: Path, **changes: Any) -> TrainJob:
    """What the ranks of a run run, to be launched without the driver's part of it."""
    with Report("train-ctr", progress="none").stage("pin") as stage:
        tables = pin_splits(cfg.lake, cfg.table_version, stage)
    directory.mkdir()
    return dataclasses.replace(train_ctr.make_job(cfg, tables, directory), **changes)


def _rows(rng: Any, effects: dict[str, Any], split: str, count: int, day: int) -> pa.Table:
    dense = {f"i{n}": rng.normal(size=count).astype(np.float32) for n in range(1, 14)}
    sparse = {name: rng.integers(1, size, count).astype(np.int32) for name, size in SIZES.items()}
    logit = dense["i1"] - 0.5 + sum(effects[name][ids] for name, ids in sparse.items())
    label = (rng.random(count) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    key = (np.int64(day) << 40) + np.arange(count, dtype=np.int64)
    columns = {"key": key, "day": np.full(count, day, np.int32), "label": label, **dense, **sparse}
    return pa.table({**columns, "split": [split] * count})
