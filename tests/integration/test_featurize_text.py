"""bronze/commoncrawl -> silver/documents -> gold/corpus: one lake, its batches, reruns, thresholds, hostile pages."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from headrace.catalog.delta import WriteOptions, commit_metadata, latest_version, read, small_frame, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import documents, text_rules
from headrace.features.text_rules import gopher
from headrace.pipelines import extract_judge, featurize_text
from headrace.pipelines.featurize_text import Config
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
BRONZE, DOCUMENTS, CORPUS = load("bronze/commoncrawl"), load("silver/documents"), load("gold/corpus")
STORY = (
    "The river that runs through the valley was low in the spring of that year, and the people of the town had to "
    "carry water from the lake. They built a channel of stone with gates of oak. It took them two summers to finish.\n"
    "When the gates were opened for the first time, everybody came to see the water move. The miller said that he had "
    "never heard such a sound. Nobody in the crowd went home before it was dark, and nobody wanted to.\n"
    "Years later the channel was still there, and so was the mill. You can write to keeper@mill.example.org "
    "or look at the gauge at 8.8.8.8 if you want to know how high the water stands today."
)
SHORT = "This page is too short for the rule that counts words, though it names rivers, mills, gates, stones and boats."
GERMAN = (
    "Der Fluss, der durch das Tal fließt, führte in jenem Frühling wenig Wasser, und die Leute holten es vom See. " * 4
)


def page(text: str) -> bytes:
    paragraphs = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    return f"<html><head><title>Mill</title></head><body><main>{paragraphs}</main></body></html>".encode()


def record(key: int, payload: bytes | None, **fields: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(column.name for column in BRONZE.columns)
    row |= {"key": key, "batch_id": "b1", "crawl": "CC-A", "file": "a.warc.gz", "offset": key, "length": 1}
    row |= {
        "type": "response",
        "date": datetime(2024, 5, 1, tzinfo=UTC),
        "target_uri": f"https://www.site{key}.co.uk/x",
    }
    row |= {"http_status": 200, "http_content_type": "text/html; charset=utf-8", "payload": payload}
    return row | {"payload_length": None if payload is None else len(payload)} | fields


FIRST = [
    record(0, page(STORY)),
    record(1, page(GERMAN)),
    record(2, page(SHORT)),
    record(3, b"\x89PNG\r\n" + bytes(50), http_content_type="image/png"),
    record(4, b"<html>gone</html>", http_status=404),
    record(5, page(STORY + " {")),
    record(6, b"<div>" * 400_000),  # hangs the parser
    record(7, None),
    record(8, b"x" * 40, type="request"),
    record(9, page("The cat that sat on the mat was at home. " * 40)),
    record(10, b"<p>" + b"y" * 3_000_000),  # too large
]
SECOND = [
    record((1 << 40) + 1, STORY.upper().encode(), type="conversion", batch_id="b2", crawl="CC-B", http_status=None),
    record((1 << 40) + 2, STORY.encode(), type="conversion", batch_id="b2", crawl="CC-B", http_status=None),
    record((1 << 40) + 3, page(STORY), batch_id="b2", crawl="CC-B", target_uri="http://ads.bad.example/1"),
]
EXPECTED = {
    0: None,
    1: "language_other",
    2: "gopher_short_doc",
    3: "extract_not_html",
    4: "extract_http_status",
    5: None,
    6: "extract_timeout",
    7: "extract_no_payload",
    9: "repetition_top_3_gram",
    10: "extract_too_large",
}


def ingest(spark: SparkSession, lake: Path, rows: list[dict[str, Any]]) -> None:
    write(small_frame(spark, BRONZE, rows), BRONZE, lake, options=WriteOptions(quality=False))


def featurize(spark: SparkSession, lake: Path, stages: str, **settings: Any) -> Report:
    report = Report("featurize-text", out=io.StringIO())
    limits = documents.Limits(seconds=1.5)
    extract = featurize_text.main_text.Settings(max_bytes=2_500_000)
    cfg = Config(lake=str(lake), stages=stages, **({"limits": limits, "extract": extract} | settings))
    return featurize_text.run(spark, cfg, report)


def rows_of(spark: SparkSession, lake: Path, version: int | None = None) -> dict[int, dict[str, Any]]:
    return {row["key"]: row.asDict() for row in read(spark, DOCUMENTS, lake, version).collect()}


@dataclass
class Lake:
    path: Path
    report: Report
    rows: dict[int, dict[str, Any]]
    version: int


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    path = tmp_path_factory.mktemp("text")
    ingest(spark, path, FIRST)
    report = featurize(spark, path, "extract,judge,corpus")
    return Lake(path, report, rows_of(spark, path), latest_version(DOCUMENTS.path(path)))


def test_every_record_that_may_hold_text_is_a_row_with_its_reason(lake: Lake) -> None:
    assert {key: row["removed_by"] for key, row in lake.rows.items()} == EXPECTED
    assert lake.report.stages[0].rows_in == lake.report.stages[0].rows_out == len(EXPECTED)
    assert "timeout 1" in lake.report.stages[0].note and "http_status 1" in lake.report.stages[0].note
    counts = lake.report.results["removed_by"]["CC-A"]
    assert sum(counts.values()) == len(EXPECTED) and counts["stays"] == 2
    assert Path(lake.report.paths["figure"]).stat().st_size > 5000


def test_the_values_are_those_of_the_functions(lake: Lake) -> None:
    row = lake.rows[0]
    assert row["text"] == STORY.replace("\n", "\n\n") and row["num_chars"] == len(row["text"])
    assert (row["host"], row["domain"], row["title"]) == ("www.site0.co.uk", "site0.co.uk", "Mill")
    assert (row["language"], row["encoding"], row["content_type"]) == ("en", "utf-8", "text/html")
    assert row["language_score"] > 0.9 and (row["num_emails"], row["num_ips"]) == (1, 1)
    assert row["date"].replace(tzinfo=None).year == 2024 and row["extractor"].startswith("resiliparse ")
    values = text_rules.Measures().of(row["text"])
    assert {name: row[name] for name in values} == values
    assert all(lake.rows[6][name] is None for name in values)


def test_the_corpus_is_what_stays_masked(spark: SparkSession, lake: Lake) -> None:
    found = {row["key"]: row.asDict() for row in read(spark, CORPUS, lake.path, 1).collect()}
    assert sorted(found) == [0, 5]
    masked = (
        lake.rows[0]["text"].replace("keeper@mill.example.org", "email@example.com").replace("8.8.8.8", "192.0.2.1")
    )
    assert found[0]["text"] == masked and found[0]["num_chars"] == len(masked) and found[0]["num_masked"] == 2
    assert commit_metadata(CORPUS.path(lake.path), 1)["request"]["documents_version"] == lake.version


def test_a_rerun_changes_nothing_and_partitions_do_not_show(
    spark: SparkSession, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = featurize(spark, lake.path, "extract,judge,corpus")
    assert latest_version(DOCUMENTS.path(lake.path)) == lake.version and report.stages == []
    assert latest_version(CORPUS.path(lake.path)) == 1
    other = tmp_path / "other"
    ingest(spark, other, [row for row in FIRST if row["key"] != 6])
    monkeypatch.setattr(extract_judge, "_BYTES_PER_TASK", 400_000)  # eight tasks
    featurize(spark, other, "extract")
    assert rows_of(spark, other) == {key: row for key, row in lake.rows.items() if key != 6}


def test_new_batches_only_thresholds_and_values_from_what_is_stored(
    spark: SparkSession, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One story, since each step starts from the version that the last one made."""
    ingest(spark, lake.path, SECOND)
    report = featurize(spark, lake.path, "extract,judge")
    assert [(s.name, s.rows_in) for s in report.stages] == [("extract", 3)]
    rows = rows_of(spark, lake.path)
    assert {key: rows[key] for key in lake.rows} == lake.rows
    assert rows[(1 << 40) + 2]["text"] == STORY and rows[(1 << 40) + 2]["extractor"] == "published"
    assert rows[(1 << 40) + 1]["removed_by"] == "gopher_few_stop_words"

    # Nothing may be extracted or measured from here on, where thresholds alone change.
    monkeypatch.setattr(documents, "extracted", None)
    monkeypatch.setattr(documents, "measured", None)
    (tmp_path / "block.txt").write_text("0.0.0.0 bad.example\n")
    thresholds = text_rules.Thresholds(gopher=gopher.Thresholds(min_words=1, min_stop_words=None))
    changed: dict[str, Any] = {"thresholds": thresholds, "languages": "", "families": "gopher,c4"}
    changed["urls"] = featurize_text.url_filter.Settings(domains=str(tmp_path / "block.txt"))
    with pytest.raises(UserError, match="extracted with another"):
        featurize(spark, lake.path, "extract", extract=featurize_text.main_text.Settings(), **changed)
    report = featurize(spark, lake.path, "judge", **changed)
    assert [(s.name, s.rows_out) for s in report.stages] == [("judge", 13)]
    rejudged = rows_of(spark, lake.path)
    verdict = featurize_text._work(Config(lake="", **changed)).verdict
    assert {key: row["removed_by"] for key, row in rejudged.items()} == {k: verdict.of(row) for k, row in rows.items()}
    assert rejudged[(1 << 40) + 3]["removed_by"] == "url_domain"
    assert [rejudged[key]["removed_by"] for key in (1, 2, (1 << 40) + 1)] == ["c4_few_sentences"] * 2 + [None]
    for key, row in rows.items():
        assert {**rejudged[key], "removed_by": None} == {**row, "removed_by": None}
    monkeypatch.undo()

    measure = text_rules.Settings(gopher=gopher.Settings(stop_words="THE OF AND"))
    report = featurize(spark, lake.path, "judge", measure=measure)
    assert report.stages[0].name == "measure, judge"
    again = rows_of(spark, lake.path)
    assert [again[key]["rule_gopher_stop_words"] for key in (0, (1 << 40) + 1)] == [0, 3]
    featurize(spark, lake.path, "judge")
    assert rows_of(spark, lake.path) == rows


