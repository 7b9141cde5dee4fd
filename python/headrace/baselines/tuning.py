"""Options tried by MLlib's CrossValidator or TrainValidationSplit; every point of the grid is told, the best one fitted
to all rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.baselines import BASELINES
from headrace.baselines.spec import param_name
from headrace.config import nearest
from headrace.errors import UserError
from headrace.options import described, typed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

METHODS = ("none", "cross_validation", "train_validation")


@dataclass(frozen=True)
class Search:
    """How points are judged.

    Args:
        method: cross_validation, or train_validation (one split, one fit a point).
        folds: of cross_validation.
        share: of the training rows that judge in train_validation.
        parallelism: points fitted at the same time.
        seed: of the split.
        fold_column: a column 0 .. folds - 1 that says the fold instead of the seed.
    """

    method: str
    folds: int = 3
    share: float = 0.2
    parallelism: int = 1
    seed: int = 0
    fold_column: str = ""


@dataclass(frozen=True)
class Point:
    """Options of the grid, the mean of the metric over folds, and its standard deviation (of several folds)."""

    options: dict[str, Any]
    value: float
    deviation: float | None


@dataclass(frozen=True)
class Tuned:
    """All points in the order of the grid, the best one, and the model with its options fitted to all rows."""

    points: tuple[Point, ...]
    best: Point
    model: Any
    metric: str


def check_grid(name: str, grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The grid with values in the types of the baseline's options; needs no Spark.

    Raises:
        UserError: an empty grid, an unknown option, no list of values, a value of another type.
    """
    defaults = BASELINES[name].defaults
    if not grid:
        raise UserError("--tune without a grid", "name values, as in --tuning.grid.reg_param [0.001,0.01]")
    made = {}
    for option, values in grid.items():
        if option not in defaults:
            hint = f"{nearest(option, list(defaults))} its options are {described(defaults)}".lstrip()
            raise UserError(f"--tuning.grid.{option}: {name} has no such option", hint)
        if not isinstance(values, list) or not values:
            raise UserError(f"--tuning.grid.{option} {values!r} is no list of values", "write it like [0.001,0.01]")
        made[option] = [typed(f"--tuning.grid.{option}", value, defaults[option]) for value in values]
    return made


def search(estimator: Any, frame: DataFrame, grid: Mapping[str, Sequence[Any]], evaluator: Any, how: Search) -> Tuned:
    """Fit every point of the grid and judge it.

    Args:
        estimator: of spark.ml.
        frame: training rows.
        grid: values by option, see `check_grid`.
        evaluator: of spark.ml, for what the estimator's model adds.
        how: see Search.

    Raises:
        UserError: no point has a figure.
    """
    from pyspark.ml.tuning import ParamGridBuilder

    builder = ParamGridBuilder()
    for option, values in grid.items():
        builder = builder.addGrid(getattr(estimator, param_name(option)), list(values))
    maps = builder.build()
    names = {param_name(option): option for option in grid}
    options = [{names[param.name]: value for param, value in point.items()} for point in maps]
    fitted, values, deviations = _fit(estimator, frame, maps, evaluator, how)
    points = [Point(*parts) for parts in zip(options, values, deviations, strict=True)]
    sign = 1 if evaluator.isLargerBetter() else -1
    if not any(math.isfinite(point.value) for point in points):
        raise UserError("no point of the grid has a figure: too few rows, or one class only, where they judge",
                        "fewer folds, or a larger share")  # fmt: skip
    best = max((point for point in points if math.isfinite(point.value)), key=lambda point: sign * point.value)
    # Where a point has no figure, NaN, MLlib takes that one for the best.
    whole = all(math.isfinite(point.value) for point in points)
    model = fitted.bestModel if whole else estimator.fit(frame, maps[points.index(best)])
    return Tuned(tuple(points), best, model, evaluator.getMetricName())


def _fit(
    estimator: Any, frame: DataFrame, maps: list[Any], evaluator: Any, how: Search
) -> tuple[Any, list[float], list[float | None]]:
    """The fitted search, and by point its metric and deviation."""
    from pyspark.ml.tuning import CrossValidator, TrainValidationSplit

    parts: dict[str, Any] = {"estimator": estimator, "estimatorParamMaps": maps, "evaluator": evaluator}
    parts |= {"parallelism": how.parallelism, "seed": how.seed}
    if how.method == "train_validation":
        split = TrainValidationSplit(trainRatio=1.0 - how.share, **parts).fit(frame)
        return split, list(split.validationMetrics), [None] * len(maps)
    crossed = CrossValidator(numFolds=how.folds, foldCol=how.fold_column, **parts).fit(frame)
    return crossed, list(crossed.avgMetrics), list(crossed.stdMetrics)
