"""silver/documents -> silver/duplicates: exact and near-duplicates of a crawl, against itself and the crawls before it.

Crawls are compared in the order of their smallest keys, each with all before it, whose verdicts stand. A crawl is done
with its row in silver/dedup_report, which names what the result was computed from: it is taken away before the crawl's
rows are replaced and written last. A run that was killed between is simply made again, and the same is not computed
twice. Taking the row away draws a number, which only one of two gets that began at once, and under which all else is
committed: a run that another has overtaken writes nothing more (Delta's transaction identifiers see to it), and ends.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import Commit, WriteOptions, ensure, exists, files_at, latest_version, read, write
from headrace.catalog.log import Log
from headrace.catalog.scratch import kept, scratch
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import candidates, clusters, dedup
from headrace.features.components import components
from headrace.features.minhash import MinHash
from headrace.pipelines.dedup_request import check_earlier, compared_before, finished, request
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

DOCUMENTS, BANDS, DUPLICATES, REPORT = (
    f"silver/{name}" for name in ("documents", "minhash_bands", "duplicates", "dedup_report")
)
_CRAWL = re.compile(r"[\w.:+-]{1,200}", re.ASCII)
_LARGEST = 10
WRITER = "dedup-text"


@dataclass(kw_only=True)
class Settings:
    """What a duplicate is, and how it is looked for.

    Args:
        threshold: Jaccard of the shingle sets from which two documents are near-duplicates; 1 leaves exact ones only.
        ngram: words in a shingle.
        bands: bands of the MinHash signature.
        rows: rows in a band.
        seed: of the permutations.
        fold_digits: digits count as equal, as in FineWeb.
        max_bucket: documents in a bucket of which all pairs are compared; in larger ones each with a few neighbours.
        window: how many neighbours.
        max_cluster: documents of a cluster of near-duplicates; in larger ones only those go that are directly like one
            that stays.
    """

    threshold: float = 0.8
    ngram: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 0
    fold_digits: bool = False
    max_bucket: int = 200
    window: int = 10
    max_cluster: int = 1000

    def minhash(self) -> MinHash:
        """The part of it that signatures depend on."""
        return MinHash(self.ngram, self.bands, self.rows, self.seed, self.fold_digits)

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: a setting out of range.
        """
        self.minhash().check()
        if not 0 < self.threshold <= 1:
            raise UserError(f"dedup.threshold is {self.threshold}", "give a Jaccard over 0 and up to 1, such as 0.8")
        for name, least in (("max_bucket", 2), ("window", 1), ("max_cluster", 1)):
            if getattr(self, name) < least:
                raise UserError(f"dedup.{name} is {getattr(self, name)}", f"give {least} or more")


