"""Rows in memory as a training stream, and ranks as threads: what the tests of the loop share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from headrace.catalog.fingerprint import key_sum
from headrace.data.batch import Batch
from headrace.data.plan import permutation
from headrace.launch import LaunchOptions, Worker, launch, values

ROWS, BATCH, CARDS = 1000, 96, {"c1": 40, "c2": 7}


@dataclass
class Audit:
    seen: int
    dropped: int
    key_sum: int
    repeated: int = 0


@dataclass
class Source:
    """Rows in memory, in an order of (seed, epoch) alone; rank r has the r-th part of every global batch."""

    rank: int
    size: int
    rows: int = ROWS
    spoil: tuple[int, int] | None = None  # (step, rank) whose dense values become NaN
    lose: bool = False
    padded: int | None = None  # the rank that has padding only, its rows dropped
    seen: int = 0
    padding: int = 0
    keys: int = 0
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        dense = rng.normal(size=(self.rows, 13)).astype(np.float32)
        sparse = np.stack([rng.integers(1, n, self.rows) for n in CARDS.values()], axis=1)
        effect = rng.normal(size=40)
        logit = dense[:, 0] + effect[sparse[:, 0]] - 0.5
        label = (rng.random(self.rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        self.data = {"dense": dense, "sparse": sparse, "label": label, "key": np.arange(self.rows) << 40}

    def steps(self, epoch: int) -> int:
        return self.rows // BATCH

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        order = permutation(self.rows, 3, epoch)
        self.seen = self.keys = self.padding = 0
        for step in range(start_step, self.steps(epoch)):
            rows = order[step * BATCH : (step + 1) * BATCH][self.rank :: self.size]
            mask = torch.zeros(len(rows), dtype=torch.bool) if self.padded == self.rank else None
            batch = Batch({name: torch.from_numpy(value[rows]) for name, value in self.data.items()}, mask, step)
            if self.spoil == (step, self.rank):
                batch.tensors["dense"][0, 0] = float("nan")
            self._count(rows[1:] if self.lose else rows)
            yield batch

    def audit(self, epoch: int) -> Audit:
        left = permutation(self.rows, 3, epoch)[self.steps(epoch) * BATCH :][self.rank :: self.size]
        return Audit(self.seen, len(left) + self.padding, self.keys + key_sum(self.data["key"][left]))

    def _count(self, rows: np.ndarray[Any, Any]) -> None:
        if self.padded == self.rank:
            self.padding += len(rows)
        else:
            self.seen += len(rows)
        self.keys += key_sum(self.data["key"][rows])

    def whole(self) -> list[Batch]:
        return [Batch({name: torch.from_numpy(value[self.rank :: self.size]) for name, value in self.data.items()})]


def run(job: Callable[[Worker], Any], ranks: int = 1, events: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    kept = events if events is not None else []
    results = launch(
        job, ranks, launcher="local", on_event=lambda rank, e: kept.append(e), timeout_s=120, options=LaunchOptions()
    )
    answers = values(results)
    assert all(answer == answers[0] for answer in answers)
    return answers[0]