def test_batches_extracted_with_other_thresholds_are_judged_before_the_corpus(
    spark: SparkSession, lake: Lake, tmp_path: Path
) -> None:
    ingest(spark, tmp_path, FIRST[:2])
    featurize(spark, tmp_path, "extract", languages="de")
    assert {k: r["removed_by"] for k, r in rows_of(spark, tmp_path).items()} == {
        0: "language_other",
        1: "repetition_dup_5_gram",
    }
    ingest(spark, tmp_path, SECOND)
    featurize(spark, tmp_path, "extract")
    with pytest.raises(UserError, match="run the stage judge"):
        featurize(spark, tmp_path, "corpus")
    featurize(spark, tmp_path, "judge,corpus", drop_lines=True)
    kept = {row["key"]: row["text"] for row in read(spark, CORPUS, tmp_path).collect()}
    assert sorted(kept) == [0, (1 << 40) + 2, (1 << 40) + 3] and "\n\n" not in kept[0]


def test_the_whole_way_from_pages_to_packed_sequences(spark: SparkSession, tmp_path: Path) -> None:
    ingest(spark, tmp_path, [*FIRST[:3], *SECOND])
    settings: dict[str, Any] = {
        "tokenizer": featurize_text.pack_text.TokenizerConfig(vocab_size=300),
        "pack": featurize_text.pack_text.PackConfig(length=64, validation_share=0.0),
    }
    stages = ",".join(featurize_text.STAGES)
    report = featurize(spark, tmp_path, stages, **settings)
    kept = [row["key"] for row in read(spark, CORPUS, tmp_path).collect()]
    assert kept == [0]  # the same story in the second crawl is its duplicate, by whatever it was extracted
    sequences = read(spark, load("gold/token_sequences"), tmp_path)
    assert sequences.count() > 2 and {key for row in sequences.collect() for key in row["doc_keys"]} == {0}
    assert report.results["corpus"]["documents"] == 1


