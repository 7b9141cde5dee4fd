"""K-FAC's factors: symmetric matrices kept as their triangle, decomposed, and applied to a layer's gradient.

A layer's curvature block is A (x) G with A [n, n] of its inputs and G [m, m] of its outputs' gradients; its gradient is
V [m, n]. With column-stacked vec, (A (x) G)^-1 vec(V) = vec(G^-1 V A^-1).

    joint damping      Q_G [(Q_G^T V Q_A) / (d_G d_A^T + damping)] Q_A^T                exactly (A (x) G + damping I)^-1
    split damping      (G + sqrt(damping) / pi I)^-1 V (A + pi sqrt(damping) I)^-1,     pi^2 = (tr A / n) / (tr G / m)

References: J. Martens and R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML
2015, section 6.3 and appendix B; the triangle is LAPACK's rectangular full packed format: F. G. Gustavson et al., ACM
TOMS 37(2), 2010.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EIGEN, INVERSE = "eigen", "inverse"


def packed_shape(n: int) -> tuple[int, int]:
    """Of the triangle of an [n, n] matrix: n (n + 1) / 2 numbers."""
    return 2 * (n // 2) + 1, n - n // 2


def pack(matrix: Tensor) -> Tensor:
    """The triangle of a symmetric matrix [n, n].

    The right half's columns hold their upper triangle; the left half's triangle fills the corner that they leave free.
    """
    n, half = len(matrix), len(matrix) // 2
    packed = matrix.new_zeros(packed_shape(n))
    packed[:n] = matrix[:, half:].triu(-half)
    packed[half + 1 :, :half] += matrix[:half, :half].tril()
    return packed


def unpack(packed: Tensor) -> Tensor:
    """Undo `pack`: the whole symmetric matrix."""
    half = (packed.shape[0] - 1) // 2
    n = half + packed.shape[1]
    matrix = packed.new_zeros(n, n)
    matrix[:, half:] = packed[:n].triu(-half)
    matrix[:half, :half] = packed[half + 1 :, :half].tril().T
    return matrix + matrix.triu(1).T


def mean_eigenvalue(packed: Tensor) -> float:
    """tr / n."""
    half = (packed.shape[0] - 1) // 2
    trace = packed.diagonal(-half).sum() + packed.diagonal(-half - 1)[:half].sum()
    return float(trace) / (half + packed.shape[1])


def split_ratio(a: float, g: float) -> float:
    """pi, from mean eigenvalues of A and G; 1 where one of them is zero."""
    return math.sqrt(a / g) if a > 0.0 and g > 0.0 and math.isfinite(a / g) and a / g > 0.0 else 1.0


def solved_shape(n: int, method: str) -> tuple[int, int]:
    """Of what `solve` gives."""
    return (n + 1, n) if method == EIGEN else (n, n)


def solve(packed: Tensor, method: str, damping: float) -> Tensor:
    """What is kept of a factor to divide by it, in float64 inside.

    Args:
        packed: the factor [n, n].
        method: "eigen": eigenvectors as columns and, as row n, eigenvalues [n + 1, n]; "inverse": (factor + damping
            I)^-1 [n, n].
        damping: of this factor, above 0; used by "inverse" alone.
    """
    matrix = unpack(packed).double()
    if method == INVERSE:
        damped = matrix.clone()
        damped.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return torch.cholesky_inverse(lower).to(packed.dtype)
    values, vectors = torch.linalg.eigh(matrix)
    values.clamp_(min=0.0)  # below zero by rounding only: sums of squares are not
    if method == INVERSE:
        return ((vectors / (values + damping)) @ vectors.T).to(packed.dtype)
    return torch.cat([vectors, values[None]]).to(packed.dtype)


def precondition(grad: Tensor, a: Tensor, g: Tensor, method: str, *, damping: float, ratio: float | None) -> Tensor:
    """The block's damped inverse times the gradient.

    Args:
        grad: V [m, n].
        a: `solve` of A.
        g: `solve` of G.
        method: of `a` and `g`.
        damping: of the block ("inverse" has it inside).
        ratio: pi where damping is split over the factors; None: joint.
    """
    if method == INVERSE:
        return g @ grad @ a
    (qa, da), (qg, dg) = (a[:-1], a[-1]), (g[:-1], g[-1])
    turned = qg.T @ grad @ qa
    if ratio is None:
        turned /= torch.addcmul(torch.full_like(turned, damping), dg[:, None], da[None])
    else:
        root = math.sqrt(damping)
        turned /= torch.outer(dg + root / ratio, da + root * ratio)
    return qg @ turned @ qa.T
