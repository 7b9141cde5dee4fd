"""Files of ratings to bronze to silver: every line accounted for, against plain Python; the real MovieLens 100k."""

from __future__ import annotations

import gzip
import io
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from headrace.catalog.delta import commit_metadata, latest_version, pin
from headrace.catalog.spec import load
from headrace.data.stream import DataConfig, Stream
from headrace.errors import UserError
from headrace.features.hashing import order_hash
from headrace.pipelines import featurize_ratings, generate_ratings, ingest_ratings
from headrace.pipelines.featurize_ratings import Config, SplitConfig
from headrace.report import Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
Row = dict[str, Any]


def ingest(spark: SparkSession, lake: Path, source: object, **settings: Any) -> Row:
    config = ingest_ratings.Config(lake=str(lake), source=str(source), **settings)
    ingest_ratings.early(config)
    return ingest_ratings.run(spark, config, Report("ingest-ratings", out=io.StringIO())).results


def featurize(spark: SparkSession, lake: Path, split: dict[str, Any] | None = None, **settings: Any) -> Row:
    usual = {"rows_per_file": 150, "rows_per_group": 1024} | settings
    config = Config(lake=str(lake), split=SplitConfig(**(split or {})), **usual)
    return featurize_ratings.run(spark, config, Report("featurize-ratings", out=io.StringIO())).results


def table(lake: Path, name: str) -> list[Row]:
    return pl.read_delta(str(lake / name)).to_dicts()


def silver(lake: Path) -> dict[int, Row]:
    """silver/ratings by key, ids as they were."""
    back = {
        (row["kind"], row["id"]): row["value"] for row in table(lake, "silver/rating_ids") if row["dataset"] == "toy"
    }
    rows = table(lake, "silver/ratings")
    found = {row["key"]: row | {kind: back[kind, row[kind]] for kind in ("user", "item")} for row in rows}
    assert len(found) == len(rows)
    return found


def toy_lines() -> list[str]:
    rng = random.Random(5)
    users = [str(number) for number in range(1, 30)] + ["anna", "zoë"]
    lines = []
    for at in range(400):
        user, item = rng.choice(users), f"{int(rng.paretovariate(0.8)) % 40}"
        lines.append(f"{user},{item},{rng.randint(1, 10) / 2},{1000 + at // 3}")
    return lines


@pytest.fixture(scope="module")
def toy(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row], Row]:
    """A lake with a small data set in two files and another; the first one's good rows, and what its ingest said."""
    folder, lines = tmp_path_factory.mktemp("ratings"), toy_lines()
    head = "userId,movieId,rating,timestamp"
    (folder / "toy").mkdir()
    (folder / "toy/a.csv").write_text("\r\n".join([head, *lines[:250]]))
    (folder / "toy/b.csv.gz").write_bytes(gzip.compress("\n".join([head, *lines[250:], "1,2,nan,3", "no"]).encode()))
    (folder / "other.dat").write_bytes(b"1::2::3::4\n5::6::7::8\n")
    lake = folder / "lake"
    said = ingest(spark, lake, folder / "toy", min_rating=0.5, max_rating=5.0)
    ingest(spark, lake, folder / "other.dat", dataset="other", max_rating=5.0)
    rows = []
    for at, line in enumerate(lines):
        user, item, rating, time = line.split(",")
        key = at + 1 if at < 250 else (1 << 40) + at - 249
        rows.append({"key": key, "user": user, "item": item, "rating": float(rating), "timestamp": int(time)})
    return lake, rows, said


def test_every_line_is_in_bronze_or_in_quarantine(toy: tuple[Path, list[Row], Row]) -> None:
    lake, rows, said = toy
    assert (said["rows_read"], said["rows_committed"], said["rows_quarantined"]) == (402, 400, 2)
    assert said["dataset"] == "toy"
    found = [row for row in table(lake, "bronze/ratings") if row["dataset"] == "toy"]
    keep = ("key", "user", "item", "rating", "timestamp")
    assert sorted(({name: row[name] for name in keep} for row in found), key=lambda row: row["key"]) == rows
    refused = {(row["file_ordinal"], row["line"]): row["reason"] for row in table(lake, "quarantine/ratings")}
    assert refused == {
        (1, 151): "rating is not finite", (1, 152): "1 columns instead of 4", (2, 1): "rating is outside -inf to 5"
    }  # fmt: skip


def slow_clean(rows: list[Row], rule: str, threshold: float, least: tuple[int, int]) -> list[Row]:
    """Duplicates, threshold, core: as they are defined."""
    pairs: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        pairs[row["user"], row["item"]].append(row)
    merged = []
    for same in pairs.values():
        last = max(same, key=lambda row: (row["timestamp"], row["key"]))
        ratings = [row["rating"] for row in same]
        value = {
            "last": last["rating"],
            "mean": sum(ratings) / len(same),
            "count": float(len(same)),
            "sum": sum(ratings),
        }
        merged.append(last | {"rating": value[rule]})
    left = [row for row in merged if row["rating"] >= threshold]
    while True:
        users, items = (Counter(row[kind] for row in left) for kind in ("user", "item"))
        kept = [row for row in left if users[row["user"]] >= least[0] and items[row["item"]] >= least[1]]
        if len(kept) == len(left):
            return kept
        left = kept


