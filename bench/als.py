"""Row g': ALS by MLlib, our baseline `als`, beside `implicit` and the slow solver: RMSE and seconds an iteration.

    .venv/bin/python bench/als.py [--tables ratings,likes,regular] [--rounds 3]

ratings: MovieLens 100k, explicit, four fifths to train on; `implicit` has no such model. likes: the same, as implicit
preferences, without a penalty. regular: generated likes of which every user and every item has the same number m, with
one. MLlib multiplies the penalty of a user or item with its number of ratings, `implicit` does not: settings are equal
only where there is no penalty, or where all numbers are m, and `implicit` is given m times it. `implicit`'s confidences
are 1 + alpha r, as MLlib's are inside. What ALS ends with depends on where it begins (by .01 of RMSE on MovieLens): all
begin with MLlib's own first factors of users, and solve for items first.

RMSE is over held rows whose user and item are known (of likes: from 1). All objectives are computed from factors, by
the same lines, and are to be equal to 1e-3 (float32) before seconds count; 2 threads each, by turns; the slow solver,
in float64 on one thread, is there for its result. One JSON line a table is appended to docs/results/als.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS = 2
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from scipy import sparse  # noqa: E402

from bench.linear_contestants import watched  # noqa: E402
from bench.saga import circumstances  # noqa: E402
from bench.studies.lines import Lines  # noqa: E402
from bench.studies.running import command  # noqa: E402
from headrace.errors import UserError  # noqa: E402
from headrace.testing import slow_als  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "als.jsonl"
EQUAL = 1e-3
TABLES = ("ratings", "likes", "regular")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Ratings [n] by user and item, numbered from 0, and how they are modelled.

    Args:
        alpha: of implicit preferences; None: explicit ratings.
        reg: MLlib's regParam.
        degree: ratings of every user and item where all have as many, else 0.
    """

    name: str
    users: Ints
    items: Ints
    ratings: Floats
    held: tuple[Ints, Ints, Floats]
    alpha: float | None
    reg: float
    degree: int = 0


def movielens(name: str, folder: Path | None) -> Table:
    """Every fifth row of a random order is held.

    Raises:
        UserError: the data set is not on this machine: it is not ours to ship.
    """
    data = folder or Path(os.environ.get("HEADRACE_REAL_DATA", ROOT.parent / "shared" / "data"))
    file = data / "ml100k" / "u.data"
    if not file.is_file():
        raise UserError(f"there is no {file}", "give --data FOLDER, or measure --tables regular only")
    user, item, rating, _ = np.loadtxt(file, np.int64).T
    held = np.random.default_rng(0).permutation(len(user)) % 5 == 0
    parts = [(user[keep] - 1, item[keep] - 1, rating[keep].astype(float)) for keep in (~held, held)]
    alpha, reg = (None, 0.1) if name == "ratings" else (1.0, 0.0)
    return Table(name, *parts[0], parts[1], alpha, reg)


