"""Replay a Delta table's log without Spark: which files make up a version, with their rows and partition values.

Follows the Delta transaction protocol (github.com/delta-io/delta, PROTOCOL.md) for reader versions 1 to 3, as far as a
table's data files can be read as they lie; anything else is refused, never read in part. `_last_checkpoint` is a hint
that a listing makes needless, so a broken one does no harm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.catalog import storage
from headrace.errors import UserError

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10}))?\.parquet")
_DATA_FILE = re.compile(r"part-(\d+)-.*?(?:[.-]c(\d+))?(?:\..*)?")
_HARMLESS_FEATURES = {"timestampNtz", "vacuumProtocolCheck", "deletionVectors", "columnMapping"}
_CHECKPOINT_COLUMNS = ("add", "metaData", "protocol")


@dataclass(frozen=True)
class DataFile:
    """A data file of a version: absolute path, rows, partition values as text (None is null), bytes."""

    path: str
    rows: int
    partition: dict[str, str | None]
    size: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A version of a table. `files` are in one order: by partition, task, then the time of writing."""

    path: str
    version: int
    files: tuple[DataFile, ...]
    table_id: str
    schema: dict[str, Any]  # as Spark's StructType.jsonValue()
    partition_columns: tuple[str, ...]
    properties: dict[str, str]

    @property
    def rows(self) -> int:
        """Rows of the version."""
        return sum(file.rows for file in self.files)


@dataclass
class _State:
    """What replay has gathered."""

    adds: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


