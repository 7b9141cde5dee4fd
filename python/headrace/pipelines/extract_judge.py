"""The stages extract and judge of featurize-text: bronze/commoncrawl -> silver/documents, and its verdicts anew.

Runs may work beside each other. A commit is made only on the state of the table that it was made from: all commits here
are numbered under one of Delta's transaction identifiers, and of two runs that saw the same number Delta lets one
through (docs/decisions/0015-text.md). The other looks again: at what judge has to judge, at whether a batch is there,
at which documents are of files that were forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import (
    Commit,
    WriteOptions,
    commit_metadata,
    exists,
    latest_version,
    read,
    small_frame,
    write,
)
from headrace.catalog.ledger import Ledger, LedgerFile
from headrace.catalog.log import Log
from headrace.catalog.scratch import scratch
from headrace.catalog.spec import load
from headrace.config import suggest
from headrace.errors import UserError
from headrace.features import documents
from headrace.features.documents import Recipe, Verdict
from headrace.features.sequences import small_batches
from headrace.ingest.batch import are_of
from headrace.ingest.commoncrawl import NAME
from headrace.ingest.lines import LINE_BITS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from headrace.report import Report

BRONZE, DOCUMENTS = f"bronze/{NAME}", "silver/documents"
WRITER = "featurize-text"
_ATTEMPTS = 10
_RECORDS_AT_ONCE = 16  # at 4 MiB a page, Spark's 10,000 would be the memory of a machine
_BYTES_PER_TASK = 32 << 20
_MADE = ("extracted", "measured", "judged", "empty_batches")  # what a commit says that all later ones go by


@dataclass(frozen=True)
class Work:
    """A run's settings as they are used, and as they are written beside what they made."""

    recipe: Recipe
    verdict: Verdict
    extracted: dict[str, Any]
    measured: dict[str, Any]
    judged: dict[str, Any]

    def made(self) -> dict[str, Any]:
        """What a commit of silver/documents says of itself."""
        return {"extracted": self.extracted, "measured": self.measured, "judged": self.judged}


@dataclass(frozen=True)
class _State:
    """silver/documents as it was found.

    Args:
        version: its newest; None where there is no table.
        made: what that says of itself; nothing where it has no documents yet.
        turn: commits of this module's so far.
    """

    version: int | None = None
    made: Mapping[str, Any] = field(default_factory=dict)
    turn: int = 0

    def next(self) -> WriteOptions:
        """Commit on this state, or not at all."""
        return WriteOptions(txn=(WRITER, self.turn + 1))


