"""The fit of a baseline: plain, or tuned over a grid; with progress, its objective by iteration, and errors in the
user's words."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headrace.baselines import BASELINES
from headrace.baselines.spec import CERTIFIED, OBJECTIVE, option_name
from headrace.baselines.tuning import Search, Tuned, check_grid, search
from headrace.errors import UserError
from headrace.pipelines.spark_progress import JobsShown

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from headrace.baselines.saga import Round, TrainingSummary
    from headrace.pipelines.baseline_run import BaselineRun

_BAD_ROWS = re.compile(r"(?:requirement failed: )?(column .+)")
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
    if CERTIFIED in BASELINES[name].traits:
        _tell_of_rounds(run, made.model.summary)
    elif OBJECTIVE in BASELINES[name].traits:
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


def _tell_of_rounds(run: BaselineRun, summary: TrainingSummary) -> None:
    """The objective, its distance from the minimum, and what was spent until then, by round; how the fit ended."""
    for each in summary.rounds:
        spent = {"epochs": each.epochs, "gradients": each.gradients, "seconds": each.seconds}
        spent |= {"aggregated_mb": each.aggregated_bytes / 1e6, "broadcast_mb": each.broadcast_bytes / 1e6}
        run.event({"type": "step", "step": each.number, **_heights(each), **spent})
    last, bounded = summary.rounds[-1], math.isfinite(summary.bound)
    run.report.results |= {
        "iterations": last.number,
        "objective": summary.objective,
        "relative_gap": summary.relative_gap if bounded else None,
        "ended": summary.ended,
        "epochs": summary.epochs,
        "gradients": last.gradients,
        "aggregated_mb": last.aggregated_bytes / 1e6,
        "broadcast_mb": last.broadcast_bytes / 1e6,
        "certificate": summary.certificate,
    }
    for line in (summary.certificate, *summary.warnings):
        run.report.say(f"  {line}")
    if not summary.converged:
        why, remedy = summary.ended, "raise --model.max_iter"
        if summary.ended != "epochs":
            why += ": features differ too much in size for a proof"
            remedy = "--model.standardization true, or scale them"
        run.report.warn(f"ended by {why}, not by --model.tol: {remedy} ({summary.certificate})")


def _heights(each: Round) -> dict[str, float]:
    """What is known of the point a round ended at: nothing of all rows where it looked at a batch of them."""
    if each.step == "batch":
        return {}
    return {"loss": each.objective} | ({"gap": each.gap / abs(each.objective)} if math.isfinite(each.gap) else {})


@contextlib.contextmanager
def _in_the_users_words() -> Iterator[None]:
    """What MLlib's validators say of an option, and our estimator of rows."""
    from pyspark.errors import IllegalArgumentException

    try:
        yield
    except IllegalArgumentException as error:
        if found := _BAD_PARAM.search(str(error)):
            name = option_name(found[1])
            raise UserError(
                f"--model.{name} {found[2].rstrip('.')} is out of range", "--help lists the defaults"
            ) from None
        if said := _BAD_ROWS.match(str(error)):
            raise UserError(said[1], "mend the rows, or name other columns") from None
        raise
