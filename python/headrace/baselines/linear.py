"""Our own solvers of logistic regression as baselines: variance-reduced stochastic gradients over partitions
(`headrace.baselines.saga`, `io.headrace.ml` in the JVM).

They minimize what L-BFGS does, and say how far from the minimum they ended: `tol` is of the relative duality gap (of
the objective's change where there is no penalty), `max_iter` counts epochs: gradients of single rows by rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.baselines.spec import (
    CERTIFIED,
    CLASSIFIER,
    LOGISTIC,
    MULTICLASS,
    OBJECTIVE,
    SEEDED,
    WEIGHTED,
    BaselineSpec,
)

_DEFAULTS = {
    "reg_param": 1e-4,
    "elastic_net_param": 0.0,
    "max_iter": 500,
    "tol": 1e-6,
    "standardization": False,  # with it, rare categories would hardly be penalized at all
    "fit_intercept": True,
    "family": "auto",
    "convergence": "gap",
    "step_size": "lipschitz",
    "num_partitions": 0,
    "local_passes": 0.0,
    "shuffle": True,
}


def _factory(solver: str) -> Callable[..., Any]:
    def made(**params: Any) -> Any:
        from headrace.baselines.saga import SagaLogisticRegression

        return SagaLogisticRegression(solver=solver, **params)

    return made


def _spec(solver: str, paper: str, step: str, use: str) -> BaselineSpec:
    return BaselineSpec(
        factory=_factory(solver),
        paper=paper,
        rule=f"what lbfgs minimizes, by passes in partitions corrected by the gradient of all rows; a step goes {step}",
        use=use,
        traits=frozenset({CLASSIFIER, LOGISTIC, MULTICLASS, WEIGHTED, SEEDED, OBJECTIVE, CERTIFIED}),
        defaults=_DEFAULTS,
    )


SAG = _spec(
    "sag",
    "M. Schmidt, N. Le Roux, F. Bach, Minimizing finite sums with the stochastic average gradient, 2017",
    "along the mean of the last gradients of all rows",
    "to compare with; steps are three times those of saga, and right only in the long run",
)
SAGA = _spec(
    "saga",
    "A. Defazio, F. Bach, S. Lacoste-Julien, SAGA, NIPS 2014; between partitions: S. De, T. Goldstein, CentralVR, 2016",
    "along a row's gradient less its last one, plus their mean",
    "the first of them to try, where a bound of the distance from the minimum is wanted, or l1 penalties",
)
SVRG = _spec(
    "svrg",
    "R. Johnson, T. Zhang, NIPS 2013; L. Xiao, T. Zhang, A proximal stochastic gradient method, 2014",
    "along a row's gradient less that at the round's start, plus the gradient of all rows there",
    "as saga, where a pass must not renew what is on record",
)
SARAH = _spec(
    "sarah",
    "L. M. Nguyen, J. Liu, K. Scheinberg, M. Takac, SARAH, ICML 2017",
    "along the step before, plus the change of a row's gradient",
    "as svrg, with an estimate that varies less the further a pass has gone",
)
SCSG = _spec(
    "scsg",
    "L. Lei, M. I. Jordan, Less than a single pass: stochastically controlled stochastic gradient, AISTATS 2017",
    "as one of svrg, anchored at batches of rows that grow",
    "many rows, and a rough answer soon",
)
