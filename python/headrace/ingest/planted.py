"""The planted click model: rows with the traits of Criteo's logs whose true click probability is known.

A row is a pure function of (seed, day, row): every cell is drawn from a counter-based generator (splitmix64 of a key
for seed, day and purpose, plus the row number), so any process can make any block of rows and all make the same ones.

    logit(p) = bias + level(day) + s_i * ints + s_m * main(day) + s_x * pairs
    pairs    = sum over column pairs a < b of <v_a(value_a), v_b(value_b)>    (rank 2, as in a factorization machine)

`ints`, `main` and `pairs` are centred, and the scales bring each to a stated variance for any seed, so what a model
that is blind to one of them can reach does not depend on the seed. See docs/generated_criteo.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

RANK = 2
"""Length of the latent vectors behind the pair effects."""
INT_VARIANCE, MAIN_VARIANCE, PAIR_VARIANCE = 0.25, 1.30, 0.32
"""Variance of each part of the logit."""
TURN_PER_DAY = 0.01
"""Radians by which every main effect turns towards an independent one each day: variance stays, meaning drifts."""
LEVEL_SWING = 0.06
"""Amplitude of the weekly wave in the logit's level."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_CALIBRATION_ROWS = 1 << 17
_HEAD = 1 << 16


@dataclass(frozen=True)
class IntColumn:
    """An integer column: floor of a log-logistic (heavy tailed), with some -1 and -2 if `negative` says so.

    Args:
        missing: name of its missing group (columns of one group are missing in the same rows).
        median, spread: of the log-logistic; log(value) has logistic scale `spread`.
        cap: the largest value.
        weight: of its effect before the parts are scaled. 0 = none.
        shape: how the effect runs in x = standardized log(value + 3): "rise" (monotone) or "bump" (not).
        negative: share of cells of -1 and, one in 130 of these, -2.
    """

    missing: str
    median: float
    spread: float
    cap: int
    weight: float = 0.0
    shape: str = "rise"
    negative: float = 0.0


