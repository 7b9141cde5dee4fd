"""Replay of Delta logs: against delta-rs as a second reader, and on logs damaged by hand."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.catalog import pinned, storage
from headrace.catalog.fingerprint import key_sum
from headrace.catalog.log import Log, exists, latest_version
from headrace.catalog.spec import Column, TableSpec
from headrace.errors import UserError

ODD = ["a b", "50%", "x=y", "ü/\\", "#?", "plain", "c:d"]
ACTIONS = ["append", "append", "append", "delete", "overwrite", "optimize", "checkpoint"]
SPEC = TableSpec(
    "silver/toy", (Column("key", "bigint", False), Column("part", "string")), keys=("key",), partition_by=("part",)
)


def rows(start: int, count: int, rng: random.Random) -> pa.Table:
    keys = pa.array(range(start, start + count), pa.int64())
    return pa.table({"key": keys, "part": pa.array([rng.choice([*ODD, None]) for _ in range(count)])})


def truth(path: str, version: int) -> list[tuple[int, str | None]]:
    """Read by delta-rs and polars."""
    return pl.read_delta(path, version=version, columns=["key", "part"]).rows()


def keys_sum(keys: list[int]) -> int:
    return key_sum(np.array(keys, np.int64))


def check_version(lake: Path, version: int) -> None:
    """Ours against the second reader: every key, rows and fingerprint in all and by partition."""
    expected = truth(SPEC.path(lake), version)
    table = pinned.pin(SPEC, lake, version)
    keys = [k for file in table.files for k in pq.ParquetFile(file.path).read(["key"])["key"].to_pylist()]
    assert sorted(keys) == sorted(key for key, _ in expected)
    assert (table.rows, table.fingerprint) == (len(expected), keys_sum(keys))
    for part in {*(part for _, part in expected), "absent"}:
        mine = pinned.pin(SPEC, lake, version, {"part": part})
        wanted = [key for key, found in expected if found == part]
        assert (mine.rows, mine.fingerprint) == (len(wanted), keys_sum(wanted))


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_delta_rs_on_random_histories(tmp_path: Path, seed: int) -> None:
    rng, path, start = random.Random(seed), SPEC.path(tmp_path), 0
    Path(path).mkdir(parents=True)
    for step in range(14):
        action = rng.choice(ACTIONS) if step else "append"
        if action in ("append", "overwrite"):
            count = rng.randint(1, 40)
            deltalake.write_deltalake(path, rows(start, count, rng), mode=action, partition_by=["part"])
            start += count
        elif action == "delete":
            deltalake.DeltaTable(path).delete(f"key % {rng.randint(2, 5)} = 0")
        elif action == "optimize":
            deltalake.DeltaTable(path).optimize.compact()
        else:
            deltalake.DeltaTable(path).create_checkpoint()
        if rng.random() < 0.4:
            check_version(tmp_path, latest_version(path))
    newest = latest_version(path)
    assert newest == deltalake.DeltaTable(path).version()
    for version in sorted(rng.sample(range(newest + 1), min(4, newest + 1))):
        check_version(tmp_path, version)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Versions 0 to 5, each with ten rows more, a checkpoint at 3."""
    path = SPEC.path(tmp_path)
    for version in range(6):
        part = pa.table({"key": pa.array(range(version * 10, version * 10 + 10)), "part": ["p"] * 10})
        deltalake.write_deltalake(path, part, mode="append", partition_by=["part"])
        if version == 3:
            deltalake.DeltaTable(path).create_checkpoint()
    return Path(path)


def entry(table: Path, version: int) -> Path:
    return table / "_delta_log" / f"{version:020d}.json"


def test_versions_and_order(table: Path) -> None:
    log = Log(str(table))
    assert (log.latest, [log.snapshot(v).rows for v in range(6)]) == (5, [10, 20, 30, 40, 50, 60])
    files = log.snapshot().files
    assert files == Log(f"file:{table}").snapshot().files == Log(f"file://{table}").snapshot().files
    written = [int(pq.ParquetFile(file.path).read(["key"])["key"][0].as_py()) for file in files]
    assert written == sorted(written), "files of the same task number come in the order they were written"
    with pytest.raises(UserError, match="versions go up to 5"):
        log.snapshot(6)
    with pytest.raises(UserError, match="no Delta table"):
        Log(str(table.parent))
    assert not exists(str(table / "nowhere"))


@pytest.mark.parametrize("text", ["", "{", '{"version": 99, "size": 1}', "null", "\0\0"])
def test_broken_last_checkpoint_does_no_harm(table: Path, text: str) -> None:
    (table / "_delta_log" / "_last_checkpoint").write_text(text)
    assert Log(str(table)).snapshot().rows == 60
    (table / "_delta_log" / "_last_checkpoint").unlink()
    assert Log(str(table)).snapshot().rows == 60


