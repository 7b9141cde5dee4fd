"""gold/corpus -> gold/tokenizer, gold/tokens, gold/token_sequences: two stages of featurize-text.

`tokenize` learns a tokenizer where there is none for these settings, and writes every document's token ids; `pack` puts
them into sequences of one length. Each of the three tables is one overwrite; what was made from the same input with the
same settings is not made again. A tokenizer is kept when the corpus grows: ids mean what they meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.catalog.delta import Commit, commit_metadata, exists, latest_version, read, small_frame, write
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features import layout, sequences
from headrace.features.sequences import MAX_LENGTH, MODES, Packing, Slices
from headrace.features.split import SPLITS
from headrace.features.tokenizer import MIN_VOCABULARY, Encoder, Trained, element_of, train
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

CORPUS, TOKENIZER, TOKENS, SEQUENCES = "gold/corpus", "gold/tokenizer", "gold/tokens", "gold/token_sequences"


@dataclass(kw_only=True)
class TokenizerConfig:
    """What the tokenizer is learned from.

    Args:
        vocab_size: tokens wanted, end-of-text and padding included.
        min_frequency: a pair of tokens that stands less often in the sample is not joined.
        sample_bytes: text to learn from; documents are drawn by a hash of their key. The driver holds it in memory.
        max_document_chars: so much of one document at most goes into the sample.
        seed: of that hash.
        retrain: learn anew though the settings are those of the tokenizer that is there (the corpus has changed).
    """

    vocab_size: int = 32_768
    min_frequency: int = 2
    sample_bytes: int = 64 << 20
    max_document_chars: int = 1 << 17
    seed: int = 0
    retrain: bool = False


@dataclass(kw_only=True)
class PackConfig:
    """How documents become sequences.

    Args:
        length: tokens of a sequence.
        mode: concat (lay documents end to end and cut every `length` tokens) or best_fit (cut no document that fits).
        tail: what becomes of each split's last sequence in concat: pad or drop.
        long_documents: what becomes of documents longer than a sequence in best_fit: cut or drop.
        validation_share: share of the documents that validate.
        test_share: share of the documents that test.
        seed: of the order of the documents.
        tokens_per_slice: about so many tokens in a file; best_fit packs within one.
        tokens_per_group: about so many tokens in a Parquet row group.
    """

    length: int = 1024
    mode: str = "concat"
    tail: str = "pad"
    long_documents: str = "cut"
    validation_share: float = 0.01
    test_share: float = 0.0
    seed: int = 0
    tokens_per_slice: int = 1 << 23
    tokens_per_group: int = 1 << 20


@dataclass(kw_only=True)
class Config:
    """Tokens and packed sequences of the corpus.

    Args:
        tokenizer: what it is learned from.
        pack: how documents become sequences.
    """

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    pack: PackConfig = field(default_factory=PackConfig)


def check(cfg: Config) -> None:
    """Refuse settings that make no sense.

    Raises:
        UserError: which, and what to give.
    """
    tokenizer, pack = cfg.tokenizer, cfg.pack
    choices: dict[str, tuple[str, ...]] = {"mode": MODES, "tail": ("pad", "drop"), "long_documents": ("cut", "drop")}
    for name, allowed in choices.items():
        if getattr(pack, name) not in allowed:
            raise UserError(f"pack.{name} {getattr(pack, name)!r} is unknown", f"one of {', '.join(allowed)}")
    if tokenizer.vocab_size < MIN_VOCABULARY:
        raise UserError(f"tokenizer.vocab_size {tokenizer.vocab_size} is too small", f"{MIN_VOCABULARY} or more")
    if not 2 <= pack.length <= MAX_LENGTH:
        raise UserError(f"pack.length {pack.length} is out of range", f"2 to {MAX_LENGTH:,}")
    shares = (pack.validation_share, pack.test_share)
    if min(shares) < 0 or sum(shares) >= 1:
        raise UserError(f"pack.validation_share and pack.test_share are {shares}", "0 or more, together under 1")
    for section, name in ((tokenizer, "sample_bytes"), (tokenizer, "max_document_chars"), (pack, "tokens_per_slice")):
        if getattr(section, name) < 1:
            raise UserError(f"{name} {getattr(section, name)} is under 1", f"leave {name} out")


def tokenize(spark: SparkSession, lake: str, cfg: Config, report: Report) -> None:
    """Make gold/tokenizer, where needed, and gold/tokens of the newest gold/corpus.

    Raises:
        UserError: no corpus, or no text in it.
    """
    check(cfg)
    corpus = load(CORPUS)
    if not exists(corpus.path(lake)):
        raise UserError(f"there is no {CORPUS} in --lake {lake}", "run the stages of featurize-text before this one")
    version = latest_version(corpus.path(lake))
    documents = read(spark, corpus, lake, version).select("key", "text")
    trained = _tokenizer(spark, lake, cfg.tokenizer, documents, version, report)
    request = {"corpus_version": version, "tokenizer": trained.sha256}
    if not _done(TOKENS, lake, request, report):
        _encode(spark, lake, documents, trained, request, report)
    report.paths |= {"tokenizer": load(TOKENIZER).path(lake), "tokens": load(TOKENS).path(lake)}


def pack(spark: SparkSession, lake: str, cfg: Config, report: Report) -> None:
    """Make gold/token_sequences of the newest gold/tokens.

    Raises:
        UserError: no tokens.
        RuntimeError: the account of tokens does not close.
    """
    check(cfg)
    spec = load(TOKENS)
    if not exists(spec.path(lake)):
        raise UserError(f"there is no {TOKENS} in --lake {lake}", "run the stage tokenize first")
    version = latest_version(spec.path(lake))
    made = commit_metadata(spec.path(lake), version)
    request = {"tokens_version": version, **asdict(cfg.pack)}
    report.paths["token_sequences"] = load(SEQUENCES).path(lake)
    if _done(SEQUENCES, lake, request, report):
        return
    with report.stage("pack") as stage:
        _pack(spark, lake, cfg.pack, made, request, report)
        figures = report.results["token_sequences"]
        stage.rows_in, stage.rows_out = figures["documents"], figures["sequences"]
        stage.note = (
            f"{figures['tokens_in']:,} tokens + {figures['ends']:,} ends = {figures['tokens_out']:,} packed + "
            f"{figures['dropped']:,} dropped; {figures['fill']:.2%} of {figures['sequences']:,} sequences filled"
        )


def load_tokenizer(spark: SparkSession, lake: str, version: int | None = None) -> Trained:
    """The tokenizer of a version of gold/tokenizer, its checksum compared.

    Raises:
        UserError: none there, or damaged.
    """
    rows = read(spark, load(TOKENIZER), lake, version).collect()
    if len(rows) != 1:
        raise UserError(f"{TOKENIZER} holds {len(rows)} tokenizers", "run the stage tokenize first")
    encoder = Encoder(rows[0]["json"], rows[0]["sha256"])
    return Trained(rows[0]["json"], rows[0]["sha256"], encoder.vocab_size)


def _tokenizer(
    spark: SparkSession, lake: str, cfg: TokenizerConfig, documents: DataFrame, version: int, report: Report
) -> Trained:
    spec = load(TOKENIZER)
    request = {name: value for name, value in asdict(cfg).items() if name != "retrain"}
    if exists(spec.path(lake)) and not cfg.retrain:
        made = commit_metadata(spec.path(lake), latest_version(spec.path(lake)))
        if made.get("request") == request:
            return load_tokenizer(spark, lake)
    with report.stage("tokenizer") as stage:
        texts = sequences.sample(documents, cfg.sample_bytes, cfg.max_document_chars, cfg.seed)
        if not texts:
            raise UserError(f"{CORPUS} version {version} holds no text", "look at what removed it: silver/documents")
        size = sum(len(text.encode()) for text in texts)
        trained = train(texts, cfg.vocab_size, min_frequency=cfg.min_frequency)
        row = {"sha256": trained.sha256, "json": trained.text, "vocab_size": trained.vocab_size}
        row |= {"corpus_version": version, "sample_documents": len(texts), "sample_bytes": size}
        write(small_frame(spark, spec, [row]), spec, lake, mode="overwrite", metadata={"request": request})
        stage.rows_in, stage.bytes_in = len(texts), size
        stage.note = f"{trained.vocab_size:,} tokens, sha256 {trained.sha256[:12]}"
    if trained.vocab_size < cfg.vocab_size:
        report.warn(f"the sample gave {trained.vocab_size:,} tokens of the {cfg.vocab_size:,} wanted")
    return trained


def _encode(
    spark: SparkSession,
    lake: str,
    documents: DataFrame,
    trained: Trained,
    request: Mapping[str, Any],
    report: Report,
) -> None:
    from pyspark.sql import functions as F

    encoder = Encoder(trained.text, trained.sha256)
    metadata: dict[str, Any] = {
        "request": dict(request),
        "element": element_of(trained.vocab_size),
        "tokenizer": trained.sha256,
    }
    metadata |= {"vocab_size": trained.vocab_size, "end_of_text": encoder.end_of_text, "padding": encoder.padding}
    with report.stage("tokenize") as stage, sequences.small_batches(spark):
        commit = write(sequences.encode(documents, trained), load(TOKENS), lake, mode="overwrite", metadata=metadata)
        counted = documents.agg(F.count("*").alias("rows"), F.sum(F.octet_length("text")).alias("bytes")).first()
        assert counted is not None
        total = read(spark, load(TOKENS), lake, commit.version).agg(F.sum("num_tokens")).first()
        tokens = int((total and total[0]) or 0)
        stage.rows_in, stage.rows_out, stage.bytes_in = counted["rows"], commit.rows, counted["bytes"]
        stage.note = f"{tokens:,} tokens, {(counted['bytes'] or 0) / max(1, tokens):.2f} bytes each"
    report.results["tokens"] = {"documents": commit.rows, "tokens": tokens, "version": commit.version}


def _done(table: str, lake: str, request: Mapping[str, Any], report: Report) -> bool:
    """Is the newest version what this run would make?"""
    path = load(table).path(lake)
    if not exists(path) or commit_metadata(path, latest_version(path)).get("request") != request:
        return False
    report.say(f"nothing to do: {table} was made from the same input with the same settings")
    return True


def _pack(
    spark: SparkSession, lake: str, cfg: PackConfig, made: Mapping[str, Any], request: Mapping[str, Any], report: Report
) -> None:
    from pyspark import StorageLevel
    from pyspark.sql import functions as F

    packing = Packing(
        length=cfg.length,
        mode=cfg.mode,
        pad_tail=cfg.tail == "pad",
        drop_long=cfg.long_documents == "drop",
        element=made["element"],
        end_of_text=made["end_of_text"],
        padding=made["padding"],
        seed=cfg.seed,
    )
    tokens = read(spark, load(TOKENS), lake, request["tokens_version"])
    shares = {"validation": cfg.validation_share, "test": cfg.test_share}
    split = tokens.withColumn("split", sequences.split_column(F.col("key"), shares))
    counts = _count_documents(split, cfg)
    slices = Slices(layout.files_for({name: counts[name][1] for name in SPLITS}, cfg.tokens_per_slice))
    metadata = dict(made) | {"request": dict(request), "cells": _cells(packing)}
    with sequences.small_batches(spark):
        placed = sequences.place_documents(split, slices, cfg.seed).persist(StorageLevel.DISK_ONLY)
        try:
            rows = sequences.pack(placed, slices, packing)
            with layout.row_groups(spark, max(16, cfg.tokens_per_group // cfg.length)):
                commit = write(rows, load(SEQUENCES), lake, mode="overwrite", metadata=metadata)
        finally:
            placed.unpersist()
    report.results["token_sequences"] = _account(spark, lake, commit, counts, packing)


def _cells(packing: Packing) -> dict[str, dict[str, Any]]:
    elements = {"tokens": packing.element, "segments": packing.segment_element}
    return {name: {"element": element, "shape": [packing.length]} for name, element in elements.items()}


def _count_documents(split: DataFrame, cfg: PackConfig) -> dict[str, tuple[int, int, int]]:
    """By split: documents, their tokens with an end each, and those of documents longer than a sequence."""
    from pyspark.sql import functions as F

    ended = F.col("num_tokens").cast("bigint") + 1
    long = F.when(ended > cfg.length, ended).otherwise(0)
    counted = split.groupBy("split").agg(F.count("*").alias("rows"), F.sum(ended).alias("n"), F.sum(long).alias("long"))
    found = {row["split"]: (row["rows"], row["n"], row["long"]) for row in counted.collect()}
    return {name: found.get(name, (0, 0, 0)) for name in SPLITS}


def _account(
    spark: SparkSession, lake: str, commit: Commit, counts: Mapping[str, tuple[int, int, int]], packing: Packing
) -> dict[str, Any]:
    """Tokens in = tokens in the table, counted there, + tokens dropped, which the rule gives; by split and in all."""
    from pyspark.sql import functions as F

    table = read(spark, load(SEQUENCES), lake, commit.version)
    rows = table.groupBy("split").agg(F.sum("num_tokens").alias("tokens"), F.count("*").alias("rows")).collect()
    packed = {row["split"]: row["tokens"] for row in rows}
    dropped = {}
    for name, (_, ended, long) in counts.items():
        if packing.mode == "concat":
            dropped[name] = 0 if packing.pad_tail else ended % packing.length
        else:
            dropped[name] = long if packing.drop_long else 0
        if packed.get(name, 0) + dropped[name] != ended:
            raise RuntimeError(
                f"the account of split {name} does not close: {ended} tokens went in, {packed.get(name, 0)} are in "
                f"{SEQUENCES} version {commit.version}, {dropped[name]} were to be dropped; do not train on it"
            )
    documents, tokens = (sum(each[i] for each in counts.values()) for i in (0, 1))
    return {
        "version": commit.version,
        "documents": documents,
        "sequences": commit.rows,
        "sequences_by_split": {row["split"]: row["rows"] for row in rows},
        "tokens_in": tokens - documents,
        "ends": documents,
        "tokens_out": sum(packed.values()),
        "dropped": sum(dropped.values()),
        "fill": sum(packed.values()) / max(1, commit.rows * packing.length),
    }
