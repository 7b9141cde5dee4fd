"""Exact quality of click predictions: AUC with ties, logloss, normalized entropy, calibration, and the curves to draw.

    AUC = (pairs won + pairs tied / 2) / (positives x negatives), by one sort of the scores
    logloss = mean of log(1 + exp(-z)) for clicks, of log(1 + exp(z)) for the others
    normalized entropy = logloss / entropy of the click rate
    calibration = sum of predicted probabilities / clicks

Reference: X. He et al., "Practical lessons from predicting clicks on ads at Facebook", ADKDD 2014. Rows are sorted by
(score, label) first and summed in that order, so the figures do not depend on how rows were spread over ranks. Memory:
8 bytes a row (score and label as float32) and a sort's working space.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]
_CURVE_POINTS = 200
_CALIBRATION_BINS = 20


@dataclass(frozen=True)
class Metrics:
    """Quality over a data set; None where it is not defined (one class only, no rows, no clicks, a score that is not a
    number)."""

    rows: int
    clicks: int
    auc: float | None
    logloss: float | None
    normalized_entropy: float | None
    calibration: float | None
    nonfinite: int = 0

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-able."""
        return asdict(self)


def compute(logits: Floats, labels: Floats) -> Metrics:
    """All figures of logits [N] and labels [N] in {0, 1}."""
    bad = int(np.count_nonzero(~np.isfinite(logits)))
    clicks = int(np.count_nonzero(labels > 0.5))
    if bad or not len(logits):
        return Metrics(len(logits), clicks, None, None, None, None, bad)
    logits, labels = in_order(logits, labels)
    loss = logloss(logits, labels)
    rate = clicks / len(labels)
    entropy = -sum(p * math.log(p) for p in (rate, 1.0 - rate) if p > 0.0)
    predicted = float(np.sum(sigmoid(logits), dtype=np.float64))
    return Metrics(
        rows=len(labels),
        clicks=clicks,
        auc=auc_of_ordered(logits, labels),
        logloss=loss,
        normalized_entropy=loss / entropy if entropy > 0.0 else None,
        calibration=predicted / clicks if clicks else None,
    )


def in_order(logits: Floats, labels: Floats) -> tuple[Floats, Floats]:
    """Both sorted by (logit, label)."""
    clicks_last = np.argsort(labels, kind="stable")
    order = clicks_last[np.argsort(logits[clicks_last], kind="stable")]
    return logits[order], labels[order]


def auc(logits: Floats, labels: Floats) -> float | None:
    """Area under the ROC curve, ties counted half; None with one class only."""
    return auc_of_ordered(*in_order(logits, labels))


def auc_of_ordered(logits: Floats, labels: Floats) -> float | None:
    """`auc` of what `in_order` gave: integers up to the last division."""
    positive, total = _by_threshold(logits, labels)
    negative = total - positive
    pairs = int(positive.sum()) * int(negative.sum())
    if pairs == 0:
        return None
    below = np.cumsum(negative) - negative
    return int((positive * (2 * below + negative)).sum()) / (2 * pairs)


def logloss(logits: Floats, labels: Floats) -> float:
    """Mean negative log-likelihood in nats."""
    z = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, np.where(labels > 0.5, -z, z))))


def sigmoid(logits: Floats) -> Floats:
    """Probabilities in float64 without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def curves(logits: Floats, labels: Floats) -> dict[str, list[list[float]]]:
    """What is drawn: at most 200 points [false positive rate, true positive rate], and 20 calibration bins of equal
    rows
    [mean predicted, observed rate, rows]."""
    if not len(logits) or not np.isfinite(logits).all():
        return {"roc": [], "calibration": []}
    logits, labels = in_order(logits, labels)
    positive, total = _by_threshold(logits, labels)
    won, lost = np.cumsum(positive[::-1]), np.cumsum((total - positive)[::-1])
    picks = np.unique(np.linspace(0, len(won) - 1, min(_CURVE_POINTS - 1, len(won))).astype(np.int64))
    roc = [[0.0, 0.0]] + [[float(lost[i] / max(1, lost[-1])), float(won[i] / max(1, won[-1]))] for i in picks]
    chance = sigmoid(logits)
    bins = [part for part in np.array_split(np.arange(len(labels)), _CALIBRATION_BINS) if len(part)]
    calibration = [[float(chance[part].mean()), float(labels[part].mean()), float(len(part))] for part in bins]
    return {"roc": roc, "calibration": calibration}


def _by_threshold(logits: Floats, labels: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Clicks and rows of every distinct score, rising."""
    if not len(logits):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.flatnonzero(np.concatenate(([True], logits[1:] != logits[:-1])))
    positive = np.add.reduceat((labels > 0.5).astype(np.int64), starts)
    return positive, np.diff(np.append(starts, len(logits)))