class Log:
    """A table's log as it was listed once.

    Args:
        path: the table, a local path or a URL.

    Raises:
        UserError: there is no Delta table.
    """

    def __init__(self, path: str) -> None:
        self.store, self.table = storage.locate(path)
        self.folder = f"{self.table}/_delta_log"
        self._names = self.store.sizes(self.folder)
        self.commits = sorted(int(m.group(1)) for m in map(_COMMIT.fullmatch, self._names) if m)
        self.checkpoints = self._complete_checkpoints()
        if not self.commits and not self.checkpoints:
            raise UserError(
                f"{path}: no Delta table there", "check --lake and the table's name, or write the table first"
            )

    @property
    def latest(self) -> int:
        """The newest version that was committed."""
        return max([*self.commits[-1:], *self.checkpoints])

    def _complete_checkpoints(self) -> dict[int, list[str]]:
        parts: dict[tuple[int, int], dict[int, str]] = {}
        for name in self._names:
            match = _CHECKPOINT.fullmatch(name)
            if match:
                version, part, of = int(match.group(1)), int(match.group(2) or 1), int(match.group(3) or 1)
                parts.setdefault((version, of), {})[part] = name
        whole = {key: found for key, found in parts.items() if len(found) == key[1]}
        return {version: [found[part] for part in sorted(found)] for (version, _), found in sorted(whole.items())}

    def actions(self, version: int) -> list[dict[str, Any]]:
        """The actions of one commit.

        Raises:
            UserError: the entry is missing, half-written or damaged; the version is named.
        """
        name = f"{version:020d}.json"
        try:
            lines = self.store.read(f"{self.folder}/{name}").splitlines()
            actions = [json.loads(line) for line in lines if line.strip()]
        except FileNotFoundError as error:
            raise self._refuse(version, "its log entry is missing") from error
        except ValueError as error:
            raise self._refuse(version, f"its log entry is damaged or half-written ({error})") from error
        if not actions or not all(isinstance(action, dict) for action in actions):
            raise self._refuse(version, "its log entry is empty or not a Delta commit")
        self._check_files_written(version, actions)
        return actions

    def _check_files_written(self, version: int, actions: list[dict[str, Any]]) -> None:
        """An entry cut between two lines still parses: what it says of itself must fit."""
        info = commit_info(actions)
        promised = (info.get("operationMetrics") or {}).get("numFiles")
        ours = info.get("operation") == "WRITE" and str(info.get("engineInfo", "")).startswith("Apache")
        if not ours or promised is None:
            return
        added = sum("add" in action for action in actions)
        # Of a table without partitions Spark writes one empty file for no rows, and Delta leaves that out.
        nothing = not added and str((info.get("operationMetrics") or {}).get("numOutputRows")) == "0"
        if added != int(promised) and not nothing:
            raise self._refuse(version, f"its log entry names {added} files and says it wrote {promised}")

    def _refuse(self, version: int, why: str) -> UserError:
        earlier = [v for v in self.commits if v < version]
        older = f"`@{earlier[-1]}` is the version before it" if earlier else "there is no version before it"
        return UserError(
            f"{self.table}: version {version} cannot be read: {why}",
            f"put {self.folder}/{version:020d}.json back from a copy, or pin an older version ({older})",
        )

    def snapshot(self, version: int | None = None) -> Snapshot:
        """The table at a version (None: the newest).

        Raises:
            UserError: no such version, a damaged log, or a feature that makes files unreadable as they lie.
        """
        version = self.latest if version is None else version
        if version < 0 or version > self.latest:
            raise UserError(f"{self.table} has no version {version}", f"versions go up to {self.latest}")
        state = self._replay(version)
        self._check_protocol(version, state)
        self._check_checksum(version, state)
        meta = state.metadata
        files = sorted(state.adds.values(), key=_order)
        return Snapshot(
            path=self.table,
            version=version,
            files=tuple(self._data_file(version, add) for add in files),
            table_id=str(meta.get("id", "")),
            schema=json.loads(meta["schemaString"]),
            partition_columns=tuple(meta.get("partitionColumns") or ()),
            properties=dict(meta.get("configuration") or {}),
        )

    def added_at(self, version: int) -> tuple[DataFile, ...]:
        """The files a commit added, in the order of `Snapshot.files`."""
        adds = [action["add"] for action in self.actions(version) if "add" in action]
        return tuple(self._data_file(version, add) for add in sorted(adds, key=_order))

    def transaction(self, app: str, version: int) -> int:
        """The number that Delta's transaction identifier `app` has reached at a version; 0 where it was never used."""
        entries = [entry for entry in self.commits if entry <= version]
        for entry in reversed(entries):
            if (number := _transaction_in(self.actions(entry), app)) is not None:
                return number
        start = max((entry for entry in self.checkpoints if entry <= version), default=0)
        names = [] if 0 in entries else self.checkpoints.get(start, [])  # a cleaned log goes on from a checkpoint
        held = [action for name in names for action in self._checkpoint_actions(name, ("txn",))]
        return _transaction_in(held, app) or 0

    def _replay(self, version: int) -> _State:
        """From the newest readable checkpoint that every later commit follows; else from version 0."""
        damaged = ""
        for start in [v for v in sorted(self.checkpoints, reverse=True) if v <= version] + [-1]:
            if start == -1 and damaged and 0 not in self.commits:
                raise UserError(f"{self.table}: version {version} cannot be read: {damaged}", "restore that file")
            state = _State()
            try:
                for name in self.checkpoints.get(start, []):
                    self._apply_all(state, self._checkpoint_actions(name))
            except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are OSError or ValueError
                damaged = f"its checkpoint {start} is damaged ({error})"
                continue
            for entry in range(start + 1, version + 1):
                self._apply_all(state, iter(self.actions(entry)))
            return state
        raise AssertionError("the loop ends in version -1, which returns or raises")

    def _checkpoint_actions(
        self, name: str, columns: tuple[str, ...] = _CHECKPOINT_COLUMNS
    ) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet as pq

        with self.store.open(f"{self.folder}/{name}") as stream:
            file = pq.ParquetFile(stream)
            present = [c for c in columns if c in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=4096, columns=present):
                for row in batch.to_pylist():
                    yield {kind: action for kind, action in row.items() if action is not None}

    def _apply_all(self, state: _State, actions: Iterator[dict[str, Any]]) -> None:
        for action in actions:
            if "add" in action:
                state.adds[_identity(action["add"])] = action["add"]
            elif "remove" in action:
                state.adds.pop(_identity(action["remove"]), None)
            state.metadata = action.get("metaData") or state.metadata
            state.protocol = action.get("protocol") or state.protocol

    def _check_protocol(self, version: int, state: _State) -> None:
        if not state.metadata or not state.protocol:
            raise self._refuse(version, "its log has no metaData or protocol")
        reader = int(state.protocol.get("minReaderVersion", 1))
        unknown = set(state.protocol.get("readerFeatures") or ()) - _HARMLESS_FEATURES
        if reader > 3 or unknown:
            what = ", ".join(sorted(unknown)) or f"reader version {reader}"
            raise UserError(f"{self.table}@{version} needs {what}, which is not supported", self._copy_remedy())
        mode = dict(state.metadata.get("configuration") or {}).get("delta.columnMapping.mode", "none")
        if mode != "none":
            remedy = "ALTER TABLE ... DROP FEATURE columnMapping, then REORG TABLE ... APPLY (PURGE); or "
            raise UserError(
                f"{self.table}@{version} maps column names (delta.columnMapping.mode={mode}): its files have others",
                remedy + self._copy_remedy(),
            )
        self._check_deletion_vectors(version, state)

    def _check_deletion_vectors(self, version: int, state: _State) -> None:
        vectors = sum(bool(add.get("deletionVector")) for add in state.adds.values())
        if vectors:
            raise UserError(
                f"{self.table}@{version} has deletion vectors on {vectors} files: deleted rows are still in them",
                f"REORG TABLE delta.`{self.table}` APPLY (PURGE), and set delta.enableDeletionVectors=false",
            )

    def _copy_remedy(self) -> str:
        return "make a plain copy: headrace.catalog.delta.materialize(spark, spec, lake, version, dest)"

    def _check_checksum(self, version: int, state: _State) -> None:
        """Delta may leave a count of files and bytes beside the entry; where it is whole, it must agree."""
        if f"{version:020d}.crc" not in self._names:
            return
        try:
            crc = json.loads(self.store.read(f"{self.folder}/{version:020d}.crc"))
            expected = int(crc["numFiles"]), int(crc["tableSizeBytes"])
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            return  # optional, and not written atomically: a broken one says nothing
        found = len(state.adds), sum(int(add["size"]) for add in state.adds.values())
        if found != expected:
            raise self._refuse(version, f"its log gives {found} files and bytes, its checksum file {expected}")

    def _data_file(self, version: int, add: dict[str, Any]) -> DataFile:
        path = storage.decode(self.table, add["path"])
        values = add.get("partitionValues") or {}
        rows = _num_records(add)
        if rows is None:
            rows = self._rows_in_footer(version, path)
        return DataFile(path, rows, {k: v or None for k, v in dict(values).items()}, int(add["size"]))

    def _rows_in_footer(self, version: int, path: str) -> int:
        import pyarrow.parquet as pq

        try:
            with self.store.open(path) as stream:
                return int(pq.ParquetFile(stream).metadata.num_rows)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.table}@{version}: {path}: {error}", "was it vacuumed? pin a newer version"
            ) from error


