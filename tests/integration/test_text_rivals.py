"""Two runs of featurize-text at once: what one extracts is not lost under the other's verdicts, nor there twice."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from integration.test_featurize_text import (
    BRONZE,
    DOCUMENTS,
    FIRST,
    SECOND,
    STORY,
    featurize,
    ingest,
    page,
    record,
    rows_of,
)

from headrace.catalog.delta import WriteOptions, commit_metadata, latest_version, read, small_frame, write
from headrace.catalog.log import Log
from headrace.errors import UserError
from headrace.pipelines import extract_judge

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
OURS = [row for row in FIRST if row["key"] in (0, 1, 2)]
THIRD = [record((2 << 40) + 1, page(STORY), batch_id="b3", crawl="CC-C")]
KEYS = {0, 1, 2, *(row["key"] for row in SECOND)}


@pytest.fixture(scope="module")
def extracted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One batch extracted, two in bronze."""
    lake = tmp_path_factory.mktemp("rivals") / "lake"
    ingest(spark, lake, OURS)
    featurize(spark, lake, "extract")
    ingest(spark, lake, SECOND)
    return lake


@pytest.fixture
def lake(extracted: Path, tmp_path: Path) -> Path:
    """A copy of `extracted` of the test's own."""
    return Path(shutil.copytree(extracted, tmp_path / "lake"))


def before_first_commit(patch: pytest.MonkeyPatch, rival: Callable[[], object]) -> None:
    """Let the rival run to its end when the next commit of silver/documents is about to be made."""
    commit, waiting = extract_judge.write, [rival]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if waiting:
            waiting.pop()()
        return commit(*args, **kwargs)

    patch.setattr(extract_judge, "write", interrupted)


def judged(lake: Path) -> Any:
    path = DOCUMENTS.path(lake)
    return commit_metadata(path, latest_version(path))["judged"]