@dataclass(frozen=True)
class CategoryColumn:
    """A categorical column: ranks by a bounded power law, and on later days also values born since day 0.

    Args:
        values: possible values on day 0.
        exponent: of the power law (not 1).
        missing: name of its missing group.
        main: standard deviation of the value's own effect, before the part is scaled.
        vector: standard deviation of each component of the value's latent vector, before the part is scaled.
        new: share of a day's cells that hold a value born that day; later days keep drawing them.
    """

    values: int
    exponent: float
    missing: str = "none"
    main: float = 0.0
    vector: float = 0.0
    new: float = 0.0

    @property
    def born_a_day(self) -> int:
        """Possible new values each day."""
        return max(1, self.values // 100) if self.new else 0

    def id_space(self, days: int) -> int:
        """Identifiers of the column are below this after `days` days."""
        return self.values + self.born_a_day * max(0, days - 1)


MISSING = {
    "none": 0.0, "i1": 0.452, "i3": 0.203, "i5": 0.049, "i6": 0.252, "i7": 0.050, "i8": 0.001, "i12": 0.777,
    "c3": 0.033, "c6": 0.131, "c19": 0.453, "c22": 0.817,
}  # fmt: skip
"""Missing share by group, as in the published Kaggle sample of the logs."""

INTS = (
    IntColumn("i1", 1.1, 1.05, 5_000, 0.5),
    IntColumn("none", 5.0, 1.45, 300_000, 0.5, "bump", 0.10),
    IntColumn("i3", 7.2, 0.95, 65_535, 0.3, "bump"),
    IntColumn("i3", 4.8, 0.75, 1_000),
    IntColumn("i5", 2_600.0, 1.15, 23_000_000, 1.0),
    IntColumn("i6", 42.0, 0.95, 500_000, 0.5, "bump"),
    IntColumn("i7", 3.4, 1.05, 60_000, 1.0),
    IntColumn("i8", 7.0, 0.85, 7_000),
    IntColumn("i7", 38.0, 0.95, 30_000),
    IntColumn("i1", 0.95, 0.35, 9),
    IntColumn("i7", 1.8, 0.75, 300, 0.6),
    IntColumn("i12", 0.42, 1.0, 4_000),
    IntColumn("i3", 5.6, 0.85, 10_000, 0.4),
)
CATEGORIES = (
    CategoryColumn(1_460, 1.60, main=0.5),
    CategoryColumn(583, 1.30, main=0.4, vector=0.2),
    CategoryColumn(10_131_227, 1.10, "c3", main=0.15, new=0.004),
    CategoryColumn(2_202_608, 1.20, "c3", main=0.20, vector=0.2, new=0.004),
    CategoryColumn(305, 1.80, main=0.5),
    CategoryColumn(24, 1.40, "c6", main=0.6, vector=1.0),
    CategoryColumn(12_517, 1.02, new=0.002),
    CategoryColumn(633, 1.50, main=0.4, vector=0.2),
    CategoryColumn(3, 3.00, main=0.5),
    CategoryColumn(93_145, 1.25, main=0.15, new=0.003),
    CategoryColumn(5_683, 1.10),
    CategoryColumn(8_351_593, 1.08, "c3", main=0.10, new=0.004),
    CategoryColumn(3_194, 1.10),
    CategoryColumn(27, 1.40, main=0.6, vector=1.0),
    CategoryColumn(14_992, 1.15),
    CategoryColumn(5_461_306, 1.12, "c3", main=0.10, new=0.004),
    CategoryColumn(10, 1.20, main=0.6, vector=1.0),
    CategoryColumn(5_652, 1.15, main=0.15),
    CategoryColumn(2_173, 1.60, "c19", main=0.4),
    CategoryColumn(4, 0.30, "c19", main=0.5),
    CategoryColumn(7_046_547, 1.08, "c3", new=0.004),
    CategoryColumn(18, 1.60, "c22", main=0.5),
    CategoryColumn(15, 1.15, main=0.6, vector=1.0),
    CategoryColumn(286_181, 1.25, "c3", main=0.15, new=0.003),
    CategoryColumn(105, 1.20, "c19", main=0.5),
    CategoryColumn(142_572, 1.20, "c19", main=0.15, new=0.003),
)


@dataclass
class Block:
    """Some rows of one day.

    Attributes:
        label: uint8 [n].
        ints: int64 [13, n]; ints_missing: bool [13, n].
        ids: int64 [26, n], below the column's `id_space`; -1 = missing.
        codes: uint32 [26, n], what is written (as 8 hex digits); meaningless where missing.
        ints_part, main_part, pair_part: the logit's parts [n], scaled; probability: the true p [n].
    """

    label: npt.NDArray[np.uint8]
    ints: I64
    ints_missing: npt.NDArray[np.bool_]
    ids: I64
    codes: npt.NDArray[np.uint32]
    ints_part: F64
    main_part: F64
    pair_part: F64
    probability: F64


@dataclass(frozen=True)
class Effects:
    """A column's effects are (raw - centre) * scale, so that they have mean 0 and the stated deviation over its values.

    Attributes:
        centre: [1 + 1 + RANK] mean of main, drifted main and the vector over the column's power law.
        scale: [1 + 1 + RANK].
    """

    centre: tuple[float, ...]
    scale: tuple[float, ...]


@dataclass(frozen=True)
class PlantedModel:
    """The model, calibrated: picklable, and all that a worker needs to make any block.

    Args:
        seed: of everything.
        click_rate: the mean of p on day 0.
    """

    seed: int
    click_rate: float
    bias: float = 0.0
    int_scale: float = 1.0
    main_scale: float = 1.0
    pair_scale: float = 1.0
    int_centre: float = 0.0
    effects: tuple[Effects, ...] = field(default=(), repr=False)

    def block(self, day: int, start: int, stop: int) -> Block:
        """Rows start..stop-1 of a day."""
        rows = np.arange(start, stop, dtype=np.uint64)
        gone = {name: uniform(self.seed, day, f"missing {name}", rows) < share for name, share in MISSING.items()}
        ints, ints_missing, ints_part = self._ints(day, rows, gone)
        ids = np.stack([draw_ids(self.seed, day, c, rows) for c in range(len(CATEGORIES))])
        for c, column in enumerate(CATEGORIES):
            ids[c][gone[column.missing]] = -1
        codes = np.stack([codes_of(self.seed, c, ids[c]) for c in range(len(CATEGORIES))])
        main, pairs = self._categories(day, ids, codes)
        main, pairs = main * self.main_scale, pairs * self.pair_scale
        level = LEVEL_SWING * np.sin(2 * np.pi * day / 7)
        p = 1.0 / (1.0 + np.exp(-(self.bias + level + ints_part + main + pairs)))
        label = (uniform(self.seed, day, "label", rows) < p).astype(np.uint8)
        return Block(label, ints, ints_missing, ids, codes, ints_part, main, pairs, p)

    def _ints(
        self, day: int, rows: U64, gone: dict[str, npt.NDArray[np.bool_]]
    ) -> tuple[I64, npt.NDArray[np.bool_], F64]:
        values = np.empty((len(INTS), len(rows)), np.int64)
        effect = np.full(len(rows), -self.int_centre)
        for j, column in enumerate(INTS):
            values[j] = draw_ints(self.seed, day, j, rows)
            if column.weight:
                effect += np.where(gone[column.missing], 0.0, int_effect(column, values[j]))
        missing = np.stack([gone[column.missing] for column in INTS])
        return values, missing, effect * self.int_scale

    def _categories(self, day: int, ids: I64, codes: npt.NDArray[np.uint32]) -> tuple[F64, F64]:
        """The sums of main effects and of pair effects of each row, before the parts' scales."""
        n = ids.shape[1]
        main, total, squares = np.zeros(n), np.zeros((RANK, n)), np.zeros(n)
        turn = TURN_PER_DAY * day
        for c, column in enumerate(CATEGORIES):
            if not (column.main or column.vector):
                continue
            raw = raw_effects(self.seed, c, codes[c], bool(column.vector))
            known = self.effects[c]
            present = ids[c] >= 0
            unit = [(raw[k] - known.centre[k]) * known.scale[k] for k in range(len(raw))]
            main += column.main * np.where(present, unit[0] * np.cos(turn) + unit[1] * np.sin(turn), 0.5)
            for k in range(len(raw) - 2):
                part = np.where(present, column.vector * unit[2 + k], 0.0)
                total[k] += part
                squares += part * part
        return main, ((total * total).sum(axis=0) - squares) / 2


def calibrate(seed: int, click_rate: float) -> PlantedModel:
    """The model whose parts have the stated variances and whose mean p on day 0 is `click_rate`.

    The sample is the first rows of day 0, so the same arguments always give the same model.
    """
    effects = tuple(_column_effects(seed, c) for c in range(len(CATEGORIES)))
    model = PlantedModel(seed, click_rate, effects=effects)
    sample = model.block(0, 0, _CALIBRATION_ROWS)
    model = replace(
        model,
        int_centre=float(sample.ints_part.mean()),
        int_scale=float(np.sqrt(INT_VARIANCE / sample.ints_part.var())),
        main_scale=float(np.sqrt(MAIN_VARIANCE / sample.main_part.var())),
        pair_scale=float(np.sqrt(PAIR_VARIANCE / sample.pair_part.var())),
    )
    sample = model.block(0, 0, _CALIBRATION_ROWS)
    return replace(model, bias=_bias_for(sample.ints_part + sample.main_part + sample.pair_part, click_rate))


def _bias_for(logit: F64, click_rate: float) -> float:
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = float((1.0 / (1.0 + np.exp(-(logit + middle)))).mean())
        low, high = (middle, high) if mean < click_rate else (low, middle)
    return (low + high) / 2


def _column_effects(seed: int, c: int) -> Effects:
    column = CATEGORIES[c]
    head = np.arange(min(column.values, _HEAD), dtype=np.int64)
    raw = raw_effects(seed, c, codes_of(seed, c, head), True)
    weight = zipf_mass(column, len(head))
    centre = [float((weight * x).sum()) for x in raw]
    spread = [float(np.sqrt((weight * (x - m) ** 2).sum())) for x, m in zip(raw, centre, strict=True)]
    return Effects(tuple(centre), tuple(1.0 / s for s in spread))


def raw_effects(seed: int, c: int, codes: npt.NDArray[np.uint32], vector: bool) -> list[F64]:
    """Roughly normal numbers that belong to a value: main, drifted main and, if asked for, RANK vector components."""
    key = stream_key(seed, -1, f"effects {c}")
    result = []
    for k in range(2 + (RANK if vector else 0)):
        bits = splitmix64(codes.astype(np.uint64) + np.uint64((key + k * _GOLDEN) & _MASK))
        low = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64)
        high = (bits >> np.uint64(32)).astype(np.float64)
        result.append((low + high) * 2.0**-32 - 1.0)
    return result


