"""Criteo files into the lake: every line is in bronze or in quarantine, once, whatever the files look like."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from power_cuts import fails

from headrace.catalog.ledger import Ledger, LedgerBatch, LedgerFile
from headrace.errors import UserError
from headrace.ingest.batch import Batch
from headrace.ingest.criteo_parse import COLUMNS, Format, parse_line
from headrace.pipelines import ingest_criteo, ingest_files, quarantine, rows
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def ingest(spark: SparkSession, lake: Path, source: object, **settings: Any) -> dict[str, Any]:
    report = Report("ingest-criteo", out=io.StringIO())
    config = ingest_criteo.Config(lake=str(lake), source=str(source), **settings)
    return ingest_criteo.run(spark, config, report).results


def line(rng: random.Random, labelled: bool = True) -> bytes:
    cells = [str(rng.randint(0, 1))] if labelled else []
    cells += ["" if rng.random() < 0.3 else str(rng.randint(-2, 10**9)) for _ in range(13)]
    cells += ["" if rng.random() < 0.1 else f"{rng.getrandbits(32):08x}" for _ in range(26)]
    return "\t".join(cells).encode()


def write(path: Path, lines: list[bytes], end: bytes = b"\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(each + end for each in lines))
    return path


def some_lines(seed: int, count: int = 20) -> list[bytes]:
    rng = random.Random(seed)
    return [line(rng) for _ in range(count)]


def bronze(lake: Path) -> list[dict[str, Any]]:
    return pl.read_delta(str(lake / "bronze/criteo")).sort("key").to_dicts()


def refused(lake: Path) -> list[dict[str, Any]]:
    return pl.read_delta(str(lake / "quarantine/criteo")).sort("file_ordinal", "line").to_dicts()


def events(lake: Path) -> list[dict[str, Any]]:
    return pl.read_delta(str(lake / "meta/ledger")).to_dicts()


@pytest.fixture(scope="module")
def real(
    spark: SparkSession, criteo_kaggle: Path, criteo_short: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """A lake with both real samples, and what the runs said; the first source is given a second time at the end."""
    lake = tmp_path_factory.mktemp("real")
    sources = (criteo_kaggle / "*.tsv", criteo_short / "train.tsv", criteo_kaggle / "*.tsv")
    return lake, [ingest(spark, lake, source) for source in sources]


def test_real_rows_are_all_there(real: tuple[Path, list[dict[str, Any]]], criteo_kaggle: Path) -> None:
    lake, (whole, short, again) = real
    assert (whole["rows_read"], whole["rows_committed"], whole["rows_quarantined"]) == (8000, 8000, 0)
    assert (short["rows_read"], short["rows_committed"], short["rows_quarantined"]) == (1000, 502, 498)
    assert (again["files"], again["files_known"]) == (0, 3)
    table = pl.read_delta(str(lake / "bronze/criteo"))
    files = table.with_columns(file=pl.col("key") // 2**40).group_by("file").len().sort("file")
    assert files["len"].to_list() == [7200, 409, 391, 502]
    by_day = table.filter(pl.col("key") < 3 * 2**40).group_by("day").len().sort("day")
    assert by_day["len"].to_list() == [7200, 409, 391]
    got = table.filter(pl.col("key") < 2**40).sort("key").select(COLUMNS).rows()
    lines = (criteo_kaggle / "train.tsv").read_bytes().split(b"\n")[:-1]
    assert got == [tuple(parse_line(raw, Format())) for raw in lines]


def test_real_refused_rows_have_reasons(real: tuple[Path, list[dict[str, Any]]], criteo_short: Path) -> None:
    lake, _ = real
    table = pl.read_delta(str(lake / "quarantine/criteo"))
    reasons = dict(table.group_by("reason").len().rows())
    assert reasons == {"38 columns instead of 40": 469, "37 columns instead of 40": 29}
    content = (criteo_short / "train.tsv").read_bytes()
    for row in table.sort("line").head(20).rows(named=True):
        assert row["raw"] == content.split(b"\n")[row["line"]]
        assert content[row["offset"] :].startswith(row["raw"])
        assert row["raw_length"] == len(row["raw"])


def test_rows_and_quarantine_say_what_became_of_a_file(
    spark: SparkSession, real: tuple[Path, list[dict[str, Any]]], criteo_short: Path
) -> None:
    lake, _ = real
    said = io.StringIO()
    config = rows.Config(lake=str(lake), file=str(criteo_short / "train.tsv"), examples=1)
    found = rows.run(spark, config, Report("rows", out=said)).results
    assert (found["rows_read"], found["rows_committed"], found["rows_quarantined"]) == (1000, 502, 498)
    assert (found["rows_now"], found["day"], found["closed"]) == (502, 0, True)
    assert found["table_version"] == 2 and found["quarantine_version"] == 1
    assert "line 2 offset 515" in said.getvalue()
    with pytest.raises(UserError, match="2 files are called train.tsv"):
        rows.run(spark, rows.Config(lake=str(lake), file="train.tsv"), Report("rows", out=said))
    with pytest.raises(UserError, match="does not know nothing.gz"):
        rows.run(spark, rows.Config(lake=str(lake), file="nothing.gz"), Report("rows", out=said))
    reasons = quarantine.run(spark, quarantine.Config(lake=str(lake)), Report("quarantine", out=said)).results
    assert sum(reasons["reasons"].values()) == 498


HOSTILE_NAME = "day_2;$(touch pwned) '`touch pwned` %20\n{x}*"


def test_every_kind_of_file_and_line(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    """Several members, header, CRLF, byte-order mark, no newline at the end, hostile lines, cut into many ranges."""
    good = some_lines(1, 300)
    bad = [
        b"",
        b"x" * 3000,
        good[0] + b"\t1",
        b'"' + good[1] + b'"',
        good[2].replace(b"\t", b"\0", 1),
        b"\xff" + good[3],
    ]
    names = "\t".join(["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]).encode()
    files = {
        "day_0.gz": [*good[:50], *bad, *good[50:60]],
        "day_1": [names, *good[60:150], bad[2]],
        HOSTILE_NAME: [b"\xef\xbb\xbf" + good[150], *good[151:290], b"\xef\xbb\xbf" + good[290]],
        "day_3": [],
    }
    packed = b"".join(gzip.compress(raw + b"\n") for raw in files["day_0.gz"])
    source = tmp_path / "in"
    source.mkdir()
    (source / "day_0.gz").write_bytes(packed)
    write(source / "day_1", files["day_1"], b"\r\n")
    (source / HOSTILE_NAME).write_bytes(b"\n".join(files[HOSTILE_NAME]))
    write(source / "day_3", [])
    result = ingest(spark, lake, source, range_bytes=4000, max_line_bytes=2000, raw_bytes=100)
    fmt, expected, reasons = Format(max_line_bytes=2000, raw_bytes=100), {}, {}
    for ordinal, lines in enumerate(files.values()):
        for at, raw in enumerate(lines):
            answer = parse_line(raw, fmt, first=at == 0)
            (reasons if isinstance(answer, str) else expected)[(ordinal << 40) + at] = answer
    assert reasons.pop(1 << 40) == "label is not 0 or 1"  # the header, which is no row
    found = bronze(lake)
    assert {row["key"]: [row[column] for column in COLUMNS] for row in found} == expected
    assert len(found) == len(expected)
    assert all(row["day"] == row["key"] >> 40 for row in found)
    assert {(row["file_ordinal"] << 40) + row["line"]: row["reason"] for row in refused(lake)} == reasons
    assert len(refused(lake)) == len(reasons) == 8
    assert max(len(row["raw"]) for row in refused(lake)) == 100
    assert result["rows_read"] == len(expected) + len(reasons)
    closed = {Path(row["file"]).name: row for row in events(lake) if row["event"] == "close"}
    assert {name: row["rows_read"] for name, row in closed.items()} == {
        "day_0.gz": 66, "day_1": 91, HOSTILE_NAME: 141, "day_3": 0
    }  # fmt: skip
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()
    assert (
        json.loads(closed["day_1"]["detail"])["header"]
        and json.loads(closed[HOSTILE_NAME]["detail"])["byte_order_mark"]
    )


def test_files_without_labels_and_days(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    for day in range(3):
        write(tmp_path / f"in/day_{day}", [line(rng, labelled=False) for _ in range(5)])
    assert ingest(spark, lake, tmp_path / "in", labelled=False, days="1-2")["rows_committed"] == 10
    assert {row["day"] for row in bronze(lake)} == {1, 2}
    assert {row["label"] for row in bronze(lake)} == {None}


def test_unusable_files_are_refused_before_anything_is_committed(
    spark: SparkSession, lake: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    write(source / "day_0", some_lines(4))
    whole = gzip.compress(b"".join(raw + b"\n" for raw in some_lines(5, 200)))
    (source / "day_1.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"day_1\.gz is truncated[\s\S]*leave it out"):
        ingest(spark, lake, source)
    (source / "day_1.gz").unlink()
    write(source / "day_1", some_lines(4))
    with pytest.raises(UserError, match="day_1 has the same content as .*day_0"):
        ingest(spark, lake, source)
    names = b"\t".join(b"name%d" % n for n in range(42))
    write(source / "day_1", [names, *some_lines(5)])
    with pytest.raises(UserError, match="names 42 columns, expected are 40; beyond them: name40, name41"):
        ingest(spark, lake, source)
    assert events(lake) == []
    assert not (lake / "bronze").exists()


def test_a_run_that_fails_between_two_commits_is_finished_once(
    spark: SparkSession, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then: a changed file is refused, and a file given twice is not read twice."""
    path = write(tmp_path / "in/day_0", [*some_lines(6), b"bad"])
    with monkeypatch.context() as patch:
        fails(patch, Batch, "write", lambda batch, spec, rows: spec.layer == "quarantine")
        with pytest.raises(OSError, match="power cut"):
            ingest(spark, lake, path.parent)
    assert [row["event"] for row in events(lake)] == ["open"]
    before = path.read_bytes()
    path.write_bytes(before + b"more\n")
    with pytest.raises(UserError, match="day_0 was changed after batch .* was begun"):
        ingest(spark, lake, path.parent)
    path.write_bytes(before)
    write(tmp_path / "in/day_1", some_lines(7))
    result = ingest(spark, lake, path.parent)
    assert (result["rows_read"], result["rows_committed"], result["rows_quarantined"]) == (41, 40, 1)
    assert len(bronze(lake)) == 40 and len(refused(lake)) == 1
    path.write_bytes(before.replace(b"bad", b"BAD"))
    with pytest.raises(UserError, match="day_0 was changed after it was ingested"):
        ingest(spark, lake, path.parent)


