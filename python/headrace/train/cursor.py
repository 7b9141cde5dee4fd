"""Where a run is, and the proof of what it has read.

Key sums are sums of splitmix64(key) modulo 2^64: they add up over batches, ranks and restarts, so a checkpoint holds
the part of the epoch that was read before it and the end of the epoch proves the whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from headrace.catalog.fingerprint import MODULUS, key_sum
from headrace.comm.base import Collective
from headrace.data.batch import KEY, Batch
from headrace.data.stream import AuditError


@dataclass
class Cursor:
    """The resume state of data and loop.

    Args:
        epoch: from 0.
        step: steps of this epoch that are done.
        global_step: steps of the run that are done.
        rows: of this epoch, seen by this rank since the start or the resume (not padding).
        keys: their key sum.
        rows_before: of this epoch, seen by all ranks before the resume.
        keys_before: their key sum.
        skipped: steps left out because of bad numbers.
        overflows: steps left out because fp16 overflowed.
        clipped: steps whose gradient was clipped.
        best: lowest validation logloss.
        stale: evaluations since then.
        evaluation_due: a stop came before the evaluation that belongs here.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    rows: int = 0
    keys: int = 0
    rows_before: int = 0
    keys_before: int = 0
    skipped: int = 0
    overflows: int = 0
    clipped: int = 0
    best: float | None = None
    stale: int = 0
    evaluation_due: bool = False

    def advance(self, batch: Batch) -> None:
        """Count a batch that was served."""
        keys = batch.tensors[KEY]
        keys = keys if batch.mask is None else keys[batch.mask]
        self.step += 1
        self.global_step += 1
        self.rows += keys.numel()
        self.keys = (self.keys + key_sum(keys.cpu().numpy())) % MODULUS

    def next_epoch(self) -> None:
        """To the start of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.rows = self.keys = self.rows_before = self.keys_before = 0

    def judge(self, logloss: float | None) -> None:
        """Count evaluations without a better logloss."""
        better = logloss is not None and (self.best is None or logloss < self.best)
        self.best, self.stale = (logloss, 0) if better else (self.best, self.stale + 1)

    def to_dict(self, collective: Collective) -> dict[str, Any]:
        """JSON, the same on every rank: the sums of all ranks stand as those before the resume."""
        rows, keys = total(collective, self.rows, self.keys)
        seen = {"rows": 0, "keys": 0, "rows_before": self.rows_before + rows}
        return asdict(self) | seen | {"keys_before": (self.keys_before + keys) % MODULUS}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Cursor:
        """Undo `to_dict`."""
        return cls(**state)


@dataclass(frozen=True)
class EpochAudit:
    """What an epoch read, over all ranks.

    Args:
        epoch: from 0.
        rows: distinct rows served.
        dropped: rows of the remainder, read and left out.
        repeated: rows served a second time (remainder "wrap").
        keys: key sum of rows served once and rows dropped.
    """

    epoch: int
    rows: int
    dropped: int
    repeated: int
    keys: int

    def check(self, rows: int, fingerprint: int) -> None:
        """Compare with the table.

        Raises:
            AuditError: a row was lost, read twice, or is not the table's.
        """
        if self.rows + self.dropped == rows and self.keys == fingerprint % MODULUS:
            return
        raise AuditError(
            f"epoch {self.epoch + 1} did NOT read every row once: {self.rows:,} rows seen + {self.dropped:,} dropped, "
            f"the table has {rows:,}; key sum {self.keys}, the table's is {fingerprint % MODULUS}. "
            "The model of this run must not be used."
        )

    def to_dict(self) -> dict[str, int]:
        """JSON-able."""
        return asdict(self)


class SourceAudit(Protocol):
    """What this rank's source says of the steps since the start or the resume, and of dropped rows (data.Audit)."""

    @property
    def seen(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def repeated(self) -> int: ...
    @property
    def key_sum(self) -> int: ...


def close_epoch(cursor: Cursor, source: SourceAudit, collective: Collective) -> EpochAudit:
    """Add up what was read before a resume and what every rank has read since; the same on every rank."""
    numbers = (cursor.rows, source.seen, source.dropped, source.repeated, source.key_sum)
    trained, seen, dropped, repeated, keys = total(collective, *numbers)
    if trained != seen + repeated:
        raise AuditError(
            f"epoch {cursor.epoch + 1} did NOT read every row once: {trained:,} rows were trained on, "
            f"{seen + repeated:,} were read. The model of this run must not be used."
        )
    keys = (cursor.keys_before + keys) % MODULUS
    return EpochAudit(cursor.epoch, cursor.rows_before + seen, dropped, repeated, keys)


def total(collective: Collective, *numbers: int) -> list[int]:
    """Sums of whole numbers of any size over ranks."""
    everyone = collective.allgather_object([str(number) for number in numbers])
    return [sum(int(row[i]) for row in everyone) for i in range(len(numbers))]