@pytest.mark.campaign
def test_a_batch_extracted_between_the_judges_read_and_its_commit_is_kept_and_judged(
    spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_first_commit(monkeypatch, lambda: featurize(spark, lake, "extract"))
    report = featurize(spark, lake, "judge", languages="de")
    assert [(stage.rows_in, stage.rows_out) for stage in report.stages] == [(3, 0), (6, 6)]
    assert "another run has made version" in report.stages[0].note
    rows = rows_of(spark, lake)
    assert set(rows) == KEYS
    assert all(row["removed_by"] for key, row in rows.items() if key != 1), "English everywhere, by German's rule"
    assert judged(lake)["languages"] == ["de"]
    assert featurize(spark, lake, "extract").stages == []


class Beside:
    """Something that is done by another thread while Spark computes the rows of a commit: in Delta's transaction."""

    def __init__(self, folder: Path, act: Callable[[], object]) -> None:
        self._begun, self._go, self._act = folder / "begun", folder / "go", act

    def __enter__(self) -> Beside:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._begun.touch()
        self._thread.join()

    def _run(self) -> None:
        while not self._begun.exists():
            time.sleep(0.02)
        try:
            self._act()
        finally:
            self._go.touch()

    def slowed(self, rows: DataFrame, column: str) -> DataFrame:
        """The rows; whoever computes this column waits until the other has done its part."""
        from pyspark.sql.functions import udf

        begun, go = str(self._begun), str(self._go)

        def wait(value: int) -> int:
            Path(begun).touch()
            while not Path(go).exists():
                time.sleep(0.02)
            return value

        return rows.withColumn(column, udf(wait, "bigint")(column))


@pytest.mark.campaign
def test_a_batch_extracted_while_delta_writes_the_verdicts_is_kept_and_judged(
    spark: SparkSession, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly, slowed = extract_judge.read, []

    with Beside(tmp_path, lambda: featurize(spark, lake, "extract")) as beside:

        def slow_once(session: SparkSession, spec: Any, where: str, version: int | None = None) -> DataFrame:
            rows = plainly(session, spec, where, version)
            if spec.name != DOCUMENTS.name or slowed:
                return rows
            slowed.append(version)
            return beside.slowed(rows, "num_chars")

        monkeypatch.setattr(extract_judge, "read", slow_once)
        report = featurize(spark, lake, "judge", languages="de")
    assert [stage.rows_in for stage in report.stages] == [3, 6]
    assert set(rows_of(spark, lake)) == KEYS and judged(lake)["languages"] == ["de"]


def test_what_delta_itself_does_about_an_append_beside_an_overwrite(spark: SparkSession, tmp_path: Path) -> None:
    """Why commits are numbered: an append before the transaction goes unseen, and one within it is gone over next."""

    def row(key: int) -> DataFrame:
        return small_frame(spark, BRONZE, [record(key, None)])

    def keys() -> set[int]:
        return {found["key"] for found in read(spark, BRONZE, tmp_path).collect()}

    plain, once = WriteOptions(quality=False), WriteOptions(quality=False, attempts=1)
    write(row(1), BRONZE, tmp_path, options=plain)
    seen = read(spark, BRONZE, tmp_path, 1)
    write(row(2), BRONZE, tmp_path, options=plain)
    write(seen, BRONZE, tmp_path, mode="overwrite", options=once)
    assert keys() == {1}
    with (
        Beside(tmp_path, lambda: write(row(3), BRONZE, tmp_path, options=plain)) as beside,
        pytest.raises(UserError, match="1 tries to commit"),
    ):
        write(beside.slowed(seen, "length"), BRONZE, tmp_path, mode="overwrite", options=once)
    assert keys() == {1, 3}
    write(seen, BRONZE, tmp_path, mode="overwrite", options=plain)  # the next try
    assert keys() == {1}


def test_two_who_extract_the_same_batch_bring_it_once(
    spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_first_commit(monkeypatch, lambda: featurize(spark, lake, "extract"))
    report = featurize(spark, lake, "extract")
    assert [stage.note for stage in report.stages] == ["b2: another run has extracted it meanwhile"]
    assert sorted(rows_of(spark, lake)) == sorted(KEYS) and len(rows_of(spark, lake)) == len(KEYS)
    assert not (lake / "_work").exists()


@pytest.mark.campaign
def test_who_appends_after_another_judged_does_not_say_that_all_is_judged_its_way(
    spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_first_commit(monkeypatch, lambda: featurize(spark, lake, "judge", languages="de"))
    featurize(spark, lake, "extract")
    assert set(rows_of(spark, lake)) == KEYS and judged(lake) == "mixed"


@pytest.mark.campaign
def test_a_rebuild_beside_an_extraction_loses_nothing(
    spark: SparkSession, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival's batch came to bronze after the rebuild had looked: it is extracted again, by whoever comes next."""

    def rival() -> None:
        ingest(spark, lake, THIRD)
        featurize(spark, lake, "extract")

    before_first_commit(monkeypatch, rival)
    featurize(spark, lake, "extract", rebuild=True)
    featurize(spark, lake, "extract")
    assert set(rows_of(spark, lake)) == KEYS | {THIRD[0]["key"]}


def test_a_batch_whose_identifier_is_in_the_log_but_whose_rows_are_not_is_extracted(
    spark: SparkSession, lake: Path
) -> None:
    """What earlier versions left behind where judge went over a batch."""
    made = commit_metadata(DOCUMENTS.path(lake), latest_version(DOCUMENTS.path(lake)))
    used = WriteOptions(txn=("featurize-text b2", 1), quality=False)
    write(small_frame(spark, DOCUMENTS, []), DOCUMENTS, lake, metadata=made, options=used)
    featurize(spark, lake, "extract")
    assert set(rows_of(spark, lake)) == KEYS


@pytest.mark.campaign
def test_numbers_of_transactions_are_read_from_the_log_and_its_checkpoints(spark: SparkSession, tmp_path: Path) -> None:
    for number in range(1, 13):
        app = "a" if number % 2 else "b"
        frame = small_frame(spark, BRONZE, [record(number, None)])
        write(frame, BRONZE, tmp_path, options=WriteOptions(txn=(app, number), quality=False))
    path = Path(BRONZE.path(tmp_path))
    log = Log(str(path))
    assert [log.transaction(app, 12) for app in "abc"] == [11, 12, 0]
    assert [log.transaction("a", version) for version in (0, 1, 2, 3)] == [0, 1, 1, 3]
    for version in range(10):
        (path / "_delta_log" / f"{version:020d}.json").unlink()
    log = Log(str(path))
    assert [log.transaction(app, version) for app in "abc" for version in (10, 12)] == [9, 11, 10, 12, 0, 0]
