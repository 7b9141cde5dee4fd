"""Files forgotten and read again, batches given up: every row gone once, whatever was killed on the way."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from power_cuts import fails

from headrace.catalog import delta
from headrace.catalog.ledger import Ledger
from headrace.errors import UserError
from headrace.ingest import batch as batches
from headrace.ingest import generated_crawl, withdraw
from headrace.pipelines import (
    featurize_graph,
    forget,
    generate_crawl,
    ingest_commoncrawl,
    ingest_criteo,
    ingest_files,
    ingest_graph,
    ingest_ratings,
    rows,
)
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Row = dict[str, Any]
GOOD = "\t".join(["1", *"1234567890123", *(["0000000a"] * 26)])


@pytest.fixture(scope="module", autouse=True)
def _no_reports() -> Any:
    """Quality reports have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_files, "record_quality", lambda *_: None)
        yield


def run(spark: SparkSession, module: Any, **settings: Any) -> tuple[Row, str]:
    """A verb's results, and what it said."""
    out = io.StringIO()
    config = module.Config(**{name: str(v) if isinstance(v, Path) else v for name, v in settings.items()})
    return module.run(spark, config, Report("test", out=out)).results, out.getvalue()


def table(lake: Path, name: str) -> list[Row]:
    return pl.read_delta(str(lake / name)).to_dicts()


def events(lake: Path) -> list[tuple[str, int, int | None, int | None]]:
    rows = sorted(table(lake, "meta/ledger"), key=lambda row: (row["at"], row["file_ordinal"]))
    return [(row["event"], row["file_ordinal"], row["rows_committed"], row["rows_quarantined"]) for row in rows]


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def one_line_less(source: Path, days: int) -> list[Path]:
    """Files without labels, as many lines as their day, and one."""
    return [
        write(source / f"day_{day}", [GOOD.partition("\t")[2]] * day + ["bad"]) for day in range(1, days + 1)
    ]  # fmt: skip