def test_the_corpus_takes_no_duplicates_of_other_documents(spark: SparkSession, tmp_path: Path) -> None:
    """A survivor may have been removed since: then neither would be in the corpus."""
    ingest(spark, tmp_path, [row | {"crawl": "CC-A"} for row in (FIRST[0], *SECOND)])
    report = featurize(spark, tmp_path, "extract,corpus")
    assert "nobody has looked for duplicates" in report.warnings[0] and "dedup-text" in report.warnings[0]
    assert report.results["corpus"]["documents"] == 3
    featurize(spark, tmp_path, "dedup,corpus")
    urls = featurize_text.url_filter.Settings(domains=str(tmp_path / "block.txt"))
    (tmp_path / "block.txt").write_text("site0.co.uk\n")  # where the survivor is from
    with pytest.raises(UserError, match=r"not of these documents: CC-A\n.*--duplicates false"):
        featurize(spark, tmp_path, "judge,corpus", urls=urls)
    assert [row["key"] for row in read(spark, CORPUS, tmp_path).collect()] == [0]
    featurize(spark, tmp_path, "corpus", urls=urls, duplicates=False)
    featurize(spark, tmp_path, "dedup,corpus", urls=urls)
    assert [row["key"] for row in read(spark, CORPUS, tmp_path).collect()] == [(1 << 40) + 2]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"stages": "extract,juge"}, "did you mean judge"),
        ({"families": "gofer"}, "did you mean gopher"),
        ({"languages": "english"}, "'english' is unknown"),
        ({"min_language_score": 65}, "is no probability"),
        ({"crawl": "CC-Z"}, "has no CC-Z"),
        ({"stages": ""}, "names none"),
        ({"limits": documents.Limits(seconds=0)}, "is not over 0"),
        ({"extract": featurize_text.main_text.Settings(status="ok")}, "no HTTP status"),
    ],
)
def test_mistakes_are_told_in_the_users_words(
    spark: SparkSession, lake: Lake, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        featurize(spark, lake.path, **({"stages": "extract"} | settings))


def test_without_a_crawl_the_remedy_names_the_verb(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ingest-commoncrawl"):
        featurize_text.early(Config(lake=str(tmp_path)))
