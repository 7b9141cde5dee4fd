package io.headrace.ml

import org.apache.spark.ml.Model
import org.apache.spark.ml.linalg.{Matrix, Vector, Vectors}
import org.apache.spark.ml.param.ParamMap
import org.apache.spark.ml.util.{MLReadable, MLReader, MLWritable, MLWriter}
import org.apache.spark.sql.{DataFrame, Dataset}
import org.apache.spark.sql.functions.{col, udf}
import org.apache.spark.sql.types.StructType

import io.headrace.ml.saga.LogisticLoss

/**
 * A linear model, made by [[SagaLogisticRegression]].
 *
 * It adds the columns that its loss has a meaning for: rawPrediction (margins by class; logistic and squared_hinge),
 * probability (logistic), prediction (the class by `thresholds`, or the number itself of the squared loss). A column
 * whose name is empty is left out.
 *
 * @param coefficientMatrix
 *   one row for two classes or a number, else one a class
 * @param interceptVector
 *   as many numbers as that has rows
 * @param numClasses
 *   0 where labels are numbers
 */
final class SagaLogisticRegressionModel private[ml] (
    override val uid: String,
    val coefficientMatrix: Matrix,
    val interceptVector: Vector,
    val numClasses: Int
) extends Model[SagaLogisticRegressionModel]
    with SagaParams
    with MLWritable {
  private var told: Option[SagaTrainingSummary] = None

  def setFeaturesCol(value: String): this.type       = set(featuresCol, value)
  def setPredictionCol(value: String): this.type     = set(predictionCol, value)
  def setRawPredictionCol(value: String): this.type  = set(rawPredictionCol, value)
  def setProbabilityCol(value: String): this.type    = set(probabilityCol, value)
  def setThresholds(value: Array[Double]): this.type = set(thresholds, value)

  def numFeatures: Int = coefficientMatrix.numCols

  /** The only row of coefficients. */
  def coefficients: Vector = {
    one()
    coefficientMatrix.rowIter.next().compressed
  }

  /** The only intercept. */
  def intercept: Double = {
    one()
    interceptVector(0)
  }

  def hasSummary: Boolean = told.nonEmpty

  /** How the fit went. Not kept with a model that is saved. */
  def summary: SagaTrainingSummary =
    told.getOrElse(throw new IllegalStateException("this model was read back: it has no training summary"))

  private[ml] def setSummary(summary: SagaTrainingSummary): this.type = {
    told = Some(summary)
    this
  }

  override def transformSchema(schema: StructType): StructType = predictedSchema(schema, fitting = false)

  override def transform(dataset: Dataset[_]): DataFrame = {
    val schema = transformSchema(dataset.schema)
    require(
      !isDefined(thresholds) || $(thresholds).length == numClasses,
      s"thresholds has ${$(thresholds).length} numbers for $numClasses classes"
    )
    val scorer        = new SagaScorer(coefficientMatrix, interceptVector, numClasses, get(thresholds))
    val probabilities = $(loss) == "logistic"
    val features      = col($(featuresCol))
    val columns       = Seq(
      rawPredictionCol -> udf((given: Vector) => scorer.raw(given)).apply(features),
      probabilityCol   -> udf((given: Vector) => scorer.probability(given)).apply(features),
      predictionCol    -> udf((given: Vector) => scorer.prediction(given, probabilities)).apply(features)
    )
    val wanted = columns.collect {
      case (name, made) if isNamed(name) && schema.fieldNames.drop(dataset.columns.length).contains($(name)) =>
        $(name) -> made
    }
    wanted.foldLeft(dataset.toDF()) { case (rows, (name, made)) => rows.withColumn(name, made) }
  }

  override def copy(extra: ParamMap): SagaLogisticRegressionModel = {
    val made = new SagaLogisticRegressionModel(uid, coefficientMatrix, interceptVector, numClasses)
    made.told = told
    copyValues(made, extra).setParent(parent)
  }

  override def write: MLWriter = new SagaStore.Writer(this)

  override def toString: String =
    s"SagaLogisticRegressionModel: uid=$uid, loss=${$(loss)}, numClasses=$numClasses, numFeatures=$numFeatures"

  private def one(): Unit =
    require(
      coefficientMatrix.numRows == 1,
      s"there are ${coefficientMatrix.numRows} rows: see coefficientMatrix, interceptVector"
    )
}

object SagaLogisticRegressionModel extends MLReadable[SagaLogisticRegressionModel] {
  override def read: MLReader[SagaLogisticRegressionModel]     = new SagaStore.Reader
  override def load(path: String): SagaLogisticRegressionModel = super.load(path)
}

/** Scores of one row. */
private final class SagaScorer(
    coefficients: Matrix,
    intercepts: Vector,
    numClasses: Int,
    thresholds: Option[Array[Double]]
) extends Serializable {

  /** Margins by class; of two classes by one margin z, (-z, z). */
  def raw(features: Vector): Vector = {
    val found = margins(features)
    if (found.length == 1 && numClasses == 2) Vectors.dense(-found(0), found(0)) else Vectors.dense(found)
  }

  def probability(features: Vector): Vector = {
    val found = margins(features)
    if (found.length == 1) Vectors.dense(LogisticLoss.sigmoid(-found(0)), LogisticLoss.sigmoid(found(0)))
    else {
      val most   = found.max
      val shares = found.map(each => math.exp(each - most))
      val total  = shares.sum
      Vectors.dense(shares.map(_ / total))
    }
  }

  /** The class of the largest score, divided by thresholds if there are any; the margin where labels are numbers. */
  def prediction(features: Vector, probabilities: Boolean): Double =
    if (numClasses == 0) margins(features)(0)
    else
      thresholds match {
        case Some(limits) if probabilities =>
          val scores = probability(features).toArray.zip(limits)
          // as in MLlib: a class of threshold 0 is predicted always, but where its probability is 0, too
          Vectors.dense(scores.map { case (p, t) => if (p == 0) 0.0 else p / t }).argmax.toDouble
        case _ => raw(features).argmax.toDouble
      }

  private def margins(features: Vector): Array[Double] = {
    require(features.size == coefficients.numCols, s"${features.size} features, the model has ${coefficients.numCols}")
    val found = coefficients.multiply(features).values
    Array.tabulate(found.length)(k => found(k) + intercepts(k))
  }
}
