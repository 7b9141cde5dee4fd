"""Table care on a lake with a training table: compacted under a pinned reader, vacuumed only when that is said."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from headrace.catalog import care as catalog_care
from headrace.catalog import delta
from headrace.catalog.delta import WriteOptions
from headrace.catalog.pinned import PinnedTable
from headrace.catalog.scratch import FOLDER, scratch
from headrace.catalog.spec import load
from headrace.data.batch import PAD_KEY
from headrace.data.stream import DataConfig, Stream
from headrace.errors import UserError
from headrace.features.transform import CATEGORIES, INTS
from headrace.pipelines import maintain
from headrace.pipelines.maintain import Config, early, pinned_by_runs
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CTR, VOCABULARY, REPORT = load("silver/ctr"), load("silver/ctr_vocabulary"), load("silver/dedup_report")
QUIET = WriteOptions(quality=False)


def lay(spark: SparkSession, lake: Path) -> PinnedTable:
    """Three commits of two tables; a run that trained on the second one of silver/ctr; its version pinned."""
    for part in range(3):
        entries = [{"column": "c1", "value": part, "id": 3 + part, "count": 1, "generation": part}]
        delta.write(delta.small_frame(spark, VOCABULARY, entries), VOCABULARY, lake, options=QUIET)
        rows = [
            {"key": key, "day": 0, "label": float(key % 2), "split": "train"}
            | dict.fromkeys(INTS, 0.5)
            | dict.fromkeys(CATEGORIES, 3)
            for key in range(100 * part, 100 * part + 100)
        ]
        metadata = {"vocabulary_version": part + 1}
        delta.write(delta.small_frame(spark, CTR, rows), CTR, lake, metadata=metadata, options=QUIET)
    run = lake / "runs" / "r1"
    run.mkdir(parents=True)
    tables = {"train": {"path": CTR.path(lake), "version": 2, "name": CTR.name}}
    lines = [json.dumps({"op": "start", "tables": tables}), '{"op": "metr', json.dumps({"op": "finish"})]
    (run / "tracking.jsonl").write_text("\n".join(lines))
    return delta.pin(CTR, lake, 2)


def care(spark: SparkSession, lake: Path, **settings: Any) -> Report:
    report = Report("maintain", out=io.StringIO())
    return maintain.run(spark, Config(lake=str(lake), **settings), report)


def keys_streamed(table: PinnedTable) -> list[int]:
    stream = Stream(table, DataConfig(), batch_size=32)
    try:
        return sorted(key for batch in stream.epoch(0) for key in batch.tensors["key"].tolist() if key != PAD_KEY)
    finally:
        stream.close()


@pytest.fixture(scope="module")
def laid(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PinnedTable]:
    lake = tmp_path_factory.mktemp("maintained")
    return lake, lay(spark, lake)


def test_joined_files_are_written_as_their_table_has_it(
    spark: SparkSession, lake: Path, no_quality_reports: None
) -> None:
    """Whoever rewrites a file, here OPTIMIZE, keeps dictionaries off that the table's description switches off."""
    spec = replace(VOCABULARY, parquet={"parquet.enable.dictionary#count": "false"})
    for part in range(2):
        entries = [{"column": "c1", "value": at, "id": 3 + at, "count": 7, "generation": part} for at in range(50)]
        delta.write(delta.small_frame(spark, spec, entries), spec, lake, options=QUIET)
    catalog_care.compact(spark, spec.path(lake), 1 << 20, spec.parquet)
    (joined,) = delta.files_at(spec, lake)
    assert joined.rows == 100
    for file in files(lake):
        group = pq.ParquetFile(file).metadata.row_group(0)
        found = {(one := group.column(at)).path_in_schema: str(one.encodings) for at in range(group.num_columns)}
        assert "DICTIONARY" not in found["count"] and "DICTIONARY" in found["column"]


def files(lake: Path) -> list[Path]:
    return sorted(lake.rglob("part-*.parquet"))