def check_split(found: dict[int, Row], split: dict[int, str]) -> None:
    assert {key: row["split"] for key, row in found.items()} == split


def test_time_core_and_numbers(spark: SparkSession, toy: tuple[Path, list[Row], Row]) -> None:
    lake, rows, _ = toy
    with pytest.raises(UserError, match="holds 2 data sets\n.*other, toy"):
        featurize(spark, lake)
    said = featurize(spark, lake, dataset="toy", threshold=1.5, min_user=4, min_item=3)
    expected = slow_clean(rows, "last", 1.5, (4, 3))
    found = silver(lake)
    assert {key: (row["user"], row["item"], row["rating"], row["timestamp"]) for key, row in found.items()} == {
        row["key"]: (row["user"], row["item"], row["rating"], row["timestamp"]) for row in expected
    }
    account = said["account"]
    assert account["read"] == 400 and account["duplicates"] == 400 - len(slow_clean(rows, "last", 0, (1, 1)))
    assert account["outside_core"] == len(slow_clean(rows, "last", 1.5, (1, 1))) - len(expected) > 0
    moments = commit_metadata(str(lake / "silver/ratings"), latest_version(str(lake / "silver/ratings")))["moments"]
    times = sorted(row["timestamp"] for row in expected)
    assert moments == {
        name: times[int(np.ceil(share * len(times))) - 1] + 1 for name, share in (("validation", 0.8), ("test", 0.9))
    }
    check_split(found, {
        row["key"]: "test" if row["timestamp"] >= moments["test"]
        else "validation" if row["timestamp"] >= moments["validation"] else "train"
        for row in expected
    })  # fmt: skip
    assert {key: row["fold"] for key, row in found.items()} == {
        key: int(order_hash(np.int64(key), 0xF01D)) % 5 for key in found
    }
    for kind in ("user", "item"):
        entries = sorted(
            (row for row in table(lake, "silver/rating_ids") if row["kind"] == kind), key=lambda row: row["id"]
        )
        values = {row[kind] for row in expected}
        order = sorted(values, key=lambda value: (not value.isdecimal(), int(value) if value.isdecimal() else 0, value))
        assert [row["value"] for row in entries] == order and [row["id"] for row in entries] == list(range(len(order)))
        assert said["cardinalities"][kind] == len(order)


def test_numbers_stay_when_more_come_and_leave_last_with_counts(
    spark: SparkSession, toy: tuple[Path, list[Row], Row]
) -> None:
    lake, rows, _ = toy
    before = {(row["kind"], row["value"]): row["id"] for row in table(lake, "silver/rating_ids")}
    split = {"by": "leave_last", "validation_rows": 2}
    said = featurize(spark, lake, split, dataset="toy", duplicates="count", implicit="linear", alpha=10.0)
    after = {(row["kind"], row["value"]): row["id"] for row in table(lake, "silver/rating_ids")}
    assert before.items() <= after.items() and len(after) > len(before)
    for kind in ("user", "item"):
        numbers = sorted(number for (each, _), number in after.items() if each == kind)
        assert numbers == list(range(len(numbers)))
    expected, found = slow_clean(rows, "count", 0, (1, 1)), silver(lake)
    assert {key: (row["rating"], row["weight"]) for key, row in found.items()} == {
        row["key"]: (1.0, 1 + 10 * row["rating"]) for row in expected
    }
    by_user: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(expected, key=lambda row: (row["timestamp"], row["key"])):
        by_user[row["user"]].append(row)
    wanted = {}
    for own in by_user.values():
        names = ["train"] * (len(own) - 3) + ["validation"] * 2 + ["test"] if len(own) > 3 else ["train"] * len(own)
        wanted |= {row["key"]: name for row, name in zip(own, names, strict=True)}
    check_split(found, wanted)
    train_items = {row["item"] for row in found.values() if row["split"] == "train"}
    cold = sum(row["split"] == "test" and row["item"] not in train_items for row in found.values())
    assert (said["splits"]["test"]["cold_items"], said["splits"]["test"]["cold_users"]) == (cold, 0)
    assert featurize(spark, lake, split, dataset="toy", duplicates="count", implicit="linear", alpha=10.0)[
        "nothing_to_do"
    ]


