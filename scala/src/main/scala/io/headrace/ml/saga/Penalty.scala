package io.headrace.ml.saga

/**
 * The elastic net: sum_j l1 |x_j| + l2 x_j^2 / 2.
 *
 * @param l1
 *   >= 0
 * @param l2
 *   >= 0
 */
final case class Penalty(l1: Double, l2: Double) {

  /** Its value at the first `length` numbers of a point; intercepts lie behind them. */
  def value(point: Array[Double], length: Int): Double = {
    var (sizes, squares) = (0.0, 0.0)
    var at               = 0
    while (at < length) {
      sizes += math.abs(point(at))
      squares += point(at) * point(at)
      at += 1
    }
    l1 * sizes + l2 / 2 * squares
  }

  /**
   * Its conjugate sup_x gx - penalty(x) = sum_j max(0, |g_j| - l1)^2 / 2 l2; without l2, 0 where no |g_j| exceeds l1,
   * else infinite.
   */
  def conjugate(gradient: Array[Double], length: Int): Double = {
    var total = 0.0
    var at    = 0
    while (at < length) {
      val over = math.abs(gradient(at)) - l1
      if (over > 0) total += over * over
      at += 1
    }
    if (total == 0) 0.0 else if (l2 > 0) total / (2 * l2) else Double.PositiveInfinity
  }

  /** argmin_x penalty(x) + (x - v)^2 / 2 step. */
  def prox(v: Double, step: Double): Double = Penalty.soft(v, step * l1) / (1 + step * l2)
}

object Penalty {

  /** The soft threshold: v moved towards zero by `by`, not past it. */
  def soft(v: Double, by: Double): Double = if (v > by) v - by else if (v < -by) v + by else 0.0
}
