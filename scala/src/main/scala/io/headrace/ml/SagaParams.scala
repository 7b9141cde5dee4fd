package io.headrace.ml

import org.apache.spark.ml.linalg.SQLDataTypes.VectorType
import org.apache.spark.ml.param._
import org.apache.spark.ml.param.shared._
import org.apache.spark.sql.types.{DoubleType, NumericType, StructField, StructType}

import io.headrace.ml.saga.Solver

/** What [[SagaLogisticRegression]] and [[SagaLogisticRegressionModel]] are told. */
trait SagaParams
    extends Params
    with HasFeaturesCol
    with HasLabelCol
    with HasWeightCol
    with HasPredictionCol
    with HasRawPredictionCol
    with HasProbabilityCol
    with HasThresholds
    with HasRegParam
    with HasElasticNetParam
    with HasStandardization
    with HasFitIntercept
    with HasMaxIter
    with HasTol
    with HasSeed {

  /** The rule of local passes. */
  final val solver: Param[String] =
    new Param[String](
      this,
      "solver",
      Solver.byName.keys.toSeq.sorted.mkString(", "),
      ParamValidators.inArray(Solver.byName.keys.toArray)
    )

  /** `logistic`, `squared_hinge` (a linear SVM) or `squared` (ridge, lasso, elastic net regression). */
  final val loss: Param[String] =
    new Param[String](
      this,
      "loss",
      "logistic, squared_hinge or squared",
      ParamValidators.inArray(Array("logistic", "squared_hinge", "squared"))
    )

  /** Of the logistic loss: `binomial`, `multinomial`, or by the number of classes. */
  final val family: Param[String] =
    new Param[String](
      this,
      "family",
      "auto, binomial or multinomial",
      ParamValidators.inArray(Array("auto", "binomial", "multinomial"))
    )

  /** What `tol` is of: the duality gap, or the change of the objective in a round; both relative to the objective. */
  final val convergence: Param[String] =
    new Param[String](
      this,
      "convergence",
      "what tol is of: gap (duality gap by objective) or change (of the objective in two rounds)",
      ParamValidators.inArray(Array("gap", "change"))
    )

  /** Whether steps come from the largest curvature that the loss has, or from a line search. */
  final val stepSize: Param[String] =
    new Param[String](
      this,
      "stepSize",
      "lipschitz or line_search",
      ParamValidators.inArray(Array("lipschitz", "line_search"))
    )

  /** Steps of a round's local pass by the partition's rows; 0 is by solver and rows. */
  final val localPasses: DoubleParam = new DoubleParam(
    this,
    "localPasses",
    "steps of a local pass by the partition's rows, 0: by solver and rows",
    ParamValidators.gtEq(0.0)
  )

  /** Whether rows are dealt to partitions at random first. */
  final val shuffle: BooleanParam =
    new BooleanParam(this, "shuffle", "whether rows are dealt to partitions at random first: rounds are fewer then")

  /** Partitions to deal rows to; 0 is as many as the input has. */
  final val numPartitions: IntParam =
    new IntParam(this, "numPartitions", "partitions to deal rows to, 0: as the input has", ParamValidators.gtEq(0))

  setDefault(
    solver          -> "saga",
    loss            -> "logistic",
    family          -> "auto",
    convergence     -> "gap",
    stepSize        -> "lipschitz",
    localPasses     -> 0.0,
    shuffle         -> true,
    numPartitions   -> 0,
    regParam        -> 0.0,
    elasticNetParam -> 0.0,
    standardization -> true,
    fitIntercept    -> true,
    maxIter         -> 500,
    tol             -> 1e-6,
    seed            -> 0L
  )

  def getSolver: String      = $(solver)
  def getLoss: String        = $(loss)
  def getFamily: String      = $(family)
  def getConvergence: String = $(convergence)
  def getStepSize: String    = $(stepSize)
  def getLocalPasses: Double = $(localPasses)
  def getShuffle: Boolean    = $(shuffle)
  def getNumPartitions: Int  = $(numPartitions)

  private[ml] def isNamed(column: Param[String]): Boolean = isDefined(column) && $(column).nonEmpty

  /** Columns that the loss makes, in the order they are added. */
  private[ml] def made: Seq[(String, org.apache.spark.sql.types.DataType)] = {
    val raw         = if ($(loss) == "squared") Nil else Seq(rawPredictionCol -> VectorType)
    val probability = if ($(loss) == "logistic") Seq(probabilityCol -> VectorType) else Nil
    (raw ++ probability :+ (predictionCol -> DoubleType)).collect {
      case (name, kind) if isNamed(name) => $(name) -> kind
    }
  }

  /** The schema with predictions; what a fit needs is checked where `fitting`. */
  private[ml] def predictedSchema(schema: StructType, fitting: Boolean): StructType = {
    val features = typeOf(schema, $(featuresCol), "featuresCol")
    require(features == VectorType, s"column ${$(featuresCol)} is ${features.simpleString}, not a vector")
    if (fitting) {
      numeric(schema, $(labelCol), "labelCol")
      if (isNamed(weightCol)) numeric(schema, $(weightCol), "weightCol")
    }
    require(
      !isDefined(thresholds) || $(loss) == "logistic",
      s"thresholds are of probabilities, which the loss ${$(loss)} has none of: leave them out"
    )
    val twice = made.map(_._1).diff(made.map(_._1).distinct)
    require(
      twice.isEmpty,
      s"column ${twice.mkString} is asked for twice: name predictions, scores, probabilities apart"
    )
    for ((name, _) <- made) require(!schema.fieldNames.contains(name), s"column $name is there already")
    StructType(schema.fields ++ made.map { case (name, kind) =>
      StructField(name, kind, nullable = kind == VectorType)
    })
  }

  private def numeric(schema: StructType, name: String, param: String): Unit = {
    val kind = typeOf(schema, name, param)
    require(kind.isInstanceOf[NumericType], s"column $name is ${kind.simpleString}, not a number")
  }

  private def typeOf(schema: StructType, name: String, param: String): org.apache.spark.sql.types.DataType =
    schema.fields
      .find(_.name == name)
      .getOrElse(throw new IllegalArgumentException(s"there is no column $name ($param)"))
      .dataType
}
