"""The account of every input file: `meta/ledger`, append only, by intents.

A batch (files, checksums, settings) is opened in the ledger before any of its data is written and closed after all of
it is: whoever finds an open batch finishes exactly that. Opening is compare-and-swap on the ledger's version, through
Delta's transaction identifiers, so that two processes never plan the same file twice; closing is idempotent.

Events, one row a file: `open` (what will be read, as what) and `close` (what came of it); `withdraw` (its rows are to
go from the tables) and `withdrawn` (they are gone: how many of them). A batch that is open is either closed or
withdrawn: both take the same transaction identifier. A withdrawn file is unknown again; its events and its number stay.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.catalog import delta, storage
from headrace.catalog.log import Log, Snapshot
from headrace.catalog.spec import load
from headrace.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import Row, SparkSession

OPEN, CLOSE, WITHDRAW, WITHDRAWN = "open", "close", "withdraw", "withdrawn"
_OPENING_APP = "headrace-ledger-open"


@dataclass(frozen=True)
class LedgerFile:
    """An input file as the ledger knows it.

    Args:
        path: absolute path.
        ordinal: its number, given once, never to another file.
        size: bytes.
        modified_ns: modification time, ns since 1970.
        checksum: `sha256:` and hex digits.
        day: given to its rows; None where rows have none.
        detail: whatever else is needed to read it the same way again.
    """

    path: str
    ordinal: int
    size: int
    modified_ns: int
    checksum: str
    day: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LedgerBatch:
    """Files that are committed together."""

    batch_id: str
    files: tuple[LedgerFile, ...]


@dataclass(frozen=True)
class FileAccount:
    """What came of a file: `read == committed + quarantined`, or the batch is not closed."""

    read: int
    committed: int
    quarantined: int
    table_version: int | None = None
    quarantine_version: int | None = None


@dataclass(frozen=True)
class LedgerState:
    """The ledger at one version.

    Args:
        version: of the ledger's table.
        batches: all batches, in the order they were opened.
        accounts: of closed batches, by (batch id, path).
        next_ordinal: for the next new file, over all sources.
        withdrawn: by (batch id, path), the rows that were taken out of the tables again; None where that was begun and
            is still to be finished.
    """

    version: int
    batches: tuple[LedgerBatch, ...]
    accounts: dict[tuple[str, str], FileAccount]
    next_ordinal: int
    withdrawn: dict[tuple[str, str], FileAccount | None] = field(default_factory=dict)

    @property
    def open_batches(self) -> list[LedgerBatch]:
        """Batches whose data may be missing or incomplete."""
        done = {batch_id for batch_id, _ in (*self.accounts, *self.withdrawn)}
        return [batch for batch in self.batches if batch.batch_id not in done]

    @property
    def withdrawals(self) -> list[LedgerBatch]:
        """Withdrawals that were begun and not finished: batches with only the files that are to go."""
        parts = [(batch, self._going(batch)) for batch in self.batches]
        return [LedgerBatch(batch.batch_id, files) for batch, files in parts if files]

    @property
    def files(self) -> dict[str, LedgerFile]:
        """Every file that was planned and not withdrawn since, by path."""
        return {file.path: file for _, file in self.planned}

    @property
    def planned(self) -> list[tuple[LedgerBatch, LedgerFile]]:
        """The same, each with its batch."""
        every = [(batch, file) for batch in self.batches for file in batch.files]
        return [(batch, file) for batch, file in every if (batch.batch_id, file.path) not in self.withdrawn]

    @property
    def forgotten(self) -> list[LedgerFile]:
        """Every reading of a file whose rows were taken out of the tables: withdrawals that are finished."""
        every = [(batch, file) for batch in self.batches for file in batch.files]
        return [file for batch, file in every if self.withdrawn.get((batch.batch_id, file.path)) is not None]

    def _going(self, batch: LedgerBatch) -> tuple[LedgerFile, ...]:
        missing = FileAccount(0, 0, 0)  # of a file that is not withdrawn
        return tuple(file for file in batch.files if self.withdrawn.get((batch.batch_id, file.path), missing) is None)


class Ledger:
    """The ledger of one kind of input in one lake."""

    def __init__(self, spark: SparkSession, lake: str, source: str) -> None:
        self._spark, self._lake, self._source = spark, lake, source
        self._spec = load("meta/ledger")
        self._path = self._spec.path(lake)

    def state(self) -> LedgerState:
        """The newest state; the table is created where it is missing."""
        delta.ensure(self._spark, self._spec, self._lake)
        snapshot = Log(self._path).snapshot()
        return state_of(_rows(snapshot), self._source, snapshot.version)

    def open(self, batch: LedgerBatch, seen: LedgerState) -> bool:
        """Record the intent, unless the ledger moved on since `seen`: then False, and nothing is recorded.

        Every opening carries its version number plus one as transaction number: one that was planned on an older
        ledger carries a number that is already used up, and Delta does not commit it.
        """
        rows = [self._row(OPEN, batch.batch_id, file, None) for file in batch.files]
        return self._append(rows, _OPENING_APP, seen.version + 1)

    def close(self, batch: LedgerBatch, accounts: dict[str, FileAccount]) -> None:
        """Record what came of the batch, once: a second close of the same batch changes nothing.

        Raises:
            UserError: the batch was given up while it was worked on.
        """
        for file in batch.files:
            account = accounts[file.path]
            assert account.read == account.committed + account.quarantined, (file.path, account)
        rows = [self._row(CLOSE, batch.batch_id, file, accounts[file.path]) for file in batch.files]
        if not self._append(rows, *_closing(batch)) and batch.batch_id in {b for b, _ in self.state().withdrawn}:
            raise UserError(f"batch {batch.batch_id} was given up while it was worked on", "run the same command again")

    def withdraw(self, batch: LedgerBatch, seen: LedgerState) -> bool:
        """Record that these files' rows are to go, unless the ledger moved on since `seen`: then False.

        Args:
            batch: with the files that are meant: of an open batch all, of a closed one any that are not withdrawn yet.
            seen: the state that this was decided on, without a withdrawal that is still to be finished.
        """
        assert not seen.withdrawals
        rows = [self._row(WITHDRAW, batch.batch_id, file, None) for file in batch.files]
        if batch in seen.open_batches:
            return self._append(rows, *_closing(batch))
        return self._append(rows, _OPENING_APP, seen.version + 1)

    def withdrawn(self, batch: LedgerBatch, removed: dict[str, FileAccount]) -> None:
        """Record that these files' rows are gone, and how many went, once.

        Args:
            batch: as it was given to `withdraw`.
            removed: by path; `table_version` and `quarantine_version` are those without the rows.
        """
        rows = [self._row(WITHDRAWN, batch.batch_id, file, removed[file.path]) for file in batch.files]
        self._append(rows, f"headrace-ledger-withdrawn-{batch.batch_id}-{batch.files[0].ordinal}", 1)

    def _append(self, rows: list[dict[str, Any]], app: str, number: int) -> bool:
        """Commit the rows, unless this or a higher number of `app` is committed already."""
        frame = delta.small_frame(self._spark, self._spec, rows)
        options = delta.WriteOptions(txn=(app, number), quality=False)
        return not delta.write(frame, self._spec, self._lake, options=options).skipped

    def _row(self, event: str, batch_id: str, file: LedgerFile, account: FileAccount | None) -> dict[str, Any]:
        values = {
            "event": event,
            "at": datetime.datetime.now(datetime.UTC),
            "source": self._source,
            "batch_id": batch_id,
            "file": file.path,
            "file_ordinal": file.ordinal,
            "size": file.size,
            "modified_ns": file.modified_ns,
            "checksum": file.checksum,
            "day": file.day,
            "rows_read": account.read if account else None,
            "rows_committed": account.committed if account else None,
            "rows_quarantined": account.quarantined if account else None,
            "table_version": account.table_version if account else None,
            "quarantine_version": account.quarantine_version if account else None,
            "detail": json.dumps(file.detail, sort_keys=True),
        }
        return {column.name: values[column.name] for column in self._spec.columns}


def _closing(batch: LedgerBatch) -> tuple[str, int]:
    """The transaction that ends an open batch, one way or the other."""
    return f"headrace-ledger-close-{batch.batch_id}", 1


def _rows(snapshot: Snapshot) -> Iterator[Row]:
    """The ledger's rows, read without Spark: it is small, and a job over it would cost seconds."""
    import pyarrow.parquet as pq
    from pyspark.sql import Row

    store, _ = storage.locate(snapshot.path)
    for file in snapshot.files:
        with store.open(file.path) as stream:
            yield from (Row(**row) for row in pq.ParquetFile(stream).read().to_pylist())