def regular(size: int, degree: int) -> Table:
    """`size` users and items; each user likes `degree` items of its own kind, and each item is liked by as many.

    There are ten kinds: user u likes the items next to u in its kind's ring; the next one is held.
    """
    kinds = 10
    ring = size // kinds
    if size % kinds or ring <= degree + 1:
        raise UserError(f"{size} users do not make {kinds} rings of over {degree + 1}", "take more, by tens")
    user = np.repeat(np.arange(size), degree)
    steps = np.tile(np.arange(1, degree + 1), size)
    item = (user // ring) * ring + (user % ring + steps) % ring
    rating = 1.0 + (user + item) % 3
    everyone = np.arange(size)
    next_one = (everyone // ring) * ring + (everyone % ring + degree + 1) % ring
    return Table("regular", user, item, rating, (everyone, next_one, np.ones(size)), 1.0, 0.01, degree)


def objective(table: Table, found: slow_als.Factors) -> float:
    """What is minimized."""
    if table.alpha is None:
        return slow_als.objective(found, table.users, table.items, table.ratings, table.reg)
    x, y = np.nan_to_num(found.users), np.nan_to_num(found.items)
    near = found.predict(table.users, table.items)
    liked = float(np.sum((1 + table.alpha * table.ratings) * (1 - near) ** 2 - near**2))
    norms = np.sum(x[table.users] ** 2) + np.sum(y[table.items] ** 2)
    return float(np.sum((x.T @ x) * (y.T @ y))) + liked + table.reg * float(norms)


def rmse(table: Table, found: slow_als.Factors) -> float:
    """Over held rows that are known; see the module's docstring."""
    users, items, ratings = table.held
    near = found.predict(users, items)
    known = np.isfinite(near)
    return float(np.sqrt(np.mean(((ratings if table.alpha is None else 1.0) - near)[known] ** 2)))


class Contest:
    """The contestants on one table."""

    def __init__(self, spark: Any, table: Table, rank: int, iterations: int) -> None:
        self.spark, self.table, self.rank, self.iterations = spark, table, rank, iterations
        self.shape = tuple(
            int(max(mine.max(), held.max())) + 1
            for mine, held in ((table.users, table.held[0]), (table.items, table.held[1]))
        )
        columns = zip(table.users.tolist(), table.items.tolist(), table.ratings.tolist(), strict=True)
        self.rows = spark.createDataFrame(list(columns), "user int, item int, rating float").repartition(2).cache()
        self.rows.count()
        self.start = self._fitted(0).users

    def _fitted(self, iterations: int) -> slow_als.Factors:
        from headrace.baselines import create

        table = self.table
        blocks = {"num_user_blocks": THREADS, "num_item_blocks": THREADS}
        options = {"rank": self.rank, "reg_param": table.reg, "max_iter": iterations, **blocks}
        if table.alpha is not None:
            options |= {"implicit_prefs": True, "alpha": table.alpha}
        model = create("als", **options).fit(self.rows)
        found = []
        for frame, size in zip((model.userFactors, model.itemFactors), self.shape, strict=True):
            factors = np.full((size, self.rank), np.nan)
            for row in frame.collect():
                factors[row["id"]] = row["features"]
            found.append(factors)
        return slow_als.Factors(*found)

    def mllib(self) -> slow_als.Factors:
        return self._fitted(self.iterations)

    def implicit(self) -> slow_als.Factors:
        """Its users are our items: it solves for them first."""
        from implicit.als import AlternatingLeastSquares

        table = self.table
        assert table.alpha is not None
        confidence = (1 + table.alpha * table.ratings).astype(np.float32)
        cells = sparse.csr_matrix((confidence, (table.items, table.users)), shape=self.shape[::-1])
        model = AlternatingLeastSquares(
            factors=self.rank, regularization=table.reg * table.degree, iterations=self.iterations, use_cg=False,
            use_gpu=False, num_threads=THREADS,
        )  # fmt: skip
        model.item_factors = np.nan_to_num(self.start).astype(np.float32)
        model.user_factors = np.zeros((self.shape[1], self.rank), np.float32)
        model.fit(cells, show_progress=False)
        found = [np.array(model.item_factors, float), np.array(model.user_factors, float)]
        for factors, ids in zip(found, (table.users, table.items), strict=True):
            factors[np.setdiff1d(np.arange(len(factors)), ids)] = np.nan  # MLlib does not know them
        return slow_als.Factors(*found)

    def slow(self) -> slow_als.Factors:
        table = self.table
        settings = slow_als.Settings(self.rank, table.reg, self.iterations, table.alpha)
        made = slow_als.solve(table.users, table.items, table.ratings, settings, self.start)
        whole = [np.full((size, self.rank), np.nan) for size in self.shape]
        for factors, part in zip(whole, (made.users, made.items), strict=True):
            factors[: len(part)] = part
        return slow_als.Factors(*whole)


def contestants(contest: Contest) -> dict[str, Callable[[], slow_als.Factors]]:
    """Those that have the table's model and are installed."""
    found = {"mllib": contest.mllib, "slow solver": contest.slow}
    if contest.table.alpha is not None:
        try:
            import implicit  # noqa: F401
        except ImportError:
            print("implicit is not installed (make peers): it is left out")
        else:
            found["implicit"] = contest.implicit
    return found


def measure(contest: Contest, rounds: int) -> dict[str, Any]:
    """By turns; results are equal, or it ends. The first turn is warming."""
    every = contestants(contest)
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in every}
    results: dict[str, slow_als.Factors] = {}
    for turn in range(-1, rounds):
        for name, fit in every.items():
            if turn < 0 or name != "slow solver":
                point: dict[str, Any] = {}
                with watched(point):
                    results[name] = fit()
                if turn >= 0 or name == "slow solver":
                    points[name].append(point)
    found = {}
    for name, factors in results.items():
        figures = {"rmse": rmse(contest.table, factors), "objective": objective(contest.table, factors)}
        if abs(figures["objective"] / found.get("mllib", figures)["objective"] - 1) > EQUAL:
            raise SystemExit(f"{name} ended elsewhere than MLlib: {figures}, {found['mllib']}")
        for what in ("seconds", "cpu_seconds"):
            figures[what] = statistics.median(p[what] for p in points[name]) / contest.iterations
        found[name] = figures
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--rank", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=5000, help="users of the regular table, and items")
    parser.add_argument("--degree", type=int, default=40, help="likes of each")
    parser.add_argument("--data", type=Path, help="folder of the folder ml100k")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if unknown := set(args.tables.split(",")) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    from headrace.session import build_session

    lines = Lines(args.results)
    spark = build_session("bench-als", master=f"local[{THREADS}]", conf={"spark.driver.memory": "2g"})
    with tempfile.TemporaryDirectory(prefix="headrace-als-") as checkpoints:
        spark.sparkContext.setCheckpointDir(checkpoints)  # else the lineage of 20 iterations is deeper than a stack
        for name in args.tables.split(","):
            table = regular(args.size, args.degree) if name == "regular" else movielens(name, args.data)
            line = line_of(spark, table, args)
            lines.append(line)
            print(told(line), flush=True)
        spark.stop()
    lines.close()


def line_of(spark: Any, table: Table, args: argparse.Namespace) -> dict[str, Any]:
    """One table's."""
    load = os.getloadavg()[0]
    found = measure(Contest(spark, table, args.rank, args.iterations), args.rounds)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run = {"what": "als", "data": table.name, "rows": len(table.users), "rank": args.rank, "reg": table.reg, "at": at}
    run |= {"iterations": args.iterations, "rounds": args.rounds}
    line = {"run": run, "found": found, **circumstances(load)}
    with contextlib.suppress(ModuleNotFoundError):
        line["versions"]["implicit"] = version("implicit")
    return line


def told(line: dict[str, Any]) -> str:
    """A line as it is printed."""
    each = [
        f"{name} RMSE {found['rmse']:.5f}, objective {found['objective']:.7g}, {found['seconds']:.3f} s an iteration"
        for name, found in line["found"].items()
    ]
    return f"{line['run']['data']:<8} {'; '.join(each)}; load {line['load'][0]:.1f}"


if __name__ == "__main__":
    command(main)
