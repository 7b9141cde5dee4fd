"""silver/ratings and silver/rating_ids without Spark: written by delta-rs, to test recommenders alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties, write_deltalake

from headrace.catalog.spec import load

Ratings = dict[str, np.ndarray]


def planted(seed: int = 3, rows: int = 1500) -> Ratings:
    """Ratings of 60 users and 40 items by two factors and noise, in the order of their time; the last users and items
    come late."""
    rng = np.random.default_rng(seed)
    users, items = rng.normal(size=(60, 2)), rng.normal(size=(40, 2))
    pairs = rng.permutation(60 * 40)[:rows]
    user, item = pairs // 40, pairs % 40
    late = (user >= 57) | (item >= 38)
    time = np.argsort(np.argsort(rng.random(rows) + late))
    rating = 3 + np.einsum("nk,nk->n", users[user], items[item]) + 0.2 * rng.normal(size=rows)
    made = {"user": user, "item": item, "rating": np.clip(np.round(2 * rating) / 2, 0.5, 5), "timestamp": time}
    order = np.argsort(time)
    return {name: values[order] for name, values in made.items()}


def movielens(path: Path) -> Ratings:
    """MovieLens 100k in the order of its time, numbers from 0."""
    user, item, rating, time = np.loadtxt(path, np.int64).T
    order = np.argsort(time, kind="stable")
    columns = {"user": user - 1, "item": item - 1, "rating": rating.astype(float), "timestamp": time}
    return {name: values[order] for name, values in columns.items()}


def write_ratings(lake: Path, ratings: Ratings, folds: int = 5, **request: Any) -> Ratings:
    """Write both tables: the last tenth by time tests, the tenth before validates; gives the rows with their split."""
    rows = len(ratings["user"])
    split = np.repeat(["train", "validation", "test"], [rows - 2 * (rows // 10), rows // 10, rows // 10])
    table = pa.table(
        {
            "key": np.arange(rows, dtype=np.int64),
            "user": ratings["user"].astype(np.int32),
            "item": ratings["item"].astype(np.int32),
            "rating": ratings["rating"].astype(np.float32),
            "weight": ratings.get("weight", np.ones(rows)).astype(np.float32),
            "timestamp": ratings["timestamp"].astype(np.int64),
            "fold": (np.random.default_rng(0).permutation(rows) % folds).astype(np.int32),
            "split": split,
        }
    )
    asked = {"dataset": "made", "folds": folds, "implicit": "none"} | request
    _write(lake, "silver/ratings", table, "split", {"request": asked, "ids_version": 1})
    numbers = [("user", int(n)) for n in np.unique(ratings["user"])] + [
        ("item", int(n)) for n in np.unique(ratings["item"])
    ]
    ids = {
        "kind": [kind for kind, _ in numbers],
        "value": [f"{kind[0]}{number}" for kind, number in numbers],
        "id": pa.array([number for _, number in numbers], pa.int32()),
        "generation": pa.array([0] * len(numbers), pa.int32()),
        "dataset": ["made"] * len(numbers),
    }
    _write(lake, "silver/rating_ids", pa.table(ids), "dataset", {})
    return ratings | {"split": split, "fold": table.column("fold").to_numpy()}


def _write(lake: Path, name: str, table: pa.Table, partition: str, mine: dict[str, Any]) -> None:
    path = load(name).path(str(lake))
    write_deltalake(path, table.slice(0, 0), partition_by=[partition])
    properties = CommitProperties(custom_metadata={"userMetadata": json.dumps({"headrace": mine})})
    write_deltalake(path, table, mode="append", partition_by=[partition], commit_properties=properties)
