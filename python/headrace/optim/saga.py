"""SAGA.

    w <- w - lr ((1 / b) sum over batch (grad_i(w) - alpha_i) + abar),   then alpha_i <- grad_i(w)

Reference: A. Defazio, F. Bach, S. Lacoste-Julien, "SAGA: a fast incremental gradient method with support for
non-strongly convex composite objectives", NIPS 2014, eq. 1 with h = 0. The estimate is unbiased: abar is the mean of
the alpha_i before the batch. 1 / (3 L) is the paper's step size. Where we differ: batches (in the paper b is 1), and
rows in the stream's order, every one once an epoch, instead of drawn.
"""

from __future__ import annotations

from torch import Tensor

from headrace.optim.spec import (
    DENSE_ONLY,
    NEEDS_CLOSURE,
    NEEDS_FULL_PASS,
    NEEDS_KEYS,
    NEEDS_MODEL,
    OWN_GRADIENT,
    STATEFUL,
    OptimizerSpec,
)
from headrace.optim.tabled import Tabled, table_bytes


class SAGA(Tabled):
    """See the module's docstring."""

    name = "saga"

    def estimate(self, before: Tensor, after: Tensor, change: Tensor) -> Tensor:
        """See `Tabled.estimate`."""
        return change + before


SPEC = OptimizerSpec(
    factory=SAGA,
    paper="Defazio, Bach and Lacoste-Julien 2014",
    rule="w <- w - lr (mean over batch (g_i(w) - alpha_i) + mean of all alpha);  alpha_i <- g_i(w)",
    use="linear models to high accuracy in one pass an epoch",
    state="for every row and output (linear models) or row and parameter 1 number, at most table_bytes; 1 a parameter",
    state_bytes=table_bytes,
    cost="a second gradient of the batch; not linear: one for every row; 8 bytes and an entry a row to every rank",
    traits=frozenset({DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, NEEDS_KEYS, NEEDS_FULL_PASS, NEEDS_MODEL, OWN_GRADIENT}),
    defaults={"lr": 0.1, "weight_decay": 0.0, "table": "auto", "table_bytes": 1 << 30},
)
