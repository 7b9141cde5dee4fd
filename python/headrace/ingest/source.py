"""What a kind of input must tell and do so that `pipelines/ingest_files.py` brings it into the lake exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from headrace.catalog.ledger import FileAccount, LedgerBatch, LedgerFile

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class Scan(Protocol):
    """What one pass over a file told; an object of the source's own with at least these.

    Args:
        path: absolute path.
        size: bytes on disk.
        mtime_ns: modification time in ns since 1970.
        sha256: of the bytes on disk, in hex.
    """

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def empty(self) -> bool:
        """No row in it: the same nothing may come under many names."""
        ...


class Source(Protocol):
    """One kind of input. `bronze/NAME` and `quarantine/NAME` are its tables, NAME its batches' source in the ledger."""

    @property
    def name(self) -> str: ...

    def scan(self, spark: SparkSession, paths: Sequence[str]) -> Mapping[str, Scan | str]:
        """Every file's scan, or in words why it cannot be read."""
        ...

    def check(self, scans: Sequence[Any]) -> None:
        """Refuse new files that this source cannot take as a whole (another schema), before anything is committed.

        Raises:
            UserError: with the file and what to do.
        """
        ...

    def detail(self, scan: Any) -> dict[str, Any]:
        """Whatever is needed to read the file the same way again, as JSON values: kept in the ledger."""
        ...

    def commit(
        self, spark: SparkSession, lake: str, batch: LedgerBatch, scans: Mapping[str, Any]
    ) -> dict[str, FileAccount]:
        """Write what is missing of the batch to the tables, and give each file's account, counted in the tables.

        Idempotent: a batch that was committed in part is completed, one that was committed is counted again. How a
        file is read is taken from its `detail` in the batch, not from this run's settings.

        Raises:
            UserError: a file is no longer what was scanned.
            RuntimeError: the account does not close; nothing more is written.
        """
        ...

    def describe(self, file: LedgerFile, account: FileAccount) -> str:
        """One line on a file for people."""
        ...


def tables(source: Source) -> tuple[str, str]:
    """Names of the tables that take a source's rows and its refused ones."""
    return f"bronze/{source.name}", f"quarantine/{source.name}"
