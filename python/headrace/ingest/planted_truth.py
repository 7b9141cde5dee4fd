"""The truth of a generation: what the best possible model would score on it, gathered block by block in bounded memory.

best logloss   - (1/n) sum of y log p + (1 - y) log(1 - p)      realised: p scored on the labels that were drawn
entropy        - (1/n) sum of p log p + (1 - p) log(1 - p)      expected over labels
normalized     best logloss / entropy of the click rate of the same rows
AUC            of p against the labels, from a histogram of p over `BINS` equal bins: pairs within a bin count half, so
               the error is at most half the share of pairs that share a bin; that bound is kept beside it
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headrace.ingest.planted import CATEGORIES, Block

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

BINS = 1 << 20


@dataclass
class Evidence:
    """What one block tells: small enough to keep, enough for every figure.

    Attributes:
        probability: float64 [n], in the order of the good rows.
        label: uint8 [n].
        bad_kinds: int64 [k].
        text_bytes: of the block's lines before compression.
        missing_ints: int64 [13]; missing_categories: int64 [26]; counts of cells.
        values: per column the sorted distinct identifiers, uint32.
    """

    probability: F64
    label: npt.NDArray[np.uint8]
    bad_kinds: I64
    text_bytes: int
    missing_ints: I64
    missing_categories: I64
    values: list[npt.NDArray[np.uint32]] = field(default_factory=list)

    @classmethod
    def of(cls, block: Block, bad_kinds: I64, text_bytes: int) -> Evidence:
        """The evidence of a block."""
        missing = block.ids < 0
        values = [np.unique(ids[ids >= 0].astype(np.uint32)) for ids in block.ids]
        return cls(
            block.probability, block.label, bad_kinds, text_bytes,
            block.ints_missing.sum(axis=1), missing.sum(axis=1), values,
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """As a NumPy archive without pickles."""
        out = io.BytesIO()
        lengths = np.array([len(ids) for ids in self.values], np.int64)
        np.savez(
            out,
            probability=self.probability,
            label=self.label,
            bad_kinds=self.bad_kinds,
            text_bytes=np.array(self.text_bytes),
            missing_ints=self.missing_ints,
            missing_categories=self.missing_categories,
            lengths=lengths,
            values=np.concatenate(self.values),
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Evidence:
        """The inverse of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            values = np.split(file["values"], np.cumsum(file["lengths"])[:-1])
            return cls(
                file["probability"], file["label"], file["bad_kinds"], int(file["text_bytes"]),
                file["missing_ints"], file["missing_categories"], list(values),
            )  # fmt: skip


class Score:
    """The best model's score on a set of rows, gathered in 16 MB however many they are."""

    def __init__(self) -> None:
        self.rows = self.clicks = 0
        self.logloss = self.entropy = self.expected = 0.0
        self.bins = np.zeros((2, BINS), np.int64)

    def add(self, probability: F64, label: npt.NDArray[np.uint8]) -> None:
        """Count more rows."""
        y = label.astype(np.float64)
        log_p, log_q = np.log(probability), np.log1p(-probability)
        self.rows += len(label)
        self.clicks += int(label.sum())
        self.expected += float(probability.sum())
        self.logloss -= float((y * log_p + (1 - y) * log_q).sum())
        self.entropy -= float((probability * log_p + (1 - probability) * log_q).sum())
        place = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
        for click in (0, 1):
            self.bins[click] += np.bincount(place[label == click], minlength=BINS)

    def figures(self) -> dict[str, float | int | None]:
        """All figures; AUC is None where there is one class only."""
        rate = self.clicks / self.rows
        auc, bound = auc_of_bins(self.bins)
        base = entropy(rate)
        return {
            "rows": self.rows,
            "clicks": self.clicks,
            "click_rate": rate,
            "mean_probability": self.expected / self.rows,
            "best_logloss": self.logloss / self.rows,
            "mean_entropy": self.entropy / self.rows,
            "best_normalized_entropy": self.logloss / self.rows / base if base else None,
            "best_auc": auc,
            "best_auc_error_bound": bound,
        }


def entropy(rate: float) -> float:
    """Of a coin, in nats."""
    if rate in (0.0, 1.0):
        return 0.0
    return float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def auc_of_bins(bins: I64) -> tuple[float | None, float | None]:
    """AUC with ties within bins counted half, and the most by which that can be wrong.

    Args:
        bins: int64 [2, bins]: negatives and positives by ascending score.
    """
    negatives, positives = bins.astype(np.float64)
    pairs = float(negatives.sum() * positives.sum())
    if not pairs:
        return None, None
    below = np.cumsum(negatives) - negatives
    tied = float((positives * negatives).sum())
    return (float((positives * below).sum()) + tied / 2) / pairs, tied / 2 / pairs


class Truth:
    """Gathers the evidence of all blocks. Memory: 16 MB a split and one bit-sized flag a possible value."""

    def __init__(self, days: int, bad_kinds: Sequence[str]) -> None:
        self._days, self._kinds = days, bad_kinds
        self._scores = {"all": Score()}
        self._seen = [np.zeros(column.id_space(days), np.bool_) for column in CATEGORIES]
        self._missing_ints = np.zeros(13, np.int64)
        self._missing_categories = np.zeros(26, np.int64)
        self._bad = np.zeros((days, len(bad_kinds)), np.int64)
        self._rows = np.zeros(days, np.int64)
        self.text_bytes = 0

    def add(self, day: int, evidence: Evidence) -> None:
        """Count one block of a day."""
        for name in ["all", *split_of(day, self._days)]:
            self._scores.setdefault(name, Score()).add(evidence.probability, evidence.label)
        for seen, ids in zip(self._seen, evidence.values, strict=True):
            seen[ids] = True
        self._missing_ints += evidence.missing_ints
        self._missing_categories += evidence.missing_categories
        self._bad[day] += np.bincount(evidence.bad_kinds, minlength=len(self._kinds))
        self._rows[day] += len(evidence.label)
        self.text_bytes += evidence.text_bytes

    def figures(self) -> dict[str, object]:
        """The body of truth.json."""
        rows = int(self._rows.sum())
        return {
            "splits": {name: score.figures() for name, score in self._scores.items()},
            "rows_a_day": self._rows.tolist(),
            "bad_rows": self._count(self._bad.sum(axis=0)),
            "bad_rows_a_day": [self._count(kinds) for kinds in self._bad],
            "text_bytes": self.text_bytes,
            "cardinalities": {f"c{c + 1}": int(seen.sum()) for c, seen in enumerate(self._seen)},
            "possible_values": {f"c{c + 1}": len(seen) for c, seen in enumerate(self._seen)},
            "missing": {
                **{f"i{j + 1}": int(n) / rows for j, n in enumerate(self._missing_ints)},
                **{f"c{c + 1}": int(n) / rows for c, n in enumerate(self._missing_categories)},
            },
        }

    def _count(self, kinds: I64) -> Mapping[str, int]:
        return {kind: int(n) for kind, n in zip(self._kinds, kinds, strict=True) if n}


def split_of(day: int, days: int) -> list[str]:
    """The last day is the test, the one before validation, the others training (with fewer than 3 days: no splits)."""
    if days < 3:
        return []
    return ["test" if day == days - 1 else "validation" if day == days - 2 else "train"]