@dataclass(kw_only=True)
class Config:
    """Find the duplicates among the documents that no rule removed.

    Args:
        lake: folder of the tables.
        crawl: only these crawls, separated by commas; default: every crawl that has changed since it was last compared.
        dedup: what a duplicate is.
    """

    lake: str = "lake"
    crawl: str = ""
    dedup: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class _Run:
    """One crawl being compared."""

    spark: SparkSession
    lake: str
    crawl: str
    earlier: tuple[str, ...]
    settings: Settings
    report: Report
    work: str
    version: int  # of silver/documents
    number: int  # the next to be drawn when it began

    def put(self, rows: DataFrame, name: str) -> DataFrame:
        """Computed once, read as often as needed."""
        return kept(rows, f"{self.work}/{name}")

    def documents(self, crawls: tuple[str, ...]) -> DataFrame:
        rows = read(self.spark, load(DOCUMENTS), self.lake, self.version).where("text IS NOT NULL")
        return rows.where(rows["crawl"].isin(list(crawls)))

    def replace(self, table: str, rows: DataFrame, number: int | None = None) -> Commit:
        """The crawl's rows of a table, unless another run has begun to write.

        Raises:
            UserError: it has.
        """
        options = WriteOptions(replace_where=f"crawl = '{self.crawl}'", txn=(WRITER, number or self.number))
        commit = write(_of_crawl(rows, self.crawl), load(table), self.lake, mode="overwrite", options=options)
        if commit.skipped:
            raise UserError(f"another {WRITER} wrote to this lake meanwhile", "run it again when that has ended")
        return commit

    def of_earlier(self, table: str) -> DataFrame | None:
        if not self.earlier:
            return None
        rows = read(self.spark, load(table), self.lake)
        return rows.where(rows["crawl"].isin(list(self.earlier)))


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """The verb: see `deduplicate`."""
    wanted = [name.strip() for name in cfg.crawl.split(",") if name.strip()]
    deduplicate(spark, cfg.lake, wanted, cfg.dedup, report)
    return report


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no documents.
    """
    cfg.dedup.check()
    if not exists(load(DOCUMENTS).path(cfg.lake)):
        raise UserError(f"there is no {DOCUMENTS} in --lake {cfg.lake}", f"headrace featurize-text --lake {cfg.lake}")


def deduplicate(
    spark: SparkSession, lake: str | Path, crawls: str | list[str], settings: Settings, report: Report
) -> Report:
    """Bring silver/duplicates up to date.

    Args:
        spark: the session.
        lake: where the tables are.
        crawls: only these; empty: all that silver/documents holds, in the order of their keys.
        settings: what a duplicate is.
        report: gets stages, figures by crawl and warnings.

    Raises:
        UserError: no documents, an unknown crawl, a crawl before it that was not compared, or with other settings.
    """
    lake = str(lake)
    early(Config(lake=lake, dedup=settings))
    wanted = [crawls] if isinstance(crawls, str) and crawls else list(crawls)
    version = latest_version(load(DOCUMENTS).path(lake))
    firsts = _first_keys(spark, lake, version)
    order = sorted(firsts, key=lambda crawl: (firsts[crawl], crawl))
    for crawl in wanted:
        if crawl not in firsts:
            raise UserError(f"{DOCUMENTS} has no crawl {crawl!r}", f"it has: {', '.join(order) or 'none'}")
    for table in (BANDS, DUPLICATES, REPORT):
        ensure(spark, load(table), lake)
        report.paths[table.partition("/")[2]] = load(table).path(lake)
    if not wanted:
        _forget_crawls(spark, lake, firsts, settings, report)
    for place, crawl in enumerate(order):
        if not wanted or crawl in wanted:
            _bring_up_to_date(spark, lake, (crawl, *order[:place]), version, settings, report, firsts[crawl])
    if stale := compared_before(finished(read(spark, load(REPORT), lake))):
        report.warn(f"compared with crawls as they were before: {', '.join(stale)}; headrace dedup-text --lake {lake}")
    return report


def survivors(spark: SparkSession, lake: str | Path, documents: DataFrame) -> DataFrame:
    """The documents (with a column key) that are nobody's duplicate."""
    return documents.join(read(spark, load(DUPLICATES), lake).select("key"), "key", "left_anti")


def _first_keys(spark: SparkSession, lake: str, version: int) -> dict[str, int]:
    from pyspark.sql import functions as F

    rows = read(spark, load(DOCUMENTS), lake, version).groupBy("crawl").agg(F.min("key").alias("first")).collect()
    for row in rows:
        if not _CRAWL.fullmatch(row["crawl"]):
            raise UserError(
                f"{DOCUMENTS}: {row['crawl']!r} is no name of a crawl", "letters, digits and . _ : + - only"
            )
    return {row["crawl"]: row["first"] for row in rows}


def _forget_crawls(spark: SparkSession, lake: str, firsts: dict[str, int], settings: Settings, report: Report) -> None:
    """Take away what was found of crawls that silver/documents no longer has: of files that were forgotten.

    The number is drawn by writing the crawl's report as it is, which goes last: a run that was killed on the way is
    made again, since the report still names the crawl.
    """
    log = Log(load(REPORT).path(lake))
    told = finished(read(spark, load(REPORT), lake, log.latest))
    if not (gone := set(told) - set(firsts)):
        return
    version = latest_version(load(DOCUMENTS).path(lake))  # another run may have brought a crawl since, and compared it
    rows, number = read(spark, load(REPORT), lake, log.latest), log.transaction(WRITER, log.latest) + 1
    for place, crawl in enumerate(sorted(gone - set(_first_keys(spark, lake, version)))):
        run = _Run(spark, lake, crawl, (), settings, report, "", version, number + 2 * place)
        with report.stage("forget") as stage:
            run.replace(REPORT, rows.where(rows["crawl"] == crawl))
            for table in (BANDS, DUPLICATES):
                run.replace(table, read(spark, load(table), lake).limit(0))
            run.replace(REPORT, rows.limit(0), run.number + 1)
            stage.note = f"{crawl}: no longer in {DOCUMENTS}; its buckets, duplicates and report are taken away"


