"""Records of bronze/commoncrawl as rows of silver/documents: text, language, every rule's value.

Pure functions over Arrow batches, run in Spark by mapInArrow. Each record is worked on in a guarded child (see
guarded), so that a page which hangs or crashes a parser is a row with extract_error, and costs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from headrace.catalog.spec import load
from headrace.features import language, main_text, masking, text_rules, url_filter
from headrace.features.guarded import Guarded, Lost
from headrace.features.text_rules import c4, judge

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column

INPUT = (
    *("key", "batch_id", "crawl", "type", "date", "target_uri"),
    *("http_status", "http_content_type", "payload", "payload_bytes"),
)
KINDS = ("response", "conversion")
_FLUSH_ROWS, _FLUSH_CHARS = 512, 8 << 20


@dataclass(kw_only=True, frozen=True)
class Limits:
    """What one document may cost.

    Args:
        seconds: of CPU time; over it, or over ten times as long by the clock, the document is a timeout.
        memory_mb: by which the process that works on it may grow.
    """

    seconds: float = 20.0
    memory_mb: int = 1536


@dataclass(kw_only=True, frozen=True)
class Recipe:
    """All that enters the values of a row, apart from thresholds."""

    extract: main_text.Settings = field(default_factory=main_text.Settings)
    measure: text_rules.Settings = field(default_factory=text_rules.Settings)
    language_chars: int = 6000
    bad_words: tuple[str, ...] = ()
    bad_words_whole: bool = True
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Verdict:
    """What decides removed_by, in order: URL lists, extraction, language, rules."""

    rules: tuple[judge.Rule, ...]
    languages: tuple[str, ...]
    min_score: float
    urls: url_filter.UrlFilter | None = None

    def of(self, row: Mapping[str, Any]) -> str | None:
        """The first reason to remove a row, None if it stays."""
        if self.urls and (listed := self.urls.reason(row["url"])):
            return listed
        if row["extract_error"] is not None:
            return f"extract_{row['extract_error']}"
        if self.languages and row["language"] not in self.languages:
            return "language_other"
        if self.languages and row["language_score"] < self.min_score:
            return "language_unsure"
        return judge.first(self.rules, row)

    def sql(self) -> str:
        """The same as a Spark SQL expression over silver/documents, but for the URL lists."""
        cases = ["WHEN extract_error IS NOT NULL THEN concat('extract_', extract_error)"]
        if self.languages:
            known = ", ".join(f"'{code}'" for code in self.languages)
            cases.append(f"WHEN language IS NULL OR language NOT IN ({known}) THEN 'language_other'")
            cases.append(f"WHEN language_score < {self.min_score!r}D THEN 'language_unsure'")
        cases += [f"WHEN {rule.sql()} THEN '{rule.name}'" for rule in self.rules]
        return f"CASE {' '.join(cases)} END"

    def column(self) -> Column:
        """removed_by as a Spark column; with URL lists, Python looks at the URLs alone."""
        from pyspark.sql import functions as F

        by_values = F.expr(self.sql())
        if not self.urls:
            return by_values
        return F.coalesce(F.udf(self.urls.reason, "string", useArrow=True)(F.col("url")), by_values)


def extracted(batches: Iterable[pa.RecordBatch], recipe: Recipe, verdict: Verdict) -> Iterator[pa.RecordBatch]:
    """Records -> documents, extracted, measured and judged.

    Args:
        batches: with the columns of INPUT.
        recipe: how the values are made.
        verdict: what decides removed_by.
    """
    yield from _guarded(batches, partial(_document, _worker(recipe)), verdict, recipe, _record_lost)


def measured(batches: Iterable[pa.RecordBatch], recipe: Recipe, verdict: Verdict) -> Iterator[pa.RecordBatch]:
    """Documents with the rules' values made anew from their texts, and judged."""
    yield from _guarded(batches, partial(_again, _worker(recipe)), verdict, recipe, _document_lost)


@dataclass
class _Worker:
    recipe: Recipe
    measures: text_rules.Measures


def _worker(recipe: Recipe) -> _Worker:
    """Everything loaded, before the child is forked."""
    main_text.warm()
    language.detect("warm")
    measures = text_rules.Measures(recipe.measure, c4.word_pattern(recipe.bad_words, recipe.bad_words_whole))
    measures.of("Warm.")
    return _Worker(recipe, measures)


