"""Races of real processes for the versions of a Delta log on a local file system: one winner each, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headrace import __version__, java, resources

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PROJECT = Path(__file__).resolve().parents[2]
RACERS = 2
COMMITS = 8


def race(log: Path, versions: int, timeout: float) -> list[list[int]]:
    """Two JVMs meet before every version and try to commit it; the versions each was told it won."""
    import pyspark

    jars = f"{resources.jar(__version__)}{os.pathsep}{Path(pyspark.__file__).parent / 'jars'}/*"
    command = [f"{java.find().home}/bin/java", "-Xmx256m", "-XX:+UseSerialGC", "-cp", jars]
    command += ["io.headrace.storage.LogStoreRace", str(log)]
    racers = [
        subprocess.Popen([*command, str(racer), str(RACERS), str(versions)], stdout=subprocess.PIPE, text=True)
        for racer in range(RACERS)
    ]
    try:
        said = [racer.communicate(timeout=timeout)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert [racer.returncode for racer in racers] == [0] * RACERS
    return [[int(line) for line in text.split()] for text in said]


def check_race(log: Path, won: list[list[int]], versions: int) -> None:
    assert sorted(won[0] + won[1]) == list(range(versions))  # told twice or told nobody would both show here
    for racer, numbers in enumerate(won):
        assert all((log / f"{number:020d}.json").read_text() == f"{racer}\n" for number in numbers)
    assert sorted(path.name for path in log.glob(".*")) == []  # no temporary file stays
    assert min(len(numbers) for numbers in won) > 0, "one racer won all: they did not race"


def test_two_processes_never_both_commit_a_version(tmp_path: Path) -> None:
    check_race(tmp_path, race(tmp_path, 500, timeout=200), 500)


@pytest.mark.campaign
def test_two_processes_never_both_commit_a_version_in_5000_races(tmp_path: Path) -> None:
    check_race(tmp_path, race(tmp_path, 5000, timeout=2000), 5000)


def thin_jars() -> str:
    """Our classes without Delta, and Delta's own jars: what a platform that brings Delta looks like."""
    thin = PROJECT / "scala" / "target" / f"headrace-{__version__}.jar"
    delta = sorted((PROJECT / ".build" / "delta").glob("*.jar"))
    assert thin.is_file(), "make setup builds it"
    assert len(delta) == 2, "make setup copies them"
    return ",".join(map(str, [thin, *delta]))


def append(spark: SparkSession, table: Path, commits: int) -> None:
    for number in range(commits):
        rows = spark.range(number * 10, number * 10 + 10, 1, 1).selectExpr("id", "'own' AS writer")
        rows.write.format("delta").mode("append").save(str(table))


def wait_for_ready(rival: subprocess.Popen[str]) -> None:
    assert rival.stdout is not None
    for line in rival.stdout:
        if line.strip() == "ready":
            return
    pytest.fail(f"the rival ended with {rival.wait()} before it was ready")


@pytest.mark.timeout(600)
def test_two_spark_writers_lose_no_append_and_the_thin_jar_works_beside_delta(spark: SparkSession, lake: Path) -> None:
    table, jars = lake / "raced", thin_jars()
    spark.range(0).selectExpr("id", "'' AS writer").write.format("delta").save(str(table))
    script = Path(__file__).with_name("rival_writer.py")
    rival = subprocess.Popen(
        [sys.executable, str(script), str(table), str(COMMITS), jars],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(500, rival.kill)
    watchdog.start()
    try:
        wait_for_ready(rival)
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
        append(spark, table, COMMITS)
        said = json.loads(rival.communicate()[0].splitlines()[-1])
    finally:
        watchdog.cancel()
        rival.kill()
        rival.wait()
    assert rival.returncode == 0
    assert said == {"rows": 10 * COMMITS, "log_store": "io.headrace.storage.HardLinkLogStore", "jars": said["jars"]}
    assert "assembly" not in said["jars"]
    rows = spark.read.format("delta").load(str(table)).collect()
    expected = [(number, writer) for writer in ("own", "rival") for number in range(10 * COMMITS)]
    assert sorted((row.id, row.writer) for row in rows) == sorted(expected)
    log = sorted(path.name for path in (table / "_delta_log").glob("*.json"))
    assert log == [f"{version:020d}.json" for version in range(2 * COMMITS + 1)]


def test_a_session_commits_by_hard_link_and_reads_by_checkpoint(spark: SparkSession, lake: Path) -> None:
    table = lake / "checkpointed"
    append(spark, table, 1)
    spark.sql(f"ALTER TABLE delta.`{table}` SET TBLPROPERTIES ('delta.checkpointInterval' = '2')")
    append(spark, table, 3)
    log = table / "_delta_log"
    assert json.loads((log / "_last_checkpoint").read_text())["version"] == 4
    assert spark.read.format("delta").load(str(table)).count() == 40
    # Hadoop's own local file system would leave a checksum beside what it commits.
    assert not list(log.glob(".0*.json.crc"))