@pytest.mark.usefixtures("no_quality_reports")
def test_a_lake_is_cared_for_from_first_to_last(spark: SparkSession, laid: tuple[Path, PinnedTable]) -> None:
    lake, pinned = laid
    before, expected = files(lake), keys_streamed(pinned)

    shown = care(spark, lake)
    assert shown.results[CTR.name]["files"] == 3 and files(lake) == before, "by default nothing but sizes"

    joined = care(spark, lake, tables="silver/*", optimize=True).results
    assert joined[VOCABULARY.name]["files_after"] == 1 and joined[VOCABULARY.name]["version"] == 4
    assert joined[CTR.name]["files_after"] == 3, "a pattern does not touch what training streams"
    named = care(spark, lake, tables="silver/ctr", optimize=True)
    assert named.results[CTR.name]["files_after"] == 1 and "another order" in named.warnings[0]
    assert care(spark, lake, tables="silver/ctr", optimize=True).results[CTR.name]["version"] == 4, "nothing to join"

    newest = delta.pin(CTR, lake)
    assert (newest.version, newest.rows) == (4, 300) and newest.fingerprint == delta.pin(CTR, lake, 3).fingerprint
    assert keys_streamed(pinned) == expected, "a pinned version reads on under OPTIMIZE"

    with pytest.raises(UserError, match="under the safe 168.*\n.*short-retention"):
        care(spark, lake, vacuum=True, retain_hours=1)
    assert care(spark, lake, vacuum=True).results[CTR.name]["removable"] == 0
    now = {"tables": "silver/ctr", "vacuum": True, "retain_hours": 0.0}
    listed = care(spark, lake, **now, force="short-retention")
    old = [path for path in files(lake) if str(path) in {file.path for file in delta.files_at(CTR, lake, 3)}]
    assert listed.results[CTR.name]["removable"] == 3
    assert listed.results[CTR.name]["vacuum_bytes"] == sum(path.stat().st_size for path in old)
    assert "could no longer be read: silver/ctr@2 (run r1)" in listed.warnings[0] and all(map(Path.exists, old))

    with pytest.raises(UserError, match=r"silver/ctr@2 \(run r1\).*\n.*pinned-versions"):
        care(spark, lake, **now, delete=True, force="short-retention")
    assert all(map(Path.exists, old)), "a refused vacuum removes nothing"

    care(spark, lake, **now, delete=True, force="short-retention,pinned-versions")
    assert not any(map(Path.exists, old))
    with pytest.raises(UserError, match="vacuumed"):
        keys_streamed(pinned)
    assert keys_streamed(delta.pin(CTR, lake)) and delta.read(spark, CTR, lake).count() == 300


def test_runs_pin_their_table_and_its_vocabulary(laid: tuple[Path, PinnedTable]) -> None:
    found = {(each.run, each.table, each.version) for each in pinned_by_runs(str(laid[0]))}
    assert found == {("r1", "silver/ctr", 2), ("r1", "silver/ctr_vocabulary", 2)}


def test_statistics_of_newest_versions(spark: SparkSession, tmp_path: Path) -> None:
    row = {"crawl": "c", "host": None, "documents": 1, "exact": 0, "near": 0, "kept": 1}
    delta.write(delta.small_frame(spark, REPORT, [row]), REPORT, tmp_path, options=QUIET)
    assert care(spark, tmp_path, stats=True).results[REPORT.name]["statistics"] == 1
    assert delta.read(spark, load("meta/quality"), tmp_path).where("table = 'silver/dedup_report'").count() > 0


def test_working_folders_of_killed_runs_go_after_a_day(laid: tuple[Path, PinnedTable]) -> None:
    lake, _ = laid
    with scratch(lake, "killed") as place:
        report = Report("maintain", out=io.StringIO())
        maintain._scratch(Config(lake=str(lake), vacuum=True, delete=True), report)
        assert report.results["scratch"] == [] and Path(place).exists(), "it may be at work"
        os.utime(place, (0, 0))
        maintain._scratch(Config(lake=str(lake), vacuum=True), report)
        assert report.results["scratch"] == [place] and Path(place).exists()
        maintain._scratch(Config(lake=str(lake), vacuum=True, delete=True), report)
        assert not Path(place).exists() and not (lake / FOLDER).exists()


def test_refusals(laid: tuple[Path, PinnedTable], tmp_path: Path) -> None:
    lake = str(laid[0])
    for settings, words in (
        ({"lake": str(tmp_path)}, "no table is in"),
        ({"lake": lake, "tables": "silver/crt"}, "silver/ctr"),
        ({"lake": lake, "delete": True}, "--vacuum true"),
        ({"lake": lake, "force": "short"}, "short-retention"),
        ({"lake": lake, "file_mb": 0}, "file_mb"),
    ):
        with pytest.raises(UserError, match=words):
            early(Config(**settings))
