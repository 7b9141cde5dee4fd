"""bronze/commoncrawl -> silver/documents -> gold/corpus, tokens and packed sequences: text to train language models on.

    extract    new batches of bronze, one commit each: text, language, every rule's value, removed_by
    judge      removed_by anew where thresholds, languages or lists changed; values anew where their settings did
               (pipelines/extract_judge.py has both)
    dedup      exact and near-duplicates among what stays (pipelines/dedup_text.py)
    corpus     what stays and is nobody's duplicate, masked
    tokenize   a tokenizer learned from the corpus, every document's tokens (pipelines/pack_text.py)
    pack       sequences of one length

A version of silver/documents says in its commit with which settings its texts, values and verdicts were made. A stage
whose input and settings are those of its last result does nothing, so a rerun after a kill goes on where it was.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.catalog.delta import exists, read
from headrace.catalog.spec import load
from headrace.config import suggest
from headrace.errors import UserError
from headrace.features import language, main_text, masking, text_rules, url_filter
from headrace.features.documents import Limits, Recipe, Verdict
from headrace.pipelines import corpus, dedup_text, pack_text, text_report
from headrace.pipelines.extract_judge import BRONZE, DOCUMENTS, Stages, Work

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from headrace.report import Report

STAGES = ("extract", "judge", "dedup", "corpus", "tokenize", "pack")
_FAMILIES = ",".join(text_rules.FAMILIES)


@dataclass(kw_only=True)
class Config:
    """Settings of featurize-text.

    Args:
        lake: directory of the tables.
        crawl: crawls to extract, separated by commas; default: all in bronze/commoncrawl.
        stages: which of extract, judge, dedup, corpus, tokenize, pack to run, separated by commas.
        languages: languages that stay, ISO 639-1, separated by commas; empty for all.
        min_language_score: a document whose language is less probable is removed.
        language_chars: so many characters of a text are looked at for its language.
        families: rules to apply: repetition, gopher, c4, fineweb. Values of all are kept.
        extract: how text is made of pages.
        measure: what enters the rules' values.
        thresholds: what the values are compared with.
        urls: lists of domains, URLs and words in them.
        bad_words: file with words, one a line; a document that holds one is removed (c4_bad_words).
        bad_words_whole: only whole words count; false for scripts without blanks.
        limits: what one document may cost.
        mask: what stands for e-mail addresses and IP numbers in the corpus.
        drop_lines: leave out of the corpus the lines that C4's rules drop.
        duplicates: false leaves duplicates in the corpus.
        rebuild: extract every batch again and replace silver/documents.
        dedup: what a duplicate is.
        tokenizer: what the tokenizer is learned from.
        pack: how documents become sequences.
    """

    lake: str
    crawl: str = ""
    stages: str = ",".join(STAGES)
    languages: str = "en"
    min_language_score: float = 0.65
    language_chars: int = 6000
    families: str = _FAMILIES
    extract: main_text.Settings = field(default_factory=main_text.Settings)
    measure: text_rules.Settings = field(default_factory=text_rules.Settings)
    thresholds: text_rules.Thresholds = field(default_factory=text_rules.Thresholds)
    urls: url_filter.Settings = field(default_factory=url_filter.Settings)
    bad_words: str = ""
    bad_words_whole: bool = True
    limits: Limits = field(default_factory=Limits)
    mask: masking.Settings = field(default_factory=masking.Settings)
    drop_lines: bool = False
    duplicates: bool = True
    rebuild: bool = False
    dedup: dedup_text.Settings = field(default_factory=dedup_text.Settings)
    tokenizer: pack_text.TokenizerConfig = field(default_factory=pack_text.TokenizerConfig)
    pack: pack_text.PackConfig = field(default_factory=pack_text.PackConfig)


def early(cfg: Config) -> None:
    """Refuse what needs no Spark to be seen.

    Raises:
        UserError: a stage or family that does not exist, a setting out of range, nothing to work on.
    """
    stages = _chosen(cfg.stages, STAGES, "stages")
    _chosen(cfg.families, text_rules.FAMILIES, "families")
    _check_ranges(cfg)
    cfg.dedup.check()
    pack_text.check(pack_text.Config(tokenizer=cfg.tokenizer, pack=cfg.pack))
    first = {"extract": BRONZE, "judge": DOCUMENTS, "dedup": DOCUMENTS, "corpus": DOCUMENTS}.get(stages[0])
    if first and not exists(load(first).path(cfg.lake)):
        verb = "ingest-commoncrawl" if first == BRONZE else "featurize-text"
        raise UserError(f"there is no {first} in --lake {cfg.lake}", f"headrace {verb} --lake {cfg.lake} ...")


def run(spark: SparkSession, cfg: Config, report: Report) -> Report:
    """Run the stages; see the module's docstring.

    Raises:
        UserError: see `early`; an unknown language or crawl, a list that cannot be read, a table that was made with
            other settings where that matters.
    """
    early(cfg)
    work = _work(cfg)
    stages = _chosen(cfg.stages, STAGES, "stages")
    packing = pack_text.Config(tokenizer=cfg.tokenizer, pack=cfg.pack)
    on_documents = Stages(spark, cfg.lake, work, report)
    if "extract" in stages:
        on_documents.extract(cfg.crawl, cfg.rebuild)
    if "judge" in stages:
        on_documents.judge()
    if "extract" in stages or "judge" in stages:
        _account(spark, cfg, work, report)
    if "dedup" in stages and cfg.duplicates:
        dedup_text.deduplicate(spark, cfg.lake, [], cfg.dedup, report)
    if "corpus" in stages:
        made_by = corpus.Config(
            mask=cfg.mask, drop_lines=cfg.drop_lines, c4=cfg.measure.c4, without_duplicates=cfg.duplicates
        )
        corpus.make(spark, cfg.lake, made_by, report)
    if "tokenize" in stages:
        pack_text.tokenize(spark, cfg.lake, packing, report)
    if "pack" in stages:
        pack_text.pack(spark, cfg.lake, packing, report)
    return report


def _chosen(text: str, known: tuple[str, ...], setting: str) -> tuple[str, ...]:
    """The named ones in their own order."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(f"--{setting}: {name!r} is unknown", suggest(name, known))
    if not names and setting == "stages":
        raise UserError("--stages names none", f"one or more of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _check_ranges(cfg: Config) -> None:
    if not 0 <= cfg.min_language_score <= 1:
        raise UserError(f"--min_language_score {cfg.min_language_score} is no probability", "0 to 1, such as 0.65")
    floors = {"language_chars": (cfg.language_chars, 30), "extract.max_bytes": (cfg.extract.max_bytes, 1024)}
    floors |= {"extract.max_chars": (cfg.extract.max_chars, 100), "limits.memory_mb": (cfg.limits.memory_mb, 256)}
    for name, (value, floor) in floors.items():
        if value < floor:
            raise UserError(f"--{name} {value} is under {floor}", f"give {floor} or more")
    if cfg.limits.seconds <= 0:
        raise UserError(f"--limits.seconds {cfg.limits.seconds} is not over 0", "give some seconds, such as 20")
    for status in cfg.extract.status.split(","):
        if not (status.strip().isascii() and status.strip().isdecimal() and 100 <= int(status) < 600):
            raise UserError(f"--extract.status: {status!r} is no HTTP status", "such as 200 or 200,203")


def _work(cfg: Config) -> Work:
    """Read lists, look languages up, and write down what makes texts, values and verdicts."""
    languages = tuple(sorted({code.strip() for code in cfg.languages.split(",") if code.strip()}))
    known = language.codes()
    for code in languages:
        if code not in known:
            raise UserError(f"--languages: {code!r} is unknown", f"known: {', '.join(known)}")
    words = tuple(text_rules.read_bad_words(cfg.bad_words)) if cfg.bad_words else ()
    families = _chosen(cfg.families, text_rules.FAMILIES, "families")
    rules = tuple(text_rules.rules(cfg.thresholds, families))
    urls = url_filter.read(cfg.urls)
    recipe = Recipe(
        extract=cfg.extract,
        measure=cfg.measure,
        language_chars=cfg.language_chars,
        bad_words=words,
        bad_words_whole=cfg.bad_words_whole,
        limits=cfg.limits,
    )
    listed = {name: _digest(value) for name, value in asdict(cfg.urls).items() if isinstance(value, str) and value}
    return Work(
        recipe=recipe,
        verdict=Verdict(rules, languages, cfg.min_language_score, urls if urls else None),
        extracted={**asdict(cfg.extract), "language_chars": cfg.language_chars, "by": main_text.version()},
        measured={**asdict(cfg.measure), "bad_words": _sha256("\n".join(words).encode()), "whole": cfg.bad_words_whole},
        judged={
            "sql": _sha256(Verdict(rules, languages, cfg.min_language_score).sql().encode()),
            "thresholds": asdict(cfg.thresholds),
            "families": list(families),
            "languages": list(languages),
            "min_language_score": cfg.min_language_score,
            "urls": {**listed, "soft_words_limit": cfg.urls.soft_words_limit} if listed else {},
        },
    )


def _digest(paths: str) -> str:
    return _sha256(b"".join(Path(path.strip()).read_bytes() for path in paths.split(",") if path.strip()))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _account(spark: SparkSession, cfg: Config, work: Work, report: Report) -> None:
    """Print what removes documents, crawl by crawl, and draw it."""
    from pyspark.sql import functions as F

    spec = load(DOCUMENTS)
    if not exists(spec.path(cfg.lake)):
        return
    stays = F.coalesce("removed_by", F.lit(text_report.STAYS)).alias("reason")
    counts: dict[str, dict[str, int]] = {}
    for row in read(spark, spec, cfg.lake).groupBy("crawl", stays).count().collect():
        counts.setdefault(row["crawl"], {})[row["reason"]] = row["count"]
    order = ["language_other", "language_unsure", *(rule.name for rule in work.verdict.rules)]
    reasons = text_report.ordered(counts, order)
    for line in text_report.table(counts, reasons):
        report.say(line)
    report.results["documents"] = sum(sum(by.values()) for by in counts.values())
    report.results["removed_by"] = {crawl: dict(sorted(by.items())) for crawl, by in sorted(counts.items())}
    if counts and ":/" not in cfg.lake:
        path = Path(cfg.lake).absolute() / "reports" / "removed_by.png"
        text_report.draw(counts, reasons, path)
        report.paths["figure"] = str(path)