@dataclass(frozen=True)
class Stages:
    """Both stages of one run."""

    spark: SparkSession
    lake: str
    work: Work
    report: Report

    def extract(self, crawls: str, rebuild: bool) -> None:
        """Take out the documents of forgotten files; append those of each batch that is not there, a commit a batch.

        Args:
            crawls: only these of bronze, separated by commas; empty for all.
            rebuild: make all of it again first, in one commit.

        Raises:
            UserError: an unknown crawl; documents extracted with other settings; too many runs at once.
        """
        self.report.paths["documents"] = load(DOCUMENTS).path(self.lake)
        forgotten = self._forgotten()  # before bronze is looked at: what is read below has none of their rows
        version = latest_version(load(BRONZE).path(self.lake))
        records = read(self.spark, load(BRONZE), self.lake, version)
        if rebuild:
            self._extract(records, "all", rebuild)
        state = self._state()
        self._refuse_other_extraction(state)
        batches = self._new_batches(records, crawls, self._batches_of(state))
        self._take_out(forgotten)
        if not batches and not rebuild:
            self.report.say(f"nothing to extract: silver/documents has every batch of {BRONZE} version {version}")
        for batch in batches:
            self._extract(records.where(records["batch_id"] == batch), batch)

    def judge(self) -> None:
        """Make values, where their settings changed, and removed_by anew, from what is stored.

        Raises:
            UserError: too many runs at once.
        """
        for _ in range(_ATTEMPTS):
            state = self._state()
            same = {name: state.made.get(name) == getattr(self.work, name) for name in ("measured", "judged")}
            if not state.made or all(same.values()):
                self.report.say("nothing to judge: silver/documents was judged with these settings")
                return
            if self._judged(state, measure=not same["measured"]):
                return
        raise _crowded()

    def _state(self) -> _State:
        path = load(DOCUMENTS).path(self.lake)
        if not exists(path):
            return _State()
        log = Log(path)
        made = commit_metadata(path, log.latest)
        return _State(log.latest, made if "extracted" in made else {}, log.transaction(WRITER, log.latest))

    def _refuse_other_extraction(self, state: _State) -> None:
        if state.made and state.made["extracted"] != self.work.extracted:
            other = sorted(k for k, v in self.work.extracted.items() if state.made["extracted"].get(k) != v)
            raise UserError(
                f"silver/documents was extracted with another {', '.join(other)}",
                "give the same, or extract everything again: --rebuild",
            )

    def _batches_of(self, state: _State) -> set[str]:
        """Batches that have documents, or were found to hold none."""
        if state.version is None:
            return set()
        rows = read(self.spark, load(DOCUMENTS), self.lake, state.version).select("batch_id").distinct().collect()
        return {row["batch_id"] for row in rows} | set(state.made.get("empty_batches", ()))

    def _has(self, state: _State, batch: str) -> bool:
        """Whether a batch is one of them; by Delta's statistics few files are looked at."""
        if state.version is None:
            return False
        if batch in state.made.get("empty_batches", ()):
            return True
        rows = read(self.spark, load(DOCUMENTS), self.lake, state.version)
        return not rows.where(rows["batch_id"] == batch).isEmpty()

    def _forgotten(self) -> list[LedgerFile]:
        """Files whose rows are gone from bronze; none where bronze was not written by an ingest."""
        known = exists(load("meta/ledger").path(self.lake))
        return Ledger(self.spark, self.lake, NAME).state().forgotten if known else []

    def _take_out(self, forgotten: Sequence[LedgerFile]) -> None:
        """Documents of forgotten files out of the table, in one commit, which says how many went of which file.

        Settings of what stays are as they were, so judge has nothing to do for it. What a slower run appends of these
        files later is found by the next one: whether documents are there is looked up in the table.
        """
        spec, nothing = load(DOCUMENTS), small_frame(self.spark, load(DOCUMENTS), [])
        for _ in range(_ATTEMPTS):
            state = self._state()
            counts = self._documents_of(state, forgotten)
            if not counts:
                return
            where = are_of(spec, [file for file in forgotten if file.ordinal in counts])
            metadata = {name: state.made[name] for name in _MADE if name in state.made}
            metadata["documents_removed"] = {str(ordinal): rows for ordinal, rows in sorted(counts.items())}
            with self.report.stage("forget") as stage:
                options = replace(state.next(), replace_where=where)
                commit = write(nothing, spec, self.lake, mode="overwrite", metadata=metadata, options=options)
                gone = 0 if commit.skipped else sum(counts.values())
                stage.note = f"{gone:,} documents of {len(counts):,} forgotten files taken out"
                if commit.skipped:
                    stage.note = f"not committed: another run has made version {commit.version}"
            if not commit.skipped:
                self.report.results["documents_forgotten"] = gone
                return
        raise _crowded()

    def _documents_of(self, state: _State, files: Sequence[LedgerFile]) -> dict[int, int]:
        """How many documents there are of each of these files, by ordinal; of files without any nothing."""
        from pyspark.sql import functions as F

        if state.version is None or not files:
            return {}
        rows = read(self.spark, load(DOCUMENTS), self.lake, state.version)
        # Of all files, then of these: after years thousands may have been forgotten, too many for a condition.
        found = rows.groupBy(F.shiftright("key", LINE_BITS).alias("ordinal")).count().collect()
        wanted = {file.ordinal for file in files}
        return {int(row["ordinal"]): row["count"] for row in found if row["ordinal"] in wanted}

    def _new_batches(self, records: DataFrame, crawls: str, done: set[str]) -> list[str]:
        """Batches of bronze that are not done, by their first key."""
        from pyspark.sql import functions as F

        rows = records.groupBy("batch_id", "crawl").agg(F.min("key").alias("first")).collect()
        wanted = {name.strip() for name in crawls.split(",") if name.strip()}
        known = {row["crawl"] for row in rows}
        if missing := wanted - known:
            raise UserError(
                f"--crawl: bronze/commoncrawl has no {', '.join(sorted(missing))}",
                suggest(min(missing), sorted(known)),
            )
        first: dict[str, int] = {}
        for row in rows:
            if row["batch_id"] not in done and (not wanted or row["crawl"] in wanted):
                first[row["batch_id"]] = min(row["first"], first.get(row["batch_id"], row["first"]))
        return sorted(first, key=lambda batch: first[batch])

    def _extract(self, records: DataFrame, batch: str, rebuild: bool = False) -> None:
        """Documents of the records, put down first: a commit that comes too late is tried again, not made again."""
        from pyspark.sql import functions as F

        spec = load(DOCUMENTS)
        wanted = _records(records, self.work.recipe.extract.max_bytes)
        with (
            self.report.stage("extract") as stage,
            small_batches(self.spark, _RECORDS_AT_ONCE),
            scratch(self.lake, "extract-text") as place,
        ):
            seen = wanted.agg(F.count(F.lit(1)), F.coalesce(F.sum("payload_bytes"), F.lit(0))).collect()[0]
            stage.rows_in, stage.bytes_in = int(seen[0]), int(seen[1])
            tasks = max(self.spark.sparkContext.defaultParallelism, -(-stage.bytes_in // _BYTES_PER_TASK))
            work = partial(documents.extracted, recipe=self.work.recipe, verdict=self.work.verdict)
            wanted.repartition(tasks, "key").mapInArrow(work, spec.to_spark()).write.parquet(f"{place}/rows")
            rows = self.spark.read.schema(spec.to_spark()).parquet(f"{place}/rows")
            commit = self._added(rows, batch, not stage.rows_in, rebuild)
            stage.rows_out = commit.rows_added if commit else 0
            stage.note = f"{batch}: {_errors(rows) if commit else 'another run has extracted it meanwhile'}"

    def _added(self, rows: DataFrame, batch: str, empty: bool, rebuild: bool) -> Commit | None:
        """Commit a batch, or all of them in place of what is there; None where the batch is in the table by now."""
        for _ in range(_ATTEMPTS):
            state = self._state()
            if not rebuild:
                self._refuse_other_extraction(state)
                if self._has(state, batch):
                    return None
            before = {} if rebuild else state.made
            mine = {
                **self.work.made(),
                "empty_batches": [*before.get("empty_batches", ()), *([batch] if empty else [])],
            }
            commit = write(
                rows,
                load(DOCUMENTS),
                self.lake,
                mode="overwrite" if rebuild else "append",
                metadata=mine | _mixed(before, self.work),
                batch_id=batch,
                options=state.next(),
            )
            if not commit.skipped:
                return commit
        raise _crowded()

    def _judged(self, state: _State, measure: bool) -> bool:
        """Judge one version; whether it was still the newest when that was done."""
        spec = load(DOCUMENTS)
        with (
            self.report.stage("measure, judge" if measure else "judge") as stage,
            small_batches(self.spark, _RECORDS_AT_ONCE),
        ):
            rows = read(self.spark, spec, self.lake, state.version)
            stage.rows_in = rows.count()
            if measure:
                work = partial(documents.measured, recipe=self.work.recipe, verdict=self.work.verdict)
                rows = rows.mapInArrow(work, spec.to_spark())
            else:
                rows = rows.withColumn("removed_by", self.work.verdict.column())
            kept = {"extracted": state.made["extracted"], "empty_batches": state.made.get("empty_batches", [])}
            mine = self.work.made() | kept
            commit = write(rows, spec, self.lake, mode="overwrite", metadata=mine, options=state.next())
            stage.rows_out = 0 if commit.skipped else commit.rows
            stage.note = f"version {commit.version}"
            if commit.skipped:
                stage.note = f"not committed: another run has made version {commit.version}, which is judged next"
        return not commit.skipped


def _errors(rows: DataFrame) -> str:
    """How many documents have no text, by reason."""
    found = rows.where("extract_error IS NOT NULL").groupBy("extract_error").count().collect()
    counts = {row["extract_error"]: row["count"] for row in found}
    return "no text: " + (", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none")


def _crowded() -> UserError:
    return UserError(
        f"{_ATTEMPTS} tries to write silver/documents, each time another run came between",
        "run it again when fewer runs work on this lake; what is done is not done again",
    )


def _mixed(made: Mapping[str, Any], work: Work) -> dict[str, str]:
    """Where older rows were measured or judged with other settings, say so: the stage judge makes them one again."""
    return {name: "mixed" for name in ("measured", "judged") if made and made.get(name) != getattr(work, name)}


def _records(records: DataFrame, max_bytes: int) -> DataFrame:
    """What a worker gets of the records that may hold text: no payload that is too large."""
    from pyspark.sql import functions as F

    # What the server sent, without chunks and content encoding where it had them.
    content = F.coalesce("body", "payload")
    size = F.coalesce(F.octet_length("body").cast("bigint"), F.col("payload_length"))
    return records.where(F.col("type").isin(*documents.KINDS)).select(
        "key",
        "batch_id",
        F.coalesce(F.nullif("crawl", F.lit("")), F.lit("unknown")).alias("crawl"),
        *("type", "date", "target_uri", "http_status", "http_content_type"),
        F.when(size <= max_bytes, content).alias("payload"),
        size.cast("bigint").alias("payload_bytes"),
    )