def zipf_mass(column: CategoryColumn, n: int) -> F64:
    """Share of each of the first n ranks [n], normalized over those n."""
    edges = np.arange(1, n + 2, dtype=np.float64) ** (1.0 - column.exponent)
    mass = np.abs(np.diff(edges))
    return np.asarray(mass / mass.sum())


def draw_ids(seed: int, day: int, c: int, rows: U64) -> I64:
    """Identifiers of column c [n]: ranks in the values of day 0, or in those born on one of the days since."""
    column = CATEGORIES[c]
    u = uniform(seed, day, f"category {c}", rows)
    ids = zipf_rank(u, column.values, column.exponent)
    if column.new and day > 0:
        pick = uniform(seed, day, f"born {c}", rows)
        share = column.new * day
        born = np.minimum((pick / column.new).astype(np.int64), day - 1)
        rank = zipf_rank(u, column.born_a_day, column.exponent)
        ids = np.where(pick < share, column.values + born * column.born_a_day + rank, ids)
    return ids


def zipf_rank(u: F64, n: int, exponent: float) -> I64:
    """Ranks 0..n-1 by the inverse of a power law's distribution function, bounded at n."""
    top = (n + 1.0) ** (1.0 - exponent)
    rank = (1.0 + u * (top - 1.0)) ** (1.0 / (1.0 - exponent))
    return np.clip(rank.astype(np.int64) - 1, 0, n - 1)


