"""Inverse roots and eigenbases of batches of symmetric positive semidefinite matrices.

On CPUs every matrix is worked on by itself, in memory of its own: the last bits of MKL's eigenvectors, factors and
products depend on where a matrix of odd size lies, in a batch on its place, and so on how many ranks share the work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

OfBatch = TypeVar("OfBatch", bound=Callable[..., tuple[Tensor, Tensor]])

NEWTON_STEPS = 100
NEWTON_TOLERANCE = 1e-6  # of |M - I|_F; for float64 1e-12
NEWTON_ACCEPTED = 1e-2  # an iteration that ends (stalls, or is out of steps) above this has failed


def _each_by_itself(of_batch: OfBatch) -> OfBatch:
    """The same for one matrix after the other, on CPUs; tensors among the arguments are of [N, n, n], too."""

    @wraps(of_batch)
    def of_each(matrices: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        if matrices.device.type != "cpu" or len(matrices) == 0:
            return of_batch(matrices, *args)
        rows = [[_own(arg, i) for arg in (matrices, *args)] for i in range(len(matrices))]
        first, second = zip(*(of_batch(*row) for row in rows), strict=True)
        return torch.cat(first), torch.cat(second)

    return cast(OfBatch, of_each)


def _own(arg: object, row: int) -> object:
    return arg[row : row + 1].clone() if isinstance(arg, Tensor) else arg


@_each_by_itself
def inverse_roots(matrices: Tensor, exponent: float, eps: float, method: str) -> tuple[Tensor, Tensor]:
    """(A + eps max_eigenvalue(A) I)^(-1/exponent); the identity where A = 0.

    Args:
        matrices: [N, n, n].
        exponent: of the root; for method newton a whole number.
        eps: ridge, relative to the largest eigenvalue.
        method: "eigh" (eigenvalues, negative ones taken as 0) or "newton" (coupled Newton iteration).

    Returns:
        Roots [N, n, n], and which of them are good [N]: finite, of a finite matrix, converged.
    """
    good = matrices.isfinite().flatten(1).all(1)
    unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    zero = (matrices == 0).flatten(1).all(1)
    usable = torch.where((good & ~zero)[:, None, None], matrices, unit)
    roots, made = (_by_eigenvalues if method == "eigh" else _by_newton)(usable, exponent, eps)
    roots = torch.where(zero[:, None, None], unit, roots)
    return roots, good & (zero | (made & roots.isfinite().flatten(1).all(1)))


def _by_eigenvalues(matrices: Tensor, exponent: float, eps: float) -> tuple[Tensor, Tensor]:
    values, vectors = eigh(matrices)
    values = values.clamp(min=0.0)
    powers = (values + eps * values[:, -1:]) ** (-1.0 / exponent)
    return (vectors * powers[:, None]) @ vectors.mT, values[:, -1] > 0


def _by_newton(matrices: Tensor, exponent: float, eps: float) -> tuple[Tensor, Tensor]:
    """X, M <- X T, T^p M with T = ((p + 1) I - M) / p, from M = z A, X = z^(1/p) I, z = (p + 1) / (2 |A|_F).

    C.-H. Guo and N. J. Higham, "A Schur-Newton method for the matrix p-th root and its inverse", 2006, as in R. Anil et
    al. 2020. Every matrix stops by itself - at the tolerance, or where rounding makes a small error grow - so that its
    root does not depend on the batch it is in.
    """
    p = int(exponent)
    unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    ridged = matrices + (eps * largest_eigenvalues(matrices))[:, None, None] * unit
    z = ((p + 1) / (2 * torch.linalg.matrix_norm(ridged)))[:, None, None]
    m, x = z * ridged, z ** (1.0 / p) * unit
    error = torch.linalg.matrix_norm(m - unit)
    tolerance = 1e-12 if matrices.dtype == torch.float64 else NEWTON_TOLERANCE
    active = error > tolerance
    for _ in range(NEWTON_STEPS):
        if not bool(active.any()):
            break
        step = ((p + 1) * unit - m) / p
        next_m = torch.linalg.matrix_power(step, p) @ m
        next_error = torch.linalg.matrix_norm(next_m - unit)
        # eigenvalues of M rise to 1 from below after the first step: slowly at first, so that rounding hides it
        active &= (next_error < error) | (error > 0.5)
        x = torch.where(active[:, None, None], x @ step, x)
        m = torch.where(active[:, None, None], next_m, m)
        error = torch.where(active, next_error, error)
        active &= error > tolerance
    return (x + x.mT) / 2, error <= NEWTON_ACCEPTED


def largest_eigenvalues(matrices: Tensor) -> Tensor:
    """Of [N, n, n], symmetric positive semidefinite and not 0, [N]: from below, by power iteration with A^128
    from up to 4 fixed vectors: 1 % off at most, and that only where the largest two are close."""
    n = matrices.shape[-1]
    power = matrices / torch.linalg.matrix_norm(matrices)[:, None, None]
    scaled = power
    for _ in range(7):
        power = power @ power
        power = power / torch.linalg.matrix_norm(power)[:, None, None]
    steps = torch.arange(1, n + 1, dtype=matrices.dtype, device=matrices.device)
    vectors = torch.cos(steps[:, None] ** 2 * steps[: min(n, 4)])
    for _ in range(4):
        vectors = power @ vectors
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return (vectors * (scaled @ vectors)).sum(1).amax(1) * torch.linalg.matrix_norm(matrices)


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """torch.linalg.eigh of [N, n, n]; NaN for those for which it does not converge."""
    try:
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if len(matrices) == 1:
            return torch.full_like(matrices[..., 0], torch.nan), torch.full_like(matrices, torch.nan)
        parts = [eigh(one) for one in matrices.split(1)]
        return torch.cat([v for v, _ in parts]), torch.cat([q for _, q in parts])


@_each_by_itself
def eigenbases(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors [N, n, n] in columns, and which are good [N]."""
    good = matrices.isfinite().flatten(1).all(1)
    unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    _, vectors = eigh(torch.where(good[:, None, None], matrices, unit))
    return vectors, good & vectors.isfinite().flatten(1).all(1)


@_each_by_itself
def refined_bases(matrices: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """One step of orthogonal iteration from `bases`: QR of A Q, columns of large eigenvalues first.

    Columns keep their places: what is held in the coordinates of the old basis is in those of the new one.

    Args:
        matrices: A, [N, n, n].
        bases: Q, [N, n, n].

    Returns:
        Bases [N, n, n], and which are good [N].
    """
    good = matrices.isfinite().flatten(1).all(1)
    product = torch.where(good[:, None, None], matrices, 0.0) @ bases
    order = (bases * product).sum(1).argsort(dim=1, descending=True, stable=True)[:, None].expand_as(bases)
    vectors = torch.linalg.qr(product.gather(2, order)).Q
    back = torch.empty_like(vectors).scatter_(2, order, vectors)
    return back, good & back.isfinite().flatten(1).all(1)