def test_missing_entry_is_recovered_by_a_checkpoint_or_refused(table: Path) -> None:
    entry(table, 2).unlink()
    assert Log(str(table)).snapshot(4).rows == 50
    with pytest.raises(UserError, match="version 2 cannot be read: its log entry is missing"):
        Log(str(table)).snapshot(2)
    entry(table, 4).unlink()
    with pytest.raises(UserError, match="version 4 cannot be read: its log entry is missing"):
        Log(str(table)).snapshot()
    assert Log(str(table)).snapshot(3).rows == 40


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_half_written_entry_is_refused_by_name(table: Path, keep: float) -> None:
    data = entry(table, 5).read_bytes()
    entry(table, 5).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match="version 5 cannot be read") as error:
        Log(str(table)).snapshot()
    assert "@4" in str(error.value)
    assert Log(str(table)).snapshot(4).rows == 50


def test_damaged_checkpoint_falls_back_to_the_entries(table: Path) -> None:
    checkpoint = next((table / "_delta_log").glob("*.checkpoint.parquet"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    assert Log(str(table)).snapshot().rows == 60
    entry(table, 0).unlink()
    with pytest.raises(UserError, match="checkpoint 3 is damaged"):
        Log(str(table)).snapshot()


def test_multi_part_checkpoint_is_used_only_whole(table: Path) -> None:
    folder = table / "_delta_log"
    checkpoint = next(folder.glob("*.checkpoint.parquet"))
    content = pq.read_table(checkpoint)
    checkpoint.unlink()
    parts = [folder / f"{3:020d}.checkpoint.{part:010d}.{2:010d}.parquet" for part in (1, 2)]
    pq.write_table(content.slice(0, 3), parts[0])
    pq.write_table(content.slice(3), parts[1])
    for version in range(4):
        entry(table, version).unlink()
    assert Log(str(table)).snapshot().rows == 60
    parts[0].unlink()
    with pytest.raises(UserError, match="version 0 cannot be read"):
        Log(str(table)).snapshot()


def hand_made(path: Path, actions: list[list[dict[str, Any]]]) -> str:
    (path / "_delta_log").mkdir(parents=True)
    for version, entries in enumerate(actions):
        entry(path, version).write_text("\n".join(json.dumps(action) for action in entries))
    return str(path)


def start(configuration: dict[str, str] | None = None, protocol: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    schema = {"type": "struct", "fields": [{"name": "key", "type": "long", "nullable": False, "metadata": {}}]}
    meta = {"id": "i", "schemaString": json.dumps(schema), "partitionColumns": [], "configuration": configuration or {}}
    return [{"protocol": protocol or {"minReaderVersion": 1, "minWriterVersion": 2}}, {"metaData": meta}]


def add(path: str, rows: int | None = 1, **more: Any) -> dict[str, Any]:
    stats = {"stats": json.dumps({"numRecords": rows})} if rows is not None else {}
    return {"add": {"path": path, "size": 1, "partitionValues": {}, "modificationTime": 1, **stats, **more}}


def test_deletion_vectors_are_refused_only_where_they_are(tmp_path: Path) -> None:
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"]}
    vector = {"deletionVector": {"storageType": "u", "pathOrInlineDv": "x", "sizeInBytes": 1, "cardinality": 1}}
    first = start({"delta.enableDeletionVectors": "true"}, protocol)
    remove = {"remove": {"path": "a", "dataChange": True}}
    purge = {"remove": {"path": "a", "dataChange": True, **vector}}
    path = hand_made(tmp_path, [[*first, add("a", 10)], [add("a", 10, **vector), remove], [purge, add("b", 9)]])
    assert Log(path).snapshot(0).rows == 10
    with pytest.raises(UserError, match=r"deletion vectors on 1 files(.|\n)*REORG TABLE .* APPLY \(PURGE\)"):
        Log(path).snapshot(1)
    assert Log(path).snapshot(2).rows == 9, "after the remedy the table can be read"


@pytest.mark.parametrize(
    ("configuration", "protocol", "says"),
    [
        ({"delta.columnMapping.mode": "name"}, {"minReaderVersion": 2}, "REORG TABLE"),
        ({}, {"minReaderVersion": 3, "readerFeatures": ["v2Checkpoint"]}, "v2Checkpoint"),
        ({}, {"minReaderVersion": 3, "readerFeatures": ["somethingNew"]}, "somethingNew"),
        ({}, {"minReaderVersion": 4}, "reader version 4"),
    ],
)
def test_features_that_change_what_files_mean_are_refused(
    tmp_path: Path, configuration: dict[str, str], protocol: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        Log(hand_made(tmp_path, [[*start(configuration, protocol), add("a")]])).snapshot()


def test_rows_from_footers_where_statistics_are_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": pa.array([1, 2, 3])}), tmp_path / "one two.parquet")
    path = hand_made(tmp_path / "t", [[*start(), add(f"file://{tmp_path}/one%20two.parquet", None)]])
    (file,) = Log(path).snapshot().files
    assert (file.path, file.rows) == (str(tmp_path / "one two.parquet"), 3)
    (tmp_path / "one two.parquet").unlink()
    with pytest.raises(UserError, match="vacuumed"):
        Log(path).snapshot()


def test_entry_cut_between_two_lines_is_noticed(tmp_path: Path) -> None:
    info = {"operation": "WRITE", "engineInfo": "Apache-Spark/4", "operationMetrics": {"numFiles": "2"}}
    path = hand_made(tmp_path / "a", [start(), [{"commitInfo": info}, add("a")]])
    with pytest.raises(UserError, match="version 1 cannot be read: its log entry names 1 files and says it wrote 2"):
        Log(path).snapshot()
    path = hand_made(tmp_path / "b", [start(), [add("a")]])
    nothing = info | {"operationMetrics": {"numFiles": "1", "numOutputRows": "0"}}
    empty = hand_made(
        tmp_path / "c", [start(), [{"commitInfo": nothing}]]
    )  # Spark's file for no rows, left out by Delta
    assert Log(empty).snapshot().rows == 0
    checksum = tmp_path / "b" / "_delta_log" / f"{1:020d}.crc"
    checksum.write_text(json.dumps({"numFiles": 2, "tableSizeBytes": 2}))
    with pytest.raises(UserError, match="checksum file"):
        Log(path).snapshot()
    checksum.write_text('{"numFi')
    assert Log(path).snapshot().rows == 1


def test_remote_tables_by_fsspec(table: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in table.rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/lake/silver/toy/{file.relative_to(table)}", file.read_bytes())
    remote = pinned.pin(SPEC, "memory://lake")
    local = pinned.pin(SPEC, table.parents[1])
    assert (remote.rows, remote.fingerprint, remote.version) == (local.rows, local.fingerprint, 5)
    assert remote.files[0].path.startswith("memory://lake/silver/toy/part=p/")


def test_pinned_table_travels_and_its_record_is_only_a_cache(table: Path) -> None:
    lake = table.parents[1]
    first = pinned.pin(SPEC, lake, 4)
    assert pickle.loads(pickle.dumps(first)) == first
    record = table / "_headrace" / "fingerprint" / f"{4:020d}.json"
    assert record.is_file()
    for damage in ("", "{", '{"parts": []}', json.dumps({"parts": [{"partition": {}, "rows": 1}]})):
        record.write_text(damage)
        assert pinned.pin(SPEC, lake, 4).fingerprint == first.fingerprint
    changed = json.loads(record.read_text())
    changed["parts"][0]["digest"] = "of other files"
    changed["parts"][0]["fingerprint"] = "1"
    record.write_text(json.dumps(changed))
    assert pinned.pin(SPEC, lake, 4).fingerprint == first.fingerprint


def test_a_lake_that_may_only_be_read_can_be_pinned(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = table.parents[1]
    fingerprint = pinned.pin(SPEC, lake).fingerprint
    shutil.rmtree(table / "_headrace")

    def fails(code: int) -> None:
        def replace(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(storage.LocalStore, "replace", replace)

    for code in (errno.EACCES, errno.EROFS):
        fails(code)
        assert pinned.pin(SPEC, lake).fingerprint == fingerprint
    fails(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        pinned.pin(SPEC, lake)


def test_a_file_that_is_not_what_the_log_says_is_named(table: Path) -> None:
    file = Log(str(table)).snapshot().files[0].path
    pq.write_table(pa.table({"key": pa.array([1], pa.int64())}), file)
    with pytest.raises(UserError, match="holds 1 rows, the table's log says 10"):
        pinned.pin(SPEC, table.parents[1])
    Path(file).unlink()
    with pytest.raises(UserError, match="a data file of the pinned version is gone"):
        pinned.pin(SPEC, table.parents[1])


def test_unknown_partition_column(table: Path) -> None:
    with pytest.raises(UserError, match="not partitioned by day"):
        pinned.files_at(SPEC, table.parents[1], partition={"day": 1})
