package io.headrace.ml.saga

/**
 * The elastic net: l1 |x| + l2 x^2 / 2.
 *
 * @param l1
 *   >= 0
 * @param l2
 *   >= 0
 */
final case class Penalty(l1: Double, l2: Double) {

  def isNone: Boolean = l1 == 0 && l2 == 0

  /** What penalty(by x) is of x. */
  def times(by: Double): Penalty = Penalty(l1 * by, l2 * by * by)

  /** Of one coordinate. */
  def value(x: Double): Double = l1 * math.abs(x) + l2 / 2 * x * x

  /**
   * Its conjugate sup_x gx - penalty(x) = max(0, |g| - l1)^2 / 2 l2; without l2, 0 where |g| does not exceed l1, else infinite.
   */
  def conjugate(g: Double): Double = {
    val over = math.abs(g) - l1
    if (over <= 0) 0.0 else if (l2 > 0) over * over / (2 * l2) else Double.PositiveInfinity
  }

  /** argmin_x penalty(x) + (x - v)^2 / 2 step. */
  def prox(v: Double, step: Double): Double = Penalty.soft(v, step * l1) / (1 + step * l2)
}

object Penalty {

  /** The soft threshold: v moved towards zero by `by`, not past it. */
  def soft(v: Double, by: Double): Double = if (v > by) v - by else if (v < -by) v + by else 0.0
}
