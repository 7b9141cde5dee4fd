"""Gradients for a rule to follow: with curvature and noise, in any layout."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]


def laid_out(values: Array) -> Tensor:
    """A tensor; square ones not contiguous, as those of a layer that keeps its weight transposed."""
    square = values.ndim == 2 and len(set(values.shape)) == 1
    return torch.tensor(values.T.copy()).T if square else torch.tensor(values)


def bent_bowl(w: Array, seed: int, rows: npt.NDArray[np.int64] | None) -> Array:
    """A gradient with curvature and noise; zero outside `rows`."""
    grad = 0.3 * w + np.sin(w + seed) + np.random.default_rng(seed).normal(scale=0.1, size=w.shape)
    if rows is None:
        return grad
    kept = np.zeros_like(grad)
    kept[rows] = grad[rows]
    return kept


def in_halves(grad: Array, rows: npt.NDArray[np.int64]) -> Tensor:
    """As a sparse tensor that is not coalesced: every row twice, half each."""
    values = torch.tensor(np.concatenate([grad[rows] / 2, grad[rows] / 2]))
    ids = torch.tensor(np.concatenate([rows, rows]))
    return torch.sparse_coo_tensor(ids[None], values, grad.shape, check_invariants=True)