def _guarded(
    batches: Iterable[pa.RecordBatch], work: Any, verdict: Verdict, recipe: Recipe, lost: Any
) -> Iterator[pa.RecordBatch]:
    """Work on the rows one by one; batches out are bounded by rows and by characters."""
    limits = recipe.limits
    rows: list[dict[str, Any]] = []
    chars = 0
    with Guarded[dict[str, Any], dict[str, Any]](
        work, seconds=limits.seconds, memory_bytes=limits.memory_mb << 20
    ) as guarded:
        for batch in batches:
            for at in range(batch.num_rows):
                record = {
                    name: column[at].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
                result = guarded(record)
                row = lost(record, result) if isinstance(result, Lost) else result
                row["removed_by"] = verdict.of(row)
                rows.append(row)
                chars += row["num_chars"]
                if len(rows) >= _FLUSH_ROWS or chars >= _FLUSH_CHARS:
                    yield _batch(rows)
                    rows, chars = [], 0
    if rows:
        yield _batch(rows)


def _batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows, schema())


@lru_cache(1)
def schema() -> pa.Schema:
    """Of silver/documents, every column nullable as Spark's Arrow exchange has it, times in UTC."""
    import pyarrow as pa

    fields = []
    for item in load("silver/documents").to_arrow():
        kind = pa.timestamp("us", "UTC") if pa.types.is_timestamp(item.type) else item.type
        fields.append(pa.field(item.name, kind))
    return pa.schema(fields)


def _document(worker: _Worker, record: dict[str, Any]) -> dict[str, Any]:
    """One row, in the child."""
    found, extractor = _extract(record, worker.recipe)
    row = _empty(record, found.error) | {"encoding": found.encoding, "extractor": extractor, "title": found.title}
    if found.text is None:
        return row
    detected = language.detect(found.text, worker.recipe.language_chars)
    row |= {"text": found.text, "num_chars": len(found.text)}
    row |= {"language": detected.code, "language_score": detected.score if detected.code else None}
    return _measure(worker, row)


def _again(worker: _Worker, row: dict[str, Any]) -> dict[str, Any]:
    return row if row["text"] is None else _measure(worker, row)


def _measure(worker: _Worker, row: dict[str, Any]) -> dict[str, Any]:
    _, num_emails, num_ips = masking.mask(row["text"])
    return row | {"num_emails": num_emails, "num_ips": num_ips} | worker.measures.of(row["text"])


def _extract(record: Mapping[str, Any], recipe: Recipe) -> tuple[main_text.Extracted, str]:
    payload, published = record["payload"], record["type"] == "conversion"
    extractor = "published" if published else main_text.version()
    allowed = {status.strip() for status in recipe.extract.status.split(",")}
    if not published and str(record["http_status"]) not in allowed:
        return main_text.Extracted(None, "http_status"), extractor
    if payload is None:
        return main_text.Extracted(None, "too_large" if record["payload_bytes"] else "no_payload"), extractor
    if published:
        return main_text.published(payload, recipe.extract), extractor
    found = main_text.extract(payload, record["http_content_type"], recipe.extract)
    plain = main_text.media_type(record["http_content_type"]) == main_text.PLAIN
    return found, "plain" if plain else extractor


def _empty(record: Mapping[str, Any], error: str | None) -> dict[str, Any]:
    """A row without text."""
    host, domain = url_filter.place(record["target_uri"])
    row = dict.fromkeys(schema().names) | {name: record[name] for name in ("key", "batch_id", "crawl", "date")}
    row |= {"record_type": record["type"], "url": record["target_uri"], "host": host, "domain": domain}
    row |= {"content_type": main_text.media_type(record["http_content_type"]), "extract_error": error}
    return row | {"extractor": main_text.version(), "num_chars": 0, "num_emails": 0, "num_ips": 0}


def _record_lost(record: Mapping[str, Any], lost: Lost) -> dict[str, Any]:
    return _empty(record, lost.reason)


def _document_lost(row: Mapping[str, Any], lost: Lost) -> dict[str, Any]:
    """Its values cannot be made again: the text goes too, or it would be judged by old ones."""
    cleared = {name: None for name in row if name.startswith("rule_")} | {"text": None, "extract_error": lost.reason}
    return dict(row) | cleared | {"num_chars": 0, "num_emails": 0, "num_ips": 0}