def _bring_up_to_date(
    spark: SparkSession,
    lake: str,
    crawls: tuple[str, ...],
    version: int,
    settings: Settings,
    report: Report,
    first_key: int,
) -> None:
    """Compare crawls[0] with itself and the others, unless the same was done."""
    crawl, earlier = crawls[0], crawls[1:]
    log = Log(load(REPORT).path(lake))
    done = finished(read(spark, load(REPORT), lake, log.latest))
    check_earlier(crawl, earlier, done, settings.minhash().to_json())
    files = files_at(load(DOCUMENTS), lake, version, {"crawl": crawl})
    text = request(files, {**asdict(settings), "minhash": settings.minhash().to_json()}, earlier, done)
    if done.get(crawl) == text:
        report.say(f"{crawl}: compared before, with the same settings and documents; nothing to do")
        return
    with scratch(lake, "dedup") as work:
        number = log.transaction(WRITER, log.latest) + 1
        run = _Run(spark, lake, crawl, earlier, settings, report, work, version, number)
        _compare(run, text, first_key)


def _compare(run: _Run, wanted: str, first_key: int) -> None:
    documents = run.documents((run.crawl,)).where("removed_by IS NULL")
    signed, wordless = _sign(run, documents)
    stands_for = run.of_earlier(DUPLICATES)
    linked, figures = _near_pairs(run, documents, signed, stands_for)
    near, clustered = _clustered(run, linked)
    rows = dedup.exact_rows(signed, near, stands_for).unionByName(near)
    rows = run.put(dedup.with_cluster_size(rows), "duplicates")
    counts = dedup.by_host(documents, rows)
    with run.report.stage("record") as stage:
        run.replace(REPORT, read(run.spark, load(REPORT), run.lake).limit(0))
        run.replace(BANDS, signed)
        run.replace(DUPLICATES, rows)
        version = run.replace(REPORT, _report_rows(counts, wanted, first_key), run.number + 1).version
        told = read(run.spark, load(REPORT), run.lake, version).where(f"crawl = '{run.crawl}'")
        total = told.where("host IS NULL").collect()[0]
        stage.rows_in, stage.rows_out = total["documents"], total["kept"]
        stage.note = f"{total['exact']:,} exact and {total['near']:,} near-duplicates go"
    account = {name: total[name] for name in ("documents", "exact", "near", "kept")}
    _conclude(run, told, rows, account | {"without_words": wordless} | figures | clustered)


def _sign(run: _Run, documents: DataFrame) -> tuple[DataFrame, int]:
    """What goes to silver/minhash_bands of this crawl; how many of it have no words, and nothing to compare."""
    known = run.of_earlier(BANDS)
    with run.report.stage("sign") as stage:
        signed = run.put(dedup.sign(documents, run.settings.minhash()), "signed")
        firsts = known.where("copy_of IS NULL") if known is not None else None
        marked = run.put(dedup.copies(signed, firsts), "marked")
        stage.rows_in = signed.count()
        stage.rows_out = marked.where("copy_of IS NULL").count()
        wordless = marked.where("shingles = 0").count()
        stage.note = f"{run.crawl}: {stage.rows_in - stage.rows_out:,} copies of other documents"
        stage.note += f", {wordless:,} without a word, which stay" if wordless else ""
    return marked, wordless


def _near_pairs(
    run: _Run, documents: DataFrame, signed: DataFrame, stands_for: DataFrame | None
) -> tuple[DataFrame, dict[str, Any]]:
    """Verified pairs, documents of earlier crawls by who stays for them; and figures of the search."""
    settings = run.settings
    known = run.of_earlier(BANDS)
    with run.report.stage("compare") as stage:
        fresh = candidates.bucketed(signed, True)
        shared = candidates.shared_buckets(fresh, candidates.bucketed(known, False) if known is not None else None)
        shared = run.put(shared, "buckets")
        pairs = run.put(candidates.pairs(shared, settings.max_bucket, settings.window), "pairs")
        sets = run.put(dedup.shingle_sets_of(_texts(run, documents, pairs), settings.minhash()), "sets")
        checked = run.put(dedup.verified(pairs, sets, settings.threshold), "verified")
        linked = run.put(dedup.edges(checked, stands_for), "edges")
        figures = {"candidate_pairs": pairs.count(), "verified_pairs": checked.count()}
        giant = candidates.skipped(shared, settings.max_bucket, settings.window)
        stage.note = f"{figures['candidate_pairs']:,} pairs share a bucket, {figures['verified_pairs']:,} are alike"
    wanted = pairs.selectExpr("a AS key").union(pairs.selectExpr("b AS key")).distinct().count()
    _warn_of_giants(run, giant, wanted - sets.count())
    return linked, figures | {"giant_buckets": giant}


