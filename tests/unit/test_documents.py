"""Records to rows without Spark: real pages, lost pages, bounded batches; the report; the preset of settings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace import resources
from headrace.config import parse
from headrace.features import documents, language, masking, text_rules
from headrace.features.documents import INPUT, Limits, Recipe, Verdict
from headrace.features.text_rules import judge
from headrace.ingest import generated_crawl_pages
from headrace.pipelines import featurize_text, text_report

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
VERDICT = Verdict(tuple(text_rules.rules(text_rules.Thresholds())), ("en",), 0.65)


def record(key: int, payload: bytes, **fields: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(INPUT) | {"key": key, "batch_id": "b", "crawl": "c", "type": "response"}
    row |= {"target_uri": "http://a.example/", "http_status": 200, "http_content_type": "text/html"}
    return row | {"payload": payload, "payload_bytes": len(payload)} | fields


def rows_of(records: list[dict[str, Any]], **limits: Any) -> list[dict[str, Any]]:
    batches = [pa.RecordBatch.from_pylist(records[at : at + 7]) for at in range(0, len(records), 7)]
    found = documents.extracted(batches, Recipe(limits=Limits(**limits)), VERDICT)
    return pa.Table.from_batches(found, documents.schema()).to_pylist()


def archived() -> list[dict[str, Any]]:
    from warcio.archiveiterator import ArchiveIterator

    records = []
    for path in sorted((REAL / name for name in ("cc_whirlwind", "warc_resiliparse", "cc_dolma_warc")), key=str):
        for file in sorted(path.glob("*.w*.gz")):
            if ".paths" in file.name or "lz4" in file.name:
                continue
            with file.open("rb") as stream:
                for found in ArchiveIterator(stream):
                    if found.rec_type in documents.KINDS:
                        status = found.http_headers.get_statuscode() if found.http_headers else None
                        header = found.http_headers.get_header("Content-Type") if found.http_headers else None
                        row = record(len(records), found.content_stream().read(), type=found.rec_type)
                        row |= {"http_status": int(status) if status else None, "http_content_type": header}
                        records.append(row | {"target_uri": found.rec_headers.get_header("WARC-Target-URI")})
    return records


def test_every_real_page_is_a_row() -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is absent")
    records = archived()
    rows = rows_of(records)
    assert [row["key"] for row in rows] == [record["key"] for record in records] and len(rows) > 40
    errors = Counter(row["extract_error"] for row in rows)
    assert errors[None] > 20 and not errors.keys() & {"timeout", "memory", "crashed", "failed", "parse_error"}, errors
    for row in rows:
        assert (row["text"] is None) == (row["extract_error"] is not None)
        assert row["removed_by"] == VERDICT.of(row) and (row["host"] is not None or row["url"] is None)
        assert row["text"] is None or "<script" not in row["text"]
    published = [row for row in rows if row["record_type"] == "conversion"]
    assert published and all(row["extractor"] == "published" for row in published)


def test_a_page_that_hangs_is_one_row_and_the_next_goes_on() -> None:
    good = b"<html><body><p>" + b"A good page of a few words. " * 20 + b"</p></body></html>"
    rows = rows_of([record(0, good), record(1, b"<div>" * 500_000), record(2, good)], seconds=0.7)
    assert [row["extract_error"] for row in rows] == [None, "timeout", None]
    assert rows[0]["text"] == rows[2]["text"] and rows[1]["num_chars"] == 0
    assert rows[1]["removed_by"] == "extract_timeout" and rows[1]["host"] == "a.example"


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_FLUSH_CHARS", 300)
    page = b"<html><body><p>" + b"word " * 30 + b"</p></body></html>"
    batches = pa.RecordBatch.from_pylist([record(key, page) for key in range(9)])
    sizes = [batch.num_rows for batch in documents.extracted([batches], Recipe(), VERDICT)]
    assert sum(sizes) == 9 and max(sizes) == 3
    assert list(documents.extracted([], Recipe(), VERDICT)) == []


def test_measuring_again_drops_the_text_only_where_it_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of([record(0, b"<html><body><p>Some words here.</p></body></html>"), record(1, b"", http_status=404)])
    batch = pa.RecordBatch.from_pylist(rows, documents.schema())
    same = pa.Table.from_batches(documents.measured([batch], Recipe(), VERDICT)).to_pylist()
    assert same == rows
    monkeypatch.setattr(text_rules.Measures, "of", lambda *_: 1 / 0)
    monkeypatch.setattr(documents, "_worker", lambda recipe: documents._Worker(recipe, text_rules.Measures()))
    lost = pa.Table.from_batches(documents.measured([batch], Recipe(), VERDICT)).to_pylist()
    assert [row["extract_error"] for row in lost] == ["failed", "http_status"]
    assert lost[0]["text"] is None and lost[0]["rule_gopher_num_words"] is None


def test_the_table_accounts_for_every_document(tmp_path: Path) -> None:
    counts = {
        "A": {"stays": 5, "gopher_short_doc": 3, "extract_empty": 2},
        "B": {"gopher_short_doc": 4, "url_domain": 1},
    }
    reasons = text_report.ordered(counts, ["language_other", "gopher_short_doc"])
    assert reasons == ["extract_empty", "url_domain", "gopher_short_doc"]
    lines = [line.split() for line in text_report.table(counts, reasons)]
    assert lines[0] == ["A", "B", "all", "share", "left"]
    assert lines[1:] == [
        ["documents", "10", "5", "15", "100.0%", "15"],
        ["extract_empty", "2", "0", "2", "13.3%", "13"],
        ["url_domain", "0", "1", "1", "6.7%", "12"],
        ["gopher_short_doc", "3", "4", "7", "46.7%", "5"],
        ["stays", "5", "0", "5", "33.3%", "5"],
    ]
    text_report.draw(counts, reasons, tmp_path / "a" / "figure.png")
    assert (tmp_path / "a" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert len(text_report.table({"A": {"stays": 1}}, [])) == 3 and text_report.table({}, [])


def test_the_preset_and_dotted_settings_are_read() -> None:
    argv = ["--lake", "x", "--config", str(resources.path("conf/text_fineweb.yaml"))]
    argv += ["--thresholds.gopher.min_words", "null", "--thresholds.fineweb.max_newlines=0.5"]
    cfg = parse({"": featurize_text.Config}, argv, "headrace featurize-text")[""]
    assert cfg.measure.c4.terminal_punctuation is False and cfg.measure.c4.min_words == 3
    assert cfg.thresholds.gopher.min_words is None and cfg.thresholds.fineweb.max_newlines == 0.5


PLANTED = {
    "c4_curly_bracket": "c4_curly_bracket",
    "c4_few_sentences": "c4_few_sentences",
    "c4_lorem_ipsum": "c4_lorem_ipsum",
    "fineweb_duplicated_characters": "fineweb_dup_line_chars",
    "fineweb_many_line_breaks": "fineweb_newlines",
    "fineweb_no_punctuation": "fineweb_line_punctuation",
    "fineweb_short_lines": "fineweb_short_lines",
    "gopher_bullets": "gopher_bullet_lines",
    "gopher_ellipses": "gopher_ellipsis_lines",
    "gopher_few_alphabetic": "gopher_few_letters",
    "gopher_few_stop_words": "gopher_few_stop_words",
    "gopher_hash_signs": "gopher_hashes",
    "gopher_long_words": "gopher_long_words",
    "gopher_repeated_lines": "repetition_dup_lines",
    "gopher_repeated_words": "repetition_top_2_gram",
    "gopher_too_few_words": "gopher_short_doc",
}


def test_planted_pages_are_judged_as_they_were_planted() -> None:
    """Every rule removes what was written to break it, nothing removes an ordinary English page."""
    measures = text_rules.Measures()
    rules = {rule.name: rule for rule in VERDICT.rules}
    seen = set()
    for number in range(400):
        planted = generated_crawl_pages.page(generated_crawl_pages.Mix(seed=5, spam=0.3), number)
        values = measures.of(planted.text)
        if planted.rule:
            assert rules[PLANTED[planted.rule]].removes(values), planted
            seen.add(planted.rule)
        elif planted.language == "en":
            assert judge.first(VERDICT.rules, values) is None, planted
        assert language.detect(planted.text).code == planted.language
        masked = masking.mask(planted.text)
        assert (masked.num_emails, masked.num_ips) == (planted.emails, planted.public_ips)
    assert seen == PLANTED.keys()
