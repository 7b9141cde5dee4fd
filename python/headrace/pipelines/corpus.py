"""silver/documents -> gold/corpus: what no rule removed and is nobody's duplicate, masked: a part of featurize-text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import commit_metadata, exists, files_at, latest_version, read, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import masking
from headrace.features.text_rules import c4
from headrace.pipelines.dedup_request import finished, outdated

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

    from headrace.report import Report

CORPUS, DOCUMENTS = "gold/corpus", "silver/documents"
DUPLICATES, DEDUP_REPORT = "silver/duplicates", "silver/dedup_report"


@dataclass(kw_only=True)
class Config:
    """How the corpus is made.

    Args:
        mask: what stands for e-mail addresses and IP numbers.
        drop_lines: leave out the lines that C4's rules drop.
        c4: by which settings.
        without_duplicates: leave out what silver/duplicates names.
    """

    mask: masking.Settings = field(default_factory=masking.Settings)
    drop_lines: bool = False
    c4: c4.Settings = field(default_factory=c4.Settings)
    without_duplicates: bool = True


def make(spark: SparkSession, lake: str, cfg: Config, report: Report) -> None:
    """Make gold/corpus of the newest silver/documents, in one overwrite; what was made from the same stays.

    Raises:
        UserError: documents that were judged with different settings; duplicates of other documents than these.
    """
    spec, documents = load(CORPUS), load(DOCUMENTS)
    report.paths["corpus"] = spec.path(lake)
    request = _request(spark, lake, cfg, report)
    if exists(spec.path(lake)):
        made = commit_metadata(spec.path(lake), latest_version(spec.path(lake)))
        if made.get("request") == request:
            report.say("nothing to do: gold/corpus was made from the same documents with the same settings")
            return
    with report.stage("corpus") as stage:
        rows = read(spark, documents, lake, request["documents_version"]).where("removed_by IS NULL")
        stage.rows_in = rows.count()
        if request["duplicates_version"] is not None:
            gone = read(spark, load(DUPLICATES), lake, request["duplicates_version"]).select("key")
            rows = rows.join(gone, "key", "left_anti")
        names = [column.name for column in spec.columns if column.name != "num_masked"]
        masked = rows.select(*names).mapInArrow(_masker(cfg), spec.to_spark())
        commit = write(masked, spec, lake, mode="overwrite", metadata={"request": request})
        stage.rows_out = commit.rows
        stage.note = f"version {commit.version}; {stage.rows_in - commit.rows:,} are duplicates or have no line left"
    report.results["corpus"] = {"version": commit.version, "documents": commit.rows}


def _request(spark: SparkSession, lake: str, cfg: Config, report: Report) -> dict[str, Any]:
    path = load(DOCUMENTS).path(lake)
    version = latest_version(path)
    if commit_metadata(path, version).get("judged") == "mixed":
        raise UserError("silver/documents was judged with different settings", "run the stage judge first")
    duplicates = _duplicates(spark, lake, version, report) if cfg.without_duplicates else None
    request = {"documents_version": version, "duplicates_version": duplicates}
    return request | asdict(cfg.mask) | {"drop_lines": asdict(cfg.c4) if cfg.drop_lines else None}


def _duplicates(spark: SparkSession, lake: str, documents_version: int, report: Report) -> int | None:
    """The version of silver/duplicates that belongs to these documents; None where nobody has looked for any.

    Of other documents it would take out what nobody stays for: a survivor may have been removed since.
    """
    path = load(DUPLICATES).path(lake)
    if not exists(path):
        report.warn(f"nobody has looked for duplicates: they stay in {CORPUS}; headrace dedup-text --lake {lake}")
        return None
    version = latest_version(path)
    looked = exists(load(DEDUP_REPORT).path(lake))
    done = finished(read(spark, load(DEDUP_REPORT), lake)) if looked else {}
    stale = outdated(done, files_at(load(DOCUMENTS), lake, documents_version))
    if stale or latest_version(path) != version:
        which = ", ".join(stale[:5]) + (" ..." if len(stale) > 5 else "")
        raise UserError(
            f"{DUPLICATES} is not of these documents: " + (which or "another run is writing it"),
            f"headrace dedup-text --lake {lake} (or the stage dedup) first; --duplicates false leaves duplicates in",
        )
    return version


def _masker(cfg: Config) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            texts = batch.column("text").to_pylist()
            if cfg.drop_lines:
                texts = [c4.kept_lines(text, cfg.c4) for text in texts]
            found = [masking.mask(text, cfg.mask) for text in texts]
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            columns["text"] = pa.array([item.text for item in found], pa.string())
            columns["num_chars"] = pa.array([len(item.text) for item in found], pa.int64())
            columns["num_masked"] = pa.array([item.num_emails + item.num_ips for item in found], pa.int32())
            kept = pa.array([bool(item.text) for item in found], pa.bool_())
            yield pa.RecordBatch.from_arrays(list(columns.values()), list(columns)).filter(kept)

    return work
