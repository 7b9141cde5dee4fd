"""Planted duplicates against a slow reference: found, right, the same in any partitions, and across crawls."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from unit.planted_texts import alone, chain, pair
from unit.test_contraction import reference

from headrace.catalog import delta
from headrace.catalog.delta import WriteOptions
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.features.minhash import MinHash
from headrace.features.shingles import shingle_sets
from headrace.pipelines import corpus, dedup_text
from headrace.pipelines.dedup_text import Settings, deduplicate, survivors
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
DOCUMENTS = load("silver/documents")
Texts = dict[int, str]
LIKE = (Fraction(1, 2), Fraction(7, 10), Fraction(4, 5), Fraction(9, 10), Fraction(19, 20))
PAIRS = {Fraction(4, 5): 400}  # by Jaccard; 30 of the others
CHAIN = 12
LATER = 5 << 40


def planted() -> tuple[Texts, dict[Fraction, list[tuple[int, int]]]]:
    """A corpus: pairs by Jaccard, copies, a chain, texts of their own, some without words; and where the pairs lie."""
    texts: list[str] = [f"{alone('t')} ."]
    at: dict[Fraction, list[tuple[int, int]]] = {}
    for jaccard, number in ((like, number) for like in LIKE for number in range(PAIRS.get(like, 30))):
        at.setdefault(jaccard, []).append((len(texts), len(texts) + 1))
        texts += pair(f"p{jaccard.numerator}q{number}", jaccard, scale=3)
    texts += [alone("t").upper(), alone("u"), f"  {alone('t')}!", "", "...", "!?", "...", *chain("c", CHAIN, step=8)]
    texts += [alone(f"single{number}") for number in range(20)]
    # Every other text has a key of the later half, so that copies, pairs and the chain span two crawls.
    keys = [(LATER if number % 2 else 3 << 40) + number for number in range(len(texts))]
    by_key = dict(sorted(zip(keys, texts, strict=True)))
    return by_key, {like: [tuple(sorted((keys[a], keys[b]))) for a, b in places] for like, places in at.items()}


def lay(spark: SparkSession, lake: Path, crawls: dict[str, Texts], partitions: int = 2) -> None:
    """silver/documents with the texts of each crawl."""
    fixed = {"batch_id": "b", "record_type": "conversion", "extractor": "published", "num_emails": 0, "num_ips": 0}
    for crawl, texts in crawls.items():
        rows = [
            {
                **fixed,
                "key": key,
                "crawl": crawl,
                "url": f"http://h{key % 3}/{key}",
                "host": f"h{key % 3}",
                "text": text,
            }
            | {"num_chars": len(text)}
            for key, text in texts.items()
        ]
        frame = delta.small_frame(spark, DOCUMENTS, rows).repartition(partitions)
        delta.write(frame, DOCUMENTS, lake, options=WriteOptions(quality=False))


def compare(spark: SparkSession, lake: Path, crawls: str = "", **settings: Any) -> Report:
    return deduplicate(spark, lake, crawls, Settings(**settings), Report("dedup-text", out=io.StringIO()))


def table(spark: SparkSession, lake: Path, name: str = "silver/duplicates") -> list[dict[str, Any]]:
    return [row.asDict() for row in delta.read(spark, load(name), lake).collect()]


def verdicts(spark: SparkSession, lake: Path) -> dict[int, tuple[Any, ...]]:
    names = ("crawl", "kind", "survivor", "match_key", "jaccard", "cluster_size")
    return {row["key"]: tuple(row[name] for name in names) for row in table(spark, lake)}


def jaccard(texts: Texts, a: int, b: int) -> float:
    first, second = (set(each) for each in shingle_sets(pa.array([texts[a], texts[b]]), 5).to_pylist())
    return len(first & second) / len(first | second)


def all_pairs_reference(texts: Texts) -> dict[int, int]:
    """Key -> survivor of everything that a comparison of all with all would remove at Jaccard 0.8."""
    sets = [set(each) for each in shingle_sets(pa.array(list(texts.values())), 5).to_pylist()]
    keys = list(texts)
    alike = [(keys[i], keys[i]) for i in range(len(keys))]
    holders: dict[int, list[int]] = {}
    for i, shingles in enumerate(sets):
        for shingle in shingles:
            holders.setdefault(shingle, []).append(i)
    for i, j in {two for held in holders.values() for two in itertools.combinations(held, 2)}:
        if sets[i] == sets[j] or len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.8:
            alike.append((keys[i], keys[j]))
    return {key: first for key, first in reference(alike).items() if key != first}


@pytest.fixture(scope="module")
def one_crawl(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Texts, Report]:
    lake = tmp_path_factory.mktemp("dedup")
    texts, _ = planted()
    lay(spark, lake, {"CC-1": texts}, partitions=1)
    return lake, texts, compare(spark, lake)


def test_planted_pairs_are_found_and_nothing_else(spark: SparkSession, one_crawl: tuple[Path, Texts, Report]) -> None:
    lake, texts, _ = one_crawl
    found = verdicts(spark, lake)
    print("\n  Jaccard  removed  1 - (1 - s^8)^14")
    for like, places in planted()[1].items():
        removed = sum(b in found and found[b][2] == a for a, b in places) / len(places)
        print(f"  {float(like):.2f}     {removed:.3f}    {MinHash().meeting(float(like)):.3f}")
        assert removed >= 0.9 if like >= Fraction(4, 5) else removed == 0
    complete = all_pairs_reference(texts)
    assert {key: row[2] for key, row in found.items()}.items() <= complete.items(), "precision 1, the right survivors"
    missed = set(complete) - set(found)
    assert len(missed) <= 0.1 * len(complete) and all(row[4] >= 0.8 for row in found.values())
    for key, (_, kind, _, match, similarity, _) in found.items():
        if kind == "near":
            assert similarity == jaccard(texts, key, match)


def test_copies_chains_and_empty_texts(spark: SparkSession, one_crawl: tuple[Path, Texts, Report]) -> None:
    lake, texts, report = one_crawl
    found = verdicts(spark, lake)
    by_text = {text: key for key, text in texts.items()}
    original = by_text[f"{alone('t')} ."]
    for copy in (alone("t").upper(), f"  {alone('t')}!"):
        assert found[by_text[copy]] == ("CC-1", "exact", original, original, 1.0, 3)
    wordless = {key for key, text in texts.items() if not any(map(str.isalnum, text))}
    assert len(wordless) == 4 and not wordless & set(found), "nothing in them that could be the same"
    first, *rest = sorted(by_text[text] for text in chain("c", CHAIN, step=8))
    assert {found[key][2] for key in rest} == {first} and found[rest[-1]][5] == CHAIN
    assert jaccard(texts, rest[-1], found[rest[-1]][3]) >= 0.8 > jaccard(texts, rest[-1], first)
    figures = report.results["crawls"]["CC-1"]
    assert figures["without_words"] == 4
    assert figures["documents"] == len(texts) == figures["exact"] + figures["near"] + figures["kept"]
    assert figures["largest_clusters"][0] == {
        "survivor": first,
        "documents": CHAIN,
        "url": f"http://h{first % 3}/{first}",
    }
    hosts = [row for row in table(spark, lake, "silver/dedup_report") if row["host"]]
    assert sum(row["documents"] for row in hosts) == len(texts) and sum(row["near"] for row in hosts) == figures["near"]
    kept = survivors(spark, lake, delta.read(spark, DOCUMENTS, lake)).count()
    assert kept == figures["kept"] == len(texts) - len(found)


def test_a_second_run_does_nothing_and_other_settings_do(
    spark: SparkSession, one_crawl: tuple[Path, Texts, Report]
) -> None:
    lake, *_ = one_crawl
    version = delta.latest_version(load("silver/duplicates").path(lake))
    assert "crawls" not in compare(spark, lake).results
    assert delta.latest_version(load("silver/duplicates").path(lake)) == version
    with pytest.raises(UserError, match="no crawl 'CC-9'.*\n.*CC-1"):
        compare(spark, lake, "CC-9")
    with pytest.raises(UserError, match="threshold is 1.5"):
        compare(spark, lake, threshold=1.5)
    assert not (lake / "_work").exists()


def test_crawl_after_crawl_against_both_at_once(
    spark: SparkSession, one_crawl: tuple[Path, Texts, Report], tmp_path: Path
) -> None:
    """Of the later crawl the same go as if both had come at once; of the earlier only bridged survivors differ."""
    lake, texts, _ = one_crawl
    parts = [{key: text for key, text in texts.items() if (key >= LATER) == late} for late in (False, True)]
    lay(spark, tmp_path, {"CC-2": parts[1], "CC-1": parts[0]})
    with pytest.raises(UserError, match="CC-1 comes before CC-2"):
        compare(spark, tmp_path, "CC-2")
    report = compare(spark, tmp_path)
    once = {key: row[1:3] for key, row in verdicts(spark, lake).items()}
    after = {key: row[:3] for key, row in verdicts(spark, tmp_path).items()}
    assert {key: row[0] for key, row in after.items()} == {key: f"CC-{1 + (key >= LATER)}" for key in after}
    assert {key: row[1:] for key, row in after.items()}.items() <= once.items()
    bridged = set(once) - set(after)
    assert bridged <= set(parts[0]) and len(bridged) == report.results["crawls"]["CC-2"]["bridged"] == CHAIN // 2 - 1
    with pytest.raises(UserError, match="CC-1 was signed with other settings.*bands 14 -> 10"):
        compare(spark, tmp_path, "CC-2", bands=10)


@pytest.mark.parametrize("partitions", [2, 7])
def test_the_same_survivors_in_any_partitions(
    spark: SparkSession, one_crawl: tuple[Path, Texts, Report], tmp_path: Path, partitions: int
) -> None:
    lake, texts, _ = one_crawl
    lay(spark, tmp_path, {"CC-1": dict(reversed(texts.items()))}, partitions)
    settings = {"spark.sql.shuffle.partitions": partitions, "spark.sql.adaptive.coalescePartitions.enabled": "false"}
    before = {name: spark.conf.get(name) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(name, value)
        compare(spark, tmp_path)
    finally:
        for name, old in before.items():
            spark.conf.set(name, old)
    assert verdicts(spark, tmp_path) == verdicts(spark, lake)


def test_guards_on_giant_buckets_and_clusters(spark: SparkSession, tmp_path: Path) -> None:
    texts = dict(enumerate([*chain("g", 40), *chain("h", 8)]))
    lay(spark, tmp_path, {"CC-1": texts})
    report = compare(spark, tmp_path, max_bucket=4, window=2, max_cluster=10)
    figures = report.results["crawls"]["CC-1"]
    assert figures["giant_buckets"]["buckets"] > 0 and figures["split"] == 1 and figures["largest"] == 40
    found = {key: row[2:5] for key, row in verdicts(spark, tmp_path).items()}
    stays = set(texts) - set(found)
    assert stays & set(range(40, 48)) == {40}, "the small cluster is whole"
    for key, (survivor, match, similarity) in found.items():
        assert survivor in stays
        if key < 40:
            assert match == survivor and similarity == jaccard(texts, key, survivor) >= 0.8
    assert len(stays) < 24, "a giant bucket is thinned all the same"
    assert any("max_cluster" in line for line in report.warnings) and any(
        "max_bucket" in line for line in report.warnings
    )


class KilledError(Exception):
    """The process ends here."""


def kill_after(patch: pytest.MonkeyPatch, table: str) -> None:
    """Let nothing be written after this table's rows."""
    replace = dedup_text._Run.replace

    def killed(run: dedup_text._Run, name: str, *args: Any) -> Any:
        commit = replace(run, name, *args)
        if name == table:
            raise KilledError
        return commit

    patch.setattr(dedup_text._Run, "replace", killed)


