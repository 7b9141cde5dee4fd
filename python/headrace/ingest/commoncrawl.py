"""Crawl files into `bronze/commoncrawl`: a `Source` whose rows are records, keyed by file ordinal and offset.

A file is scanned by a checksum and a census (records and bytes by type, what is refused); a batch is committed to
bronze, then what was refused to quarantine, each in one Delta commit under the batch's transaction identifier. The
counts, rows and bytes, are then taken from the tables and must be those of the census; the bytes of all rows must be
the file's size. A batch whose account does not close stays open.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.catalog.ledger import FileAccount, LedgerBatch, LedgerFile
from headrace.catalog.spec import TableSpec, load
from headrace.errors import UserError
from headrace.ingest import commoncrawl_rows as rows
from headrace.ingest.batch import Batch, Tally
from headrace.ingest.commoncrawl_paths import crawl_of
from headrace.ingest.commoncrawl_rows import Account, Census, CrawlFile, Place, Reading, types_of
from headrace.ingest.lines import LINE_BITS, per_task

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

NAME = "commoncrawl"
MAX_FILE_BYTES = 1 << LINE_BITS
_HERE_BYTES = 16 << 20  # takes less time than to start a Python worker
_CHUNK_BYTES = 1 << 22
_Read = Callable[["SparkSession", Sequence[CrawlFile], Reading], "DataFrame"]


@dataclass(frozen=True)
class CrawlScan:
    """What one pass over a file told; see `source.Scan`.

    Args:
        path: where it is read from.
        size: bytes.
        mtime_ns: modification time in ns since 1970.
        sha256: in hex.
        census: what is in it.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    census: Census

    @property
    def empty(self) -> bool:
        """No record in it."""
        return not self.census.rows

    @property
    def lines(self) -> int:
        """Rows of the reader."""
        return self.census.rows


@dataclass
class CommonCrawlSource:
    """WARC, WET, WAT and ARC files.

    Args:
        reading: how new files are read.
        origins: what files are called in the tables and in the ledger, by path, where that is not the path.
        crawl: of all new files; '' to take it from their names.
        places: by path, of files made of single records: where these came from.
    """

    reading: Reading = field(default_factory=Reading)
    origins: dict[str, str] = field(default_factory=dict)
    crawl: str = ""
    places: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    name: str = NAME

    def scan(self, spark: SparkSession, paths: Sequence[str]) -> dict[str, CrawlScan | str]:
        """Checksums, then one pass of the reader over all files."""
        before = identify(spark, paths)
        whole = [path for path, found in before.items() if not isinstance(found, str)]
        censuses = self._take_census(spark, whole, self.reading)
        return {
            path: found if isinstance(found, str) else _scan_of(path, found, censuses[path])
            for path, found in before.items()
        }

    def check(self, scans: Sequence[CrawlScan]) -> None:
        """Refuse files whose offsets a key cannot hold."""
        for scan in scans:
            if scan.size >= MAX_FILE_BYTES:
                raise UserError(f"{scan.path} has {MAX_FILE_BYTES:,} bytes or more", "split it")

    def detail(self, scan: CrawlScan) -> dict[str, Any]:
        """Origin, crawl, types, and how it is read."""
        origin = self.origins.get(scan.path, scan.path)
        types = types_of(scan.census, self.reading.types)
        account = scan.census.account(types, self.reading.bad_digest)
        return {
            **self.reading.detail(),
            "types": list(types) or ["all"],
            "origin": origin,
            "crawl": self.crawl or crawl_of(origin),
            "records": scan.census.rows,
            "left_out": account.left_out,
        }

    def commit(
        self, spark: SparkSession, lake: str, batch: LedgerBatch, scans: Mapping[str, CrawlScan]
    ) -> dict[str, FileAccount]:
        """See `Source.commit`."""
        reading = Reading.of(batch.files[0].detail)
        files = [_crawl_file(file, self.places.get(file.path, ())) for file in batch.files]
        censuses = {file.path: scans[file.path].census for file in files}
        if not reading.same_census(self.reading):
            censuses = self._take_census(spark, [file.path for file in files], reading)
        expected = {file.path: censuses[file.path].account(file.types, reading.bad_digest) for file in files}
        _refuse_changed(scans[file.path] for file in files)
        return _Commit(Batch(spark, lake, batch.batch_id), reading, files, scans).run(expected)

    def describe(self, file: LedgerFile, account: FileAccount) -> str:
        """Origin, records."""
        left = file.detail["left_out"]
        return (
            f"{file.detail['origin']}: {account.read + left:,} records = {account.committed:,} committed"
            f" + {account.quarantined:,} in quarantine" + (f" + {left:,} of other types left out" if left else "")
        )

    def _take_census(self, spark: SparkSession, paths: Sequence[str], reading: Reading) -> dict[str, Census]:
        files = [CrawlFile(path, places=self.places.get(path, ())) for path in paths if os.path.getsize(path)]
        found = rows.take_census(spark, files, reading) if files else {}
        return {path: found.get(path, Census()) for path in paths}


