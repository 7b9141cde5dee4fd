package io.headrace.ml.saga

/**
 * How a point lies in memory: the coefficients of feature 0 for all outputs, of feature 1, ..., then the intercepts.
 *
 * @param outputs
 *   margins of a row: 1, or one a class
 */
final case class Shape(features: Int, outputs: Int, intercept: Boolean) {

  /** Coefficients, which the penalty is on. */
  def penalized: Int = features * outputs

  /** All numbers of a point. */
  def length: Int = penalized + (if (intercept) outputs else 0)

  /** The margins of a block's row at a point. */
  def margins(block: CsrBlock, row: Int, point: Array[Double], into: Array[Double]): Unit =
    if (outputs == 1) into(0) = margin(block, row, point)
    else {
      var k = 0
      while (k < outputs) {
        into(k) = if (intercept) point(penalized + k) else 0.0
        k += 1
      }
      var at = block.start(row)
      while (at < block.start(row + 1)) {
        val base = block.index(at) * outputs
        k = 0
        while (k < outputs) {
          into(k) += block.value(at) * point(base + k)
          k += 1
        }
        at += 1
      }
    }

  /** The only margin, summed in a register. */
  private def margin(block: CsrBlock, row: Int, point: Array[Double]): Double = {
    val index = block.index
    val value = block.value
    val end   = block.start(row + 1)
    var total = if (intercept) point(penalized) else 0.0
    var at    = block.start(row)
    while (at < end) {
      total += value(at) * point(index(at))
      at += 1
    }
    total
  }

  /** Add scale times the gradient of a row with this slope. */
  def scatter(block: CsrBlock, row: Int, slope: Array[Double], scale: Double, into: Array[Double]): Unit = {
    val index = block.index
    val value = block.value
    val end   = block.start(row + 1)
    var k     = 0
    while (intercept && k < outputs) {
      into(penalized + k) += scale * slope(k)
      k += 1
    }
    var at = block.start(row)
    while (at < end) {
      val base   = index(at) * outputs
      val scaled = scale * value(at)
      k = 0
      while (k < outputs) {
        into(base + k) += scaled * slope(k)
        k += 1
      }
      at += 1
    }
  }
}

/**
 * The objective P(x) = F(x) + R(x), F(x) = sum_i w_i loss_i(x) / sum_i w_i, R the penalty on coefficients.
 *
 * It is MLlib's: `penalty` is Penalty(regParam * elasticNetParam, regParam * (1 - elasticNetParam)), on coefficients of
 * features as they are without the preconditioner.
 */
final case class Problem(
    loss: Loss,
    penalty: Penalty,
    shape: Shape,
    preconditioner: Preconditioner = Preconditioner.none
) {
  require(loss.outputs == shape.outputs, s"a loss of ${loss.outputs} outputs, a point of ${shape.outputs}")

  /** Of the coefficients of features of each kind that the preconditioner has. */
  @transient lazy val penalties: Array[Penalty] = preconditioner.powers.map(penalty.times)

  /** Of the coefficients of a feature. */
  def penaltyOf(feature: Int): Penalty = penalties(preconditioner.kindOf(feature))

  /** R. */
  def penaltyAt(point: Array[Double]): Double = summed(point)((feature, x) => penaltyOf(feature).value(x))

  /** R* at a gradient. */
  def conjugateAt(gradient: Array[Double]): Double = summed(gradient)((feature, g) => penaltyOf(feature).conjugate(g))

  /** Over coefficients; what is summed takes the feature, too: two numbers, which are not boxed. */
  private def summed(numbers: Array[Double])(of: (Int, Double) => Double): Double = {
    var (total, feature) = (0.0, 0)
    while (feature < shape.features) {
      var at  = feature * shape.outputs
      val end = at + shape.outputs
      while (at < end) {
        total += of(feature, numbers(at))
        at += 1
      }
      feature += 1
    }
    total
  }

  /** The largest c <= 1 for which R* without l2 is finite at c times the gradient. */
  def feasible(gradient: Array[Double]): Double = {
    var least = 1.0
    for (at <- 0 until shape.penalized) {
      val most = penaltyOf(at / shape.outputs).l1
      val size = math.abs(gradient(at))
      if (size > most) least = math.min(least, most / size)
    }
    least
  }

  /** prox_R(point - step * gradient); the intercepts have no penalty. */
  def proximalStep(point: Array[Double], gradient: Array[Double], step: Double): Array[Double] =
    Array.tabulate(shape.length) { at =>
      val moved = point(at) - step * gradient(at)
      if (at < shape.penalized) penaltyOf(at / shape.outputs).prox(moved, step) else moved
    }
}
