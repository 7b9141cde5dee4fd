"""Batches of a pinned table version for one rank, in the planned order, and the proof that every row was read once.

A rank has one reader. It visits the row groups in the order in which the batches need them; each lane holds the group
it is at, so memory is bounded by

    (lanes of the rank + prefetch + workers) * largest group's rows * bytes of a held row

whatever the number of rows: 16 lanes, 32k rows of 168 bytes and a prefetch of 4 make 113 MB on one rank, 70 MB on each
of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from headrace.catalog.fingerprint import MODULUS, key_sum, splitmix64
from headrace.data.batch import KEY, Array, Batch, TensorLayout, layouts
from headrace.data.footers import row_groups
from headrace.data.plan import EpochPlan, PlanSpec, Read, fingerprint
from headrace.errors import UserError

if TYPE_CHECKING:
    from headrace.catalog.pinned import PinnedTable
    from headrace.data.petastorm import HeldGroup


@dataclass(kw_only=True)
class DataConfig:
    """How a table becomes batches.

    Args:
        lanes: ranges of rows that a batch is made of, a power of two: the most ranks that can serve the run. Kept with
            the run. More lanes mix more row groups into a batch and hold as many in memory.
        remainder: the rows after the last whole batch: "drop", "pad" (with a mask), "wrap" (rows of the epoch's start).
        shuffle: False reads in the table's own order.
        seed: of the order.
        prefetch: row groups that are read ahead.
        workers: decoding threads.
    """

    lanes: int = 16
    remainder: str = "drop"
    shuffle: bool = True
    seed: int = 0
    prefetch: int = 4
    workers: int = 1


class AuditError(RuntimeError):
    """The rows that were read are not the table's rows, each once."""


@dataclass(frozen=True)
class Audit:
    """What was read of one epoch, and the cursor: with `epoch` and `step` it is the whole resume state of the data.

    Those of the ranks add up to that of the whole; so do those of the parts before and after a resume.

    Args:
        epoch: the epoch.
        step: the next step.
        seen: rows in batches, padding and repeats not counted.
        dropped: rows read for the audit only.
        repeated: rows given a second time ("wrap").
        key_sum: sum of splitmix64(key) over seen and dropped rows, modulo 2^64.
        fingerprint: ordered hash of all batches so far, modulo 2^64.
    """

    epoch: int
    step: int = 0
    seen: int = 0
    dropped: int = 0
    repeated: int = 0
    key_sum: int = 0
    fingerprint: int = 0

    def __add__(self, other: Audit) -> Audit:
        if self.epoch != other.epoch:
            raise ValueError(f"audits of epochs {self.epoch} and {other.epoch} do not add up")
        return Audit(
            self.epoch,
            max(self.step, other.step),
            self.seen + other.seen,
            self.dropped + other.dropped,
            self.repeated + other.repeated,
            (self.key_sum + other.key_sum) % MODULUS,
            (self.fingerprint + other.fingerprint) % MODULUS,
        )

    def prove(self, table: PinnedTable) -> str:
        """Compare with what the writer committed; call it on the sum over all ranks, at the end of the epoch.

        Returns:
            One line that says so.

        Raises:
            AuditError: a row is missing, was read twice, or is another one.
        """
        read = self.seen + self.dropped
        name = f"{table.spec.name}@{table.version}"
        if (read, self.key_sum) != (table.rows, table.fingerprint):
            raise AuditError(
                f"epoch {self.epoch} read {read:,} rows of {name} with key sum {self.key_sum}, "
                f"committed were {table.rows:,} with {table.fingerprint}"
            )
        extra = [f"{n:,} {what}" for n, what in ((self.dropped, "dropped"), (self.repeated, "repeated")) if n]
        return f"epoch {self.epoch}: every row of {name} once: proved ({', '.join([f'{self.seen:,} seen', *extra])})"

    def to_dict(self) -> dict[str, int]:
        """For a checkpoint; `Audit(**d)` is the way back."""
        return asdict(self)


class Stream:
    """The batches of one rank.

    Args:
        table: a pinned version; its file list is all that is read.
        cfg: see DataConfig.
        rank: of `size`; serves lanes rank, rank + size, ....
        size: number of ranks.
        batch_size: rows of a global batch, over all ranks.

    Raises:
        UserError: petastorm is missing, more ranks than lanes, a batch that the lanes do not divide, files that
            cannot be read or hold pickles.
    """

    def __init__(self, table: PinnedTable, cfg: DataConfig, rank: int = 0, size: int = 1, *, batch_size: int) -> None:
        self._read_groups = _petastorm()
        self.table, self.cfg, self.rank, self.size = table, cfg, rank, size
        self.layouts = layouts(table.spec, table.metadata)
        self._groups = row_groups(table, self.layouts)
        self.spec = PlanSpec(
            group_rows=tuple(group.rows for group in self._groups),
            batch_size=batch_size,
            lanes=cfg.lanes,
            seed=cfg.seed,
            remainder=cfg.remainder,
            shuffle=cfg.shuffle,
        )
        self.lanes = self.spec.lanes_of(rank, size)
        self._audit = Audit(0)
        self._running: Iterator[Batch] | None = None

    def steps(self, epoch: int = 0) -> int:
        """Batches of an epoch: the same on every rank and in every epoch."""
        return self.spec.steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from `start_step` on; only the row groups they need are read.

        One epoch at a time: starting one ends the one before.
        """
        self.close()
        if not 0 <= start_step <= self.spec.steps:
            raise UserError(f"step {start_step} is not one of the epoch's {self.spec.steps}", "check the checkpoint")
        self._audit = Audit(epoch, start_step)
        self._running = self._batches(EpochPlan(self.spec, epoch), start_step)
        return self._running

    def audit(self, epoch: int) -> Audit:
        """What this rank has read of the epoch since the step it started at; whole once the last batch is out."""
        if epoch != self._audit.epoch:
            raise ValueError(f"the stream is in epoch {self._audit.epoch}, not {epoch}")
        return self._audit

    def close(self) -> None:
        """End the reader's threads. The stream can be used again."""
        running, self._running = self._running, None
        if running is not None:
            running.close()  # type: ignore[attr-defined]

    def memory_bytes(self) -> int:
        """The most that the rank's decoded groups can take, by the formula above (8 bytes a value at most)."""
        row = sum(int(np.prod(layout.shape)) * layout.dtype.itemsize for layout in self.layouts)
        held = len(self.lanes) + self.cfg.prefetch + self.cfg.workers
        return held * max(self.spec.group_rows, default=0) * row

    def _batches(self, plan: EpochPlan, start_step: int) -> Iterator[Batch]:
        reads = plan.reads(self.rank, self.size, start_step)
        visits = [(self._groups[read.group], partial(_rows, plan, read)) for read in reads]
        held = self._read_groups(visits, self.layouts, prefetch=self.cfg.prefetch, workers=self.cfg.workers)
        lanes = {lane: _Lane(lane) for lane in self.lanes}
        supply = zip(reads, held, strict=True)
        try:
            for step in range(start_step, self.spec.steps):
                batch = self._assemble(plan, step, lanes, supply)
                if step == self.spec.steps - 1:
                    self._drop_rest(lanes, supply)
                yield batch
            if start_step == self.spec.steps:
                self._drop_rest(lanes, supply)
        finally:
            held.close()

    def _assemble(
        self, plan: EpochPlan, step: int, lanes: dict[int, _Lane], supply: Iterator[tuple[Read, HeldGroup]]
    ) -> Batch:
        size = self.spec.lane_batch
        arrays = {layout.name: layout.empty(len(lanes) * size) for layout in self.layouts}
        real = np.zeros(len(lanes) * size, dtype=np.bool_)
        for i, (lane, source) in enumerate(lanes.items()):
            count = plan.taken(lane, step)
            source.fill(arrays, self.layouts, i * size, count, supply)
            real[i * size : i * size + count] = True
        mask = None if real.all() else torch.from_numpy(real)
        if mask is not None:
            for layout in self.layouts:
                layout.pad(arrays[layout.name], ~real)
        mark = self._account(plan, step, arrays[KEY], real)
        return Batch({layout.name: layout.tensor(arrays[layout.name]) for layout in self.layouts}, mask, step, mark)

    def _account(self, plan: EpochPlan, step: int, keys: Array, real: npt.NDArray[np.bool_]) -> int:
        """Add a batch to the audit; gives the batch's fingerprint."""
        size = self.spec.lane_batch
        inside = np.arange(size, dtype=np.int64)
        places = np.concatenate([step * self.spec.batch_size + lane * size + inside for lane in self.lanes])
        own = real.copy()
        if step == self.spec.steps - 1 and self.spec.remainder == "wrap":
            kept = [len(plan.lane_rows(lane)) - step * size for lane in self.lanes]
            own &= np.concatenate([inside < count for count in kept])
        mixed = splitmix64(keys)
        mark, total = fingerprint(mixed[real], places[real]), int(mixed[own].sum(dtype=np.uint64))
        seen, repeated = int(own.sum()), int(real.sum() - own.sum())
        self._audit += Audit(self._audit.epoch, step + 1, seen, 0, repeated, total, mark)
        return mark

    def _drop_rest(self, lanes: dict[int, _Lane], supply: Iterator[tuple[Read, HeldGroup]]) -> None:
        """Read what is left of the rank's lanes, for the audit."""
        for read, held in supply:
            lanes[read.lane].add(held)
        keys = np.concatenate([np.empty(0, dtype=np.int64), *(part for lane in lanes.values() for part in lane.rest())])
        self._audit += Audit(self._audit.epoch, dropped=len(keys), key_sum=key_sum(keys))


class _Lane:
    """The groups a lane has at hand: one, or the two on both sides of a border."""

    def __init__(self, lane: int) -> None:
        self.lane = lane
        self._groups: list[dict[str, Array]] = []
        self._at = 0

    def add(self, held: HeldGroup) -> None:
        """The next group of this lane."""
        self._groups.append(held.arrays)

    def fill(
        self,
        arrays: dict[str, Array],
        tensors: Sequence[TensorLayout],
        at: int,
        count: int,
        supply: Iterator[tuple[Read, HeldGroup]],
    ) -> None:
        """Put the lane's next `count` rows to the rows [at, at + count) of a batch."""
        while count:
            if not self._groups:
                read, held = next(supply)
                assert read.lane == self.lane, "the plan's order is that in which the lanes run dry"
                self.add(held)
            group = self._groups[0]
            taken = min(count, len(group[KEY]) - self._at)
            for tensor in tensors:
                tensor.put(arrays[tensor.name], at, group[tensor.name], self._at, self._at + taken)
            at, count, self._at = at + taken, count - taken, self._at + taken
            if self._at == len(group[KEY]):
                self._groups.pop(0)
                self._at = 0

    def rest(self) -> Iterator[Array]:
        """The keys of the rows not given out."""
        for group in self._groups:
            yield group[KEY][self._at :]
            self._at = 0
        self._groups = []


def _rows(plan: EpochPlan, read: Read) -> npt.NDArray[np.int64]:
    return plan.row_order(read.group)[read.start : read.stop]


def _petastorm() -> Any:
    """The function that reads visits; a clear word where petastorm is not to be had."""
    try:
        from headrace.data.petastorm import Visit, read_groups
    except ImportError as error:
        raise UserError(
            f"petastorm cannot be imported: {error}", "run `make setup`; training reads through it and nothing else"
        ) from error

    def read(visits: Any, *args: Any, **kwargs: Any) -> Any:
        return read_groups([Visit(group.path, group.index, rows) for group, rows in visits], *args, **kwargs)

    return read
