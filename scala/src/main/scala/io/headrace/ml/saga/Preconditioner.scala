package io.headrace.ml.saga

/**
 * A power of two for every feature, by which it is multiplied, and its penalty with it: the minimum is the same, the
 * coordinates that steps are taken in are not.
 *
 * A step of all coordinates goes by the sum of the features' second moments, and a feature's own moment says how far it
 * gets by it: m_j n / 3 sum m a pass. In a sum of unlike ones the small are left behind, be it that few rows have them
 * or that their numbers are small. Here a feature's moment becomes
 *
 * {{{
 * m_j = max(q_j, mean of q),    q_j the part of the rows (by weight) that have it
 * }}}
 *
 * to the nearest power of two: the numbers that rows have are of size one then, so that units are of no matter, and no feature
 * gets less than half of what an equal share is, while the frequent lose no more than half of their step, as sum m <= 2
 * sum q. It is Jacobi's preconditioner, held back: with m_j = 1 for all, d features of which rows have few need steps as small as d.
 *
 * @param powers
 *   the powers of two that occur
 * @param kind
 *   which of them each feature has; empty where all have the first
 */
final class Preconditioner private (val powers: Array[Double], kind: Array[Byte]) extends Serializable {

  /** Which of the powers a feature has. */
  def kindOf(feature: Int): Int = if (kind.isEmpty) 0 else kind(feature)

  def factor(feature: Int): Double = powers(kindOf(feature))
}

object Preconditioner {

  /** Leaves features as they are. */
  val none: Preconditioner = new Preconditioner(Array(1.0), Array.empty)

  /**
   * @param present
   *   q by feature
   * @param moment
   *   sum w x^2 / sum w by feature, as it is before; of 0 stays as it is
   */
  def of(present: Array[Double], moment: Array[Double]): Preconditioner = {
    val known     = moment.indices.filter(moment(_) > 0)
    val mean      = known.map(present).sum / known.length
    val exponents = Array.tabulate(moment.length) { at =>
      if (moment(at) > 0) rounded(math.max(present(at), mean) / moment(at)) else 0
    }
    val occurring = exponents.distinct.sorted
    new Preconditioner(occurring.map(Math.scalb(1.0, _)), exponents.map(occurring.indexOf(_).toByte))
  }

  /** The exponent of the power of two whose square is the nearest to it. */
  private def rounded(square: Double): Int = math.rint(math.log(square) / Log4).max(-Most).min(Most).toInt

  private val Log4 = math.log(4)
  private val Most = 60.0
}
