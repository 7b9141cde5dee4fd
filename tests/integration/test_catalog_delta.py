"""Tables of the catalog, written by Spark and read back by three readers."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from headrace.catalog import checks, delta, fingerprint
from headrace.catalog.delta import WriteOptions
from headrace.catalog.log import Log
from headrace.catalog.spec import Column, TableSpec, load
from headrace.errors import UserError
from headrace.pipelines import catalog as verb
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

GOLDEN = Path(__file__).parents[1] / "golden" / "splitmix64.json"
QUIET = WriteOptions(quality=False)
TOY = TableSpec(
    name="silver/toy",
    doc="A toy.",
    columns=(
        Column("key", "bigint", False, "the key"),
        Column("x", "double", True, "a number"),
        Column("part", "string", True, "a part"),
    ),
    keys=("key",),
    partition_by=("part",),
    checks={"key_not_negative": "key >= 0", "x_small": "x IS NULL OR x < 1000"},
)


def rows(spark: SparkSession, keys: range, part: str | None = "a b/ü=50%") -> DataFrame:
    from pyspark.sql import functions as F

    df = spark.range(keys.start, keys.stop, 1, 1)
    return df.select(F.col("id").alias("key"), (F.col("id") / 2).alias("x"), F.lit(part).cast("string").alias("part"))


def key_sum(keys: range) -> int:
    return fingerprint.key_sum(np.arange(keys.start, keys.stop, dtype=np.int64))


def test_version_0_is_empty_and_has_everything(spark: SparkSession, lake: Path) -> None:
    delta.ensure(spark, TOY, lake)
    delta.ensure(spark, TOY, lake)
    snapshot = Log(TOY.path(lake)).snapshot()
    assert (snapshot.version, snapshot.rows, snapshot.partition_columns) == (0, 0, ("part",))
    assert snapshot.properties["delta.constraints.x_small"] == TOY.checks["x_small"]
    assert snapshot.properties["delta.enableDeletionVectors"] == "false"
    fields = {field["name"]: field for field in snapshot.schema["fields"]}
    assert fields["key"]["nullable"] is False
    assert fields["x"]["metadata"] == {"comment": "a number"}
    assert verb.live_differences(TOY, lake) == []


def test_write_read_pin(spark: SparkSession, lake: Path) -> None:
    first = delta.write(rows(spark, range(100)), TOY, lake, metadata={"a": 1}, batch_id="b1", options=QUIET)
    second = delta.write(rows(spark, range(100, 150), None).select("part", "x", "key"), TOY, lake, options=QUIET)
    assert (first.version, first.rows, first.rows_added, first.fingerprint) == (1, 100, 100, key_sum(range(100)))
    assert (second.version, second.rows, second.rows_added) == (2, 150, 50)
    assert second.fingerprint == key_sum(range(150))
    assert delta.read(spark, TOY, lake, 1).count() == 100
    metadata = delta.commit_metadata(TOY.path(lake), 1)
    assert (metadata["a"], metadata["batch_id"], metadata["rows"]) == (1, "b1", 100)
    assert metadata["fingerprint"] == str(first.fingerprint)
    null_part = delta.pin(TOY, lake, partition={"part": None})
    odd_part = delta.pin(TOY, lake, partition={"part": "a b/ü=50%"})
    assert (null_part.rows, null_part.fingerprint) == (50, key_sum(range(100, 150)))
    assert (odd_part.rows, odd_part.fingerprint) == (100, key_sum(range(100)))
    assert pl.read_parquet(odd_part.files[0].path)["key"].sum() == sum(range(100))
    assert pl.read_delta(TOY.path(lake))["key"].sum() == sum(range(150))
    with pytest.raises(UserError, match="versions go from 0 to 2"):
        delta.read(spark, TOY, lake, 3)
    with pytest.raises(UserError, match="append or overwrite"):
        delta.write(rows(spark, range(1)), TOY, lake, mode="ignore")


def test_overwrite_and_replace_where(spark: SparkSession, lake: Path) -> None:
    delta.write(rows(spark, range(10), "a"), TOY, lake, options=QUIET)
    delta.write(rows(spark, range(10, 20), "b"), TOY, lake, options=QUIET)
    options = WriteOptions(quality=False, replace_where="part = 'b'")
    replaced = delta.write(rows(spark, range(30, 35), "b"), TOY, lake, mode="overwrite", options=options)
    assert (replaced.rows, replaced.fingerprint) == (15, (key_sum(range(10)) + key_sum(range(30, 35))) % 2**64)
    whole = delta.write(rows(spark, range(3), "a"), TOY, lake, mode="overwrite", options=QUIET)
    assert (whole.rows, whole.fingerprint) == (3, key_sum(range(3)))
    assert delta.pin(TOY, lake, 2).fingerprint == key_sum(range(20)), "older versions stay what they were"


def test_a_transaction_identifier_commits_once(spark: SparkSession, lake: Path) -> None:
    options = WriteOptions(quality=False, txn=("ingest", 7))
    first = delta.write(rows(spark, range(10)), TOY, lake, options=options)
    again = delta.write(rows(spark, range(10)), TOY, lake, options=options)
    assert (first.skipped, again.skipped, again.version, again.rows) == (False, True, first.version, 10)


def test_differences_are_refused_and_shown(spark: SparkSession, lake: Path) -> None:
    from pyspark.sql import functions as F

    bad = rows(spark, range(3)).drop("x").withColumn("key", F.col("key").cast("int")).withColumn("y", F.lit(1))
    with pytest.raises(UserError) as error:
        delta.write(bad, TOY, lake, options=QUIET)
    for line in ("changed  key     bigint    int", "missing  x       double    -", "added    y       -         int"):
        assert line in str(error.value)
    assert delta.latest_version(TOY.path(lake)) == 0, "nothing is written"


def test_new_columns_are_merged_only_when_asked(spark: SparkSession, lake: Path) -> None:
    from pyspark.sql import functions as F

    delta.write(rows(spark, range(3)), TOY, lake, options=QUIET)
    wider = rows(spark, range(3, 6)).withColumn("y", F.lit(1))
    with pytest.raises(UserError, match="added"):
        delta.write(wider, TOY, lake, options=QUIET)
    merged = delta.write(wider, TOY, lake, options=WriteOptions(quality=False, merge_schema=True))
    assert merged.rows == 6
    (found,) = verb.live_differences(TOY, lake)
    assert (found.kind, found.column, found.found) == ("added", "y", "int")
    assert delta.write(rows(spark, range(6, 7)), TOY, lake, options=QUIET).rows == 7


def test_broken_rules_are_counted_in_the_users_words(spark: SparkSession, lake: Path) -> None:
    from pyspark.sql import functions as F

    delta.write(rows(spark, range(10)), TOY, lake, options=QUIET)
    bad = rows(spark, range(-3, 10)).withColumn("x", F.when(F.col("key") > 7, 5000.0).otherwise(F.col("x")))
    with pytest.raises(UserError) as error:
        delta.write(bad, TOY, lake, options=QUIET)
    assert "3 rows: check key_not_negative (key >= 0) does not hold" in str(error.value)
    assert "2 rows: check x_small" in str(error.value)
    null_keys = rows(spark, range(10)).withColumn("key", F.when(F.col("key") < 6, F.col("key")))
    with pytest.raises(UserError, match="4 rows: key is null"):
        delta.write(null_keys, TOY, lake, options=QUIET)
    assert delta.latest_version(TOY.path(lake)) == 1


def test_a_table_that_another_has_just_created_is_tried_again() -> None:
    """Delta says so where its copy of the log is from before the first commit; what is no race is raised at once."""
    tries = []

    def late() -> int:
        tries.append(len(tries))
        if len(tries) < 3:
            raise RuntimeError("[DELTA_TABLE_NOT_FOUND] Delta table `silver/toy` doesn't exist.")
        return 7

    def wrong() -> int:
        tries.append(len(tries))
        raise RuntimeError("[DELTA_SCHEMA_CHANGED] no race")

    assert delta._retry(late, 5) == 7 and len(tries) == 3
    with pytest.raises(RuntimeError, match="no race"):
        delta._retry(wrong, 5)
    assert len(tries) == 4


def test_creators_and_writers_race_and_nothing_is_lost(spark: SparkSession, lake: Path) -> None:
    writers, failures = 3, []
    barrier = threading.Barrier(writers)

    def work(number: int) -> None:
        try:
            barrier.wait(timeout=60)
            for turn in range(2):
                start = (number * 2 + turn) * 10
                delta.write(rows(spark, range(start, start + 10)), TOY, lake, options=QUIET)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert [str(failure)[:500] for failure in failures] == []
    pinned = delta.pin(TOY, lake)
    assert (pinned.version, pinned.rows, pinned.fingerprint) == (6, 60, key_sum(range(60)))


def test_a_folder_of_other_files_is_refused(spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "_CREATOR_PATIENCE_S", 0.3)
    folder = Path(TOY.path(lake))
    folder.mkdir(parents=True)
    (folder / "notes.parquet").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds files, but no Delta table"):
        delta.ensure(spark, TOY, lake)
    assert [path.name for path in folder.iterdir()] == ["notes.parquet"]


def test_replay_equals_sparks_own_snapshots(spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appends, DELETE, OPTIMIZE, checkpoints and VACUUM."""
    monkeypatch.setitem(delta.PROPERTIES, "delta.checkpointInterval", "4")
    path = TOY.path(lake)
    expected: dict[int, set[int]] = {0: set()}
    for turn in range(3):
        keys = range(turn * 10, turn * 10 + 10)
        delta.write(rows(spark, keys, ["b:/", None, "b:/"][turn]), TOY, lake, options=QUIET)
        expected[turn + 1] = expected[turn] | set(keys)
    spark.sql(f"DELETE FROM delta.`{path}` WHERE key % 7 = 0")
    expected[4] = {key for key in expected[3] if key % 7}
    spark.sql(f"OPTIMIZE delta.`{path}`")
    expected[5] = expected[4]
    delta.write(rows(spark, range(200, 210), "a"), TOY, lake, options=QUIET)
    expected[6] = expected[5] | set(range(200, 210))
    assert list((Path(path) / "_delta_log").glob("*.checkpoint.parquet")), "the interval is 4"
    old = delta.pin(TOY, lake, 3)
    for version in (0, 3, 4, 5, 6):
        pinned = delta.pin(TOY, lake, version)
        keys = {key for file in pinned.files for key in pl.read_parquet(file.path)["key"].to_list()}
        assert keys == expected[version]
        assert pinned.rows == delta.read(spark, TOY, lake, version).count() == len(keys)
        assert pinned.fingerprint == fingerprint.key_sum(np.array(sorted(keys), np.int64))
    spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    spark.sql(f"VACUUM delta.`{path}` RETAIN 0 HOURS")
    spark.conf.unset("spark.databricks.delta.retentionDurationCheck.enabled")
    assert delta.pin(TOY, lake, 6).rows == len(expected[6])
    assert (Path(path) / "_headrace").is_dir(), "VACUUM leaves our records"
    assert not all(Path(file.path).exists() for file in old.files)


