"""A million rows of a hundred thousand features: every solver, penalty and number of partitions against scikit-learn,
and against a lower bound by duality that is computed here, in numpy."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bench.linear_contestants import SOLVERS, Arena, Entry, scikit
from bench.linear_data import Arrays, Floats, Problem, Source
from bench.saga import PARTITIONS, PENALTIES, STRENGTH
from headrace.baselines.saga import SagaLogisticRegression

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CLOSE = 1e-6  # relative
# Proof, and epochs at most, of a fit. Without l2 a bound is of first order.
WITH_L2, WITHOUT = (CLOSE, 5000), (1e-4, 2000)
PEERS = {"newton-cg": 2000, "liblinear": 40}  # iterations: liblinear's rounding sets in at 32, and it has no end then


@pytest.fixture(scope="module")
def arena(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(spark, tmp_path_factory.mktemp("rows"))


def lower_bound(data: Arrays, problem: Problem, w: Floats) -> float:
    """No coefficients have an objective below it: the dual's value at a point made of `w`, without an intercept.

    P(w) = mean log(1 + exp(-y x.w)) + l2 / 2 |w|^2 + l1 |w|_1 has the dual D(a) = mean H(a) - |S(v, l1)|^2 / (2 l2),
    H(a) = -a log a - (1 - a) log(1 - a), v = mean a y x, S soft thresholding; at the minimum a = 1 / (1 + exp(y x.w)).
    Without l2, |v|_inf <= l1 is a condition instead, which a smaller `a` meets.
    """
    l1, l2 = problem.reg * problem.l1_ratio, problem.reg * (1 - problem.l1_ratio)
    sign = 2 * data.y - 1
    a = 1 / (1 + np.exp(sign * (data.x @ w)))
    v = data.x.T @ (a * sign) / len(sign)
    if l2 == 0:
        a *= min(1.0, l1 / np.abs(v).max())
    entropy = float((-a * np.log(a) - (1 - a) * np.log1p(-a)).mean())
    return entropy - (float((np.maximum(np.abs(v) - l1, 0) ** 2).sum()) / (2 * l2) if l2 else 0.0)


def fitted(arena: Arena, problem: Problem, solver: str, partitions: int, proof: float, epochs: int) -> Any:
    rows, start = arena.frame(problem.source), time.monotonic()
    model = SagaLogisticRegression(
        solver=solver, regParam=problem.reg, elasticNetParam=problem.l1_ratio, standardization=False,
        fitIntercept=False, numPartitions=partitions, tol=proof, maxIter=epochs,
    ).fit(rows)  # fmt: skip
    print(f"{solver} {partitions} {time.monotonic() - start:.0f} s {model.summary.certificate}", flush=True)
    return model


@cache
def least_of_scikit(arena: Arena, problem: Problem) -> float:
    """Infinite where no peer has the penalty."""
    peer = next((peer for peer in map(Entry, PEERS) if peer.accepts(problem)), None)
    return float(scikit(arena, problem, peer, PEERS[peer.name])["objective"]) if peer else np.inf


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_million_rows_of_a_hundred_thousand_features(penalty: str, solver: str, arena: Arena) -> None:
    count, features = (int(n) for n in os.environ.get("HEADRACE_LARGE", "1000000,100000").split(","))
    problem = Problem(Source("generated", count, features), STRENGTH / count, PENALTIES[penalty], intercept=False)
    known = arena.arrays(problem.source)
    least = least_of_scikit(arena, problem)
    proof, epochs = WITH_L2 if problem.l1_ratio < 1 else WITHOUT
    for partitions in PARTITIONS:
        model = fitted(arena, problem, solver, partitions, proof, epochs)
        w = model.coefficients.toArray()
        found, bound = problem.objective(known, w, 0.0), lower_bound(known, problem, w)
        print(f"  numpy: objective {found:.12f}, minimum >= {bound:.12f}", flush=True)
        assert found <= least * (1 + CLOSE)
        assert bound <= least and model.summary.bound <= least * (1 + 1e-9)
        assert model.summary.converged
        assert found - max(bound, model.summary.bound) <= proof * found
        if problem.l1_ratio < 1:  # without l2 the bound at a point is worse than the point
            assert found - bound <= CLOSE * found
            assert model.summary.bound == pytest.approx(bound, rel=CLOSE)
