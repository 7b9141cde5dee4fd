"""ALS as a run: errors, lists, figures against plain Python; cold users and items; MovieLens beside a slow solver."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from integration.ratings_lake import Ratings, movielens, planted, write_ratings

from headrace.baselines import create
from headrace.baselines.ratings import known_rmse
from headrace.baselines.tuning import Search, search
from headrace.errors import UserError
from headrace.pipelines import baseline_als
from headrace.pipelines.baseline_settings import ModelOptions, TuningConfig
from headrace.report import Report
from headrace.testing import slow_als
from headrace.train.tracking import TrackingConfig

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.usefixtures("no_quality_reports")
SMALL = {"rank": 3, "max_iter": 6, "num_user_blocks": 2, "num_item_blocks": 2}


def fit(
    spark: SparkSession, lake: Path, options: dict[str, Any], out: io.StringIO | None = None, **settings: Any
) -> Report:
    model = ModelOptions(options=SMALL | options)
    cfg = baseline_als.Config(lake=str(lake), model=model, tracking=TrackingConfig(enabled=False), **settings)
    return baseline_als.run(spark, cfg, Report("baseline-als", out=out or io.StringIO()))


def factors(report: Report) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Of the saved model, by id."""
    found = []
    for name in ("userFactors", "itemFactors"):
        table = pl.read_parquet(f"{report.paths['model']}/{name}/*.parquet")
        found.append({row["id"]: np.array(row["features"]) for row in table.to_dicts()})
    return found[0], found[1]


def slow_lists(
    report: Report, ratings: Ratings, earlier: tuple[str, ...], k: int, by: str = "user"
) -> dict[int, list[int]]:
    """The best k for everyone that were not in earlier splits, from all scores."""
    users, items = factors(report)
    mine, others = (users, items) if by == "user" else (items, users)
    other = "item" if by == "user" else "user"
    seen = defaultdict(set)
    for me, it, split in zip(ratings[by].tolist(), ratings[other].tolist(), ratings["split"].tolist(), strict=True):
        if split in earlier:
            seen[me].add(it)
    return {
        me: sorted((it for it in others if it not in seen[me]), key=lambda it: (-float(x @ others[it]), it))[:k]
        for me, x in mine.items()
    }


def slow_ranking(lists: dict[int, list[int]], liked: dict[int, set[int]], k: int, cold: str) -> dict[str, float]:
    """Precision, recall, NDCG and MAP at k as they are defined."""
    sums = dict.fromkeys(("precision_at_k", "recall_at_k", "ndcg_at_k", "map_at_k"), 0.0)
    counted = [user for user in liked if user in lists or cold == "count"]
    for user in counted:
        hits = [item in liked[user] for item in lists.get(user, [])[:k]]
        best = min(len(liked[user]), k)
        sums["precision_at_k"] += sum(hits) / k
        sums["recall_at_k"] += sum(hits) / len(liked[user])
        gain = sum(1 / math.log2(at + 2) for at, hit in enumerate(hits) if hit)
        sums["ndcg_at_k"] += gain / sum(1 / math.log2(at + 2) for at in range(best))
        sums["map_at_k"] += sum(sum(hits[: at + 1]) / (at + 1) for at, hit in enumerate(hits) if hit) / best
    return {name: total / len(counted) for name, total in sums.items()}


def of_split(ratings: Ratings, split: str, liked: float) -> dict[int, set[int]]:
    found = defaultdict(set)
    keep = (ratings["split"] == split) & (ratings["rating"] >= liked)
    for user, item in zip(ratings["user"][keep].tolist(), ratings["item"][keep].tolist(), strict=True):
        found[user].add(item)
    return dict(found)


def check_lists(report: Report, ratings: Ratings, k: int) -> None:
    """Both tables hold what all scores of the saved factors say, with the ids of bronze."""
    for kind, other in (("user", "item"), ("item", "user")):
        expected = slow_lists(report, ratings, ("train", "validation"), k, kind)
        kept = pl.read_delta(report.paths[f"{kind}_recommendations"])
        kept = kept.filter(pl.col("run_id") == report.results["run_id"]).sort(kind, "rank")
        found = {key[0]: part[other].to_list() for key, part in kept.group_by(kind, maintain_order=True)}
        assert found == {me: listed for me, listed in expected.items() if listed}
        ranks = [part["rank"].to_list() for _, part in kept.group_by(kind, maintain_order=True)]
        assert ranks == [list(range(1, len(listed) + 1)) for listed in ranks]
        assert (kept["user_id"] == "u" + kept["user"].cast(str)).all() and (
            kept["item_id"] == "i" + kept["item"].cast(str)
        ).all()