def test_deletion_vectors_are_refused_until_they_are_purged(spark: SparkSession, lake: Path) -> None:
    path = TOY.path(lake)
    delta.write(rows(spark, range(100), None), TOY, lake, options=QUIET)
    spark.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
    spark.sql(f"DELETE FROM delta.`{path}` WHERE key < 10")
    with pytest.raises(UserError, match=r"REORG TABLE .* APPLY \(PURGE\)"):
        delta.files_at(TOY, lake)
    copy = delta.materialize(spark, TOY, lake, None, lake / "copy")
    assert (copy.rows, copy.fingerprint) == (90, key_sum(range(10, 100)))
    spark.sql(f"REORG TABLE delta.`{path}` APPLY (PURGE)")
    assert delta.pin(TOY, lake).fingerprint == copy.fingerprint


def test_spark_mixes_keys_as_numpy_does(spark: SparkSession) -> None:
    golden = json.loads(GOLDEN.read_text())
    keys = [(int(vector["key"]),) for vector in golden["vectors"]]
    assert spark.conf.get("spark.sql.ansi.enabled") == "true"
    df = fingerprint.mixed(spark.createDataFrame(keys, "key bigint"), "key", "h")
    found = {row.key: row.h % 2**64 for row in df.collect()}
    assert found == {int(v["key"]): int(v["splitmix64"]) for v in golden["vectors"]}
    sums: Any = df.agg(*fingerprint.sum_columns("h")).first()
    assert fingerprint.combine(*sums) == int(golden["sum"])