@pytest.mark.campaign
def test_killed_between_its_tables_a_crawl_counts_as_not_compared(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the old settings, asked for again, would find their old row and leave the new duplicates in place."""
    texts = dict(enumerate([alone("t"), alone("t"), *pair("p", Fraction(9, 10), scale=3)]))
    lay(spark, tmp_path, {"CC-1": texts})
    compare(spark, tmp_path)
    before = verdicts(spark, tmp_path)
    assert set(before) == {1, 3}
    with monkeypatch.context() as patch:
        kill_after(patch, "silver/duplicates")
        with pytest.raises(KilledError):
            compare(spark, tmp_path, threshold=1)
    assert set(verdicts(spark, tmp_path)) == {1} and table(spark, tmp_path, "silver/dedup_report") == []
    with pytest.raises(UserError, match=r"not of these documents: CC-1.*\n.*the stage dedup"):
        corpus.make(spark, str(tmp_path), corpus.Config(), Report("featurize-text", out=io.StringIO()))
    compare(spark, tmp_path)
    assert verdicts(spark, tmp_path) == before


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("table_name", "arguments"),
    [
        ("silver/dedup_report", 1),
        ("silver/minhash_bands", 1),
        ("silver/duplicates", 1),
        ("silver/dedup_report", 2),
    ],
)
def test_of_two_at_once_one_ends_and_the_other_is_whole(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table_name: str, arguments: int
) -> None:
    """A rival with other settings runs from beginning to end just before one of our commits."""
    texts = dict(enumerate([alone("t"), alone("t"), *pair("p", Fraction(9, 10), scale=3)]))
    lay(spark, tmp_path, {"CC-1": texts})
    replace, waiting = dedup_text._Run.replace, [(table_name, arguments)]

    def interrupted(run: dedup_text._Run, name: str, *args: Any) -> Any:
        if (name, len(args)) in waiting:
            waiting.clear()
            compare(spark, tmp_path, threshold=1)
        return replace(run, name, *args)

    monkeypatch.setattr(dedup_text._Run, "replace", interrupted)
    with pytest.raises(UserError, match="another dedup-text wrote"):
        compare(spark, tmp_path)
    assert set(verdicts(spark, tmp_path)) == {1}, "the rival's, whose threshold leaves exact copies only"
    assert "crawls" not in compare(spark, tmp_path, threshold=1).results


def refuse(names: Sequence[str]) -> None:
    for name in names:
        with pytest.raises(UserError):
            Settings(**{name: 0}).check()


def test_settings_are_checked() -> None:
    refuse(["ngram", "bands", "rows", "threshold", "max_bucket", "window", "max_cluster"])
    assert dedup_text.Config().dedup.minhash() == MinHash()
