"""Linear conjugate gradients: minimize q(x) = x.A x / 2 - b.x for symmetric positive definite A given by products.

    x <- x + a p, a = r.z / p.A p;     r <- r - a A p;     z = r / M;     p <- z + (r.z new / r.z old) p

References: J. Nocedal and S. J. Wright, "Numerical optimization", 2nd edition, 2006, algorithm 5.3 (preconditioned);
J. Martens, "Deep learning via Hessian-free optimization", ICML 2010: section 4.4 (stop when the relative progress per
iteration is small), 4.6 (keep iterates ceil(1.3^j) to go back to).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.optim.flat import dot, factor

_APART = 1.3


@dataclass
class Solution:
    """What was reached.

    Args:
        path: iterates [n] and their q, of iterations ceil(1.3^j) and the last; empty: nothing was found
            that is below q(0) = 0.
        iterations: made.
        residual: |A x - b| / |b| at the last.
    """

    path: list[tuple[Tensor, float]] = field(default_factory=list)
    iterations: int = 0
    residual: float = 1.0

    def keep(self, x: Tensor, q: float) -> None:
        """Add to the path what is below q(0) and finite."""
        if q < 0.0 and bool(x.isfinite().all()):
            self.path.append((x, q))


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When to stop.

    Args:
        iterations: at most.
        residual: |A x - b| <= residual |b|.
        progress: q fell by less than a share k progress over the last k = max(10, i / 10) of i iterations.
    """

    iterations: int
    residual: float = 0.0
    progress: float = 0.0


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    stop: Stop,
    *,
    start: Tensor | None = None,
    preconditioner: Tensor | None = None,
    keep_path: bool = False,
) -> Solution:
    """Solve A x = b, or as far as it goes: it ends where A has no positive curvature or a product is not finite.

    Works on b / |b|: products stay in the range of float32 whatever the gradient's size is.

    Args:
        product: v [n] -> A v [n].
        b: [n].
        stop: see `Stop`.
        start: where to begin [n]; 0 if q is no lower there.
        preconditioner: M [n], a diagonal above 0.
        keep_path: keep iterates on the way, not the last only.
    """
    scale = math.sqrt(dot(b, b))
    if not 0.0 < scale < math.inf:
        return Solution()
    b = b / scale
    x, r, q = _begin(product, b, None if start is None else start / scale)
    m = torch.ones_like(b) if preconditioner is None else preconditioner
    z = r / m
    p, rz = z.clone(), dot(r, z)
    values, found, due = [q], Solution(residual=math.sqrt(dot(r, r))), 0
    while found.iterations < stop.iterations and found.residual > stop.residual:
        ap = product(p)
        curvature = dot(p, ap)
        if not (rz > 0.0 and 0.0 < curvature < math.inf):
            break
        step = factor(rz / curvature, x)
        x.add_(p, alpha=step)
        r.sub_(ap, alpha=step)
        torch.div(r, m, out=z)
        rz_before, rz = rz, dot(r, z)
        p.mul_(rz / rz_before).add_(z)
        values.append(-0.5 * (dot(b, x) + dot(r, x)))
        found.iterations, found.residual = found.iterations + 1, math.sqrt(dot(r, r))
        if keep_path and found.iterations == math.ceil(_APART**due):
            found.keep(x * scale, values[-1] * scale**2)
            while math.ceil(_APART**due) <= found.iterations:
                due += 1
        if _slow(values, stop.progress) or found.residual <= torch.finfo(b.dtype).eps:
            break
    if not found.path or found.path[-1][1] != values[-1] * scale**2:
        found.keep(x * scale, values[-1] * scale**2)
    return found


def _begin(product: Callable[[Tensor], Tensor], b: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """x, b - A x, q(x)."""
    if start is not None:
        r = b - product(start)
        q = -0.5 * (dot(b, start) + dot(r, start))
        if q < 0.0:
            return start.clone(), r, q
    return torch.zeros_like(b), b.clone(), 0.0


def _slow(values: list[float], progress: float) -> bool:
    """Martens 2010, section 4.4."""
    i = len(values) - 1
    k = max(10, math.ceil(0.1 * i))
    return i > k and values[i] < 0.0 and (values[i] - values[i - k]) / values[i] < k * progress