def test_ratings_against_plain_python(spark: SparkSession, lake: Path) -> None:
    ratings = write_ratings(lake, planted())
    report = fit(spark, lake, {"reg_param": 0.05}, k=5)
    results, (users, items) = report.results, factors(report)
    train, test = (ratings["split"] == name for name in ("train", "test"))
    assert set(users) == set(ratings["user"][train].tolist()) and set(items) == set(ratings["item"][train].tolist())
    mean = float(ratings["rating"][train].mean())
    warm, everything = [], []
    for user, item, rating in zip(*(ratings[name][test].tolist() for name in ("user", "item", "rating")), strict=True):
        known = user in users and item in items
        error = (rating - float(users[user] @ items[item])) ** 2 if known else (rating - mean) ** 2
        everything.append(error)
        warm += [error] if known else []
    assert 0 < len(warm) < len(everything) == results["test_rows"] == 150
    assert results["test_cold"] == 150 - len(warm)
    assert results["test_cold_users"] == sum(user not in users for user in ratings["user"][test].tolist())
    assert results["test_cold_items"] == sum(item not in items for item in ratings["item"][test].tolist())
    assert results["test_rmse_warm"] == pytest.approx(math.sqrt(np.mean(warm)), abs=1e-5)
    assert results["test_rmse"] == results["test_rmse_all"] == pytest.approx(math.sqrt(np.mean(everything)), abs=1e-5)
    assert results["test_rmse_warm"] < float(ratings["rating"][test].std())
    liked = of_split(ratings, "test", 4.0)
    expected = slow_ranking(slow_lists(report, ratings, ("train", "validation"), 5), liked, 5, "count")
    assert {name: results[f"test_{name}"] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert results["test_users"] == len(liked)
    assert results["test_unknown_users"] == sum(user not in users for user in liked) > 0 < results["test_ndcg_at_k"]
    check_lists(report, ratings, 5)
    stages = {stage.name: (stage.rows_in, stage.rows_out) for stage in report.stages}
    assert stages["train"] == (1200, 1200) and stages["evaluate"] == (300, 300)


def test_implicit_preferences_take_the_tables_confidences(spark: SparkSession, lake: Path) -> None:
    seen = planted(seed=4, rows=600)
    weights = 1 + 2.0 * seen["rating"]
    ratings = write_ratings(lake, seen | {"rating": np.ones(600), "weight": weights}, implicit="linear")
    with pytest.raises(UserError, match="all 480 training rows have 1: nothing"):
        fit(spark, lake, {})
    settings = {"implicit_prefs": True, "alpha": 9.0, "nonnegative": True}
    report = fit(spark, lake, settings, cold_start="exclude", recommend=False)
    users, items = factors(report)
    assert min(float(x.min()) for x in (*users.values(), *items.values())) >= 0
    assert report.results["options"]["alpha"] == 1.0 and "test_rmse" not in report.results
    test = zip(*(ratings[name][ratings["split"] == "test"].tolist() for name in ("user", "item")), strict=True)
    assert report.results["test_cold"] == sum(user not in users or item not in items for user, item in test)
    expected = slow_ranking(
        slow_lists(report, ratings, ("train", "validation"), 10), of_split(ratings, "test", 0), 10, "exclude"
    )
    assert {name: report.results[f"test_{name}"] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert "user_recommendations" not in report.paths


def test_a_grid_is_judged_by_the_tables_folds(spark: SparkSession, lake: Path) -> None:
    write_ratings(lake, planted(), folds=2)
    tuning = TuningConfig(folds=2, grid={"reg_param": [0.05, 3.0]})
    said = io.StringIO()
    report = fit(spark, lake, {"max_iter": 2}, tune="cross_validation", tuning=tuning, recommend=False, out=said)
    told = report.results["tuning"]
    assert told["metric"] == "rmse" and told["best"] == {"reg_param": 0.05} == {
        "reg_param": report.results["options"]["reg_param"]
    }
    assert [point["options"]["reg_param"] for point in told["points"]] == [0.05, 3.0]
    assert told["points"][0]["value"] < told["points"][1]["value"]
    assert "a fold's training rows have not" in said.getvalue()


def rmse(factors: slow_als.Factors, ratings: Ratings, rows: np.ndarray) -> float:
    """Over the rows that the factors know."""
    predicted = factors.predict(ratings["user"][rows], ratings["item"][rows])
    known = np.isfinite(predicted)
    return float(np.sqrt(np.mean((ratings["rating"][rows][known] - predicted[known]) ** 2)))


def solved(
    ratings: Ratings, train: np.ndarray, settings: slow_als.Settings, start: np.ndarray | None = None
) -> slow_als.Factors:
    made = slow_als.solve(*(ratings[name][train] for name in ("user", "item", "rating")), settings, start)
    users, items = np.full((943, settings.rank), np.nan), np.full((1682, settings.rank), np.nan)
    users[: len(made.users)], items[: len(made.items)] = made.users, made.items
    return slow_als.Factors(users, items)


MOVIELENS = slow_als.Settings(rank=10, reg=0.1, iterations=20)
OF_MLLIB = {"rank": 10, "reg_param": 0.1, "max_iter": 20, "num_user_blocks": 2, "num_item_blocks": 2}


def start_of(frame: DataFrame) -> np.ndarray:
    """Where MLlib starts: from elsewhere it ends elsewhere, by up to .01 of RMSE on these rows."""
    first = np.full((943, 10), np.nan)
    for row in create("als", **OF_MLLIB | {"max_iter": 0}).fit(frame).userFactors.collect():
        first[row["id"]] = row["features"]
    return first


def test_movielens_by_time_beside_a_slow_solver(spark: SparkSession, lake: Path, ml100k: Path) -> None:
    ratings = write_ratings(lake, movielens(ml100k))
    results = fit(spark, lake, OF_MLLIB, recommend=False).results
    frame = spark.read.format("delta").load(str(lake / "silver/ratings"))
    start = start_of(frame.where("split = 'train'").select("user", "item", "rating"))
    train, test = ratings["split"] == "train", ratings["split"] == "test"
    expected = rmse(solved(ratings, train, MOVIELENS, start), ratings, test)
    others = [rmse(solved(ratings, train, replace(MOVIELENS, seed=seed)), ratings, test) for seed in range(3)]
    shown = f"RMSE of known rows {results['test_rmse_warm']:.4f}, slow solver {expected:.4f}, from elsewhere {others}"
    print(f"MovieLens 100k by time: {shown}; all rows {results['test_rmse_all']:.4f}, NDCG {results['test_ndcg_at_k']}")
    assert results["test_rmse_warm"] == pytest.approx(expected, abs=0.002)
    assert results["test_rows"] == 10_000 and results["test_cold"] > 1000  # most test users are new


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_movielens_by_five_folds_beside_a_slow_solver(
    spark: SparkSession, lake: Path, ml100k: Path, tmp_path: Path
) -> None:
    spark.sparkContext.setCheckpointDir(str(tmp_path / "checkpoints"))
    ratings = write_ratings(lake, movielens(ml100k))
    frame = spark.read.format("delta").load(str(lake / "silver/ratings")).select("user", "item", "rating", "fold")
    by_fold = Search("cross_validation", folds=5, fold_column="fold")
    found = search(create("als", **OF_MLLIB), frame, {"reg_param": [0.1]}, known_rmse(), by_fold)
    errors = []
    for fold in range(5):
        start = start_of(frame.where(f"fold != {fold}"))
        slow = solved(ratings, ratings["fold"] != fold, MOVIELENS, start)
        errors.append(rmse(slow, ratings, ratings["fold"] == fold))
    print(f"MovieLens 100k by five folds: RMSE {found.best.value:.4f}, slow solver {np.mean(errors):.4f} {errors}")
    assert found.best.value == pytest.approx(np.mean(errors), abs=0.002)


def test_the_slow_solver_ends_where_no_factor_can_be_better() -> None:
    made = planted(rows=400)
    users, items, rating = made["user"], made["item"], made["rating"]
    settings = slow_als.Settings(rank=2, reg=0.1, iterations=400)
    best = slow_als.solve(users, items, rating, settings)
    least = slow_als.objective(best, users, items, rating, 0.1)
    rng = np.random.default_rng(1)
    for _ in range(20):
        near = slow_als.Factors(
            best.users + 1e-3 * rng.normal(size=best.users.shape), best.items + 1e-3 * rng.normal(size=best.items.shape)
        )
        assert slow_als.objective(near, users, items, rating, 0.1) > least
