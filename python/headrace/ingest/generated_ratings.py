"""Ratings of any number from a planted model, with the error that the best possible prediction would make.

    mean(u, i) = mu + b_u + b_i + p_u . q_i              biases N(0, 0.35^2), N(0, 0.35^2); factors of `rank` numbers,
    rating     = nearest step of mean + N(0, noise^2)    N(0, s^2) with s^4 rank = 0.45^2; steps 0.5, 1, ... 5

The best prediction of a rating is its expectation E[r | u, i] over the noise, and the best squared error its variance;
both are exact sums over the ten steps: P(step) = Phi((step + 1/4 - mean) / noise) - Phi((step - 1/4 - mean) / noise),
the outer steps taking the tails. How often users rate and items are rated follows power laws.

A file holds the users of one block, and is a function of (settings, block): any number of tasks gives the same bytes.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import UserError

STEPS = np.arange(1, 11) / 2
FORMATS = {
    "csv": ("ratings_{:05}.csv", ","),
    "tsv": ("u_{:05}.data", "\t"),
    "double_colon": ("ratings_{:05}.dat", "::"),
}
BLOCK_USERS = 8192
MEAN, BIAS, INTERACTION = 3.5, 0.35, 0.45
START = 1_500_000_000  # seconds since 1970 of the first possible rating
SPAN = 3 * 365 * 86_400
_BAD = (b"1%s2\n", b"%s2%s3%s9\n", b"1%s2%snan%s9\n", b"1%s2%s3%syesterday\n")
_ITEMS, _USERS = 1, 2  # streams of random numbers

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Generation:
    """What the bytes depend on.

    Args:
        rows: ratings, each user and item pair once.
        users: number of users.
        items: number of items.
        rank: numbers in a factor.
        noise: standard deviation of the noise.
        seed: of everything.
        format: a key of FORMATS.
        duplicates: rows that rate a pair a second time, later, in addition to `rows`.
        bad_rows: lines an ingest must refuse, in addition.
    """

    rows: int
    users: int
    items: int
    rank: int
    noise: float
    seed: int
    format: str
    duplicates: int
    bad_rows: int

    @property
    def blocks(self) -> int:
        """Files."""
        return -(-self.users // BLOCK_USERS)

    def check(self) -> None:
        """Refuse what cannot be made.

        Raises:
            UserError: with the setting.
        """
        if self.format not in FORMATS:
            raise UserError(f"--format {self.format} is unknown", f"one of {', '.join(FORMATS)}")
        settings = {"rows": self.rows, "num_users": self.users, "num_items": self.items, "rank": self.rank}
        for name, value in settings.items():
            if value < 1:
                raise UserError(f"--{name} {value} is under 1", f"leave --{name} out")
        if min(self.duplicates, self.bad_rows, self.seed) < 0 or not 0 < self.noise <= 10:
            raise UserError("duplicates, bad_rows and seed are 0 or more, noise is over 0 and at most 10")
        if self.rows < self.users or self.rows > self.users * self.items // 2:
            raise UserError(
                f"{self.rows:,} ratings by {self.users:,} users of {self.items:,} items cannot be",
                "at least one a user, and at most half of all pairs",
            )
        if self.duplicates > self.rows:
            raise UserError(f"--duplicates {self.duplicates} are more than --rows", "give fewer")


@dataclass(frozen=True)
class Block:
    """One file's ratings, and the truth about each.

    Args:
        user: [n] from 1.
        item: [n] from 1.
        rating: [n] a step.
        timestamp: [n] seconds since 1970.
        expectation: [n] the best prediction.
        variance: [n] its mean squared error.
        text: the file.
        bad_rows: lines in it that an ingest must refuse.
    """

    user: Int64s
    item: Int64s
    rating: Floats
    timestamp: Int64s
    expectation: Floats
    variance: Floats
    text: bytes
    bad_rows: int


def make_block(generation: Generation, number: int) -> Block:
    """The users [number * BLOCK_USERS, ...) with all their ratings."""
    first = number * BLOCK_USERS
    counts = _activity(generation)[first : first + BLOCK_USERS]
    rng = np.random.default_rng([generation.seed, _USERS, number])
    popularity, item_bias, item_factors = _items(generation)
    user = np.repeat(np.arange(len(counts)), counts)
    item = _draw_items(rng, counts, popularity)
    scale = math.sqrt(INTERACTION / math.sqrt(generation.rank))
    bias, factors = rng.normal(0, BIAS, len(counts)), rng.normal(0, scale, (len(counts), generation.rank))
    mean = MEAN + bias[user] + item_bias[item] + np.einsum("nk,nk->n", factors[user], item_factors[item])
    start = rng.integers(0, SPAN // 2, len(counts))
    timestamp = START + start[user] + (_within(rng, user) * (SPAN - start[user])).astype(np.int64)
    rows = np.arange(len(user))
    again = rng.choice(rows, _share(generation.duplicates, generation, number, len(rows)), replace=False)
    rows = np.concatenate([rows, again])
    later = np.concatenate([np.zeros(len(user), np.int64), rng.integers(1, 86_400, len(again))])
    rating = _nearest_step(mean[rows] + rng.normal(0, generation.noise, len(rows)))
    expectation, variance = moments(mean[rows], generation.noise)
    columns = (user[rows] + first + 1, item[rows] + 1, rating, timestamp[rows] + later)
    bad = _share(generation.bad_rows, generation, number, generation.bad_rows)
    return Block(*columns, expectation, variance, _text(generation, columns, bad, rng), bad)


def moments(mean: Floats, noise: float) -> tuple[Floats, Floats]:
    """Expectation and variance of a rating by the mean it is drawn around; interpolated, to about 1e-8, in a table."""
    low, high = STEPS[0] - 8 * noise - 1, STEPS[-1] + 8 * noise + 1
    grid = np.linspace(low, high, max(4001, int((high - low) / noise * 400)))
    first, second = np.zeros(len(grid)), np.zeros(len(grid))
    below = np.zeros(len(grid))
    for step in STEPS:
        upto = np.ones(len(grid)) if step == STEPS[-1] else _normal_cdf((step + 0.25 - grid) / noise)
        first, second = first + step * (upto - below), second + step**2 * (upto - below)
        below = upto
    expectation = np.interp(mean, grid, first)
    return expectation, np.interp(mean, grid, second) - np.interp(mean, grid, first) ** 2


@dataclass
class Truth:
    """Sums over blocks: what can be known about the whole before any model is trained."""

    rows: int = 0
    bad_rows: int = 0
    variance: float = 0.0
    rating: float = 0.0
    square: float = 0.0

    def add(self, figures: dict[str, Any]) -> None:
        """Add one block's `figures`."""
        self.rows += figures["rows"]
        self.bad_rows += figures["bad_rows"]
        self.variance += figures["variance"]
        self.rating += figures["rating"]
        self.square += figures["square"]

    def figures(self, generation: Generation) -> dict[str, Any]:
        """truth.json: settings, counts, and the root mean squared errors of the best and of the constant prediction."""
        mean = self.rating / self.rows
        return {
            "settings": asdict(generation),
            "files": generation.blocks,
            "ratings": self.rows,
            "bad_rows": self.bad_rows,
            "mean": mean,
            "rmse_of_the_mean": math.sqrt(self.square / self.rows - mean**2),
            "best_rmse": math.sqrt(self.variance / self.rows),
        }