def _transaction_in(actions: Sequence[dict[str, Any]], app: str) -> int | None:
    numbers = [int(action["txn"]["version"]) for action in actions if (action.get("txn") or {}).get("appId") == app]
    return max(numbers, default=None)


def _num_records(add: dict[str, Any]) -> int | None:
    """Rows by the statistics, which are optional, as JSON or (in checkpoints) parsed."""
    try:
        stats = json.loads(add["stats"]) if add.get("stats") else add.get("stats_parsed") or {}
        return int(stats["numRecords"])
    except (ValueError, KeyError, TypeError):
        return None


def _identity(action: dict[str, Any]) -> tuple[Any, ...]:
    """What tells logical files apart: one commit may remove a file and add it again with a deletion vector."""
    vector = action.get("deletionVector") or {}
    return action["path"], vector.get("storageType"), vector.get("pathOrInlineDv"), vector.get("offset")


def _order(add: dict[str, Any]) -> tuple[Any, ...]:
    """Names hold random ids, so runs that wrote the same rows agree on the order only by what comes before the id."""
    values = dict(add.get("partitionValues") or {})
    partition = tuple((key, values[key] or "") for key in sorted(values))
    match = _DATA_FILE.fullmatch(add["path"].rsplit("/", 1)[-1])
    task, counter = (int(match.group(1)), int(match.group(2) or 0)) if match else (1 << 31, 0)
    return partition, task, counter, int(add.get("modificationTime") or 0), add["path"]


def latest_version(path: str) -> int:
    """The newest committed version of the table at `path`.

    Raises:
        UserError: no Delta table there.
    """
    return Log(path).latest


def exists(path: str) -> bool:
    """Whether a Delta table is there."""
    store, table = storage.locate(path)
    names = store.sizes(f"{table}/_delta_log")
    return any(_COMMIT.fullmatch(name) or _CHECKPOINT.fullmatch(name) for name in names)


def commit_info(actions: list[dict[str, Any]]) -> dict[str, Any]:
    """What a commit says of itself; empty if it says nothing."""
    return next((action["commitInfo"] for action in actions if "commitInfo" in action), {})


def headrace_metadata(actions: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The `headrace` object in a commit's userMetadata, if it has one."""
    try:
        found = json.loads(commit_info(actions).get("userMetadata") or "null")
    except ValueError:
        return None
    mine = found.get("headrace") if isinstance(found, dict) else None
    return mine if isinstance(mine, dict) else None
