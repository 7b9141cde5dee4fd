"""Crawl files - WARC, WET, WAT, ARC, local or on the web - into `bronze/commoncrawl`, every record accounted for.

Files on the web land in a folder first, a few at a time, and are ingested from there; single records that a URL index
names land together as WARC files of their own. What the ledger has closed is not fetched again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.catalog.ledger import Ledger, LedgerFile
from headrace.errors import UserError
from headrace.ingest import commoncrawl_paths as paths
from headrace.ingest.claim import claim_folder
from headrace.ingest.commoncrawl import NAME, CommonCrawlSource
from headrace.ingest.commoncrawl_fetch import Fetcher, FetchSettings
from headrace.ingest.commoncrawl_index import Match
from headrace.ingest.commoncrawl_paths import Origin
from headrace.ingest.commoncrawl_rows import BAD_DIGEST, Reading
from headrace.ingest.commoncrawl_singles import SELECTION, Selection, land_selection, select, selection_of, selections
from headrace.ingest.days import find_files
from headrace.pipelines.ingest_files import Settings, give_up_command, ingest
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


_NOTHING_ACCEPTED = (
    "headrace quarantine --source commoncrawl says why; --bad_digest keep takes records whose digest does not hold"
)
_NAMED = 5  # records in a warning
_SUMMED = ("files", "rows_read", "rows_committed", "rows_quarantined")


@dataclass(kw_only=True)
class MatchConfig:
    """Which captures of the URL index are read: those that satisfy all that is given.

    Args:
        domains: hosts, their subdomains included, separated by commas.
        prefixes: beginnings of addresses, without the scheme.
        mimes: types such as text/html, or text/*.
        statuses: answers such as 200.
        languages: three-letter codes such as eng,deu.
    """

    domains: str = ""
    prefixes: str = ""
    mimes: str = ""
    statuses: str = ""
    languages: str = ""

    def match(self) -> Match:
        """Parsed.

        Raises:
            UserError: a status is no number.
        """
        if not all(each.isdecimal() for each in _words(self.statuses)):
            raise UserError(f"--match.statuses {self.statuses} are not numbers", "write --match.statuses 200,304")
        return Match(
            domains=_words(self.domains),
            prefixes=_words(self.prefixes),
            mimes=_words(self.mimes),
            statuses=tuple(int(each) for each in _words(self.statuses)),
            languages=_words(self.languages),
        )


@dataclass(kw_only=True)
class FetchConfig:
    """How files on the web are fetched.

    Args:
        landing: folder that they land in; default LAKE/landing/commoncrawl.
        remove: remove what has landed once its batch is closed.
        files: so many files land, are ingested (and removed) before the next ones.
        downloads: files at the same time.
        requests_per_second: over all downloads; 0 = as fast as it goes.
        bytes_per_second: over all downloads; 0 = as fast as it goes.
        attempts: tries in a row without a byte of progress before a file is given up.
        timeout_s: without a byte from the server.
        backoff_s: first wait between tries; doubles up to a minute.
        max_file_bytes: larger files are refused.
        s3_endpoint: for s3:// addresses; default data.commoncrawl.org for the crawl's bucket, amazonaws.com for others.
    """

    landing: str = ""
    remove: bool = False
    files: int = 16
    downloads: int = 4
    requests_per_second: float = 4.0
    bytes_per_second: float = 0.0
    attempts: int = 8
    timeout_s: float = 60.0
    backoff_s: float = 1.0
    max_file_bytes: int = 16 << 30
    s3_endpoint: str = ""

    def settings(self) -> FetchSettings:
        """Those of a download."""
        return FetchSettings(
            attempts=self.attempts,
            timeout_s=self.timeout_s,
            backoff_s=self.backoff_s,
            requests_per_second=self.requests_per_second,
            bytes_per_second=self.bytes_per_second,
            max_file_bytes=self.max_file_bytes,
        )


@dataclass(kw_only=True)
class Config:
    """Read crawl files (WARC, WET, WAT, ARC; gzip, lz4, zstd or plain) into the lake, each once.

    Args:
        lake: folder of the tables.
        source: files, folders, quoted patterns, http(s) and s3 addresses, or lists of paths such as warc.paths.gz,
            separated by commas.
        base: what the paths of lists and indexes stand under: a folder, https://data.commoncrawl.org or s3://commoncrawl;
            default the place above crawl-data/ or cc-index/ where the list or index itself lies.
        index: files of a URL index (CDX, CDXJ), instead of source: single records are read.
        match: which captures of the index.
        max_records: refuse to read more single records than that.
        limit: only the first so many files; 0 = all.
        crawl: name of the crawl, such as CC-MAIN-2024-22; default from the files' names.
        types: record types to commit, such as response,conversion; all; default what the file is for (responses,
            resources and conversions; metadata of WAT).
        bad_digest: records whose digest does not hold: quarantine, or keep (with digest_ok false).
        payload: commit the payloads; false for headers only.
        allow_duplicates: read files whose content is in the lake already under another name.
        batch_bytes: about how much input one commit takes.
        max_record_bytes: larger records go to quarantine; 0 = the reader's default.
        max_ratio: members that inflate more go to quarantine; 0 = the reader's default.
        raw_bytes: how much of what is refused is kept.
        fetch: how files on the web are fetched.
    """

    lake: str = "lake"
    source: str = ""
    base: str = ""
    index: str = ""
    match: MatchConfig = field(default_factory=MatchConfig)
    max_records: int = 100_000
    limit: int = 0
    crawl: str = ""
    types: str = ""
    bad_digest: str = "quarantine"
    payload: bool = True
    allow_duplicates: bool = False
    batch_bytes: int = 1 << 30
    max_record_bytes: int = 0
    max_ratio: int = 0
    raw_bytes: int = 1 << 16
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def reading(self) -> Reading:
        """How files are read."""
        return Reading(
            types=_words(self.types),
            bad_digest=self.bad_digest,
            payload=self.payload,
            max_record_bytes=self.max_record_bytes,
            max_ratio=self.max_ratio,
            raw_bytes=self.raw_bytes,
        )


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a setting out of range, no such file.
    """
    if bool(cfg.source) == bool(cfg.index):
        raise UserError("give either --source or --index", "--source 'crawl/*.warc.gz', or --index cdx-00000.gz")
    if cfg.bad_digest not in BAD_DIGEST:
        raise UserError(f"--bad_digest {cfg.bad_digest} is unknown", f"one of {', '.join(BAD_DIGEST)}")
    _check_numbers(cfg)
    if cfg.crawl and not (cfg.crawl.isascii() and cfg.crawl.replace("-", "").isalnum()):
        raise UserError(f"--crawl {cfg.crawl!r} is no crawl's name", "letters, digits and -, as CC-MAIN-2024-22")
    cfg.fetch.settings().check()
    if cfg.match.match() != Match() and not cfg.index:
        raise UserError("--match chooses from a URL index", "give --index cdx-00000.gz as well")
    _landing(cfg)
    for part in _words(cfg.source or cfg.index):
        if not paths.is_remote(part):
            find_files(part)


def _check_numbers(cfg: Config) -> None:
    least = dict.fromkeys(("batch_bytes", "raw_bytes", "max_records"), 1)
    least |= dict.fromkeys(("limit", "max_record_bytes", "max_ratio"), 0)
    for name, value in least.items():
        if getattr(cfg, name) < value:
            raise UserError(f"--{name} must be at least {value}", f"leave --{name} out")
    for name in ("files", "downloads"):
        if getattr(cfg.fetch, name) < 1:
            raise UserError(f"--fetch.{name} must be at least 1", f"leave --fetch.{name} out")


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Finish open batches, then ingest what is new, some files at a time.

    Raises:
        UserError: a setting, an address or a file is not usable; what was committed before stays, and the same command
            goes on from there once it is mended.
    """
    early(cfg)
    landing = _landing(cfg)
    with _claimed(spark, cfg, landing, report) as alone:
        fetcher = Fetcher(cfg.fetch.settings(), mark="" if alone else f".{uuid.uuid4().hex[:12]}")
        ingest_run = _Run(spark, cfg, report, fetcher, landing)
        ingest_run.land_open_batches()
        parts = ingest_run.selections() if cfg.index else ingest_run.origins()
        for part in parts:
            ingest_run.ingest(part)
    report.results |= ingest_run.totals | {"files_known": ingest_run.known}
    if cfg.index:
        report.results["records_beyond_file"] = ingest_run.beyond
    return report


def _claimed(spark: SparkSession, cfg: Config, landing: Path, report: Report) -> AbstractContextManager[bool]:
    """From the first request to the last removal one run at a time, where anything may land.

    Who comes second finds landed what is still to be read, and closed in the ledger what is not to be fetched again.
    """
    begun = [file for batch in Ledger(spark, cfg.lake, NAME).state().open_batches for file in batch.files]
    named = any(paths.is_remote(part) or paths.is_list(part) for part in _words(cfg.source))
    if cfg.index or named or any(file.detail["origin"] != file.path for file in begun):
        return claim_folder(landing, f"lands files in {landing}", report.say)
    return nullcontext(True)


@dataclass
class _Run:
    """One run: what is fetched where, and the sums over its parts."""

    spark: SparkSession
    cfg: Config
    report: Report
    fetcher: Fetcher
    landing: Path
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SUMMED, 0))
    known: int = 0
    beyond: int = 0

    def __post_init__(self) -> None:
        cfg = self.cfg
        self.source = CommonCrawlSource(cfg.reading(), crawl=cfg.crawl)
        self._settings = Settings(cfg.lake, cfg.batch_bytes, cfg.allow_duplicates, _NOTHING_ACCEPTED)
        self._ledger = Ledger(self.spark, cfg.lake, NAME)

    def land_open_batches(self) -> None:
        """What an earlier run began with must be there again, whatever this one was asked for."""
        for batch in self._ledger.state().open_batches:
            try:
                for file in batch.files:
                    self._expect(file)
            except UserError as error:
                give_up = (
                    f"give the batch up that an earlier run began: {give_up_command(batch.batch_id, self.cfg.lake)}"
                )
                raise UserError(error.problem, "; or ".join(filter(None, (error.remedy, give_up)))) from error

    def _expect(self, file: LedgerFile) -> None:
        origin, path = file.detail["origin"], Path(file.path)
        self.source.origins[file.path] = origin
        if origin.startswith(SELECTION):
            chosen = selection_of(path)
            self.source.places[file.path] = chosen.places
            land_selection(chosen, path, self.fetcher, begun=True)
        elif paths.is_remote(origin) and path.name == paths.safe_name(origin) and not path.exists():
            self.report.say(f"fetching {origin} again for a batch that an earlier run left open")
            paths.land(Origin(origin, paths.web_address(origin, self.cfg.fetch.s3_endpoint)), self.fetcher, path.parent)

    def origins(self) -> Iterator[dict[str, Origin]]:
        """The source's files by path, a part at a time, landed."""
        cfg = self.cfg
        found = paths.resolve(cfg.source, cfg.base, self.fetcher, self.landing, cfg.fetch.s3_endpoint)
        found = found[: cfg.limit] if cfg.limit else found
        closed = self._closed()
        new = [each for each in found if each.url is None or each.name not in closed]
        self._clear(each.landed(self.landing) for each in found if each.name in closed)
        self.known += len(found) - len(new)
        local = {each.name: each for each in new if each.url is None}
        remote = [each for each in new if each.url is not None]
        if local or not remote:
            yield local
        for start in range(0, len(remote), cfg.fetch.files):
            yield self._landed(remote[start : start + cfg.fetch.files])

    def _landed(self, origins: Sequence[Origin]) -> dict[str, Origin]:
        with self.report.stage("fetch") as stage, ThreadPoolExecutor(self.cfg.fetch.downloads) as pool:
            found = list(pool.map(lambda each: paths.land(each, self.fetcher, self.landing), origins))
            stage.bytes_in = sum(path.stat().st_size for path in found)
            stage.note = f"{len(found)} files to {self.landing}"
        return {str(path): origin for path, origin in zip(found, origins, strict=True)}

    def selections(self) -> Iterator[dict[str, Origin]]:
        """Single records that the index names, landed as files, a file at a time."""
        cfg = self.cfg
        indexes = paths.resolve(cfg.index, cfg.base, self.fetcher, self.landing, cfg.fetch.s3_endpoint)
        with self.report.stage("index") as stage:
            landed = [str(paths.land(each, self.fetcher, self.landing)) for each in indexes]
            stage.bytes_in = sum(Path(path).stat().st_size for path in landed)
            found = select(self.spark, landed, cfg.match.match(), cfg.max_records)
            stage.rows_in, stage.rows_out, stage.quarantined = found.lines, len(found.captures), found.refused
            stage.note = f"{found.lines - found.refused - len(found.captures):,} lines not wanted"
        if found.refused:
            self.report.warn(f"{found.refused:,} lines of the index are none: {found.example}")
        if found.disputed:
            taken = found.disputed[0]
            self.report.warn(
                f"lines of the index disagree on the address or length of {len(found.disputed):,} records; each is read"
                f" once, such as {taken.uri[:200]!a} at {taken.offset:,} of {taken.filename[:200]!a}: what turns out to"
                " be of another address goes to quarantine"
            )
        base = cfg.base or paths.base_of(indexes[0].name)
        closed = self._closed()
        for chosen in selections(found.captures, base, cfg.fetch.s3_endpoint):
            if chosen.name in closed:
                self._clear([self.landing / paths.safe_name(chosen.name)])
                self.known += 1
            elif part := self._landed_selection(chosen):
                yield part
        if self.beyond and self.beyond == len(found.captures):
            raise UserError(
                f"all {self.beyond:,} records lie beyond the ends of their files",
                "is this index of these files? (--base)",
            )

    def _landed_selection(self, chosen: Selection) -> dict[str, Origin]:
        """The file of records that could be had, by its path; nothing where none could."""
        path = self.landing / paths.safe_name(chosen.name)
        with self.report.stage("fetch") as stage:
            landed = land_selection(chosen, path, self.fetcher)
            stage.rows_in, stage.rows_out = len(chosen.places), len(landed.places)
            stage.bytes_in = sum(landed.lengths)
            stage.note = f"{len(landed.beyond):,} beyond their files' ends" if landed.beyond else ""
        if landed.beyond:
            self.beyond += len(landed.beyond)
            named = "; ".join(landed.beyond[:_NAMED]) + (" ..." if len(landed.beyond) > _NAMED else "")
            self.report.warn(
                f"the index names {len(landed.beyond):,} records beyond the ends of their files, left out: {named}"
            )
        if not landed.places:
            return {}
        self.source.places[str(path)] = landed.places
        return {str(path): Origin(chosen.name)}

    def ingest(self, part: dict[str, Origin]) -> None:
        """One part into the tables; its account added to the run's; what landed removed if that is asked for."""
        self.source.origins |= {path: origin.name for path, origin in part.items()}
        ingest(self.spark, self._settings, self.source, dict.fromkeys(part), self.report)
        for name in _SUMMED:
            self.totals[name] += self.report.results[name]
        self.known += self.report.results["files_known"]
        self._clear(map(Path, part))

    def _clear(self, closed: Iterable[Path]) -> None:
        """Remove what has landed and is closed, if that is asked for: also what a run left that was killed before."""
        for path in closed:
            if self.cfg.fetch.remove and path.parent == self.landing:
                path.unlink(missing_ok=True)
                path.with_name(path.name + ".places").unlink(missing_ok=True)

    def _closed(self) -> set[str]:
        state = self._ledger.state()
        still_open = {batch.batch_id for batch in state.open_batches}
        return {file.detail["origin"] for batch, file in state.planned if batch.batch_id not in still_open}


def _landing(cfg: Config) -> Path:
    """Where files from the web land: a folder that every worker sees."""
    place = cfg.fetch.landing or f"{cfg.lake.rstrip('/')}/landing/{NAME}"
    place = place.removeprefix("file://")
    if "://" in place:
        raise UserError(f"files cannot land in {place}", "--fetch.landing DIR: a folder on a mounted file system")
    return Path(place).absolute()


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))
