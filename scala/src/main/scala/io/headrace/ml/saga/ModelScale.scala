package io.headrace.ml.saga

import org.apache.spark.ml.linalg.{DenseMatrix, Matrix, Vector, Vectors}

/**
 * Between the scale that is trained on and the original one: a feature is multiplied by its factor, so that its trained
 * coefficient is, too, on the way back; before that its center is taken off, for which the intercept stands in.
 *
 * The minimum is the same. But a feature far from zero, a year for one, is nearly the intercept again, and no gradient
 * method tells the two apart in good time. Only features that all rows have are moved: rows stay as sparse as they are.
 *
 * @param factor
 *   1 / deviation, or 1, times the preconditioner's; 0 of a constant feature, whose coefficient is 0 as in MLlib
 * @param center
 *   0 where features stay where they are, as all do without an intercept
 */
final case class ModelScale(factor: Array[Double], center: Array[Double], preconditioner: Preconditioner) {

  /** What the user should know. */
  def warnings: Seq[String] = {
    val constant = factor.indices.filter(factor(_) == 0)
    if (constant.isEmpty) Nil
    else {
      val shown =
        constant.take(ModelScale.Shown).mkString(", ") + (if (constant.length > ModelScale.Shown) ", ..." else "")
      Seq(s"${constant.length} constant features have coefficient 0: $shown")
    }
  }

  /** A point as coefficients, a row an output, and intercepts, on the original scale. */
  def original(problem: Problem, point: Array[Double]): (Matrix, Vector) = {
    val shape  = problem.shape
    val values = new Array[Double](shape.penalized)
    for (feature <- 0 until shape.features; k <- 0 until shape.outputs)
      values(k * shape.features + feature) = point(feature * shape.outputs + k) * factor(feature)
    val intercepts = Array.tabulate(shape.outputs)(k => if (shape.intercept) point(shape.penalized + k) else 0.0)
    for (feature <- 0 until shape.features; if center(feature) != 0; k <- 0 until shape.outputs)
      intercepts(k) -= values(k * shape.features + feature) * center(feature)
    if (shape.outputs > 1) {
      if (problem.penalty.isNone) for (feature <- 0 until shape.features) center(values, feature, shape)
      if (shape.intercept) {
        val mean = intercepts.sum / shape.outputs
        for (k <- intercepts.indices) intercepts(k) -= mean
      }
    }
    (new DenseMatrix(shape.outputs, shape.features, values, true).compressed, Vectors.dense(intercepts))
  }

  /** The other way round: where to start for a model's coefficients. */
  def trained(shape: Shape, coefficients: Matrix, intercepts: Vector): Array[Double] = {
    require(
      coefficients.numRows == shape.outputs && coefficients.numCols == shape.features,
      s"the initial model has ${coefficients.numRows} x ${coefficients.numCols} coefficients, these rows need " +
        s"${shape.outputs} x ${shape.features}"
    )
    val point = new Array[Double](shape.length)
    if (shape.intercept) for (k <- 0 until shape.outputs) point(shape.penalized + k) = intercepts(k)
    coefficients.foreachActive { (k, feature, value) =>
      if (factor(feature) != 0) {
        point(feature * shape.outputs + k) = value / factor(feature)
        if (shape.intercept) point(shape.penalized + k) += value * center(feature)
      }
    }
    point
  }

  /** Without penalty softmax has the same probabilities for coefficients that are moved alike: the mean is made zero. */
  private def center(values: Array[Double], feature: Int, shape: Shape): Unit = {
    var mean = 0.0
    for (k <- 0 until shape.outputs) mean += values(k * shape.features + feature) / shape.outputs
    for (k <- 0 until shape.outputs) values(k * shape.features + feature) -= mean
  }
}

object ModelScale {

  /** Features that a warning names. */
  private val Shown = 10

  def of(moments: Moments, standardization: Boolean, intercept: Boolean): ModelScale = {
    val unit   = moments.deviation.map(each => if (each == 0) 0.0 else if (standardization) 1 / each else 1.0)
    val center = if (intercept) moments.center else new Array[Double](moments.center.length)
    val size   = Array.tabulate(unit.length) { at =>
      val off = moments.center(at) - center(at)
      unit(at) * math.sqrt(moments.spread(at) + off * off)
    }
    val own = Preconditioner.of(moments.present, size.map(each => each * each))
    ModelScale(Array.tabulate(unit.length)(at => unit(at) * own.factor(at)), center, own)
  }
}
