package io.headrace.ml

import org.apache.spark.broadcast.Broadcast
import org.apache.spark.ml.Estimator
import org.apache.spark.ml.linalg.Vector
import org.apache.spark.ml.param.ParamMap
import org.apache.spark.ml.util.{DefaultParamsReadable, DefaultParamsWritable, Identifiable}
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.Dataset
import org.apache.spark.sql.functions.{col, lit}
import org.apache.spark.sql.types.{DoubleType, StructType}
import org.apache.spark.storage.StorageLevel

import io.headrace.ml.saga._

/**
 * Linear models by variance-reduced stochastic gradients (sag, saga, svrg, sarah, scsg) on any number of partitions.
 *
 * {{{
 * min_{b, c}  sum_i w_i loss(y_i, b'x_i + c) / sum_i w_i
 *             + regParam (elasticNetParam |b|_1 + (1 - elasticNetParam) / 2 |b|_2^2)
 * }}}
 *
 * It is MLlib's objective: with `standardization` features are divided by their standard deviation, the penalty is on
 * those coefficients, and what comes back is on the original scale; intercepts have no penalty. `loss` is logistic (two
 * classes, or softmax), squared_hinge max(0, 1 - y z)^2 (a linear SVM) or squared (z - y)^2 / 2 (ridge and lasso). The
 * minimum is reached, not a neighbourhood of it: see [[saga.Rounds]] for the algorithm and why it converges, and
 * [[saga.Certificate]] for the gap that `tol` is of. Without penalty there is no gap; then `tol` is of the objective's
 * change, as MLlib's is. `maxIter` counts epochs: component gradients by rows.
 *
 * Rows stay in their partitions, as compressed blocks in memory or on disk; the driver holds a few vectors as long as
 * the coefficients. A fit is a function of which rows are in which partition, and of `seed`, to the last bit, whatever
 * executors are lost on the way. What is drawn at random must be written first: it would be drawn anew.
 */
