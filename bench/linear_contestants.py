"""Who minimizes row g's objective, and the points on their way.

Ours says objective, epochs and seconds of every round, MLlib the objective of every iteration: each is one fit, and
MLlib's seconds and evaluations are spread evenly over its iterations. scikit-learn says nothing on the way: it is
fitted from the start with 1, 2, 3, 5, 8, ... iterations at most and a tolerance that is never met, until the target is
passed or its seconds are used up. All run from rows in memory (a cached DataFrame, a CSR matrix). Epochs are component
gradients by rows: of ours as it counts them (passes and evaluations), of sag and saga their passes, of MLlib its
evaluations (Spark jobs of a fit beyond those of one without iterations, and one). liblinear's and newton-cg's products
of Hessian and vector are not counted.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.graph import tree_cpu
from bench.linear_data import Arrays, Problem, Source

SOLVERS = ("sag", "saga", "svrg", "sarah", "scsg")
PEERS = ("sklearn saga", "sklearn sag", "liblinear", "newton-cg", "mllib")
PARTITIONS = 2  # of rows that are dealt at random, before a solver of ours deals them anew
INTERCEPT_SCALING = 100.0  # liblinear penalizes b: by 1 / 10,000 of the others, its minimum is ours to 1e-9 of a9a
Point = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A contestant.

    Args:
        name: a solver of ours, or a peer.
        partitions: of ours.
        order: of ours: `dealt` at random, or sorted `by_label` and left so.
    """

    name: str
    partitions: int = 0
    order: str = "dealt"

    @property
    def ours(self) -> bool:
        """Whether it is a solver of SagaLogisticRegression."""
        return self.name in SOLVERS

    def accepts(self, problem: Problem) -> bool:
        """Whether it has this penalty."""
        if self.name in ("sklearn sag", "newton-cg"):
            return problem.l1_ratio == 0
        return self.name != "liblinear" or problem.l1_ratio in (0, 1)


@dataclass(eq=False)
class Arena:
    """Rows as contestants take them.

    Args:
        spark: a session.
        work: folder of generated files.
        data: folder of a9a's folder; None is where they usually are.
    """

    spark: Any
    work: Path
    data: Path | None = None
    _arrays: dict[Source, Arrays] = field(default_factory=dict)
    _frames: dict[tuple[Source, int], Any] = field(default_factory=dict)

    def arrays(self, source: Source) -> Arrays:
        """For scikit-learn."""
        if source not in self._arrays:
            self._arrays = {source: Arrays.read(source.files(self.work, self.data), source.features)}
        return self._arrays[source]

    def frame(self, source: Source, sorted_in: int = 0) -> Any:
        """For Spark, cached; sorted by label in so many partitions, 0: dealt to `PARTITIONS`."""
        from pyspark.sql import functions as f

        if (source, sorted_in) not in self._frames:
            for frame in self._frames.values():
                frame.unpersist()
            files = [str(file) for file in source.files(self.work, self.data)]
            rows = self.spark.read.format("libsvm").option("numFeatures", str(source.features)).load(files)
            rows = rows.selectExpr("double(label > 0) label", "features")
            if sorted_in:  # by label alone most partitions were empty
                keyed = rows.withColumn("key", f.monotonically_increasing_id())
                rows = keyed.repartitionByRange(sorted_in, "label", "key").drop("key")
            else:
                rows = rows.repartition(PARTITIONS)
            rows = rows.cache()
            assert rows.count() == source.rows
            self._frames = {(source, sorted_in): rows}
        return self._frames[source, sorted_in]


@contextmanager
def watched(point: Point) -> Iterator[None]:
    """Adds wall and CPU seconds: of this process, the JVM and whatever they started."""
    start, used = time.perf_counter(), tree_cpu()
    yield
    point["seconds"] = time.perf_counter() - start
    point["cpu_seconds"] = tree_cpu() - used


def ours(arena: Arena, problem: Problem, entry: Entry, tol: float, max_epochs: int) -> dict[str, Any]:
    """One fit; a point a round.

    Seconds of points begin with the fit, as of the others: what comes before the first round (rows to blocks, their
    moments) is added to all.
    """
    from headrace.baselines.saga import SagaLogisticRegression

    rows = arena.frame(problem.source, entry.partitions if entry.order == "by_label" else 0)
    estimator = SagaLogisticRegression(
        solver=entry.name, regParam=problem.reg, elasticNetParam=problem.l1_ratio, fitIntercept=problem.intercept,
        standardization=False, tol=tol, maxIter=max_epochs, shuffle=entry.order == "dealt",
        numPartitions=entry.partitions,
    )  # fmt: skip
    whole: Point = {}
    with watched(whole):
        model = estimator.fit(rows)
    told = model.summary
    found = problem.objective(arena.arrays(problem.source), model.coefficients.toArray(), model.intercept)
    if found > told.objective * (1 + 1e-9):  # with l1 a proximal step follows the last round
        raise AssertionError(f"{entry}: the objective is {found}, the summary says {told.objective}")
    before = whole["seconds"] - told.rounds[-1].seconds
    points = [
        {
            "setting": each.number, "epochs": each.epochs, "seconds": before + each.seconds, "step": each.step,
            "objective": each.objective, "bytes": [each.aggregated_bytes, each.broadcast_bytes],
        } for each in told.rounds if each.step != "batch"  # whose objectives are not of all rows
    ]  # fmt: skip
    points[-1]["objective"] = found
    bound = told.bound if told.bound > float("-inf") else None
    return whole | {"points": points, "bound": bound, "ended": told.ended, "tol": tol}