def test_two_at_once_commit_every_row_once(
    spark: SparkSession, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock that keeps them apart: the ledger and the transaction identifiers alone must do."""
    for day in range(2):
        write(tmp_path / f"in/day_{day}", [*some_lines(20 + day), b"bad"])
    monkeypatch.setattr(ingest_files, "claim", lambda lake, say: contextlib.nullcontext())
    failures: list[BaseException] = []

    def one() -> None:
        try:
            ingest(spark, lake, tmp_path / "in", batch_bytes=1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [row["key"] for row in bronze(lake)] == [(file << 40) + at for file in range(2) for at in range(20)]
    assert [(row["file_ordinal"], row["line"]) for row in refused(lake)] == [(0, 20), (1, 20)]
    kinds = sorted((row["event"], row["file_ordinal"]) for row in events(lake))
    assert kinds == [("close", 0), ("close", 1), ("open", 0), ("open", 1)]


def test_an_intent_planned_on_an_old_ledger_is_not_recorded(spark: SparkSession, lake: Path) -> None:
    ledger = Ledger(spark, str(lake), "criteo")
    seen = ledger.state()
    first = LedgerBatch("first", (LedgerFile("/a", 0, 1, 2, "sha256:0", 3, {"header": False}),))
    second = LedgerBatch("second", (LedgerFile("/a", 0, 1, 2, "sha256:0", 3),))
    assert ledger.open(first, seen)
    assert not ledger.open(second, seen)
    state = ledger.state()
    assert state.open_batches == [first] and state.next_ordinal == 1
    assert Ledger(spark, str(lake), "other").state().next_ordinal == 1
