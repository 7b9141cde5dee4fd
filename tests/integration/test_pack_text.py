"""gold/corpus -> tokenizer, tokens, sequences, batches: one result in any partitions, every token accounted for."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from headrace.catalog import checks
from headrace.catalog.delta import WriteOptions, commit_metadata, pin, small_frame, write
from headrace.catalog.spec import load
from headrace.data.stream import DataConfig, Stream
from headrace.errors import UserError
from headrace.features import sequences
from headrace.features.hashing import order_hash
from headrace.features.tokenizer import Encoder
from headrace.pipelines import pack_text
from headrace.pipelines.pack_text import Config, PackConfig, TokenizerConfig
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
LENGTH = 16


def documents(count: int = 120) -> list[tuple[int, str]]:
    rng = random.Random(7)
    words = ["river", "lake", "mill", "race", "water", "wheel", "brücke", "水車", "<|endoftext|>"]
    texts = [" ".join(rng.choice(words) for _ in range(rng.choice((1, 2, 5, 20)))) for _ in range(count)]
    return [((i % 3 << 40) + i, text) for i, text in enumerate(texts)]


def corpus(spark: SparkSession, lake: Path, partitions: int) -> Path:
    spec = load("gold/corpus")
    rest = {"crawl": "CC-1", "url": None, "language": "en", "num_masked": 0}
    rows = [rest | {"key": key, "text": text, "num_chars": len(text)} for key, text in documents()]
    write(small_frame(spark, spec, rows).repartition(partitions), spec, lake, options=WriteOptions(quality=False))
    return lake


def config(**pack: Any) -> Config:
    settings: dict[str, Any] = {"length": LENGTH, "validation_share": 0.2, "tokens_per_slice": 500} | pack
    return Config(
        tokenizer=TokenizerConfig(vocab_size=300, sample_bytes=2000),
        pack=PackConfig(**settings, tokens_per_group=LENGTH * 16),
    )


def run(spark: SparkSession, lake: Path, cfg: Config) -> dict[str, Any]:
    report = Report("featurize-text", out=io.StringIO())
    pack_text.tokenize(spark, str(lake), cfg, report)
    pack_text.pack(spark, str(lake), cfg, report)
    return report.results


def table(lake: Path, name: str) -> pl.DataFrame:
    return pl.read_delta(str(lake / name)).sort("key")


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    lake = corpus(spark, tmp_path_factory.mktemp("tokens"), 1)
    return lake, run(spark, lake, config())


def stream_of(lake: Path, split: str) -> list[int]:
    """The slow way: the split's documents in order, end to end."""
    kept = []
    for row in table(lake, "gold/tokens").iter_rows(named=True):
        in_validation = (int(order_hash(np.int64(row["key"]), sequences._SPLIT_SEED)) + 2**63) / 2**64 < 0.2
        if in_validation == (split == "validation"):
            kept.append((int(order_hash(np.int64(row["key"]), 0)), row["key"], np.frombuffer(row["tokens"], "<u2")))
    return [token for _, _, tokens in sorted(kept, key=lambda each: each[:2]) for token in [*tokens.tolist(), 0]]


def test_tokens_are_those_of_the_texts(spark: SparkSession, made: tuple[Path, dict[str, Any]]) -> None:
    lake, _ = made
    trained = pack_text.load_tokenizer(spark, str(lake))
    encoder = Encoder(trained.text, trained.sha256)
    found = {row["key"]: row for row in table(lake, "gold/tokens").iter_rows(named=True)}
    assert found.keys() == dict(documents()).keys()
    for key, text in documents():
        tokens = np.frombuffer(found[key]["tokens"], "<u2")
        assert encoder.decode(tokens) == text and len(tokens) == found[key]["num_tokens"]
    row = table_row(lake)
    assert row["sample_bytes"] <= 2000 and 0 < row["sample_documents"] < 120


def table_row(lake: Path) -> dict[str, Any]:
    return pl.read_delta(str(lake / "gold/tokenizer")).row(0, named=True)


