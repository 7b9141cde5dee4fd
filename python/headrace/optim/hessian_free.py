"""Hessian-free optimization: Newton steps with the Gauss-Newton matrix, by conjugate gradients.

    d ~ argmin q(d) = g.d + d.(G + (weight_decay + lambda) I) d / 2
        by CG from cg_decay times the last solution, preconditioned by (diag(F) + weight_decay + lambda)^power
    w <- w + a d,   a by backtracking from lr
    lambda <- 1.5 lambda if rho < 1/4, lambda / 1.5 if rho > 3/4,         rho = (F(w + d) - F(w)) / q_0(d)

G and diag(F) (of the empirical Fisher matrix) are those of `curvature`; q_0 is q without lambda.

References: J. Martens, "Deep learning via Hessian-free optimization", ICML 2010 (sections 4.1 damping, 4.4 stopping,
4.5 start, 4.6 backtracking over CG's iterates, 4.7 preconditioner); J. Martens and I. Sutskever, "Training deep and
recurrent networks with Hessian-free optimization", 2012 (decay of the start, line search). As there: power 0.75,
iterates ceil(1.3^j), progress 5e-4 an iteration, at most 250 iterations; the line search tries 0.8^j lr and asks for a
decrease of 0.01 a g.d.

Differs: gradient, curvature and objective all are on the step's batch (the papers take a small batch for curvature and
all rows for the gradient; give it large batches). diag(F) is estimated by random signs instead of a second kind of
backward pass that every layer would have to know. q_0 leaves lambda out: the ratio judges the model of F. lambda is
beside the mean loss, and starts at 1. A step that finds no lower point is not made: lambda grows and CG starts from 0.
The gradient is evaluated anew, as for L-BFGS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headrace.errors import UserError
from headrace.optim.base import Params, State
from headrace.optim.conjugate_gradients import Solution, Stop, conjugate_gradients
from headrace.optim.curvature import MAX_PROBES, Curvature
from headrace.optim.flat import Objective, WholeModelOptimizer, check_above_zero, check_counts, dot, factor
from headrace.optim.line_search import backtrack
from headrace.optim.spec import DENSE_ONLY, NEEDS_CLOSURE, NEEDS_KEYS, OWN_GRADIENT, STATEFUL, OptimizerSpec, numbers

_FACTOR = 1.5
_LEAST, _MOST = 1e-20, 1e20  # lambda stays in the range of float32
_DECREASE, _RATE, _TRIALS = 1e-2, 0.8, 60


class HessianFree(WholeModelOptimizer):
    """See the module's docstring.

    Args:
        params: (name, tensor) pairs, or a group of them.
        options: lr (first step tried along d), damping (lambda at the start), cg_iterations (at most), cg_progress,
            cg_decay, preconditioner_power (0: none), probes (backward passes for the preconditioner), weight_decay.
    """

    name = "hessian_free"

    def __init__(self, params: Params, **options: Any) -> None:
        check_above_zero(options, "damping")
        check_counts(options, "cg_iterations", "probes")
        if not options["probes"] <= MAX_PROBES:
            raise UserError(f"hessian_free takes 1 to {MAX_PROBES} probes, not {options['probes']}")
        for name in ("cg_decay", "preconditioner_power"):
            if not 0.0 <= options[name] <= 1.0:
                raise UserError(f"optimizer option {name} must be in [0, 1], not {options[name]}")
        super().__init__(params, **options)

    def with_own_gradient(self) -> list[str]:
        """See `Optimizer.with_own_gradient`."""
        return [self.name]

    def move(
        self, objective: Objective, w: Tensor, gradient: Tensor, options: Mapping[str, Any], state: State
    ) -> Tensor | None:
        """See `WholeModelOptimizer.move`."""
        curvature = Curvature(objective, w)
        value, gradient = curvature.value(), curvature.gradient()
        self.check_start(value, gradient)
        damping = state.setdefault("damping", float(options["damping"]))
        solution = self._solve(curvature, gradient, damping, options, state)
        del curvature  # its graph is no longer needed
        state.pop("start", None)
        if not solution.path:
            state["damping"] = _adapted(damping, -math.inf)
            return None
        d, q, reached = _best(solution, objective, w)
        step = backtrack(
            lambda a: reached if a == 1.0 else objective.value(w.add(d, alpha=factor(a, w))),
            value, dot(gradient, d), options["lr"], _DECREASE, _RATE, _TRIALS,
        )  # fmt: skip
        model = q - 0.5 * damping * dot(d, d)
        rho = (reached - value) / model if model < 0.0 else -math.inf
        self.last = {
            "value": value, "step": step, "rho": rho, "damping": damping, "iterations": solution.iterations,
            "residual": solution.residual,
        }  # fmt: skip
        if options["lr"] == 0.0:
            return None
        state["damping"] = _adapted(damping, rho if step > 0.0 else -math.inf)
        if step == 0.0:
            return None
        state["start"] = solution.path[-1][0]
        return w.add(d, alpha=factor(step, w))

    def _solve(
        self, curvature: Curvature, gradient: Tensor, damping: float, options: Mapping[str, Any], state: State
    ) -> Solution:
        added, power = options["weight_decay"] + damping, options["preconditioner_power"]
        scales = (curvature.squared_gradients(int(options["probes"])) + added).pow_(power) if power > 0.0 else None
        start = state.get("start")
        return conjugate_gradients(
            lambda v: curvature.gauss_newton(v).add_(v, alpha=added),
            -gradient,
            Stop(iterations=int(options["cg_iterations"]), progress=options["cg_progress"]),
            start=None if start is None else options["cg_decay"] * start,
            preconditioner=scales,
            keep_path=True,
        )


def _best(solution: Solution, objective: Objective, w: Tensor) -> tuple[Tensor, float, float]:
    """From CG's last iterate backwards while F falls: d, q(d), F(w + d)."""
    (d, q), *earlier = reversed(solution.path)
    value = objective.value(w + d)
    for before, q_before in earlier:
        value_before = objective.value(w + before)
        if math.isfinite(value) and value_before >= value:
            break
        d, q, value = before, q_before, value_before
    return d, q, value


def _adapted(damping: float, rho: float) -> float:
    """Levenberg and Marquardt's heuristic; rho that is not a number counts as bad."""
    factor = 1.0 / _FACTOR if rho > 0.75 else 1.0 if rho >= 0.25 else _FACTOR
    return min(max(damping * factor, _LEAST), _MOST)


SPEC = OptimizerSpec(
    factory=HessianFree,
    paper="Martens 2010; Martens and Sutskever 2012",
    rule="w <- w + a d;  (G + lambda I) d = -g by CG, G = J^T H J;  lambda by reduction ratio",
    use="deep nets and recurrences where curvature is bad and batches are large",
    state="1 number a parameter",
    state_bytes=numbers(1),
    cost="10 to 250 products, each the price of a gradient; the graph of forward and backward kept meanwhile",
    traits=frozenset({DENSE_ONLY, STATEFUL, NEEDS_CLOSURE, NEEDS_KEYS, OWN_GRADIENT}),
    defaults={
        "lr": 1.0, "damping": 1.0, "cg_iterations": 250, "cg_progress": 5e-4, "cg_decay": 0.95,
        "preconditioner_power": 0.75, "probes": 8, "weight_decay": 0.0,
    },
)  # fmt: skip
