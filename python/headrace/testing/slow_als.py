"""Alternating least squares as its formulas have it, one user and one item at a time, in float64: what MLlib's is held
against.

    min sum over known (u, i) of (r_ui - x_u . y_i)^2 + reg (sum n_u |x_u|^2 + sum n_i |y_i|^2)
    x_u = (sum over i of y_i y_i^T + reg n_u I)^-1 sum over i of r_ui y_i, and the same for items

Items first, as MLlib does. n_u and n_i are numbers of ratings (Y. Zhou et al., 2008). Implicit preferences (Y. Hu et
al., 2008): every pair counts, with confidence 1 + alpha r and preference 1 where r > 0, else 1 and 0; n are numbers of
pairs with r > 0, as in MLlib.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """Of a fit; `alpha` of implicit preferences, None for ratings."""

    rank: int = 10
    reg: float = 0.1
    iterations: int = 20
    alpha: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Factors:
    """Of users [U, rank] and items [I, rank]; rows of those without ratings are NaN."""

    users: Floats
    items: Floats

    def predict(self, users: Ints, items: Ints) -> Floats:
        """Predicted ratings [N]; NaN for the unknown."""
        return np.asarray(np.einsum("nk,nk->n", self.users[users], self.items[items]))


def solve(users: Ints, items: Ints, ratings: Floats, settings: Settings, start: Floats | None = None) -> Factors:
    """Fit.

    Args:
        users: of ratings, [N], numbered from 0.
        items: of ratings, [N], numbered from 0.
        ratings: [N].
        settings: see Settings.
        start: the first factors of users [U, rank], NaN for those without ratings; None draws them.
    """
    rng = np.random.default_rng(settings.seed)
    of_users = rng.normal(size=(int(users.max()) + 1, settings.rank)) if start is None else start
    if start is None:
        of_users /= np.linalg.norm(of_users, axis=1, keepdims=True)
        of_users[np.setdiff1d(np.arange(len(of_users)), users)] = np.nan
    of_items = np.zeros((0, settings.rank))
    for _ in range(settings.iterations):
        of_items = _half(of_users, items, users, ratings, settings)
        of_users = _half(of_items, users, items, ratings, settings)
    return Factors(of_users, of_items)


def objective(factors: Factors, users: Ints, items: Ints, ratings: Floats, reg: float) -> float:
    """What is minimized, of ratings."""
    error = float(np.sum((ratings - factors.predict(users, items)) ** 2))
    norms = np.sum(factors.users[users] ** 2) + np.sum(factors.items[items] ** 2)  # each as often as it is rated
    return error + reg * float(norms)


def _half(fixed: Floats, mine: Ints, others: Ints, ratings: Floats, settings: Settings) -> Floats:
    """The best factors of one side, with those of the other fixed."""
    found = np.full((int(mine.max()) + 1, settings.rank), np.nan)
    gram = np.nan_to_num(fixed).T @ np.nan_to_num(fixed)
    order = np.argsort(mine, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(mine[order])) + 1):
        seen, rating = fixed[others[part]], ratings[part]
        if settings.alpha is None:
            left, right, count = seen.T @ seen, seen.T @ rating, len(part)
        else:
            more, liked = settings.alpha * np.abs(rating), rating > 0
            left = gram + (seen * more[:, None]).T @ seen
            right, count = seen.T @ ((1 + more) * liked), int(liked.sum())
        found[mine[part[0]]] = np.linalg.solve(left + settings.reg * count * np.eye(settings.rank), right)
    return found
