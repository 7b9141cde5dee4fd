package io.headrace.ml.saga

/**
 * A point as one partition sees it: its table of slopes, and the sums that the objective takes.
 *
 * @param table
 *   outputs numbers a row; NaN in rows that are not in the batch
 * @param loss
 *   sum of w_i loss_i
 * @param weight
 *   sum of w_i of the batch
 * @param tiltRate
 *   sum of w_i times the matrix of [[Loss.tilt]], outputs x outputs
 */
final case class Evaluation(table: Array[Double], loss: Double, weight: Double, rows: Long, tiltRate: Array[Double])

object Evaluation {

  /** Losses and slopes of the batch's rows at a point. */
  def of(problem: Problem, block: CsrBlock, point: Array[Double], taken: Array[Boolean]): Evaluation = {
    val outputs         = problem.shape.outputs
    val table           = Array.fill(block.rows * outputs)(Double.NaN)
    val rate            = new Array[Double](if (problem.shape.intercept) outputs * outputs else 0)
    val margin          = new Array[Double](outputs)
    val slope           = new Array[Double](outputs)
    var (total, weight) = (0.0, 0.0)
    var (row, count)    = (0, 0L)
    while (row < block.rows) {
      if (taken(row)) {
        val (label, own) = (block.label(row), block.weight(row))
        problem.shape.margins(block, row, point, margin)
        problem.loss.slope(margin, label, slope)
        System.arraycopy(slope, 0, table, row * outputs, outputs)
        if (problem.shape.intercept) problem.loss.tiltRate(slope, label, own, rate, 0)
        total += own * problem.loss.value(margin, label)
        weight += own
        count += 1
      }
      row += 1
    }
    Evaluation(table, total, weight, count, rate)
  }

  /** sum_i w_i slope_i x_i over the table's rows, as long as a point. */
  def gradient(shape: Shape, block: CsrBlock, table: Array[Double]): Array[Double] = {
    val into  = new Array[Double](shape.length)
    val slope = new Array[Double](shape.outputs)
    var row   = 0
    while (row < block.rows) {
      if (!table(row * shape.outputs).isNaN) {
        System.arraycopy(table, row * shape.outputs, slope, 0, shape.outputs)
        shape.scatter(block, row, slope, block.weight(row), into)
      }
      row += 1
    }
    into
  }

  /**
   * The partition's part of a dual point: slopes tilted by t, then scaled.
   *
   * @return
   *   sum_i w_i slope_i x_i, and behind it sum_i w_i l*(slope_i)
   */
  def dual(
      problem: Problem,
      block: CsrBlock,
      table: Array[Double],
      t: Array[Double],
      scale: Double
  ): Array[Double] = {
    val shape = problem.shape
    val into  = new Array[Double](shape.length + 1)
    val slope = new Array[Double](shape.outputs)
    var row   = 0
    while (row < block.rows) {
      System.arraycopy(table, row * shape.outputs, slope, 0, shape.outputs)
      if (t.nonEmpty) problem.loss.tilt(slope, block.label(row), t)
      for (k <- slope.indices) slope(k) *= scale
      shape.scatter(block, row, slope, block.weight(row), into)
      into(shape.length) += block.weight(row) * problem.loss.conjugate(slope, block.label(row))
      row += 1
    }
    into
  }
}
