"""The fit of a baseline: plain, or tuned over a grid; with progress, its objective by iteration, and errors in the
user's words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headrace.baselines import BASELINES
from headrace.baselines.spec import OBJECTIVE, option_name
from headrace.baselines.tuning import Search, Tuned, check_grid, search
from headrace.errors import UserError
from headrace.pipelines.spark_progress import JobsShown

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from headrace.pipelines.baseline_run import BaselineRun

_BAD_PARAM = re.compile(r"parameter (\w+) given invalid value ([^\s.]+(?:\.\d+\S*)?)")


@dataclass(frozen=True)
class Fitted:
    """A fitted model, and the options it has."""

    model: Any
    options: dict[str, Any]


@dataclass(frozen=True)
class Tuning:
    """Values by option, what judges, and how."""

    grid: Mapping[str, Any]
    evaluator: Any
    search: Search


def fit(
    run: BaselineRun, name: str, estimator: Any, rows: DataFrame, options: Mapping[str, Any], tuning: Tuning | None
) -> Fitted:
    """Fit, and tell the run of it.

    Args:
        run: told of iterations and points.
        name: of the baseline.
        estimator: made with `options`.
        rows: that train.
        options: of the baseline.
        tuning: the grid and how it is judged; None: no grid.

    Raises:
        UserError: an option out of range.
    """
    spark = rows.sparkSession
    with _in_the_users_words(), JobsShown(spark, run.report, f"training {name}"):
        if tuning is None:
            made = Fitted(estimator.fit(rows), dict(options))
        else:
            found = search(estimator, rows, check_grid(name, tuning.grid), tuning.evaluator, tuning.search)
            made = Fitted(found.model, dict(options) | found.best.options)
            _tell_of_points(run, found)
    if OBJECTIVE in BASELINES[name].traits:
        _tell_of_objective(run, made)
    run.report.results["options"] = made.options
    return made


def _tell_of_points(run: BaselineRun, found: Tuned) -> None:
    for number, point in enumerate(found.points):
        spread = "" if point.deviation is None else f" +- {point.deviation:.4f}"
        mark = "  <- best" if point is found.best else ""
        told = ", ".join(f"{name} {value}" for name, value in point.options.items())
        run.report.say(f"  {told}: {found.metric} {point.value:.4f}{spread}{mark}")
        figures = {found.metric: point.value}
        figures |= {} if point.deviation is None else {f"{found.metric}_deviation": point.deviation}
        run.event({"type": "tune", "step": number, **figures, "options": point.options})
    points = [asdict(point) for point in found.points]
    run.report.results["tuning"] = {"metric": found.metric, "points": points, "best": found.best.options}


def _tell_of_objective(run: BaselineRun, made: Fitted) -> None:
    summary = made.model.summary
    history = list((summary() if callable(summary) else summary).objectiveHistory)
    for step, value in enumerate(history):
        run.event({"type": "step", "step": step, "loss": float(value)})
    iterations = max(0, len(history) - 1)
    run.report.results |= {"iterations": iterations, "objective": float(history[-1]) if history else None}
    if iterations >= made.options["max_iter"]:
        run.report.warn(f"ended after {iterations} iterations before it was done: raise --model.max_iter")


@contextlib.contextmanager
def _in_the_users_words() -> Iterator[None]:
    """What MLlib's validators say of an option."""
    from pyspark.errors import IllegalArgumentException

    try:
        yield
    except IllegalArgumentException as error:
        if found := _BAD_PARAM.search(str(error)):
            name = option_name(found[1])
            raise UserError(
                f"--model.{name} {found[2].rstrip('.')} is out of range", "--help lists the defaults"
            ) from None
        raise
