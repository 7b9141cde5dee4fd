"""SAG: stochastic average gradient.

    alpha_i <- grad_i(w) for the rows i of the batch,   w <- w - lr (1 / n) sum over all rows of alpha_j

Reference: M. Schmidt, N. Le Roux, F. Bach, "Minimizing finite sums with the stochastic average gradient", Mathematical
Programming 162, 2017 (arXiv 2013), eq. 5 and algorithm 1; section 4 has the forms for linear models, L2 decay and
batches. The estimate is biased: its mean is (b / n) grad(w) + (1 - b / n) abar. Step sizes up to 1 / L are used there,
1 / (16 L) is what the theorem needs. Where we differ: the table starts from one pass at the first parameters, not from
zeros with a count of the rows seen; rows come in the stream's order, every one once an epoch, instead of drawn.
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


class SAG(Tabled):
    """See the module's docstring."""

    name = "sag"

    def estimate(self, before: Tensor, after: Tensor, change: Tensor) -> Tensor:
        """See `Tabled.estimate`."""
        return after


SPEC = OptimizerSpec(
    factory=SAG,
    paper="Schmidt, Le Roux and Bach 2017",
    rule="alpha_i <- g_i(w) for the batch's rows;  w <- w - lr mean of all alpha",
    use="linear models to high accuracy, where saga's step is too noisy",
    state="for every row and output (linear models) or row and parameter 1 number, at most table_bytes; 1 a parameter",
    state_bytes=table_bytes,
    cost="a second gradient of the batch; not linear: one for every row; 8 bytes and an entry a row to every rank",
    traits=frozenset({DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, NEEDS_KEYS, NEEDS_FULL_PASS, NEEDS_MODEL, OWN_GRADIENT}),
    defaults={"lr": 0.1, "weight_decay": 0.0, "table": "auto", "table_bytes": 1 << 30},
)
