package io.headrace.ml.saga

/**
 * Lower bounds of the minimum, by duality.
 *
 * For slopes s_i with sum_i w_i s_i = 0 where there is an intercept, and G = sum_i w_i s_i x_i / sum_i w_i,
 *
 * {{{
 * min P >= D(s) = - sum_i w_i l_i*(s_i) / sum_i w_i - R*(-G)
 * }}}
 *
 * The slopes at a point are the natural choice. Two things can be in the way. Their sum is zero only where the
 * intercept is best: they are tilted ([[Loss.tilt]]) by the t that makes it zero. And without l2 R* is infinite where some |G_j|
 * exceeds l1: they are scaled down, as l* allows. With neither l1 nor l2 only G = 0 has a bound: there is none.
 */
object Certificate {

  /** The best bound that slopes at the anchor give; -infinity where they give none. */
  def bound(problem: Problem, anchor: Anchor): Double = {
    if (problem.penalty.isNone) Double.NegativeInfinity
    else {
      val t     = if (problem.shape.intercept) balance(problem, anchor) else Array.empty[Double]
      val sums  = anchor.dual(t, 1.0)
      val scale = if (problem.penalty.l2 > 0) 1.0 else problem.feasible(sums)
      val found = value(problem, if (scale == 1) sums else anchor.dual(t, scale * (1 - Rounding)))
      if (found.isNaN) Double.NegativeInfinity else found // a tilt that no number holds
    }
  }

  /**
   * The gap that the slopes as they are would have if their sum were zero, which costs nothing: <x, G> + R(x) + R*(-G);
   * infinite without l2.
   */
  def guess(problem: Problem, anchor: Anchor): Double = {
    val length = problem.shape.penalized
    var along  = 0.0
    for (at <- 0 until length) along += anchor.point(at) * anchor.gradient(at)
    along + problem.penaltyAt(anchor.point) + problem.conjugateAt(anchor.gradient)
  }

  private def value(problem: Problem, sums: Array[Double]): Double =
    -sums(problem.shape.length) - problem.conjugateAt(sums)

  /** t with tiltRate t = the intercepts' gradient. Softmax's matrix has the null vector 1, along which t is free. */
  private def balance(problem: Problem, anchor: Anchor): Array[Double] = {
    val k      = problem.shape.outputs
    val matrix = Array.tabulate(k, k)((i, j) => anchor.tiltRate(i * k + j))
    if (k > 1) {
      val size = (0 until k).map(i => matrix(i)(i)).sum / k
      for (i <- 0 until k; j <- 0 until k) matrix(i)(j) += size / k
    }
    solve(matrix, anchor.gradient.slice(problem.shape.penalized, problem.shape.length))
  }

  /** Gaussian elimination with row exchange; numbers that are no numbers where the matrix is singular. */
  private def solve(matrix: Array[Array[Double]], right: Array[Double]): Array[Double] = {
    val n = right.length
    for (col <- 0 until n) {
      val pivot         = (col until n).maxBy(row => math.abs(matrix(row)(col)))
      val (row, number) = (matrix(pivot), right(pivot))
      matrix(pivot) = matrix(col); right(pivot) = right(col)
      matrix(col) = row; right(col) = number
      for (below <- col + 1 until n) {
        val factor = matrix(below)(col) / row(col)
        for (at <- col until n) matrix(below)(at) -= factor * row(at)
        right(below) -= factor * number
      }
    }
    for (row <- n - 1 to 0 by -1)
      right(row) = (right(row) - (row + 1 until n).map(at => matrix(row)(at) * right(at)).sum) / matrix(row)(row)
    right
  }

  /** Room for rounding of a scaled gradient. */
  private val Rounding = 1e-12
}
