"""DeepFM on generated Criteo rows as a task: the planted model's rows as arrays, no Spark, the project's own loop.

Rows are of day 0: first those for training, then validation, then test. Cells become numbers as in
headrace.features.transform: integers by sign(x) log(1 + |x|), categories by a vocabulary of the training rows' values.
The rule under study trains the dense parameters, and row-wise AdaGrad at its default rate the tables; or the rule
trains the tables, and Adam at its default rate the dense parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bench.studies.task import DENSE, DIVERGED, DONE, REFUSED, TABLES, TIME, Setting, Trained, Watch
from headrace import models
from headrace.comm.local import LocalGroup
from headrace.data.batch import Batch
from headrace.data.plan import permutation
from headrace.data.stream import Audit
from headrace.errors import UserError
from headrace.features.transform import CATEGORIES, FIRST_ID, MISSING_ID, MISSING_LOG, UNKNOWN_ID
from headrace.ingest import planted
from headrace.optim import create_parts
from headrace.optim.schedules import ScheduleConfig
from headrace.strategies import REDUCERS, STRATEGIES
from headrace.train.evaluate import evaluate
from headrace.train.events import Event
from headrace.train.loop import FitConfig, Hooks, NonFiniteError, fit

DATA_SEED, CLICK_RATE = 1, 0.25
_BLOCK = 1 << 17
_HELD_BATCH = 8192
_PART = {DENSE: "dense", TABLES: "sparse"}
_BESIDE: dict[str, dict[str, Any]] = {DENSE: {"name": "rowwise_adagrad"}, TABLES: {"name": "adam"}}


@dataclass
class Rows:
    """Rows in memory as a rank's stream, in an order of (seed, epoch) alone; the last rows, less than a batch, are
    dropped and counted.

    Args:
        tensors: by name, "key" among them.
        batch: rows of a global batch.
        seed: of the order.
        rank: takes the rows rank, rank + size, ... of every global batch.
        size: number of ranks.
    """

    tensors: dict[str, torch.Tensor]
    batch: int
    seed: int = 0
    rank: int = 0
    size: int = 1
    _seen: int = 0

    def __len__(self) -> int:
        return len(self.tensors["key"])

    def steps(self, epoch: int) -> int:
        """Batches an epoch; one of all rows where a batch would be more."""
        return max(1, len(self) // self.batch)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch."""
        order = permutation(len(self), self.seed, epoch)
        self._seen = 0
        for step in range(start_step, self.steps(epoch)):
            ids = torch.from_numpy(order[step * self.batch : (step + 1) * self.batch][self.rank :: self.size])
            self._seen += len(ids)
            yield Batch({name: tensor[ids] for name, tensor in self.tensors.items()}, None, step)

    def audit(self, epoch: int) -> Audit:
        """How many rows this rank saw and dropped; rows in memory are not proved by their keys."""
        own = len(range(self.rank, len(self), self.size))
        return Audit(epoch, self.steps(epoch), self._seen, own - self._seen)

    def whole(self, batch: int = _HELD_BATCH) -> Iterator[Batch]:
        """All rows once, in their order."""
        for start in range(0, len(self), batch):
            yield Batch({name: tensor[start : start + batch] for name, tensor in self.tensors.items()})

    def part(self, start: int, stop: int) -> Rows:
        """Some of the rows."""
        return Rows({name: tensor[start:stop] for name, tensor in self.tensors.items()}, self.batch)


@dataclass
class ClickTask:
    """See the module's docstring.

    Args:
        rows: for training.
        held: for validation, and as many for test.
        min_count: values that come less often in the training rows are one unknown value.
        hidden: widths of DeepFM's perceptron.
        points: evaluations an epoch.
    """

    rows: int = 1_000_000
    held: int = 100_000
    min_count: int = 20
    hidden: tuple[int, ...] = (256, 128)
    batch: int = 4096
    epochs: int = 1
    limit_s: float = 180.0
    points: int = 4
    name: str = "criteo"
    metric: str = "AUC"
    parts: tuple[str, ...] = field(default=(DENSE, TABLES))

    @property
    def train_rows(self) -> int:
        """How many are trained on."""
        return self.rows

    def about(self) -> dict[str, Any]:
        """See `Task.about`."""
        return {
            "name": self.name, "metric": self.metric, "train": self.rows, "validation": self.held, "test": self.held,
            "data_seed": DATA_SEED, "min_count": self.min_count, "hidden": list(self.hidden),
        }  # fmt: skip

    @cached_property
    def made(self) -> tuple[Rows, dict[str, int]]:
        """All rows, and how many ids each category has."""
        return generated(self.rows, self.rows + 2 * self.held, self.min_count)

    def train(self, setting: Setting, watch: Watch) -> Trained:
        """See `Task.train`."""
        model, source = self.model(setting.seed), self.training(setting)
        optimizer = None
        try:
            optimizer = create_parts(model, self.optimizers(setting))
            outcome, why = _Run(self, model, optimizer, source, setting, watch).outcome()
        except NonFiniteError as error:
            outcome, why = DIVERGED, str(error)
        except UserError as error:
            outcome, why = REFUSED, str(error)
        except (ArithmeticError, torch.linalg.LinAlgError) as error:
            outcome, why = DIVERGED, f"step {watch.steps + 1}: {error}"
        held = optimizer.parts[_PART[setting.part]].state_bytes() if optimizer else None
        return Trained(outcome=outcome, why=why, state_bytes=held)

    def model(self, seed: int) -> Any:
        """DeepFM that standardizes by the training rows."""
        rows, cardinalities = self.made
        dense = rows.tensors["dense"][: self.rows].double()
        return models.create(
            "deepfm", cardinalities, dense.shape[1], hidden=self.hidden, seed=seed,
            dense_mean=tuple(dense.mean(0).tolist()), dense_std=tuple(dense.std(0, correction=0).tolist()),
        )  # fmt: skip

    def optimizers(self, setting: Setting) -> dict[str, Mapping[str, Any]]:
        """Of the dense parameters and of the tables: the rule under study, and what is beside it."""
        other = TABLES if setting.part == DENSE else DENSE
        chosen = {setting.part: {"name": setting.rule, **setting.options}}
        chosen[other] = dict(setting.beside or _BESIDE[setting.part])
        return {_PART[part]: options for part, options in chosen.items()}

    def training(self, setting: Setting, rank: int = 0, size: int = 1) -> Rows:
        """A rank's part of the global batches."""
        return Rows(self.part(0, self.rows).tensors, setting.batch, setting.seed, rank, size)

    def held_rows(self, split: str) -> Rows:
        """Those for validation, or for test."""
        start = self.rows + (split == "test") * self.held
        return self.part(start, start + self.held)

    def part(self, start: int, stop: int) -> Rows:
        """Some of all rows."""
        return self.made[0].part(start, stop)

    def scores(self, model: Any, split: str) -> tuple[float | None, float | None]:
        """Mean loss and AUC."""
        found = evaluate(model, self.held_rows(split).whole(), LocalGroup(1).collective(0))
        assert found is not None
        return found.metrics.logloss, found.metrics.auc


