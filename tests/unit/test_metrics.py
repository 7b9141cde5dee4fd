"""Metrics against scikit-learn, ties included, and independent of the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score, roc_curve

from headrace.train import metrics


def rows(seed: int, n: int = 500, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=n).astype(np.float32)
    if levels:
        logits = (np.round(logits * levels) / levels).astype(np.float32)
    labels = (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    labels[:2] = (0.0, 1.0)
    return logits, labels


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 400), st.sampled_from([None, 1, 4]))
def test_auc_and_logloss_are_scikit_learns(seed: int, n: int, levels: int | None) -> None:
    logits, labels = rows(seed, n, levels)
    got = metrics.compute(logits, labels)
    assert got.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert got.logloss == pytest.approx(log_loss(labels, metrics.sigmoid(logits)), rel=1e-9)


def test_auc_counts_pairs() -> None:
    logits, labels = rows(3, 60, 2)
    won = [1.0 if p > q else 0.5 if p == q else 0.0 for p in logits[labels == 1] for q in logits[labels == 0]]
    assert metrics.auc(logits, labels) == pytest.approx(sum(won) / len(won), abs=1e-15)


def test_entropy_and_calibration() -> None:
    labels = np.array([0, 0, 0, 1], np.float32)
    base = np.full(4, np.log(0.25 / 0.75), np.float32)
    got = metrics.compute(base, labels)
    assert got.normalized_entropy == pytest.approx(1.0, rel=1e-6)
    assert got.calibration == pytest.approx(1.0, rel=1e-6)
    assert got.auc == 0.5
    assert metrics.compute(base + 50, labels).calibration == pytest.approx(4.0, rel=1e-6)


def test_order_of_rows_does_not_matter_to_the_last_bit() -> None:
    logits, labels = rows(11, 4000, 50)
    order = np.random.default_rng(0).permutation(len(labels))
    assert metrics.compute(logits[order], labels[order]) == metrics.compute(logits, labels)


def test_undefined_figures_are_none() -> None:
    one_class = metrics.compute(np.zeros(3, np.float32), np.ones(3, np.float32))
    assert (one_class.auc, one_class.normalized_entropy) == (None, None)
    assert one_class.calibration == 0.5
    assert metrics.compute(np.zeros(0, np.float32), np.zeros(0, np.float32)).logloss is None
    bad = metrics.compute(np.array([np.nan, 1.0], np.float32), np.array([0, 1], np.float32))
    assert (bad.nonfinite, bad.auc, bad.logloss) == (1, None, None)
    assert metrics.compute(np.array([-1e4, 1e4], np.float32), np.array([0, 1], np.float32)).logloss == 0.0


def test_curves() -> None:
    logits, labels = rows(5, 3000)
    drawn = metrics.curves(logits, labels)
    fpr, tpr, _ = roc_curve(labels, logits, drop_intermediate=False)
    true = {(round(float(a), 9), round(float(b), 9)) for a, b in zip(fpr, tpr, strict=True)}
    assert {(round(a, 9), round(b, 9)) for a, b in drawn["roc"]} <= true
    assert len(drawn["roc"]) <= 200
    assert drawn["roc"][0] == [0.0, 0.0]
    assert drawn["roc"][-1] == [1.0, 1.0]
    observed, predicted = calibration_curve(labels, metrics.sigmoid(logits), n_bins=20, strategy="quantile")
    np.testing.assert_allclose([b[0] for b in drawn["calibration"]], predicted, atol=2e-3)
    np.testing.assert_allclose([b[1] for b in drawn["calibration"]], observed, atol=0.02)
    assert sum(b[2] for b in drawn["calibration"]) == 3000