def state_of(rows: Iterable[Row], source: str, version: int) -> LedgerState:
    """The state that a ledger's rows amount to.

    Args:
        rows: of the table, in any order.
        source: whose batches; ordinals count over all sources.
        version: of the table.
    """
    opened: dict[str, list[Row]] = {}
    accounts = {}
    withdrawn: dict[tuple[str, str], FileAccount | None] = {}
    next_ordinal = 0
    for row in rows:
        next_ordinal = max(next_ordinal, row.file_ordinal + 1)
        if row.source != source:
            continue
        if row.event == OPEN:
            opened.setdefault(row.batch_id, []).append(row)
        elif row.event == CLOSE:
            accounts[row.batch_id, row.file] = _account(row)
        elif row.event == WITHDRAW:
            withdrawn.setdefault((row.batch_id, row.file), None)
        elif row.event == WITHDRAWN:
            withdrawn[row.batch_id, row.file] = _account(row)
    batches = [_batch(batch_id, events) for batch_id, events in opened.items()]
    batches.sort(key=lambda batch: batch.files[0].ordinal)
    return LedgerState(version, tuple(batches), accounts, next_ordinal, withdrawn)


def _batch(batch_id: str, rows: Sequence[Row]) -> LedgerBatch:
    files = [
        LedgerFile(
            row.file, row.file_ordinal, row.size, row.modified_ns, row.checksum, row.day, json.loads(row.detail or "{}")
        )
        for row in sorted(rows, key=lambda row: int(row.file_ordinal))
    ]
    return LedgerBatch(batch_id, tuple(files))


def _account(row: Row) -> FileAccount:
    return FileAccount(
        row.rows_read, row.rows_committed, row.rows_quarantined, row.table_version, row.quarantine_version
    )
