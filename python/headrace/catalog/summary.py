"""Summaries of a column that are made batch by batch, merge, and take a few kilobytes whatever the number of rows.

Distinct values are estimated by the k least hashes (k minimum values: Bar-Yossef et al., RANDOM 2002): exact below k,
with a relative standard error of 1 / sqrt(k - 2) above, 3.1 % at k = 1024. Histograms have fixed bins (four an octave,
by sign; and 16 classes of the hash), so those of any two versions can be compared without reading the rows again.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.catalog.fingerprint import splitmix64

if TYPE_CHECKING:
    import pyarrow as pa

K = 1024
HASH_CLASSES = 16
_TEXT = 64  # characters of least and greatest value that are kept
_STEP_BITS = 2  # 2^2 value bins an octave


@dataclass
class ColumnSummary:
    """What is known of a column's values so far; NaN is counted and left out of the rest."""

    rows: int = 0
    nulls: int = 0
    nans: int = 0
    count: int = 0  # numeric values in mean and m2
    mean: float = 0.0
    m2: float = 0.0  # sum of squared distances from the mean
    least: Any = None
    greatest: Any = None
    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    value_bins: Counter[int] = field(default_factory=Counter)
    hash_classes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(HASH_CLASSES, np.int64))

    def add(self, values: pa.Array) -> None:
        """Take in one Arrow array of any scalar type."""
        import pyarrow as pa
        import pyarrow.types as t

        self.rows += len(values)
        self.nulls += values.null_count
        present = values.drop_null()
        if t.is_list(present.type) or len(present) == 0:
            return
        if t.is_boolean(present.type):
            present = present.cast(pa.int8())
        elif t.is_date(present.type):
            present = present.cast(pa.int32())
        elif t.is_timestamp(present.type):
            present = present.cast(pa.int64())
        if t.is_integer(present.type) or t.is_floating(present.type):
            self._add_numbers(present.to_numpy(zero_copy_only=False))
        else:
            self._add_texts(present)

    def _add_numbers(self, numbers: npt.NDArray[Any]) -> None:
        if numbers.dtype.kind == "f":
            valid = ~np.isnan(numbers)
            self.nans += int(numbers.size - np.count_nonzero(valid))
            numbers = numbers[valid] + 0.0  # one bit pattern for zero
            keys = numbers.astype(np.float64).view(np.int64)
        else:
            keys = numbers.astype(np.int64)
        if not numbers.size:
            return
        self._extend(numbers.min().item(), numbers.max().item())
        self._add_hashes(splitmix64(keys))
        wide = numbers.astype(np.float64)
        finite = np.isfinite(wide)
        self._add_moments(wide if finite.all() else wide[finite])
        bins = _value_bin(wide)
        lowest = int(bins.min())
        counts = np.bincount(bins - lowest)
        self.value_bins.update({lowest + int(i): int(counts[i]) for i in np.flatnonzero(counts)})

    def _add_texts(self, texts: pa.Array) -> None:
        import pandas as pd

        unique = texts.value_counts()
        values, counts = unique.field("values"), unique.field("counts").to_numpy()
        objects = np.asarray([_cut(value) for value in values.to_pylist()], dtype=object)
        self._extend(min(objects), max(objects))
        self._add_hashes(splitmix64(pd.util.hash_array(objects, categorize=False).astype(np.uint64)), counts)

    def _extend(self, least: Any, greatest: Any) -> None:
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)

    def _add_moments(self, numbers: npt.NDArray[np.float64]) -> None:
        if numbers.size:
            mean = float(numbers.mean())
            self._merge_moments(numbers.size, mean, float(np.square(numbers - mean).sum()))

    def _merge_moments(self, count: int, mean: float, m2: float) -> None:
        """Chan, Golub, LeVeque 1983."""
        total = self.count + count
        if total:
            delta = mean - self.mean
            self.mean += delta * count / total
            self.m2 += m2 + delta * delta * self.count * count / total
            self.count = total

    def _add_hashes(self, hashes: npt.NDArray[np.uint64], weights: npt.NDArray[Any] | None = None) -> None:
        classes = (hashes & np.uint64(HASH_CLASSES - 1)).astype(np.int64)
        self.hash_classes += np.bincount(classes, weights, HASH_CLASSES).astype(np.int64)
        self._keep_least(hashes)

    def _keep_least(self, hashes: npt.NDArray[np.uint64]) -> None:
        if self.hashes.size == K:
            hashes = hashes[hashes < self.hashes[-1]]
        if hashes.size:
            self.hashes = np.union1d(self.hashes, hashes)[:K]

    @property
    def distinct(self) -> int:
        """Distinct values: exact below K, estimated above."""
        if self.hashes.size < K:
            return int(self.hashes.size)
        return round((K - 1) * 2.0**64 / float(self.hashes[-1]))

    @property
    def stddev(self) -> float | None:
        """Sample standard deviation of the numbers."""
        return math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else None

    def merge(self, other: ColumnSummary) -> None:
        """Take in what another summary knows of other rows of the same column."""
        self.rows += other.rows
        self.nulls += other.nulls
        self.nans += other.nans
        self._merge_moments(other.count, other.mean, other.m2)
        if other.least is not None:
            self._extend(other.least, other.greatest)
        self._keep_least(other.hashes)
        self.value_bins.update(other.value_bins)
        self.hash_classes += other.hash_classes

    def to_json(self) -> dict[str, Any]:
        """For the way from a worker: no pickles."""
        return {
            "counts": [self.rows, self.nulls, self.nans, self.count],
            "moments": [self.mean, self.m2],
            "range": [self.least, self.greatest],
            "hashes": base64.b64encode(self.hashes.tobytes()).decode(),
            **self.bins(),
        }

    def bins(self) -> dict[str, Any]:
        """The histograms alone."""
        return {
            "value_bins": {str(key): count for key, count in sorted(self.value_bins.items())},
            "hash_classes": self.hash_classes.tolist(),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> ColumnSummary:
        """The way back of `to_json`."""
        summary = cls(*found["counts"], *found["moments"], *found["range"])
        summary.hashes = np.frombuffer(base64.b64decode(found["hashes"]), np.uint64)
        summary.value_bins = Counter({int(key): count for key, count in found["value_bins"].items()})
        summary.hash_classes = np.asarray(found["hash_classes"], np.int64)
        return summary


def _value_bin(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Bin number: order is that of the values; 0 has bin 0, infinities the outermost.

    The upper bits of a double are its exponent and the start of its fraction: four bins an octave is two bits of it.
    """
    bits = np.abs(numbers).view(np.int64) >> np.int64(52 - _STEP_BITS)
    return np.where(numbers < 0, -bits, bits)


def _cut(value: Any) -> str:
    text = value[:_TEXT].decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text[:_TEXT]


def psi(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """Population stability index between two `bins()`: the greater of that by value and that by hash class.

    PSI = sum over bins (p - q) ln(p / q), with p and q the shares in either, half a row added to every bin. The value
    bins are joined into ten of about equal counts in the version before. None where either has no values.
    """
    indices = [_index(*_joined(before["value_bins"], after["value_bins"]))]
    indices.append(_index(before["hash_classes"], after["hash_classes"]))
    known = [index for index in indices if index is not None]
    return max(known) if known else None


def _joined(before: dict[str, int], after: dict[str, int]) -> tuple[list[int], list[int]]:
    """Counts in ten joint bins whose borders are the deciles of `before`."""
    total = sum(before.values())
    joint: list[list[int]] = [[0, 0] for _ in range(10)]
    passed = 0
    for key in sorted({int(k) for k in before} | {int(k) for k in after}):
        decile = min(9, passed * 10 // total) if total else 0
        joint[decile][0] += before.get(str(key), 0)
        joint[decile][1] += after.get(str(key), 0)
        passed += before.get(str(key), 0)
    return [b for b, _ in joint], [a for _, a in joint]


def _index(before: list[int], after: list[int]) -> float | None:
    kept = [(b, a) for b, a in zip(before, after, strict=True) if a or b]
    rows_before, rows_after = sum(b for b, _ in kept), sum(a for _, a in kept)
    if not rows_before or not rows_after:
        return None
    smooth = 0.5 * len(kept)
    shares = [((b + 0.5) / (rows_before + smooth), (a + 0.5) / (rows_after + smooth)) for b, a in kept]
    return sum((p - q) * math.log(p / q) for q, p in shares)
