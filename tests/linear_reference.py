"""Penalized linear models by accelerated proximal gradients on all rows: slow, in numpy, and nothing of Spark's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """As of `SagaLogisticRegression`, of the same names in spark.ml."""

    loss: str = "logistic"
    reg_param: float = 0.0
    elastic_net_param: float = 0.0
    standardization: bool = True

    @property
    def l1(self) -> float:
        return self.reg_param * self.elastic_net_param

    @property
    def l2(self) -> float:
        return self.reg_param * (1 - self.elastic_net_param)


@dataclass(frozen=True)
class Rows:
    """Features [n, d] (dense or scipy's CSR), labels [n], weights [n]."""

    x: Any
    y: Array
    w: Array

    @property
    def outputs(self) -> int:
        classes = int(self.y.max()) + 1 if (self.y == np.floor(self.y)).all() and self.y.min() >= 0 else 1
        return classes if classes > 2 else 1

    def deviations(self) -> Array:
        """Weighted, unbiased as MLlib has it."""
        share = self.w / self.w.sum()
        mean = np.asarray(self.x.T @ share).ravel()
        square = self.x.multiply(self.x) if hasattr(self.x, "multiply") else self.x**2
        biased = np.maximum(np.asarray(square.T @ share).ravel() - mean**2, 0)
        return np.sqrt(biased / (1 - (share**2).sum()))


def losses(kind: str, z: Array, y: Array) -> tuple[Array, Array, float]:
    """Values [n], derivatives by margins [n, k] and the largest curvature."""
    if kind == "squared":
        return (z[:, 0] - y) ** 2 / 2, z - y[:, None], 1.0
    if kind == "squared_hinge":
        sign = 2 * y - 1
        short = np.maximum(0, 1 - sign * z[:, 0])
        return short**2, (-2 * sign * short)[:, None], 2.0
    if z.shape[1] == 1:
        sign = 2 * y - 1
        slope = -sign / (1 + np.exp(np.clip(sign * z[:, 0], -700, 700)))
        return np.logaddexp(0, -sign * z[:, 0]), slope[:, None], 0.25
    most = z.max(1, keepdims=True)
    parts = np.exp(z - most)
    total = parts.sum(1, keepdims=True)
    own = (np.arange(len(y)), y.astype(int))
    slope = parts / total
    slope[own] -= 1
    return (np.log(total) + most)[:, 0] - z[own], slope, 0.5


def objective(rows: Rows, how: Settings, coefficients: Array, intercepts: Array) -> float:
    """Of coefficients [k, d] and intercepts [k] on the original scale."""
    value, _, _ = losses(how.loss, np.asarray(rows.x @ coefficients.T) + intercepts, rows.y)
    trained = coefficients * rows.deviations() if how.standardization else coefficients
    penalty = how.l1 * np.abs(trained).sum() + how.l2 / 2 * (trained**2).sum()
    return float(value @ rows.w / rows.w.sum() + penalty)


def minimum(rows: Rows, how: Settings, steps: int = 100_000, tol: float = 1e-13) -> tuple[Array, Array, float]:
    """Coefficients [k, d], intercepts [k] and the objective there (FISTA, restarted: O'Donoghue, Candes 2015)."""
    scale = np.ones(rows.x.shape[1])
    if how.standardization:
        spread = rows.deviations()
        scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    x = rows.x.multiply(scale).tocsr() if hasattr(rows.x, "multiply") else rows.x * scale
    share = rows.w / rows.w.sum()
    step = 1 / (losses(how.loss, np.zeros((len(rows.y), rows.outputs)), rows.y)[2] * _top_eigenvalue(x, share))
    point = np.zeros((x.shape[1] + 1, rows.outputs))
    far, age = point, 0
    for _ in range(steps):
        _, slope, _ = losses(how.loss, np.asarray(x @ far[:-1]) + far[-1], rows.y)
        slope *= share[:, None]
        new = far - step * np.vstack([np.asarray(x.T @ slope), slope.sum(0, keepdims=True)])
        size = np.abs(new[:-1]) - step * how.l1
        new[:-1] = np.sign(new[:-1]) * np.maximum(size, 0) / (1 + step * how.l2)
        age = 0 if ((far - new) * (new - point)).sum() > 0 else age + 1
        moved = np.abs(new - far).max()
        far, point = new + age / (age + 3) * (new - point), new
        if moved <= tol:
            break
    coefficients, intercepts = (point[:-1] * scale[:, None]).T, point[-1]
    return coefficients, intercepts, objective(rows, how, coefficients, intercepts)


def _top_eigenvalue(x: Any, share: Array) -> float:
    """Of the weighted second moments of features and a one, from above (power iteration, and 1 % more)."""
    vector = np.random.default_rng(0).normal(size=x.shape[1] + 1)
    size = 1.0
    for _ in range(100):
        vector /= np.linalg.norm(vector)
        inner = (np.asarray(x @ vector[:-1]).ravel() + vector[-1]) * share
        vector = np.append(np.asarray(x.T @ inner).ravel(), inner.sum())
        size = float(np.linalg.norm(vector))
    return 1.01 * size
