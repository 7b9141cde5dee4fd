"""The JVM's linear models for spark.ml: `io.headrace.ml.SagaLogisticRegression` and its model.

estimator = SagaLogisticRegression(solver="saga", regParam=1e-4, standardization=True, tol=1e-6, maxIter=500)
model = estimator.fit(rows)
print(model.summary.certificate)

It minimizes what MLlib's LogisticRegression does (mean weighted loss + regParam * elastic net of the coefficients, not
of intercepts), by sag, saga, svrg, sarah or scsg over partitions, to a relative duality gap of `tol`; `loss` makes it a
linear SVM or ridge regression. Names of parameters are spark.ml's. Import the module within functions: its classes are
pyspark's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark import keyword_only
from pyspark.ml.linalg import DenseMatrix, DenseVector, SparseMatrix, SparseVector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasElasticNetParam,
    HasFeaturesCol,
    HasFitIntercept,
    HasLabelCol,
    HasMaxIter,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasRegParam,
    HasSeed,
    HasStandardization,
    HasThresholds,
    HasTol,
    HasWeightCol,
)
from pyspark.ml.util import JavaMLReadable, JavaMLWritable
from pyspark.ml.wrapper import JavaEstimator, JavaModel

from headrace.jvm_stage import JvmEstimator, JvmModel

_DEFAULTS = {
    "solver": "saga",
    "loss": "logistic",
    "family": "auto",
    "convergence": "gap",
    "stepSize": "lipschitz",
    "localPasses": 0.0,
    "shuffle": True,
    "numPartitions": 0,
    "regParam": 0.0,
    "elasticNetParam": 0.0,
    "standardization": True,
    "fitIntercept": True,
    "maxIter": 500,
    "tol": 1e-6,
    "seed": 0,
}


class _SagaParams(
    HasFeaturesCol,
    HasLabelCol,
    HasWeightCol,
    HasPredictionCol,
    HasRawPredictionCol,
    HasProbabilityCol,
    HasThresholds,
    HasRegParam,
    HasElasticNetParam,
    HasStandardization,
    HasFitIntercept,
    HasMaxIter,
    HasTol,
    HasSeed,
):
    """Settings of the estimator and of its model, as in `SagaParams.scala`."""

    solver = Param(Params._dummy(), "solver", "sag, saga, svrg, sarah or scsg", TypeConverters.toString)
    loss = Param(Params._dummy(), "loss", "logistic, squared_hinge or squared", TypeConverters.toString)
    family = Param(Params._dummy(), "family", "auto, binomial or multinomial", TypeConverters.toString)
    convergence = Param(Params._dummy(), "convergence", "what tol is of: gap or change", TypeConverters.toString)
    stepSize = Param(  # noqa: N815
        Params._dummy(), "stepSize", "lipschitz or line_search", TypeConverters.toString
    )
    localPasses = Param(  # noqa: N815
        Params._dummy(),
        "localPasses",
        "steps of a local pass by the partition's rows, 0: by solver and rows",
        TypeConverters.toFloat,
    )
    shuffle = Param(
        Params._dummy(), "shuffle", "whether rows are dealt to partitions at random", TypeConverters.toBoolean
    )
    numPartitions = Param(  # noqa: N815
        Params._dummy(), "numPartitions", "partitions to deal rows to, 0: as the input has", TypeConverters.toInt
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(**_DEFAULTS)


@dataclass(frozen=True)
class Round:
    """A round as it ended; the first is the point that was started from.

    Args:
        number: from 0; a round that scsg made on a batch has the objective of the batch.
        epochs: component gradients so far by rows.
        gradients: component gradients so far.
        objective: of the penalized mean loss.
        gap: the objective minus the last lower bound of the minimum: not less than the distance from the minimum.
        step: how the point was reached: start, batch, extrapolated, pass, part or proximal.
        aggregated_bytes: of partial sums that left partitions so far.
        broadcast_bytes: of points that went to partitions so far.
        seconds: since the start.
    """

    number: int
    epochs: float
    gradients: int
    objective: float
    gap: float
    step: str
    aggregated_bytes: int
    broadcast_bytes: int
    seconds: float


@dataclass(frozen=True)
class TrainingSummary:
    """How a fit went, and how far from the minimum it can be at most.

    Args:
        certificate: all in a line.
        ended: why: gap, change, rounding or epochs (`maxIter`).
        converged: whether it ended by neither `maxIter` nor, with a gap over `tol` (without l2, its root), by rounding.
        objective: where it ended.
        bound: a lower bound of the minimum; -inf without penalty, which gives none.
        relative_gap: (objective - bound) / |objective|.
        epochs: component gradients by rows.
        num_rows: with a weight above zero.
        warnings: constant features, rare classes.
        rounds: one after another.
    """

    certificate: str
    ended: str
    converged: bool
    objective: float
    bound: float
    relative_gap: float
    epochs: float
    num_rows: int
    warnings: tuple[str, ...]
    rounds: tuple[Round, ...]

    @classmethod
    def of(cls, text: str) -> TrainingSummary:
        """Read what the JVM wrote."""
        kept = json.loads(text)
        numbers = {name: float(kept.pop(name)) for name in ("objective", "bound", "relative_gap", "epochs")}
        rounds = tuple(Round(**{**each, "gap": float(each["gap"])}) for each in kept.pop("rounds"))
        return cls(**kept | numbers | {"rounds": rounds, "warnings": tuple(kept["warnings"])})


class SagaLogisticRegressionModel(
    JavaModel, _SagaParams, JvmModel, JavaMLReadable["SagaLogisticRegressionModel"], JavaMLWritable
):
    """A linear model, made by `SagaLogisticRegression.fit`.

    It adds rawPrediction (logistic, squared_hinge), probability (logistic) and prediction; a column whose name is empty
    is left out.
    """

    @property
    def coefficientMatrix(self) -> DenseMatrix | SparseMatrix:  # noqa: N802
        """One row for two classes or a number, else one a class."""
        return self._call_java("coefficientMatrix")

    @property
    def interceptVector(self) -> DenseVector | SparseVector:  # noqa: N802
        """As many numbers as there are rows of coefficients."""
        return self._call_java("interceptVector")

    @property
    def coefficients(self) -> DenseVector | SparseVector:
        """The only row of coefficients."""
        return self._call_java("coefficients")

    @property
    def intercept(self) -> float:
        """The only intercept."""
        return self._call_java("intercept")

    @property
    def numClasses(self) -> int:  # noqa: N802
        """0 where labels are numbers."""
        return self._call_java("numClasses")

    @property
    def numFeatures(self) -> int:  # noqa: N802
        """Of a row."""
        return self._call_java("numFeatures")

    @property
    def hasSummary(self) -> bool:  # noqa: N802
        """False of a model that was read back."""
        return self._call_java("hasSummary")

    @property
    def summary(self) -> TrainingSummary:
        """How the fit went."""
        assert self._java_obj is not None
        return TrainingSummary.of(self._java_obj.summary().json())


class SagaLogisticRegression(
    JavaEstimator[SagaLogisticRegressionModel],
    _SagaParams,
    JvmEstimator,
    JavaMLReadable["SagaLogisticRegression"],
    JavaMLWritable,
):
    """Linear models by variance-reduced stochastic gradients over partitions, to the exact minimum.

    Args:
        solver: sag, saga, svrg, sarah or scsg.
        regParam: weight of the penalty, >= 0.
        elasticNetParam: its share of L1, 0 to 1; the rest is L2 / 2.
        standardization: whether the penalty is on coefficients of features divided by their standard deviation.
        tol: of the relative duality gap, or of the relative change of the objective.
        maxIter: epochs: component gradients by rows.
        loss: logistic, squared_hinge (labels 0 and 1) or squared (labels are numbers).
        family: of the logistic loss: binomial, multinomial, or auto.
        convergence: gap or change.
        stepSize: lipschitz or line_search.
        localPasses: steps of a round's local pass by the partition's rows; 0: by solver and rows.
        shuffle: whether rows are dealt to partitions at random first; rounds are fewer then.
        numPartitions: to deal rows to; 0 is as many as the input has.
        fitIntercept: whether there are intercepts.
        thresholds: by class; the class of the largest probability by threshold is predicted.
        seed: of all that is drawn.
        featuresCol: a vector column.
        labelCol: a numeric column.
        weightCol: a numeric column, >= 0.
        predictionCol: to be made.
        rawPredictionCol: to be made.
        probabilityCol: to be made.
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(  # noqa: PLR0913 - one by parameter, as all of spark.ml
        self,
        *,
        solver: str | None = None,
        regParam: float | None = None,
        elasticNetParam: float | None = None,
        standardization: bool | None = None,
        tol: float | None = None,
        maxIter: int | None = None,
        loss: str | None = None,
        family: str | None = None,
        convergence: str | None = None,
        stepSize: str | None = None,
        localPasses: float | None = None,
        shuffle: bool | None = None,
        numPartitions: int | None = None,
        fitIntercept: bool | None = None,
        thresholds: Sequence[float] | None = None,
        seed: int | None = None,
        featuresCol: str | None = None,
        labelCol: str | None = None,
        weightCol: str | None = None,
        predictionCol: str | None = None,
        rawPredictionCol: str | None = None,
        probabilityCol: str | None = None,
    ) -> None:
        super().__init__()
        self._java_obj = self._of_the_jar()
        self._set(**self._input_kwargs)

    def setInitialModel(self, model: SagaLogisticRegressionModel) -> SagaLogisticRegression:  # noqa: N802
        """Start from a model's coefficients; it is not kept with the estimator."""
        assert self._java_obj is not None
        self._java_obj.setInitialModel(model._java_obj)
        return self

    def _create_model(self, java_model: Any) -> SagaLogisticRegressionModel:
        return SagaLogisticRegressionModel(java_model)