def _texts(run: _Run, documents: DataFrame, pairs: DataFrame) -> DataFrame:
    """Key and text of the documents that are to be compared."""
    texts = documents.select("key", "text")
    if run.earlier:
        texts = texts.unionByName(run.documents(run.earlier).select("key", "text"))
    wanted = pairs.selectExpr("a AS key").union(pairs.selectExpr("b AS key")).distinct()
    return texts.join(wanted, "key", "left_semi")


def _warn_of_giants(run: _Run, giant: dict[str, int], lost: int) -> None:
    if giant["buckets"]:
        run.report.warn(
            f"{giant['buckets']:,} buckets hold more than {run.settings.max_bucket:,} documents (the largest "
            f"{giant['largest']:,}); up to {giant['pairs_skipped']:,} pairs in them were not compared: raise "
            "--dedup.max_bucket or --dedup.window to compare more"
        )
    if lost:
        run.report.warn(f"{lost:,} documents of earlier crawls are no longer in {DOCUMENTS}: not compared with them")


def _clustered(run: _Run, linked: DataFrame) -> tuple[DataFrame, dict[str, Any]]:
    """Near-duplicates that go; and figures of the clusters."""
    most = run.settings.max_cluster
    with run.report.stage("cluster") as stage:
        named = components(linked.selectExpr("a AS src", "b AS dst"), f"{run.work}/components")
        found = run.put(clusters.clusters(linked, named), "clusters")
        gone = clusters.removed(linked, named, found, most)
        near = run.put(dedup.near_rows(gone, linked), "near")
        sizes = found.selectExpr(
            "count(*) AS clusters", f"count_if(fresh > {most}) AS split", "max(fresh) AS largest",
            "sum(greatest(known - 1, 0)) AS bridged",
        ).collect()[0].asDict()  # fmt: skip
        stage.rows_out = near.count()
        stage.note = f"{sizes['clusters']:,} clusters of near-duplicates, the largest of {sizes['largest'] or 0:,}"
    if sizes["split"]:
        run.report.warn(
            f"{sizes['split']:,} clusters hold more than {most:,} documents (the largest {sizes['largest']:,}): in "
            "these only documents that are directly like one that stays were removed (--dedup.max_cluster)"
        )
    return near, {key: value or 0 for key, value in sizes.items()}


def _of_crawl(rows: DataFrame, crawl: str) -> DataFrame:
    from pyspark.sql import functions as F

    return rows.withColumn("crawl", F.lit(crawl))


def _report_rows(counts: DataFrame, wanted: str, first_key: int) -> DataFrame:
    from pyspark.sql import functions as F

    whole = F.col("host").isNull()
    rows = counts.withColumn("first_key", F.when(whole, F.lit(first_key).cast("bigint")))
    return rows.withColumn("request", F.when(whole, F.lit(wanted))).coalesce(1)


def _conclude(run: _Run, told: DataFrame, rows: DataFrame, figures: dict[str, Any]) -> None:
    """The report by crawl and host, and the biggest clusters."""
    from pyspark.sql import functions as F

    gone = F.col("exact") + F.col("near")
    worst = told.where("host IS NOT NULL").where(gone > 0).orderBy(gone.desc(), "host").limit(_LARGEST)
    largest = rows.select("survivor", "cluster_size").distinct().orderBy(F.col("cluster_size").desc(), "survivor")
    urls = read(run.spark, load(DOCUMENTS), run.lake, run.version).selectExpr("key AS survivor", "url")
    named = largest.limit(_LARGEST).join(urls, "survivor").collect()
    figures["hosts"] = [row.asDict() for row in worst.select("host", "documents", "exact", "near", "kept").collect()]
    figures["largest_clusters"] = sorted(
        ({"survivor": row["survivor"], "documents": row["cluster_size"], "url": row["url"]} for row in named),
        key=lambda cluster: (-cluster["documents"], cluster["survivor"]),
    )
    for host in figures["hosts"]:
        counts = ", ".join(f"{host[name]:,} {name}" for name in ("documents", "exact", "near", "kept"))
        run.report.say(f"  {host['host'] or '(no host)'}: {counts}")
    for cluster in figures["largest_clusters"]:
        run.report.say(
            f"  {cluster['documents']:,} documents stand for one, key {cluster['survivor']}: {cluster['url']}"
        )
    run.report.results.setdefault("crawls", {})[run.crawl] = figures