@pytest.mark.campaign
def test_wrong_settings_then_the_right_ones(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    """The run names the remedy; it works; what was in quarantine is there no more; a third reading changes nothing."""
    one, two = one_line_less(tmp_path / "in", 2)
    found, said = run(spark, ingest_criteo, lake=lake, source=one.parent)
    assert (found["rows_committed"], found["rows_quarantined"]) == (0, 5)
    command = f"headrace forget {one} --lake {lake}"
    assert f"nothing of {one}, {two} was accepted" in said and command in said
    again, said = run(spark, ingest_criteo, lake=lake, source=one.parent, labelled=False)
    assert again["files_known"] == 2 and again["rows_read"] == 0
    assert f"nothing of {one}, {two} was accepted" in said and command in said

    planned, said = run(spark, forget, lake=lake, file=f"{one.parent}/*", plan=True)
    assert planned["files"] == 2 and f"would forget {two}" in said and len(events(lake)) == 4
    gone, said = run(spark, forget, lake=lake, file=f"{one.parent}/*")
    assert (gone["files"], gone["rows_removed"], gone["rows_removed_from_quarantine"]) == (2, 0, 5)
    assert table(lake, "quarantine/criteo") == []
    assert run(spark, forget, lake=lake, file=f"{one.parent}/*")[0]["files"] == 0
    found, said = run(spark, ingest_criteo, lake=lake, source=one.parent, labelled=False)
    assert "was accepted" not in said
    assert (found["rows_read"], found["rows_committed"], found["rows_quarantined"]) == (5, 3, 2)
    assert sorted(row["key"] for row in table(lake, "bronze/criteo")) == [2 << 40, 3 << 40, (3 << 40) + 1]
    assert [row["file_ordinal"] for row in table(lake, "quarantine/criteo")] == [2, 3]
    assert events(lake)[4:6] == [("withdraw", 0, None, None), ("withdraw", 1, None, None)]
    assert events(lake)[6:8] == [("withdrawn", 0, 0, 2), ("withdrawn", 1, 0, 3)]
    asked, said = run(spark, rows, lake=lake, file=str(two))
    assert (asked["readings"], asked["rows_now"], asked["forgotten"], asked["file_ordinal"]) == (2, 2, False, 3)
    assert "file 1, batch" in said and "forgotten; 0 rows" in said


def test_one_file_of_a_batch_and_changed_content(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    """Its rows go, the other file's stay; the new content is then read by the same name; forgetting twice is once."""
    source = tmp_path / "in"
    one, two = (write(source / f"day_{day}", [GOOD] * (day + 1) + ["bad"]) for day in (0, 1))
    run(spark, ingest_criteo, lake=lake, source=source)
    before = delta.latest_version(f"{lake}/bronze/criteo")
    write(two, [GOOD] * 5)
    with pytest.raises(UserError, match=f"headrace forget {two} --lake"):
        run(spark, ingest_criteo, lake=lake, source=source)
    gone, said = run(spark, forget, lake=lake, file="day_1")
    assert (gone["rows_removed"], gone["rows_removed_from_quarantine"]) == (2, 1) and "featurize again" in said
    assert [row["key"] for row in table(lake, "bronze/criteo")] == [0]
    assert [row["file_ordinal"] for row in table(lake, "quarantine/criteo")] == [0]
    twice, said = run(spark, forget, lake=lake, file=str(two))
    assert twice["files"] == 0 and "is forgotten" in said
    assert pl.read_delta(f"{lake}/bronze/criteo", version=before).height == 3
    found, _ = run(spark, ingest_criteo, lake=lake, source=source)
    assert (found["files"], found["files_known"], found["rows_committed"]) == (1, 1, 5)
    run(spark, forget, lake=lake, file=str(one))
    assert sorted(row["key"] for row in table(lake, "bronze/criteo")) == [(2 << 40) + at for at in range(5)]


@pytest.mark.campaign
def test_forgetting_is_finished_by_the_next_run(
    spark: SparkSession, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind each of its steps; the next forget, or ingest, finishes it with the same counts."""
    source = tmp_path / "in"
    paths = [write(source / f"day_{day}", [GOOD] * (day + 2) + ["bad"]) for day in range(3)]
    run(spark, ingest_criteo, lake=lake, source=source)
    steps = [
        (batches.Batch, "seal", lambda batch, spec: spec.layer == "quarantine"),
        (batches.Batch, "remove", lambda batch, spec, files: spec.layer == "quarantine"),
        (Ledger, "withdrawn", lambda *_: True),
    ]
    for path, step in zip(paths, steps, strict=True):
        with monkeypatch.context() as patch:
            fails(patch, *step)
            with pytest.raises(OSError, match="power cut"):
                run(spark, forget, lake=lake, file=str(path))
        if path != paths[-1]:
            _, said = run(spark, forget, lake=lake, file=str(path))
            assert "is forgotten: the next ingest reads it anew" in said
    assert table(lake, "bronze/criteo") == [] and table(lake, "quarantine/criteo") == []
    found, said = run(spark, ingest_criteo, lake=lake, source=source)
    assert "4 rows and 1 in quarantine were taken out" in said
    assert [each for each in events(lake) if each[0] == "withdrawn"] == [("withdrawn", n, n + 2, 1) for n in range(3)]
    assert (found["files"], found["rows_committed"], found["rows_quarantined"]) == (3, 9, 3)
    refused = {(row["file_ordinal"], row["line"]) for row in table(lake, "quarantine/criteo")}
    assert refused == {(3 + day, day + 2) for day in range(3)}
    keys = [((3 + day) << 40) + at for day in range(3) for at in range(day + 2)]
    assert sorted(row["key"] for row in table(lake, "bronze/criteo")) == keys


def test_a_batch_that_cannot_be_finished(
    spark: SparkSession, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in the way of all others until it is given up; then nothing of it is left, and the rest goes on."""
    path = write(tmp_path / "in/day_0", [GOOD, GOOD, "bad"])
    with monkeypatch.context() as patch:
        fails(patch, batches.Batch, "write", lambda batch, spec, _: spec.layer == "quarantine")
        with pytest.raises(OSError, match="power cut"):
            run(spark, ingest_criteo, lake=lake, source=path.parent)
    assert len(table(lake, "bronze/criteo")) == 2
    (open_batch,) = Ledger(spark, str(lake), "criteo").state().open_batches
    os.remove(path)
    other = write(tmp_path / "in/day_1", [GOOD])
    command = f"headrace forget --batch {open_batch.batch_id} --lake {lake}"
    with pytest.raises(UserError, match=command):
        run(spark, ingest_criteo, lake=lake, source=other)
    with pytest.raises(UserError, match=f"is open[\\s\\S]*{command}"):
        run(spark, forget, lake=lake, file=str(path))
    with pytest.raises(UserError, match=f"no batch nonsense[\\s\\S]*open are: {open_batch.batch_id}"):
        run(spark, forget, lake=lake, batch="nonsense")
    gone, _ = run(spark, forget, lake=lake, batch=open_batch.batch_id)
    assert (gone["rows_removed"], gone["rows_removed_from_quarantine"]) == (2, 0)
    assert table(lake, "bronze/criteo") == [] and table(lake, "quarantine/criteo") == []
    assert run(spark, forget, lake=lake, batch=open_batch.batch_id)[0]["files"] == 0
    found, _ = run(spark, ingest_criteo, lake=lake, source=other)
    assert found["rows_committed"] == 1
    with pytest.raises(UserError, match="is closed"):
        run(spark, forget, lake=lake, batch=next(b for _, b in ids(lake) if b != open_batch.batch_id))


def ids(lake: Path) -> list[tuple[int, str]]:
    return sorted({(row["file_ordinal"], row["batch_id"]) for row in table(lake, "meta/ledger")})


@pytest.mark.campaign
def test_who_is_still_at_work_on_it_commits_nothing(
    spark: SparkSession, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is given up while another run, which no lock kept out, stands before a commit of it, then the close."""
    path = write(tmp_path / "in/day_0", [GOOD, GOOD, "bad"])
    monkeypatch.setattr(ingest_files, "claim", lambda lake, say: contextlib.nullcontext())
    original = batches.Batch.write

    def meanwhile(batch: batches.Batch, spec: Any, frame: Any) -> Any:
        if spec.layer == "quarantine":
            monkeypatch.setattr(batches.Batch, "write", original)
            run(spark, forget, lake=lake, batch=batch.batch_id)
        return original(batch, spec, frame)

    monkeypatch.setattr(batches.Batch, "write", meanwhile)
    with pytest.raises(RuntimeError, match="does not close: 3 rows read, 2 committed, 0 in quarantine"):
        run(spark, ingest_criteo, lake=lake, source=path.parent)
    assert table(lake, "bronze/criteo") == [] and table(lake, "quarantine/criteo") == []

    close = Ledger.close

    def given_up_first(ledger: Ledger, batch: Any, accounts: Any) -> None:
        run(spark, forget, lake=lake, batch=batch.batch_id)
        close(ledger, batch, accounts)

    monkeypatch.setattr(Ledger, "close", given_up_first)
    with pytest.raises(UserError, match="was given up while it was worked on"):
        run(spark, ingest_criteo, lake=lake, source=path.parent)
    monkeypatch.setattr(Ledger, "close", close)
    assert table(lake, "bronze/criteo") == [] and table(lake, "quarantine/criteo") == []
    found, _ = run(spark, ingest_criteo, lake=lake, source=path.parent)
    assert (found["rows_committed"], found["rows_quarantined"]) == (2, 1)
    assert "close" not in {event for event, ordinal, *_ in events(lake) if ordinal < 2}


@pytest.mark.parametrize(
    "name",
    ["ratings", pytest.param("edges", marks=pytest.mark.campaign), pytest.param("crawl", marks=pytest.mark.campaign)],
)
def test_every_source(spark: SparkSession, lake: Path, tmp_path: Path, name: str) -> None:
    """Read with the wrong settings, forgotten without naming a source, read again."""
    ratings = write(tmp_path / "r/ratings.csv", ["userId,movieId,rating,timestamp", "1,2,9.5,3", "1,3,8.5,4"])
    edges = write(tmp_path / "g/edges.csv", ["1,2,x", "2,3,y"])
    made = generate_crawl.Config(dest=str(tmp_path / "c"), pages=8, formats="warc", bad=0.5).generation()
    generated_crawl.write_file(made, 0, tmp_path / "c")
    crawl = next((tmp_path / "c").rglob("*.warc.gz"))
    module, settings, right = {
        "ratings": (ingest_ratings, {"source": ratings, "max_rating": 5.0}, {"max_rating": 10.0}),
        "edges": (
            ingest_graph,
            {"source": edges, "graph": "g", "columns": "src=0,dst=1,weight=2"},
            {"columns": "src=0,dst=1"},
        ),
        "crawl": (ingest_commoncrawl, {"source": crawl, "types": "request"}, {"types": "response"}),
    }[name]
    first, _ = run(spark, module, lake=lake, **settings)
    assert first["rows_quarantined"] > 0
    gone, _ = run(spark, forget, lake=lake, file=settings["source"])
    assert gone["rows_removed"] == first["rows_committed"]
    assert gone["rows_removed_from_quarantine"] == first["rows_quarantined"]
    name = gone["source"]
    assert table(lake, f"bronze/{name}") == [] and table(lake, f"quarantine/{name}") == []
    again, _ = run(spark, module, lake=lake, **settings | right)
    assert again["rows_committed"] > 0
    assert len(table(lake, f"bronze/{name}")) == again["rows_committed"]
    assert len(table(lake, f"quarantine/{name}")) == again["rows_quarantined"]


def test_what_was_made_of_the_rows(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    """Nodes keep their ids for ever, so those of a wrong column are there until they are numbered anew: it is said."""
    edges = write(tmp_path / "edges.csv", ["1,2,77", "2,3,88"])
    settings = {"lake": lake, "source": edges, "graph": "g", "format": "csv", "header": "no"}
    run(spark, ingest_graph, columns="src=0,dst=2", **settings)
    run(spark, featurize_graph, lake=lake, graph="g")
    _, said = run(spark, forget, lake=lake, file=edges)
    assert "featurize again, with headrace featurize-graph --nodes rebuild" in said
    run(spark, ingest_graph, columns="src=0,dst=1", **settings)
    assert run(spark, featurize_graph, lake=lake, graph="g")[0]["nodes"] == {"node": 5}, "1, 2, 77, 88, and 3"
    assert run(spark, featurize_graph, lake=lake, graph="g", nodes="rebuild")[0]["nodes"] == {"node": 3}


def test_what_is_not_known(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing was ingested"):
        forget.early(forget.Config(lake=str(lake), file="x"))
    write(tmp_path / "in/day_0", [GOOD])
    run(spark, ingest_criteo, lake=lake, source=tmp_path / "in")
    for settings in ({}, {"file": "x", "batch": "y"}):
        with pytest.raises(UserError, match="forget which file"):
            forget.early(forget.Config(lake=str(lake), **settings))
    with pytest.raises(UserError, match="no such source: creteo"):
        forget.early(forget.Config(lake=str(lake), file="x", source="creteo"))
    for name in ("day_7", "*/day_7"):
        with pytest.raises(UserError, match="does not know"):
            run(spark, forget, lake=lake, file=name)
    assert withdraw.finish_withdrawals(spark, str(lake), "criteo", print) == {}
