"""SVRG: stochastic variance reduced gradient.

    at an anchor w~:  mu = gradient of all rows at w~
    m inner steps from w~:  w <- w - lr (g_B(w) - g_B(w~) + mu),   g_B the mean gradient of the step's batch B
    next anchor:  the last w (pick "last": option I),  or w_t, t uniform in {0, .., m - 1} (pick "random": option II)

Reference: R. Johnson and T. Zhang, "Accelerating stochastic gradient descent using predictive variance reduction",
NIPS 2013, figure 1. Its m is 2 n for convex losses (the default: `inner_epochs` 2) and 5 n for others; its theorem 1
is about option II, its experiments about option I. Where we differ: batches instead of single rows, and rows in the
stream's order, every one once an epoch, instead of drawn with replacement. For losses that are not convex the paper
starts from some epochs of SGD. A batch costs two gradients; a pass, as an epoch without its updates, comes every
`inner_epochs`.
"""

from __future__ import annotations

from headrace.optim.context import Named, StepContext
from headrace.optim.inner_loop import InnerLoop, loop_bytes
from headrace.optim.spec import (
    DENSE_ONLY,
    NEEDS_CLOSURE,
    NEEDS_FULL_PASS,
    NEEDS_MODEL,
    OWN_GRADIENT,
    STATEFUL,
    OptimizerSpec,
)


class SVRG(InnerLoop):
    """See the module's docstring."""

    name = "svrg"
    drawn_from = 0

    def estimate(self, ctx: StepContext) -> Named:
        """See `InnerLoop.estimate`."""
        return self.corrected(ctx, self.kept["old"], self.kept["known"])


SPEC = OptimizerSpec(
    factory=SVRG,
    paper="Johnson and Zhang 2013",
    rule="w <- w - lr (g_B(w) - g_B(w~) + mu),  mu = full gradient at the anchor w~",
    use="convex losses to high accuracy, at a constant lr and in bounded memory",
    state="2 numbers a parameter, 3 with pick random; a copy of tables that others train",
    state_bytes=loop_bytes,
    cost="a second gradient of the batch; a pass over all rows every inner_epochs",
    traits=frozenset({DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, NEEDS_FULL_PASS, NEEDS_MODEL, OWN_GRADIENT}),
    defaults={
        "lr": 0.1, "weight_decay": 0.0, "inner_epochs": 2.0, "inner_steps": 0, "pick": "last", "seed": 0,
    },
)  # fmt: skip