def test_quality_is_kept_for_every_version(spark: SparkSession, lake: Path) -> None:
    from pyspark.sql import functions as F

    delta.write(rows(spark, range(1000)), TOY, lake)
    later = rows(spark, range(1000, 1500)).withColumn("x", F.when(F.col("key") % 4 > 0, F.col("x") + 100))
    delta.write(later, TOY, lake)
    first, second = checks.find(TOY, lake, 1), checks.find(TOY, lake, 2)
    assert first is not None and second is not None
    x = {row["column"]: row for row in second.rows}["x"]
    assert (x["rows"], x["table_rows"], x["nulls"], x["previous_version"]) == (500, 1500, 125, 1)
    assert x["null_share_change"] == pytest.approx(0.25)
    assert float(x["max"]) == 1499 / 2 + 100
    old = np.arange(1000) / 2
    new = np.array([k / 2 + 100 for k in range(1000, 1500) if k % 4])
    assert x["mean"] == pytest.approx(new.mean())
    assert x["mean_shift"] == pytest.approx((new.mean() - old.mean()) / old.std(ddof=1))
    assert x["psi"] > 1
    assert [row["approx_distinct"] for row in first.rows] == [1000, 1000, 1]
    assert delta.read(spark, load("meta/quality"), lake).count() == 6
    assert "psi" in second.text() and "<table>" in second._repr_html_()


