"""A crawl file forgotten, and read again: its documents go once, come once, and all that was made of them follows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from integration.test_featurize_text import CORPUS, DOCUMENTS, STORY, featurize, rows_of
from integration.test_forget import run
from integration.test_text_rivals import before_first_commit

from headrace.catalog.delta import commit_metadata, latest_version, read
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.pipelines import forget, ingest_commoncrawl
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.usefixtures("no_quality_reports"), pytest.mark.campaign]
OTHER = STORY.replace("river", "road").replace("water", "grain").replace("lake", "market").replace("channel", "store")
OLD, NEW = "CC-MAIN-2024-22", "CC-MAIN-2024-26"
FIRST, SECOND, AGAIN = 0, 1 << 40, 2 << 40


def published(path: Path, *texts: str) -> Path:
    """A plain WET file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for number, text in enumerate(texts):
            head = f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:x:{path.name}-{number}>\r\n"
            head += f"WARC-Date: 2024-05-01T00:00:00Z\r\nWARC-Target-URI: https://site{number}.example/{path.name}\r\n"
            body = text.encode()
            out.write(f"{head}Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            out.write(body + b"\r\n\r\n")
    return path


@pytest.fixture(scope="module")
def featurized(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A lake with a batch of two files, a crawl each; the first text of both is the same."""
    folder = tmp_path_factory.mktemp("crawls")
    old = published(folder / f"in/{OLD}-0.warc.wet", STORY)
    published(folder / f"in/{NEW}-0.warc.wet", STORY, OTHER)
    lake = folder / "lake"
    found, _ = run(spark, ingest_commoncrawl, lake=lake, source=old.parent)
    assert found["rows_committed"] == 3
    featurize(spark, lake, "extract,judge,dedup,corpus")
    assert ordinals(rows_of(spark, lake)) == [FIRST, SECOND, SECOND]
    return lake, old


@pytest.fixture
def crawls(featurized: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the lake of the test's own, and the file of its first crawl."""
    lake, old = featurized
    return Path(shutil.copytree(lake, tmp_path / "lake")), old


def ordinals(keys: Any) -> list[int]:
    """Of keys, the file's part."""
    return sorted(key >> 40 << 40 for key in keys)


def keys_of(spark: SparkSession, lake: Path, table: str) -> list[int]:
    return ordinals(row["key"] for row in read(spark, load(table), lake).collect())


def removals(lake: Path) -> list[dict[str, int]]:
    path = DOCUMENTS.path(lake)
    found = [commit_metadata(path, version) for version in range(latest_version(path) + 1)]
    return [made["documents_removed"] for made in found if "documents_removed" in made]


def extract(spark: SparkSession, lake: Path) -> Report:
    return featurize(spark, lake, "extract")


@pytest.mark.parametrize("read_again", [False, True])
def test_a_forgotten_file_takes_its_documents_with_it_and_a_second_reading_brings_them_once(
    spark: SparkSession, crawls: tuple[Path, Path], read_again: bool
) -> None:
    lake, old = crawls
    assert keys_of(spark, lake, CORPUS.name) == [FIRST, SECOND] and keys_of(spark, lake, "silver/duplicates") == [
        SECOND
    ]
    run(spark, forget, lake=lake, file=str(old))
    report = featurize(spark, lake, "extract,judge")
    assert [stage.name for stage in report.stages] == ["forget"]
    assert (report.results["documents_forgotten"], report.results["documents"]) == (1, 2)
    assert ordinals(rows_of(spark, lake)) == [SECOND, SECOND] and removals(lake) == [{"0": 1}]
    with pytest.raises(UserError, match=f"not of these documents: {NEW}\n"):
        featurize(spark, lake, "corpus")
    featurize(spark, lake, "dedup,corpus")
    assert keys_of(spark, lake, CORPUS.name) == [SECOND, SECOND] and keys_of(spark, lake, "silver/duplicates") == []
    for table in ("silver/minhash_bands", "silver/dedup_report"):
        assert {row["crawl"] for row in read(spark, load(table), lake).collect()} == {NEW}
    if not read_again:
        return
    run(spark, ingest_commoncrawl, lake=lake, source=old.parent)
    report = featurize(spark, lake, "extract,judge,dedup,corpus")
    assert "documents_forgotten" not in report.results and not report.warnings
    assert ordinals(rows_of(spark, lake)) == [SECOND, SECOND, AGAIN]
    assert keys_of(spark, lake, CORPUS.name) == [SECOND, SECOND] and keys_of(spark, lake, "silver/duplicates") == [
        AGAIN
    ]
    assert featurize(spark, lake, "extract,judge,dedup,corpus").stages == [] and len(removals(lake)) == 1


def test_two_who_take_the_same_documents_out_do_it_once(
    spark: SparkSession, crawls: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And forgotten and read again between two runs is one run's work: the old reading goes, the new one comes."""
    lake, old = crawls
    run(spark, forget, lake=lake, file=str(old))
    run(spark, ingest_commoncrawl, lake=lake, source=old.parent)
    before_first_commit(monkeypatch, lambda: extract(spark, lake))
    report = extract(spark, lake)
    notes = [stage.note for stage in report.stages]
    assert len(notes) == 2 and "not committed" in notes[0] and "another run has extracted it" in notes[1]
    assert "documents_forgotten" not in report.results
    assert ordinals(rows_of(spark, lake)) == [SECOND, SECOND, AGAIN] and removals(lake) == [{"0": 1}]