class _Run:
    """One `fit`, watched."""

    def __init__(self, task: ClickTask, model: Any, optimizer: Any, source: Rows, setting: Setting, watch: Watch):
        self.model, self.optimizer, self.source, self.watch = model, optimizer, source, watch
        self.validation, self.test = task.held_rows("validation"), task.held_rows("test")
        self.collective = LocalGroup(1).collective(0)
        self.cfg = FitConfig(
            epochs=setting.epochs, eval_every=max(1, source.steps(0) // task.points), log_every=1, seed=setting.seed,
            schedule=ScheduleConfig(**setting.schedule),
        )  # fmt: skip

    def outcome(self) -> tuple[str, str]:
        """Train."""
        hooks = Hooks(validation=self.validation.whole, training=self.source.whole, should_stop=lambda: self.watch.over)
        strategy = STRATEGIES["allreduce"].factory(REDUCERS["ordered"].factory(), self.collective)
        self.watch.resume()
        result = fit(self.model, self.source, self.optimizer, strategy, self.collective, self.cfg, self._on, hooks)
        if not self.watch.curve or self.watch.curve[-1]["step"] < self.watch.steps:
            found = evaluate(self.model, self.validation.whole(), self.collective)
            assert found is not None
            self._point(found.metrics.logloss, found.metrics.auc)
        if self.watch.curve[-1]["validation_loss"] is None:
            return DIVERGED, "the validation loss is not a number"
        if result.stopped and result.cursor.epoch < self.cfg.epochs:
            return TIME, f"ended by its limit of {self.watch.limit_s:g} CPU s of training"
        return DONE, ""

    def _on(self, event: Event) -> None:
        if event["type"] == "step":
            self.watch.step(event["loss"], event["rows"])
        elif event["type"] == "eval":
            self._point(event["metrics"]["logloss"], event["metrics"]["auc"])

    def _point(self, loss: float | None, auc: float | None) -> None:
        test = evaluate(self.model, self.test.whole(), self.collective)
        assert test is not None
        self.watch.point(
            self.watch.steps / self.source.steps(0), validation_loss=loss, validation=auc,
            test_loss=test.metrics.logloss, test=test.metrics.auc,
        )  # fmt: skip


def generated(train: int, rows: int, min_count: int) -> tuple[Rows, dict[str, int]]:
    """Rows of the planted model's day 0; the vocabulary is made of the first `train` of them."""
    model = planted.calibrate(DATA_SEED, CLICK_RATE)
    blocks = [model.block(0, start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK)]
    ints = np.concatenate([b.ints for b in blocks], axis=1).astype(np.float32)
    dense = np.sign(ints) * np.log1p(np.abs(ints))
    dense[np.concatenate([b.ints_missing for b in blocks], axis=1)] = MISSING_LOG
    raw = np.concatenate([b.ids for b in blocks], axis=1)
    sparse, cardinalities = np.empty(raw.shape, np.int64), {}
    for column, (name, values) in enumerate(zip(CATEGORIES, raw, strict=True)):
        sparse[column], cardinalities[name] = _numbered(values, train, min_count)
    label = np.concatenate([b.label for b in blocks]).astype(np.float32)
    arrays = {"dense": dense.T.copy(), "sparse": sparse.T.copy(), "label": label, "key": np.arange(rows)}
    return Rows({name: torch.from_numpy(value) for name, value in arrays.items()}, batch=1), cardinalities


def _numbered(values: np.ndarray[Any, Any], train: int, min_count: int) -> tuple[np.ndarray[Any, Any], int]:
    """Ids of values [n] (-1: missing), and how many there are."""
    seen, counts = np.unique(values[:train], return_counts=True)
    kept = seen[(counts >= min_count) & (seen >= 0)]
    at = np.searchsorted(kept, values).clip(0, max(0, len(kept) - 1))
    ids = np.where(kept[at] == values, FIRST_ID + at, UNKNOWN_ID) if len(kept) else np.full(len(values), UNKNOWN_ID)
    return np.where(values < 0, MISSING_ID, ids), FIRST_ID + len(kept)