def test_sequences_are_the_stream_cut_in_rows(made: tuple[Path, dict[str, Any]]) -> None:
    lake, results = made
    rows, first = table(lake, "gold/token_sequences"), 0
    for split in ("train", "validation"):
        stream = stream_of(lake, split)
        part = rows.filter(pl.col("split") == split)
        assert part["key"].to_list() == list(range(first, first + -(-len(stream) // LENGTH)))
        flat = np.concatenate([np.frombuffer(cell, "<u2") for cell in part["tokens"]])
        assert flat[: len(stream)].tolist() == stream and (flat[len(stream) :] == 1).all()
        assert part["num_tokens"].sum() == len(stream)
        first += len(part)
    figures = results["token_sequences"]
    assert figures["tokens_in"] + figures["ends"] == figures["tokens_out"] and figures["dropped"] == 0
    assert figures["sequences"] == len(rows) and figures["documents"] == 120


def test_pieces_say_what_a_sequence_is_made_of(made: tuple[Path, dict[str, Any]]) -> None:
    lake, _ = made
    tokens = {row["key"]: [*np.frombuffer(row["tokens"], "<u2"), 0] for row in table(lake, "gold/tokens").to_dicts()}
    taken: dict[int, list[tuple[int, int]]] = {}
    for row in table(lake, "gold/token_sequences").iter_rows(named=True):
        cells, segments = (np.frombuffer(row[name], "<u2") for name in ("tokens", "segments"))
        ends = [*row["doc_starts"][1:], row["num_tokens"]]
        pieces = zip(row["doc_keys"], row["doc_offsets"], row["doc_starts"], ends, strict=True)
        for number, (key, offset, start, end) in enumerate(pieces, 1):
            assert cells[start:end].tolist() == tokens[key][offset : offset + end - start]
            assert (segments[start:end] == number).all()
            taken.setdefault(key, []).append((offset, offset + end - start))
        assert row["documents"] == len(row["doc_keys"]) and (segments[row["num_tokens"] :] == 0).all()
    for key, spans in taken.items():  # every token of every document once
        spans.sort()
        assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])] and spans[-1][1] == len(tokens[key])
    assert taken.keys() == tokens.keys()


def test_the_stream_reads_every_sequence_once(made: tuple[Path, dict[str, Any]]) -> None:
    lake, _ = made
    pinned = pin(load("gold/token_sequences"), lake, partition={"split": "train"})
    rows = {row["key"]: row for row in table(lake, "gold/token_sequences").iter_rows(named=True)}
    ranks = [Stream(pinned, DataConfig(lanes=2, remainder="pad"), rank, 2, batch_size=4) for rank in range(2)]
    for rank in ranks:
        for batch in rank.epoch(0):
            assert batch["tokens"].shape == (2, LENGTH) and str(batch["tokens"].dtype) == "torch.int64"
            for key, tokens, segments in zip(
                *(batch[name].numpy() for name in ("key", "tokens", "segments")), strict=True
            ):
                if key >= 0:
                    assert tokens.tolist() == np.frombuffer(rows[key]["tokens"], "<u2").tolist()
                    assert segments.tolist() == np.frombuffer(rows[key]["segments"], "<u2").tolist()
    for name in ("gold/tokenizer", "gold/tokens", "gold/token_sequences"):  # bytes and lists have a quality report too
        assert len(checks.make(load(name), lake, 1).rows) == len(load(name).columns)
    assert "proved" in (ranks[0].audit(0) + ranks[1].audit(0)).prove(pinned)


def test_other_partitions_and_slices_give_the_same(
    spark: SparkSession, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    lake, _ = made
    other = corpus(spark, tmp_path / "lake", 5)
    run(spark, other, config(tokens_per_slice=10**6))
    assert table_row(other) == table_row(lake)
    for name in ("gold/tokens", "gold/token_sequences"):
        assert table(other, name).equals(table(lake, name))
    again = run(spark, other, config(tokens_per_slice=10**6))
    assert again == {}
    fitted = run(spark, other, config(mode="best_fit", tail="drop"))["token_sequences"]
    cut = {row["key"]: 0 for row in table(other, "gold/tokens").iter_rows(named=True) if row["num_tokens"] < LENGTH}
    packed = table(other, "gold/token_sequences")
    whole = packed.explode("doc_keys", "doc_offsets").filter(pl.col("doc_keys").is_in(list(cut)))
    assert sorted(whole["doc_keys"]) == sorted(cut) and set(whole["doc_offsets"]) == {0}
    assert fitted["tokens_out"] == fitted["tokens_in"] + fitted["ends"] and fitted["fill"] > 0.85
    assert commit_metadata(load("gold/token_sequences").path(other), 2)["cells"]["tokens"] == {
        "element": "uint16",
        "shape": [16],
    }


def test_mistakes(spark: SparkSession, lake: Path) -> None:
    with pytest.raises(UserError, match="no gold/corpus"):
        run(spark, lake, config())
    with pytest.raises(UserError, match="no gold/tokens"):
        pack_text.pack(spark, str(lake), config(), Report("featurize-text"))
    for wrong in ({"mode": "tight"}, {"length": 1}, {"validation_share": 1.0}, {"tail": "keep"}):
        with pytest.raises(UserError):
            pack_text.check(config(**wrong))
