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
 * as nearly as powers of two allow, a factor of two either way. The numbers that rows have are of size one then, so that
 * units are of no matter; and but for that factor sum m <= 2 sum q, so that no feature gets less than half of an equal
 * share, and the frequent no less than half of what they got by numbers of size one without the floor. It is Jacobi's
 * preconditioner, held back: with m_j = 1 for all, d features of which rows have few need steps as small as d.
 *
 * @param powers
 *   the powers of two that occur
 * @param kind
 *   which of them each feature has; none where there is one only
 */
final class Preconditioner private (val powers: Array[Double], kind: Array[Byte]) extends Serializable {

  /** Which of the powers a feature has. */
  def kindOf(feature: Int): Int = if (kind.length == 0) 0 else kind(feature)

  def factor(feature: Int): Double = powers(kindOf(feature))
}

object Preconditioner {

  /**
   * @param present
   *   q by feature
   * @param moment
   *   sum w x^2 / sum w by feature, as it is before; of 0 stays as it is
   */
  def of(present: Array[Double], moment: Array[Double]): Preconditioner = {
    val mean      = meanPresent(present, moment)
    val exponents = Array.tabulate(moment.length) { at =>
      if (moment(at) > 0) rounded(math.max(present(at), mean) / moment(at)) else 0
    }
    val kindOf = new Array[Byte](2 * Most + 1) // by exponent
    for (each <- exponents) kindOf(each + Most) = 1
    val occurring = Array.range(-Most, Most + 1).filter(each => kindOf(each + Most) > 0)
    for (at <- occurring.indices) kindOf(occurring(at) + Most) = at.toByte
    val kind = if (occurring.length == 1) Array.empty[Byte] else exponents.map(each => kindOf(each + Most))
    new Preconditioner(occurring.map(Math.scalb(1.0, _)), kind)
  }

  /** The mean over features that there are. */
  private def meanPresent(present: Array[Double], moment: Array[Double]): Double = {
    var (total, count) = (0.0, 0)
    for (at <- moment.indices)
      if (moment(at) > 0) {
        total += present(at)
        count += 1
      }
    total / count
  }

  /** The exponent of the power of two whose square is the nearest to it. */
  private def rounded(square: Double): Int = math.rint(math.log(square) / Log4).max(-Most).min(Most).toInt

  private val Log4 = math.log(4)
  private val Most = 60

  /** Leaves features as they are. */
  val none: Preconditioner = new Preconditioner(Array(1.0), Array.empty)
}
