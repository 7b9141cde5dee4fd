"""Rows of row g: a9a, and generated sparse rows of any size, as LIBSVM files that Spark and scikit-learn read alike.

A generated row has up to ten different features of value 1, drawn by the zeta distribution (few in nearly every row,
most in hardly any); its label is drawn from the logistic model whose coefficient of feature j is 2 sin(1 + 12.9898 j).
A chunk of rows is a function of (seed, chunk): no more than one is in memory, and more rows have the fewer as a
beginning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from headrace.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CHUNK, DRAWS, EXPONENT = 50_000, 10, 1.3
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """A data set: name is `a9a` (the rest is what it has) or `generated`."""

    name: str
    rows: int
    features: int
    seed: int = 0

    def about(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)

    def files(self, work: Path, folder: Path | None = None) -> list[Path]:
        """Its LIBSVM files; generated ones are written to `work` where they are not there yet.

        Raises:
            UserError: a9a is not on this machine.
        """
        return [a9a_file(folder)] if self.name == "a9a" else generate(work, self)


A9A = Source("a9a", 32_561, 123)


def a9a_file(folder: Path | None = None) -> Path:
    """The training rows.

    Raises:
        UserError: they are not there: they are not ours to ship.
    """
    data = folder or Path(os.environ.get("HEADRACE_REAL_DATA", ROOT.parent / "shared" / "data"))
    found = data / "a9a" / "a9a_123d_train.libsvm.gz"
    if not found.is_file():
        raise UserError(f"there is no {found}", "give --data FOLDER, or measure --sources generated only")
    return found


def chunks(source: Source) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Labels [n] and features as starts [n + 1] and indices [non-zeros], from 0, ascending in a row."""
    for number, start in enumerate(range(0, source.rows, CHUNK)):
        count = min(CHUNK, source.rows - start)
        rng = np.random.default_rng([source.seed, number])
        drawn = np.minimum(rng.zipf(EXPONENT, (CHUNK, DRAWS)), source.features) - 1  # a whole chunk: see the docstring
        noise = rng.logistic(size=CHUNK)[:count]
        drawn = np.sort(drawn[:count], axis=1)
        new = np.ones(drawn.shape, bool)
        new[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        margin = np.where(new, 2 * np.sin(1.0 + 12.9898 * drawn), 0.0).sum(axis=1)
        yield (noise < margin).astype(np.int64), np.concatenate([[0], np.cumsum(new.sum(axis=1))]), drawn[new]


def generate(work: Path, source: Source) -> list[Path]:
    """A LIBSVM file a chunk; those that are there are whole: they get their name last."""
    folder = work / f"rows-{source.rows}-{source.features}-{source.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    names = [folder / f"part-{number:05}.libsvm" for number in range(-(-source.rows // CHUNK))]
    if not all(name.exists() for name in names):
        for name, (labels, starts, indices) in zip(names, chunks(source), strict=True):
            cells = [f"{index}:1" for index in (indices + 1).tolist()]
            bounds = starts.tolist()
            rows = zip(labels.tolist(), bounds, bounds[1:], strict=False)
            unnamed = name.with_suffix(".part")
            unnamed.write_text("".join(f"{label} {' '.join(cells[at:end])}\n" for label, at, end in rows))
            unnamed.rename(name)
    return names


@dataclass(frozen=True)
class Arrays:
    """Features [n, d] in CSR with 32-bit indices, which scikit-learn's solvers ask for; labels [n], 0 and 1."""

    x: Any
    y: Floats

    @classmethod
    def read(cls, files: list[Path], features: int) -> Arrays:
        """From LIBSVM files."""
        from sklearn.datasets import load_svmlight_file

        parts = [load_svmlight_file(str(file), n_features=features) for file in files]
        x = sparse.vstack([part[0] for part in parts], format="csr")
        x.indices, x.indptr = x.indices.astype(np.int32), x.indptr.astype(np.int32)
        return cls(x, (np.concatenate([part[1] for part in parts]) > 0).astype(np.float64))


@dataclass(frozen=True)
class Problem:
    """mean log(1 + exp(-y (w.x + b))) + reg (l1_ratio |w|_1 + (1 - l1_ratio) / 2 |w|^2), y in -1 and 1.

    Args:
        source: the rows.
        reg: weight of the penalty.
        l1_ratio: 0 is l2 alone.
        intercept: whether there is b; else it is 0.
    """

    source: Source
    reg: float
    l1_ratio: float
    intercept: bool

    def about(self) -> dict[str, Any]:
        """JSON."""
        return {"source": self.source.about(), "reg": self.reg, "l1_ratio": self.l1_ratio, "intercept": self.intercept}

    def objective(self, data: Arrays, w: Floats, b: float) -> float:
        """Of coefficients [d] and an intercept."""
        loss = np.logaddexp(0, -(2 * data.y - 1) * (data.x @ w + b)).mean()
        return float(loss + self.reg * (self.l1_ratio * np.abs(w).sum() + (1 - self.l1_ratio) / 2 * (w @ w)))