def test_large_files_are_summarized_in_tasks(spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta.write(rows(spark, range(300)).union(rows(spark, range(300, 400), None)), TOY, lake, options=QUIET)
    here = checks.make(TOY, lake, 1)
    monkeypatch.setattr(checks, "_HERE_CELLS", 0)
    there = checks.make(TOY, lake, 1, spark)
    for mine, theirs in zip(here.rows, there.rows, strict=True):
        assert {**mine, "at": None} == {**theirs, "at": None}


def test_the_verb(spark: SparkSession, lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = load("meta/quality")
    delta.ensure(spark, spec, lake)
    report = verb.run(None, verb.Config(action="list", lake=str(lake)), Report("catalog"))
    assert report.results == {"meta/quality": {"version": 0, "rows": 0}}
    report = verb.run(None, verb.Config(action="validate", lake=str(lake)), Report("catalog"))
    assert report.results == {"meta/quality": []}
    verb.run(None, verb.Config(action="show", table="silver/ctr"), Report("catalog"))
    shown = capsys.readouterr().err
    assert "label_is_0_or_1" in shown and "meta/quality: as described" in shown
    page = tmp_path / "page.html"
    cfg = verb.Config(action="report", table="meta/quality@0", lake=str(lake), html=str(page))
    report = verb.run(None, cfg, Report("catalog"))
    assert report.results["version"] == 0 and page.read_text().startswith("<!doctype html>")
    spark.sql(f"ALTER TABLE delta.`{spec.path(lake)}` ADD COLUMN (extra INT)")
    with pytest.raises(UserError, match=r"added +extra +- +int"):
        verb.run(None, verb.Config(action="validate", table="meta/quality", lake=str(lake)), Report("catalog"))
    with pytest.raises(UserError, match="did you mean report?"):
        verb.run(None, verb.Config(action="reprot"), Report("catalog"))
    with pytest.raises(UserError, match="has no version 9"):
        verb.run(None, verb.Config(action="report", table="meta/quality@9", lake=str(lake)), Report("catalog"))
