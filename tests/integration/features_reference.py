"""A slow, plain-Python featurizer and small bronze rows: what the fast path is held against."""

from __future__ import annotations

import math
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

INTS = [f"i{n}" for n in range(1, 14)]
CATEGORIES = [f"c{n}" for n in range(1, 27)]
BRONZE_SCHEMA = "key bigint, batch_id string, day int, label int, " + ", ".join(
    f"{name} bigint" for name in INTS + CATEGORIES
)
Row = dict[str, Any]


def parse(path: Path, ordinal: int, day: int) -> list[Row]:
    """A Criteo file as bronze rows, one line at a time."""
    rows = []
    for line, text in enumerate(path.read_text(encoding="ascii").splitlines()):
        cells = text.split("\t")
        ints = [int(cell) if cell else None for cell in cells[1:14]]
        categories = [int(cell, 16) if cell else None for cell in cells[14:]]
        rows.append(bronze_row(ordinal << 40 | line, day, int(cells[0]), ints, categories))
    return rows


def bronze_row(key: int, day: int, label: int | None, ints: list[Any], categories: list[Any]) -> Row:
    """One row of bronze/criteo."""
    head = {"key": key, "batch_id": "b", "day": day, "label": label}
    return head | dict(zip(INTS, ints, strict=True)) | dict(zip(CATEGORIES, categories, strict=True))


def synthetic(num_days: int, rows_per_day: int, seed: int = 0) -> list[Row]:
    """Rows with missing cells, negative ints, ties in counts, a column that is always missing, values new every day."""
    rng = random.Random(seed)
    rows = []
    for day in range(num_days):
        for line in range(rows_per_day):
            ints = [None if rng.random() < 0.3 else rng.choice([-2, -1, 0, 1, 7, 10**6, 2**40]) for _ in INTS]
            values = [rng.choice([rng.randrange(4), rng.randrange(40) + 10 * day, 2**32 - 1]) for _ in CATEGORIES]
            categories = [None if n == 21 or rng.random() < 0.1 else value for n, value in enumerate(values)]
            rows.append(bronze_row(day << 40 | line, day, int(rng.random() < 0.3), ints, categories))
    return rows


def slow_vocabulary(rows: list[Row], min_count: int, known: dict[str, dict[int, int]]) -> dict[str, dict[int, int]]:
    """One generation: ids by value by column, appended to `known`."""
    result = {}
    for name in CATEGORIES:
        ids = dict(known.get(name, {}))
        counts = Counter(row[name] for row in rows if row[name] is not None)
        new = [(-count, value) for value, count in counts.items() if count >= min_count and value not in ids]
        start = max(ids.values(), default=2) + 1
        result[name] = ids | {value: start + n for n, (_, value) in enumerate(sorted(new))}
    return result


def slow_int(value: int | None) -> float:
    """The float32 of sign(x) log(1 + |x|), -1 where missing."""
    y = -1.0 if value is None else math.copysign(math.log1p(abs(value)), value)
    return float(struct.unpack("f", struct.pack("f", y))[0])


def slow_id(value: int | None, ids: dict[int, int]) -> int:
    """1 missing, 2 unknown, else the id."""
    return 1 if value is None else ids.get(value, 2)


def slow_xxhash64(value: int, seed: int = 42) -> int:
    """XXH64 of 8 bytes in Python's own integers, from the specification; signed."""
    p1, p2, p3, p4, p5 = (
        11400714785074694791,
        14029467366897019727,
        1609587929392839161,
        9650029242287828579,
        2870177450012600261,
    )
    mask = 2**64 - 1

    def rotl(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & mask

    h = (seed + p5 + 8) & mask
    h ^= rotl((value & mask) * p2 & mask, 31) * p1 & mask
    h = (rotl(h, 27) * p1 + p4) & mask
    h = (h ^ h >> 33) * p2 & mask
    h = (h ^ h >> 29) * p3 & mask
    h ^= h >> 32
    return h - 2**64 if h >= 2**63 else h
