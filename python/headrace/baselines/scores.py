"""What a fitted classifier says of rows, as logits, and how good that is: by the same code as the deep models.

Two classes: the scores of the rows meet on the driver as float32, 8 bytes a row, as they do on every rank of a deep
model's evaluation, and `train.metrics` has exact figures of them. More classes: MLlib's evaluator, on Spark.
A score that is no logit becomes one by Platt's a x + b (J. Platt, Probabilistic outputs for support vector machines,
1999), fitted by maximum likelihood on rows that the model was not fitted to where there are some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.baselines.spec import BaselineSpec, Columns
from headrace.train import metrics
from headrace.train.metrics import Metrics

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


@dataclass(frozen=True)
class Calibration:
    """logit = slope x score + intercept."""

    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class Scorer:
    """A fitted model of two classes that gives logits.

    Args:
        model: of spark.ml.
        spec: of its baseline.
        columns: what it reads.
        calibration: of its score.
    """

    model: Any
    spec: BaselineSpec
    columns: Columns
    calibration: Calibration = Calibration()

    def logits(self, frame: DataFrame, keep: tuple[str, ...]) -> DataFrame:
        """`keep`, and `logit` float, of every row."""
        from pyspark.sql import functions as F

        logit = F.lit(self.calibration.slope) * self._score() + F.lit(self.calibration.intercept)
        return self.model.transform(frame).select(*keep, logit.cast("float").alias("logit"))

    def calibrated(self, frame: DataFrame) -> Scorer:
        """The same with logits fitted to rows of both classes."""
        from pyspark.ml.classification import LogisticRegression
        from pyspark.ml.functions import array_to_vector
        from pyspark.sql import functions as F

        label, weight = self.columns.label, self.columns.weight
        scored = self.model.transform(frame).select(
            label, *([weight] if weight else []), array_to_vector(F.array(self._score())).alias("score")
        )
        weighted: dict[str, Any] = {"weightCol": weight} if weight else {}
        fitted = LogisticRegression(featuresCol="score", labelCol=label, maxIter=100, tol=1e-9, **weighted).fit(scored)
        made = Calibration(float(fitted.coefficients[0]), float(fitted.intercept))
        return Scorer(self.model, self.spec, self.columns, made)

    def _score(self) -> Column:
        from pyspark.ml.functions import vector_to_array
        from pyspark.sql import functions as F

        return vector_to_array(F.col("rawPrediction"))[1] * F.lit(self.spec.raw_scale)


@dataclass(frozen=True)
class Evaluation:
    """Figures of two classes, and the points of the curves, as the deep models' evaluation has them."""

    metrics: Metrics
    curves: dict[str, list[list[float]]]


def evaluate(scored: DataFrame, label: str) -> Evaluation:
    """Exact figures of rows with a label and a logit."""
    logits, labels = _gathered(scored, label)
    return Evaluation(metrics.compute(logits, labels), metrics.curves(logits, labels))


def evaluate_classes(model: Any, frame: DataFrame, columns: Columns) -> dict[str, float]:
    """`accuracy`, `logloss` and `f1` (averaged over classes by their rows) of any number of classes."""
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator

    scored = model.transform(frame).select(columns.label, "prediction", "probability").persist()
    try:
        names: dict[str, Any] = {"accuracy": "accuracy", "logloss": "logLoss", "f1": "f1"}
        judge = MulticlassClassificationEvaluator(labelCol=columns.label)
        return {ours: float(judge.setMetricName(theirs).evaluate(scored)) for ours, theirs in names.items()}
    finally:
        scored.unpersist()


def _gathered(scored: DataFrame, label: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    from pyspark.sql import functions as F

    table = scored.select(F.col("logit"), F.col(label).cast("float").alias("label")).toArrow()
    return (
        table.column("logit").to_numpy().astype(np.float32, copy=False),
        table.column("label").to_numpy().astype(np.float32, copy=False),
    )
