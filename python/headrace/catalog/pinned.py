"""A pinned version is the data set: its files, rows and fingerprint, all a training rank needs, read without Spark.

The fingerprint of a version is a function of its files' keys. It is computed once, when the version is written or first
pinned, and kept in TABLE/_headrace/fingerprint/VERSION.json (docs/decisions/0003-fingerprint.md): a cache that may be
lost and can not be wrong, since it names the very files it was computed from.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.catalog import fingerprint, storage
from headrace.catalog.log import DataFile, Log, Snapshot, headrace_metadata
from headrace.catalog.spec import TableSpec
from headrace.errors import UserError

_READERS = 4


@dataclass(frozen=True)
class Part:
    """Rows and key sum of one partition; of the whole table where it has no partitions."""

    partition: dict[str, str | None]
    rows: int
    fingerprint: int
    digest: str  # of the files it was computed from


@dataclass(frozen=True)
class PinnedTable:
    """A version of a table, or of some of its partitions: picklable, and the same for ever.

    `rows` and `fingerprint` are those of `files`; the fingerprint of a table without a bigint key is 0.
    """

    spec: TableSpec
    path: str
    version: int
    files: tuple[DataFile, ...]
    rows: int
    fingerprint: int
    metadata: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.spec.name}@{self.version}"


def pin(
    spec: TableSpec, lake: str | Path, version: int | None = None, partition: Mapping[str, object] | None = None
) -> PinnedTable:
    """Pin a version (None: the newest), whole or where the partition columns have the values of `partition`.

    Raises:
        UserError: no such table, version or partition column; deletion vectors; a damaged log.
    """
    log = Log(spec.path(lake))
    snapshot = log.snapshot(version)
    files = _selected(snapshot, partition)
    parts = parts_of(snapshot, spec.fingerprint_key)
    chosen = [part for part in parts if _matches(part.partition, partition)]
    total = sum(part.fingerprint for part in chosen) % fingerprint.MODULUS
    rows = sum(file.rows for file in files)
    return PinnedTable(spec, snapshot.path, snapshot.version, files, rows, total, _metadata(log, snapshot.version))


def files_at(
    spec: TableSpec, lake: str | Path, version: int | None = None, partition: Mapping[str, object] | None = None
) -> list[DataFile]:
    """The data files of a version, in a fixed order, with their rows; see `pin` for arguments and errors."""
    return list(_selected(Log(spec.path(lake)).snapshot(version), partition))


def commit_metadata(path: str, version: int) -> dict[str, Any]:
    """The `headrace` object of the newest commit <= version that has one, with `rows`, `fingerprint` and `partitions`
    where they are on record for `version` itself.

    Raises:
        UserError: no table there, or a log entry on the way is damaged.
    """
    return _metadata(Log(path), version)


def _metadata(log: Log, version: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in (v for v in reversed(log.commits) if v <= version):
        mine = headrace_metadata(log.actions(entry))
        if mine is not None:
            found = mine
            break
    return found | _recorded_figures(log, version)


def _recorded_figures(log: Log, version: int) -> dict[str, Any]:
    parts = _load_record(log.store, log.table, version)
    if parts is None:
        return {}
    total = sum(part.fingerprint for part in parts) % fingerprint.MODULUS
    listed = [{"values": p.partition, "rows": p.rows, "fingerprint": str(p.fingerprint)} for p in parts]
    return {"rows": sum(p.rows for p in parts), "fingerprint": str(total), "partitions": listed}


def parts_of(snapshot: Snapshot, key: str | None) -> list[Part]:
    """Rows and fingerprint by partition: from the record, else computed from what changed and recorded.

    Args:
        snapshot: the version.
        key: the bigint key column; None gives fingerprint 0.
    """
    store, table = storage.locate(snapshot.path)
    groups = _by_partition(snapshot.files)
    recorded = _load_record(store, table, snapshot.version) or []
    known = {part.digest: part for part in recorded}
    if key is not None and all(_digest(files) in known for files in groups.values()):
        return [known[_digest(files)] for files in groups.values()]
    if key is None:
        return [Part(files[0].partition, sum(f.rows for f in files), 0, _digest(files)) for files in groups.values()]
    before = _parts_before(store, snapshot)
    parts = [_part(store, files, key, before.get(name)) for name, files in groups.items()]
    _save_record(store, table, snapshot.version, parts)
    return parts


def _part(store: storage.Store, files: list[DataFile], key: str, before: tuple[set[str], Part] | None) -> Part:
    total, new = 0, files
    if before and before[0] <= {file.path for file in files}:
        total = before[1].fingerprint
        new = [file for file in files if file.path not in before[0]]
    for file, (found, key_sum) in zip(new, _read_key_sums(store, new, key), strict=True):
        if found != file.rows:
            raise UserError(f"{file.path} holds {found} rows, the table's log says {file.rows}", "restore the file")
        total += key_sum
    return Part(files[0].partition, sum(file.rows for file in files), total % fingerprint.MODULUS, _digest(files))


def _parts_before(store: storage.Store, snapshot: Snapshot) -> dict[str, tuple[set[str], Part]]:
    """The version before, where its record is there: partition -> its files and figures."""
    recorded = _load_record(store, snapshot.path, snapshot.version - 1)
    if not recorded:
        return {}
    known = {part.digest: part for part in recorded}
    groups = _by_partition(Log(snapshot.path).snapshot(snapshot.version - 1).files)
    found = {name: (files, known.get(_digest(files))) for name, files in groups.items()}
    return {name: ({file.path for file in files}, part) for name, (files, part) in found.items() if part}


def _read_key_sums(store: storage.Store, files: Sequence[DataFile], key: str) -> list[tuple[int, int]]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda file: _file_key_sum(store, file.path, key), files))


def _file_key_sum(store: storage.Store, path: str, key: str) -> tuple[int, int]:
    import pyarrow.parquet as pq

    rows = total = 0
    try:
        with store.open(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=[key], batch_size=1 << 16):
                rows += batch.num_rows
                total += fingerprint.key_sum(batch.column(0).to_numpy(zero_copy_only=False))
    except FileNotFoundError as error:
        remedy = "it was vacuumed, or deleted by hand: pin a newer version, or restore the file"
        raise UserError(f"{path}: a data file of the pinned version is gone", remedy) from error
    return rows, total % fingerprint.MODULUS


def _by_partition(files: Iterable[DataFile]) -> dict[str, list[DataFile]]:
    groups: dict[str, list[DataFile]] = {}
    for file in files:
        groups.setdefault(json.dumps(file.partition, sort_keys=True), []).append(file)
    return groups


def _selected(snapshot: Snapshot, partition: Mapping[str, object] | None) -> tuple[DataFile, ...]:
    unknown = set(partition or ()) - set(snapshot.partition_columns)
    if unknown:
        have = ", ".join(snapshot.partition_columns) or "none"
        raise UserError(
            f"{snapshot.path} is not partitioned by {', '.join(sorted(unknown))}", f"its partitions: {have}"
        )
    return tuple(file for file in snapshot.files if _matches(file.partition, partition))


def _matches(values: Mapping[str, str | None], wanted: Mapping[str, object] | None) -> bool:
    """A wanted value may be a list of values; None asks for null."""
    for name, value in (wanted or {}).items():
        options = value if isinstance(value, list | tuple | set | frozenset) else [value]
        if values.get(name) not in {None if option is None else str(option) for option in options}:
            return False
    return True


def _digest(files: Iterable[DataFile]) -> str:
    names = sorted(f"{file.path.rsplit('/', 1)[-1]} {file.rows} {file.size}" for file in files)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _record_path(table: str, version: int) -> str:
    return f"{table}/_headrace/fingerprint/{version:020d}.json"


def _load_record(store: storage.Store, table: str, version: int) -> list[Part] | None:
    try:
        entries = json.loads(store.read(_record_path(table, version)))["parts"]
        return [Part(e["partition"], int(e["rows"]), int(e["fingerprint"]), e["digest"]) for e in entries]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # a cache: absent or broken, it is computed again


def _save_record(store: storage.Store, table: str, version: int, parts: list[Part]) -> None:
    entries = [
        {"partition": p.partition, "rows": p.rows, "fingerprint": str(p.fingerprint), "digest": p.digest} for p in parts
    ]
    try:
        store.replace(_record_path(table, version), json.dumps({"parts": entries}, indent=1).encode())
    except OSError as error:
        # A reader who may not write here computes it each time.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