@dataclass(frozen=True)
class Identity:
    """Size, modification time in ns, SHA-256 in hex."""

    size: int
    mtime_ns: int
    sha256: str


def identify(spark: SparkSession, paths: Sequence[str]) -> dict[str, Identity | str]:
    """Every file's identity, or in words why it has none; a task a file."""
    if sum(os.path.getsize(path) for path in paths if os.path.exists(path)) <= _HERE_BYTES:
        return {path: _identity(path) for path in paths}

    def run(task: int) -> Iterator[pa.RecordBatch]:
        found = _identity(paths[task])
        said = found if isinstance(found, str) else json.dumps(found.__dict__)
        columns = [pa.array([value]) for value in (paths[task], said, isinstance(found, str))]
        yield pa.RecordBatch.from_arrays(columns, names=["path", "found", "failed"])

    found = per_task(spark, len(paths), run, "path string, found string, failed boolean").collect()
    return {row.path: row.found if row.failed else Identity(**json.loads(row.found)) for row in found}


def _identity(path: str) -> Identity | str:
    try:
        before = os.stat(path)
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        after = os.stat(path)
    except OSError as problem:
        return f"{path} cannot be read: {problem.strerror}"
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return f"{path} was written to while it was read"
    return Identity(after.st_size, after.st_mtime_ns, digest.hexdigest())


def _scan_of(path: str, found: Identity, census: Census) -> CrawlScan | str:
    stat = os.stat(path)
    if (stat.st_size, stat.st_mtime_ns) != (found.size, found.mtime_ns):
        return f"{path} was written to while it was read"
    if census.bytes != found.size:
        raise RuntimeError(
            f"the account of {path} does not close: its rows have {census.bytes:,} bytes, the file {found.size:,}"
        )
    return CrawlScan(path, found.size, found.mtime_ns, found.sha256, census)


def _crawl_file(file: LedgerFile, places: tuple[Place, ...]) -> CrawlFile:
    types = tuple(file.detail["types"])
    types = () if "all" in types else types
    return CrawlFile(file.path, file.ordinal, file.detail["origin"], file.detail["crawl"], types, places)


def _refuse_changed(scans: Iterator[CrawlScan]) -> None:
    """Once before and once after the data is read: what is committed is what was scanned."""
    for scan in scans:
        stat = os.stat(scan.path)
        if (stat.st_size, stat.st_mtime_ns) != (scan.size, scan.mtime_ns):
            raise UserError(
                f"{scan.path} was changed while it was ingested; its batch stays open",
                "put back the file as it was, and run the same command again",
            )


@dataclass(frozen=True)
class _Commit:
    """One batch on its way into the two tables."""

    batch: Batch
    reading: Reading
    files: Sequence[CrawlFile]
    scans: Mapping[str, CrawlScan]

    def run(self, expected: Mapping[str, Account]) -> dict[str, FileAccount]:
        """Write what is missing, count, compare."""
        bronze, quarantine = load(f"bronze/{NAME}"), load(f"quarantine/{NAME}")
        full = [file for file in self.files if expected[file.path].committed]
        dirty = [file for file in self.files if expected[file.path].refused]
        committed, version = self._written(bronze, rows.accepted, full)
        refused, refused_version = self._written(quarantine, rows.rejected, dirty)
        _refuse_changed(self.scans[file.path] for file in self.files)
        return {
            file.path: self._account(
                file,
                expected[file.path],
                committed.get(file.ordinal, Tally(0, 0)),
                refused.get(file.ordinal, Tally(0, 0)),
                (version, refused_version),
            )
            for file in self.files
        }

    def _written(self, spec: TableSpec, read: _Read, files: Sequence[CrawlFile]) -> tuple[dict[int, Tally], int | None]:
        """Commit the files' rows to a table unless that was done; rows and bytes there by ordinal, and the version."""
        if not files:
            return {}, None
        commit = self.batch.write(spec, read(self.batch.spark, files, self.reading))
        found = self.batch.tally(commit, spec, [file.ordinal << LINE_BITS for file in self.files], "length")
        return {start >> LINE_BITS: tally for start, tally in found.items()}, commit.version

    def _account(
        self,
        file: CrawlFile,
        expected: Account,
        committed: Tally,
        refused: Tally,
        versions: tuple[int | None, int | None],
    ) -> FileAccount:
        wanted = (expected.committed, expected.committed_bytes), (expected.refused, expected.refused_bytes)
        size = self.scans[file.path].size
        if (committed, refused) != wanted or committed.measure + refused.measure + expected.left_out_bytes != size:
            raise RuntimeError(
                f"the account of {file.origin} does not close: (rows, bytes) {tuple(committed)} committed,"
                f" {tuple(refused)} in quarantine, expected {wanted[0]} and {wanted[1]};"
                f" {expected.left_out_bytes:,} bytes left out, {size:,} in the file; its batch stays open"
            )
        bronze, quarantine = versions
        read = committed.rows + refused.rows
        return FileAccount(
            read, committed.rows, refused.rows, bronze if committed.rows else None, quarantine if refused.rows else None
        )