def draw_ints(seed: int, day: int, j: int, rows: U64) -> I64:
    """Values of integer column j [n]."""
    column = INTS[j]
    u = uniform(seed, day, f"int {j}", rows)
    spread = np.exp(column.spread * (np.log(u) - np.log1p(-u)))
    values = np.minimum(column.median * spread, column.cap).astype(np.int64)
    if column.negative:
        v = uniform(seed, day, f"negative {j}", rows)
        values = np.where(v < column.negative, -1, values)
        values = np.where(v < column.negative / 130, -2, values)
    return values


def int_effect(column: IntColumn, values: I64) -> F64:
    """The effect of present values [n]: monotone or not, of the logarithm."""
    x = (np.log(values + 3.0) - np.log(column.median + 3.0)) / (column.spread * 1.8)
    if column.shape == "rise":
        return np.asarray(column.weight * np.tanh(x))
    return np.asarray(column.weight * (1.8 * np.exp(-x * x) - 1.0))


def codes_of(seed: int, c: int, ids: I64) -> npt.NDArray[np.uint32]:
    """32-bit codes: a bijection of the identifiers (murmur3's finalizer), so two values never share a code."""
    x = ids.astype(np.uint32) ^ np.uint32(stream_key(seed, -1, f"code {c}") & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    return np.asarray(x ^ (x >> np.uint32(16)))


def uniform(seed: int, day: int, purpose: str, rows: U64) -> F64:
    """Numbers strictly between 0 and 1 [n], a pure function of the arguments."""
    key = np.uint64(stream_key(seed, day, purpose))
    bits = splitmix64(key + rows * np.uint64(_GOLDEN))
    return np.asarray(((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def stream_key(seed: int, day: int, purpose: str) -> int:
    """A 64-bit key for a purpose on a day (-1: for all days)."""
    key = _mix(seed & _MASK)
    key = _mix(key ^ ((day + 1) & _MASK))
    for byte in purpose.encode():
        key = _mix(key ^ byte)
    return key


def splitmix64(x: U64) -> U64:
    """The output function of splitmix64 (Steele, Lea, Flood 2014), modulo 2^64."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _mix(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