final class SagaLogisticRegression(override val uid: String)
    extends Estimator[SagaLogisticRegressionModel]
    with SagaParams
    with DefaultParamsWritable {

  def this() = this(Identifiable.randomUID("sagaLogisticRegression"))

  private var initial: Option[SagaLogisticRegressionModel] = None

  def setFeaturesCol(value: String): this.type       = set(featuresCol, value)
  def setLabelCol(value: String): this.type          = set(labelCol, value)
  def setWeightCol(value: String): this.type         = set(weightCol, value)
  def setPredictionCol(value: String): this.type     = set(predictionCol, value)
  def setRawPredictionCol(value: String): this.type  = set(rawPredictionCol, value)
  def setProbabilityCol(value: String): this.type    = set(probabilityCol, value)
  def setThresholds(value: Array[Double]): this.type = set(thresholds, value)
  def setRegParam(value: Double): this.type          = set(regParam, value)
  def setElasticNetParam(value: Double): this.type   = set(elasticNetParam, value)
  def setStandardization(value: Boolean): this.type  = set(standardization, value)
  def setFitIntercept(value: Boolean): this.type     = set(fitIntercept, value)
  def setMaxIter(value: Int): this.type              = set(maxIter, value)
  def setTol(value: Double): this.type               = set(tol, value)
  def setSeed(value: Long): this.type                = set(seed, value)
  def setSolver(value: String): this.type            = set(solver, value)
  def setLoss(value: String): this.type              = set(loss, value)
  def setFamily(value: String): this.type            = set(family, value)
  def setConvergence(value: String): this.type       = set(convergence, value)
  def setStepSize(value: String): this.type          = set(stepSize, value)
  def setLocalPasses(value: Double): this.type       = set(localPasses, value)
  def setShuffle(value: Boolean): this.type          = set(shuffle, value)
  def setNumPartitions(value: Int): this.type        = set(numPartitions, value)

  /** Start from a model's coefficients; it is not kept with the estimator. */
  def setInitialModel(model: SagaLogisticRegressionModel): this.type = {
    initial = Some(model)
    this
  }

  override def transformSchema(schema: StructType): StructType = predictedSchema(schema, fitting = true)

  override def copy(extra: ParamMap): SagaLogisticRegression = {
    val made = defaultCopy[SagaLogisticRegression](extra)
    initial.foreach(made.setInitialModel)
    made
  }

  override def fit(dataset: Dataset[_]): SagaLogisticRegressionModel = {
    transformSchema(dataset.schema)
    val raw = blocks(rows(dataset)).persist(StorageLevel.MEMORY_AND_DISK)
    try {
      val facts   = TrainingFacts.of(raw, columns)
      val outputs = outputsOf(facts)
      refuseOverlong(facts.features, outputs)
      val moments = finite(Moments.of(raw.map(_.block).filter(_.rows > 0), facts.features))
      val scale   = ModelScale.of(moments, $(standardization), $(fitIntercept))
      val penalty = Penalty($(regParam) * $(elasticNetParam), $(regParam) * (1 - $(elasticNetParam)))
      val shape   = Shape(facts.features, outputs, $(fitIntercept))
      val problem = Problem(lossOf(outputs), penalty, shape, scale.preconditioner)
      val shared  = raw.sparkContext.broadcast(scale)
      val rows    = scaled(raw, shared, shape).persist(StorageLevel.MEMORY_AND_DISK)
      try {
        val shards = new RddShards(rows, problem)
        raw.unpersist(blocking = false) // the scaled ones are there
        try model(problem, facts, scale, solved(shards, starting(problem, facts, moments, scale)))
        finally shards.release()
      } finally {
        rows.unpersist(blocking = false)
        shared.destroy()
      }
    } finally raw.unpersist(blocking = false)
  }

  private def columns: Columns =
    Columns($(labelCol), if (isNamed(weightCol)) $(weightCol) else "weight", $(featuresCol), $(loss) != "squared")

  private def rows(dataset: Dataset[_]): RDD[TrainingRow] = {
    val weight = if (isNamed(weightCol)) col($(weightCol)).cast(DoubleType) else lit(1.0)
    dataset
      .select(col($(labelCol)).cast(DoubleType), weight, col($(featuresCol)))
      .rdd
      .map(row => TrainingRow(row.getAs[java.lang.Double](0), row.getAs[java.lang.Double](1), row.getAs[Vector](2)))
  }

  private def blocks(rows: RDD[TrainingRow]): RDD[RawBlock] = {
    val size = if ($(numPartitions) > 0) $(numPartitions) else math.max(1, rows.getNumPartitions)
    val told = columns
    if ($(shuffle) || size != rows.getNumPartitions) TrainingBlocks.dealt(rows, size, $(seed), told)
    else TrainingBlocks.of(rows, told)
  }

  private def scaled(raw: RDD[RawBlock], shared: Broadcast[ModelScale], shape: Shape): RDD[Shard] =
    raw.mapPartitionsWithIndex { (at, blocks) =>
      blocks.filter(_.block.rows > 0).map(one => Shard.of(at, one.block.scaled(shared.value), shape))
    }

  /** What a partition sends of moments, or of an evaluation, is one array. */
  private def refuseOverlong(features: Int, outputs: Int): Unit = {
    val most = math.max(4L * features + 4, (features + 1L + outputs) * outputs + 3)
    require(
      most <= Int.MaxValue - 8,
      s"column ${$(featuresCol)} has vectors of $features features, for $outputs margins: more than an array holds; hash them to fewer"
    )
  }

  /** Else a spread without end would make a feature's factor 0, as if it were constant. */
  private def finite(moments: Moments): Moments = {
    val at = moments.deviation.indices.indexWhere { at =>
      !java.lang.Double.isFinite(moments.deviation(at)) || !java.lang.Double.isFinite(moments.spread(at))
    }
    require(
      at < 0,
      s"column ${$(featuresCol)} has numbers whose squares are no finite numbers at feature $at: scale them"
    )
    moments
  }

  private def outputsOf(facts: TrainingFacts): Int =
    if ($(loss) == "squared") 1
    else {
      val classes = facts.classes
      val binary  = $(loss) == "squared_hinge" || $(family) == "binomial"
      require(!binary || classes == 2, s"column ${$(labelCol)} has $classes classes, where there must be 2")
      require(
        !isDefined(thresholds) || $(thresholds).length == classes,
        s"thresholds has ${$(thresholds).length} numbers for $classes classes"
      )
      if (binary || (classes == 2 && $(family) == "auto")) 1 else classes
    }

  private def lossOf(outputs: Int): Loss = $(loss) match {
    case "squared"         => SquaredLoss
    case "squared_hinge"   => SquaredHingeLoss
    case _ if outputs == 1 => LogisticLoss
    case _                 => SoftmaxLoss(outputs)
  }

  private def starting(problem: Problem, facts: TrainingFacts, moments: Moments, scale: ModelScale): Array[Double] =
    initial match {
      case Some(model) => scale.trained(problem.shape, model.coefficientMatrix, model.interceptVector)
      case None        => facts.prior(problem, moments)
    }

  private def solved(shards: Shards, start: Array[Double]): Outcome = {
    require(
      !shards.norm.isInfinite && !shards.norm.isNaN,
      s"column ${$(featuresCol)} has numbers whose squares are no finite numbers: scale them"
    )
    val rule     = Solver.byName($(solver))
    val settings = RoundSettings(
      rule,
      $(tol),
      $(convergence) == "gap",
      $(maxIter),
      if ($(localPasses) > 0) $(localPasses) else rule.passesOf(shards.rows / shards.size),
      $(stepSize) == "line_search",
      $(seed)
    )
    new Rounds(shards, settings, _ => ()).run(start)
  }

  private def model(
      problem: Problem,
      facts: TrainingFacts,
      scale: ModelScale,
      outcome: Outcome
  ): SagaLogisticRegressionModel = {
    val (coefficients, intercepts) = scale.original(problem, outcome.point)
    val classes                    = if ($(loss) == "squared") 0 else facts.classes
    val made                       = new SagaLogisticRegressionModel(uid, coefficients, intercepts, classes)
    val summary = new SagaTrainingSummary(outcome, scale.warnings ++ facts.warnings, facts.rows, $(tol))
    copyValues(made.setParent(this)).setSummary(summary)
  }
}

object SagaLogisticRegression extends DefaultParamsReadable[SagaLogisticRegression] {
  override def load(path: String): SagaLogisticRegression = super.load(path)
}