def test_whole_users_cold_rows_and_the_stream(spark: SparkSession, toy: tuple[Path, list[Row], Row]) -> None:
    lake, rows, _ = toy
    split = {"by": "user", "validation": 0.3, "test": 0.2}
    said = featurize(spark, lake, split, dataset="toy", duplicates="mean", implicit="log", ids="rebuild")
    found, expected = silver(lake), {row["key"]: row for row in slow_clean(rows, "mean", 0, (1, 1))}
    assert len({(row["user"], row["split"]) for row in found.values()}) == len({row["user"] for row in rows})
    assert {row["split"] for row in found.values()} == {"train", "validation", "test"}
    assert said["splits"]["test"]["cold_users"] == said["splits"]["test"]["rows"]
    for key, row in found.items():
        assert row["weight"] == pytest.approx(1 + 40 * np.log1p(expected[key]["rating"]), rel=1e-6)
    pinned = pin(load("silver/ratings"), lake, partition={"split": "train"})
    stream = Stream(pinned, DataConfig(lanes=2), batch_size=8)
    back = {(row["kind"], row["value"]): row["id"] for row in table(lake, "silver/rating_ids")}
    for batch in stream.epoch(0):
        for at, key in enumerate(batch["key"].tolist()):
            ids = [back[kind, found[key][kind]] for kind in ("user", "item")]
            assert [batch["user"][at].item(), batch["item"][at].item()] == ids
    assert "proved" in stream.audit(0).prove(pinned)
    dropped = featurize(spark, lake, split, dataset="toy", cold_start="drop")
    assert dropped["account"]["cold_dropped"] > 0 and {row["split"] for row in silver(lake).values()} == {"train"}


def test_movielens_100k(spark: SparkSession, ml100k: Path, lake: Path) -> None:
    said = ingest(spark, lake, ml100k, dataset="ml-100k", min_rating=1, max_rating=5)
    assert (said["rows_read"], said["rows_committed"], said["rows_quarantined"]) == (100_000, 100_000, 0)
    made = featurize(spark, lake, {"by": "random"}, rows_per_file=10**6)
    assert (made["rows"], made["cardinalities"]) == (100_000, {"user": 943, "item": 1682})
    assert made["account"]["duplicates"] == 0
    found = pl.read_delta(str(lake / "silver/ratings")).sort("key")
    source = np.loadtxt(ml100k, np.int64)
    np.testing.assert_array_equal(found["key"], np.arange(100_000))
    for column, place, shift in (("user", 0, 1), ("item", 1, 1), ("rating", 2, 0), ("timestamp", 3, 0)):
        np.testing.assert_array_equal(found[column].to_numpy() + shift, source[:, place])
    shares = found.group_by("split").len().sort("split")["len"].to_numpy() / 100_000
    np.testing.assert_allclose(shares, [0.1, 0.8, 0.1], atol=0.005)
    folds = found.group_by("fold").len()["len"].to_numpy().astype(np.int64)
    assert len(folds) == 5 and abs(folds - 20_000).max() < 600


def test_generated_ratings_and_their_best_error(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    config = generate_ratings.Config(
        dest=str(tmp_path / "made"), rows=9000, num_users=8300, bad_rows=7, write_truth_rows=True
    )
    report = generate_ratings.run(spark, config, Report("generate-ratings", out=io.StringIO()))
    truth = report.results
    assert truth["files"] == 2 and truth["ratings"] == 9000
    made = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert generate_ratings.run(spark, config, Report("generate-ratings", out=io.StringIO())).results == truth
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == made
    said = ingest(spark, lake, tmp_path / "made" / "ratings_*.csv")
    assert (said["rows_committed"], said["rows_quarantined"]) == (9000, 7)
    bronze = pl.read_delta(str(lake / "bronze/ratings")).with_columns(pl.col("user", "item").cast(pl.Int64))
    joined = bronze.join(
        pl.read_parquet(tmp_path / "made" / "truth_*.parquet"), ["user", "item", "rating", "timestamp"]
    )
    error = ((joined["rating"] - joined["expectation"]) ** 2).mean()
    assert len(joined) == 9000 and error == pytest.approx(truth["best_rmse"] ** 2, rel=0.05)
    with pytest.raises(UserError, match="holds another generation"):
        generate_ratings.early(generate_ratings.Config(dest=str(tmp_path / "made"), rows=9000))


def test_mistakes_are_named(spark: SparkSession, lake: Path, tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,Toy Story,Animation\n")
    (tmp_path / "a.csv").write_text("u,i,3\n")
    (tmp_path / "b.tsv").write_text("u\ti\t3\t1\n")
    with pytest.raises(UserError, match=r"movies\.csv: no column for the user"):
        ingest(spark, lake, tmp_path / "movies.csv")
    with pytest.raises(UserError, match=r"b\.tsv is laid out otherwise"):
        ingest(spark, lake, f"{tmp_path / 'a.csv'},{tmp_path / 'b.tsv'}")
    with pytest.raises(UserError, match="there is no bronze/ratings"):
        featurize(spark, lake)
    ingest(spark, lake, tmp_path / "a.csv")
    with pytest.raises(UserError, match="1 of 1 ratings have no timestamp"):
        featurize(spark, lake)
    with pytest.raises(UserError, match="no rating is left"):
        featurize(spark, lake, {"by": "random"}, threshold=4.0)
    for wrong in ({"duplicates": "first"}, {"folds": 0}, {"implicit": "yes"}):
        with pytest.raises(UserError):
            featurize(spark, lake, **wrong)