def figures(block: Block) -> dict[str, Any]:
    """What `Truth.add` takes of a block."""
    return {
        "rows": len(block.user),
        "bad_rows": block.bad_rows,
        "variance": float(block.variance.sum()),
        "rating": float(block.rating.sum()),
        "square": float((block.rating**2).sum()),
    }


def _activity(generation: Generation) -> Int64s:
    """Ratings of each user: 1 each, the rest by a power law in a shuffled order, at most half of the items each."""
    rng = np.random.default_rng([generation.seed, _USERS])
    weights = rng.permutation((np.arange(generation.users) + 10.0) ** -0.8)
    counts = np.ones(generation.users, np.int64)
    limit = max(1, generation.items // 2)
    while (left := generation.rows - int(counts.sum())) > 0:
        room = counts < limit
        share = np.where(room, weights, 0.0)
        more = np.floor(share / share.sum() * left).astype(np.int64)
        if not more.any():
            more[np.argsort(-share, kind="stable")[: min(left, int(room.sum()))]] = 1
        counts = np.minimum(counts + more, limit)
    return counts


def _items(generation: Generation) -> tuple[Floats, Floats, Floats]:
    """Of all items: cumulated popularity, biases, factors."""
    rng = np.random.default_rng([generation.seed, _ITEMS])
    weights = rng.permutation((np.arange(generation.items) + 20.0) ** -0.9)
    scale = math.sqrt(INTERACTION / math.sqrt(generation.rank))
    factors = rng.normal(0, scale, (generation.items, generation.rank))
    return np.cumsum(weights / weights.sum()), rng.normal(0, BIAS, generation.items), factors


def _draw_items(rng: np.random.Generator, counts: Int64s, popularity: Floats) -> Int64s:
    """For each user `counts` different items by popularity: drawn again where a draw repeats one."""
    items = len(popularity)
    owner = np.repeat(np.arange(len(counts)), counts)
    taken = np.empty(0, np.int64)
    missing = owner
    for attempt in range(1000):
        flat = attempt > 20  # popular ones are all taken: any will do
        drawn = rng.integers(0, items, len(missing)) if flat else np.searchsorted(popularity, rng.random(len(missing)))
        pairs = missing * items + np.minimum(drawn, items - 1)
        taken = np.union1d(taken, pairs)
        missing = np.repeat(np.arange(len(counts)), counts - np.bincount(taken // items, minlength=len(counts)))
        if not len(missing):
            break
    assert not len(missing), "at most half of the items are wanted: draws end"
    return taken % items


def _within(rng: np.random.Generator, owner: Int64s) -> Floats:
    """Uniform in [0, 1), ascending within each owner; `owner` is ascending."""
    drawn = rng.random(len(owner))
    return drawn[np.lexsort((drawn, owner))]


def _nearest_step(values: Floats) -> Floats:
    return np.clip(np.floor(values * 2 + 0.5), 1, 10) / 2


def _share(total: int, generation: Generation, number: int, limit: int) -> int:
    """This block's part of a total, so that the parts add up to it."""
    upto = [total * min((number + i) * BLOCK_USERS, generation.users) // generation.users for i in (0, 1)]
    return min(upto[1] - upto[0], limit)


def _text(generation: Generation, columns: tuple[Any, ...], bad: int, rng: np.random.Generator) -> bytes:
    """The file: lines in the order of users, bad ones at random places."""
    import pyarrow as pa
    import pyarrow.csv as pcsv

    delimiter = FORMATS[generation.format][1]
    table = pa.table(dict(zip(("userId", "movieId", "rating", "timestamp"), columns, strict=True)))
    out = io.BytesIO()
    options = pcsv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    pcsv.write_csv(table.sort_by([("userId", "ascending"), ("timestamp", "ascending")]), out, options)
    lines = out.getvalue().replace(b"\t", delimiter.encode()).splitlines(keepends=True)
    for at, place in enumerate(sorted(rng.integers(0, len(lines) + 1, bad).tolist(), reverse=True)):
        line = _BAD[at % len(_BAD)]
        lines.insert(place, line % ((delimiter.encode(),) * line.count(b"%s")))
    head = b"userId,movieId,rating,timestamp\n" if generation.format == "csv" else b""
    return head + b"".join(lines)


def _normal_cdf(x: Floats) -> Floats:
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()])
