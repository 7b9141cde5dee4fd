"""Natural gradient descent, the Fisher matrix by products.

    d = (F + (weight_decay + damping) I)^-1 g   by CG from the last solution
    w <- w - min(lr, sqrt(2 max_kl / d.F d)) d

F is the model's Fisher matrix ("gauss_newton": G of `curvature`, which is the Fisher matrix where the loss is a
negative log-likelihood with the outputs as natural parameters: binary and softmax cross-entropy of logits, squared
errors) or the empirical one, the mean of rows' g_i g_i^T; both of the step's batch. d.F d / 2 is to second order the
Kullback-Leibler divergence a row of the model after a step d from the one before.

References: S. Amari, "Natural gradient works efficiently in learning", 1998; J. Martens, "New insights and perspectives
on the natural gradient method", arXiv:1412.1193, 2014 (true and empirical Fisher, damping); R. Pascanu and Y. Bengio,
"Revisiting natural gradient for deep networks", ICLR 2014 (a Krylov solver, bound on KL). The gradient is the one given
to the step. weight_decay is part of g and, as the curvature of its own term, of the matrix. The step tries no loss: it
is bounded by max_kl, not by a line search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Params, State
from headrace.optim.conjugate_gradients import Stop, conjugate_gradients
from headrace.optim.curvature import Curvature
from headrace.optim.flat import Objective, WholeModelOptimizer, check_above_zero, check_counts, dot, factor
from headrace.optim.spec import DENSE_ONLY, NEEDS_CLOSURE, STATEFUL, OptimizerSpec, numbers

FISHERS = ("gauss_newton", "empirical")


class NaturalGradient(WholeModelOptimizer):
    """See the module's docstring.

    Args:
        params: (name, tensor) pairs, or a group of them.
        options: lr, fisher ("gauss_newton", "empirical"), damping, max_kl (inf: no bound), cg_iterations (at most),
            cg_tolerance (of the residual, beside that of 0), weight_decay.
    """

    name = "natural_gradient"

    def __init__(self, params: Params, **options: Any) -> None:
        check_above_zero(options, "damping", *(["max_kl"] if math.isfinite(options["max_kl"]) else []))
        check_counts(options, "cg_iterations")
        if options["fisher"] not in FISHERS:
            raise UserError(f"natural_gradient has no fisher {options['fisher']!r}", f"one of {', '.join(FISHERS)}")
        super().__init__(params, **options)

    def move(
        self, objective: Objective, w: Tensor, gradient: Tensor, options: Mapping[str, Any], state: State
    ) -> Tensor | None:
        """See `WholeModelOptimizer.move`."""
        curvature = Curvature(objective, w)
        fisher = curvature.gauss_newton if options["fisher"] == "gauss_newton" else curvature.empirical_fisher
        added = options["weight_decay"] + options["damping"]
        solution = conjugate_gradients(
            lambda v: fisher(v).add_(v, alpha=added),
            gradient,
            Stop(iterations=int(options["cg_iterations"]), residual=options["cg_tolerance"]),
            start=state.pop("start", None),
        )
        if not solution.path:
            return None
        d, _ = solution.path[-1]
        step = options["lr"]
        bent = dot(d, fisher(d))
        if bent > 0.0:
            step = min(step, math.sqrt(2.0 * options["max_kl"] / bent))
        self.last = {"step": step, "iterations": solution.iterations, "residual": solution.residual}
        state["start"] = d
        return w.sub(d, alpha=factor(step, w))


SPEC = OptimizerSpec(
    factory=NaturalGradient,
    paper="Amari 1998; Martens 2014; Pascanu and Bengio 2014",
    rule="w <- w - lr (F + lambda I)^-1 g;  F = E[J^T H J] or E[g g^T], by CG",
    use="the exact natural gradient of small and middle-sized models, also to judge K-FAC by",
    state="1 number a parameter",
    state_bytes=numbers(1),
    cost="cg_iterations products, each the price of a gradient; the graph of forward and backward kept meanwhile",
    traits=frozenset({DENSE_ONLY, STATEFUL, NEEDS_CLOSURE}),
    defaults={
        "lr": 0.1, "fisher": "gauss_newton", "damping": 1e-3, "max_kl": 0.01, "cg_iterations": 50, "cg_tolerance": 1e-3,
        "weight_decay": 0.0,
    },
)  # fmt: skip