def scikit(arena: Arena, problem: Problem, entry: Entry, iterations: int) -> Point:
    """One fit of scikit-learn's."""
    from sklearn.linear_model import LogisticRegression

    data = arena.arrays(problem.source)
    solver = entry.name.removeprefix("sklearn ")
    model = LogisticRegression(
        C=1 / (problem.reg * len(data.y)), l1_ratio=problem.l1_ratio, solver=solver, fit_intercept=problem.intercept,
        intercept_scaling=INTERCEPT_SCALING if solver == "liblinear" else 1, tol=1e-14, max_iter=iterations,
        random_state=0,
    )  # fmt: skip
    point: Point = {"setting": iterations}
    with watched(point), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged is meant
        model.fit(data.x, data.y)
    if solver in ("saga", "sag"):
        point["epochs"] = int(model.n_iter_[0])
    b = float(model.intercept_[0]) if problem.intercept else 0.0
    return point | {"objective": problem.objective(data, model.coef_[0], b)}


def mllib(arena: Arena, problem: Problem, iterations: int) -> tuple[Point, list[float]]:
    """One fit of MLlib's, by L-BFGS or OWL-QN, and the objectives on its way; its epochs include those of no use."""
    from headrace.baselines import create

    context = arena.spark.sparkContext
    options = {"reg_param": problem.reg, "elastic_net_param": problem.l1_ratio, "tol": 1e-10, "max_iter": iterations}
    estimator = create("lbfgs", **options, fit_intercept=problem.intercept)
    group = f"mllib-{time.monotonic_ns()}"
    context.setJobGroup(group, "row g")
    point: Point = {"setting": iterations}
    with watched(point):
        model = estimator.fit(arena.frame(problem.source))
    point["epochs"] = len(context.statusTracker().getJobIdsForGroup(group))
    data, told = arena.arrays(problem.source), list(model.summary.objectiveHistory)
    point["objective"] = problem.objective(data, model.coefficients.toArray(), model.intercept)
    if abs(told[-1] / point["objective"] - 1) > 1e-9:
        raise AssertionError(f"MLlib's objective is {point['objective']}, its summary says {told[-1]}")
    return point, told


def mllib_curve(arena: Arena, problem: Problem, iterations: int) -> dict[str, Any]:
    """A point an iteration."""
    start, _ = mllib(arena, problem, 0)
    end, told = mllib(arena, problem, iterations)
    last = max(1, len(told) - 1)
    jobs = end["epochs"] - start["epochs"]
    points = [
        {
            "setting": at, "epochs": 1 + jobs * at / last, "objective": objective,
            **{what: end[what] * (1 + at) / (1 + last) for what in ("seconds", "cpu_seconds")},
        } for at, objective in enumerate(told)
    ]  # fmt: skip
    return {"points": points, "seconds": end["seconds"], "cpu_seconds": end["cpu_seconds"]}


def fit(arena: Arena, problem: Problem, entry: Entry, iterations: int) -> Point:
    """One fit of a peer's."""
    if entry.name == "mllib":
        return mllib(arena, problem, iterations)[0] | {"epochs": None}
    return scikit(arena, problem, entry, iterations)


def curve(one_fit: Callable[[int], Point], least: float, target: float, cpu_seconds: float) -> list[Point]:
    """Points at growing numbers of iterations, until one is within `target` of `least`, relatively; or the CPU seconds
    of all fits would be passed by the next, or iterations change nothing."""
    points, used, iterations, more = list[Point](), 0.0, 1, 1
    while True:
        points.append(one_fit(iterations))
        last = points[-1]
        used += last["cpu_seconds"]
        still = len(points) > 4 and all(p["objective"] == last["objective"] for p in points[-3:])
        if last["objective"] - least <= target * least or still or used + 1.7 * last["cpu_seconds"] > cpu_seconds:
            return points
        iterations, more = iterations + more, iterations
