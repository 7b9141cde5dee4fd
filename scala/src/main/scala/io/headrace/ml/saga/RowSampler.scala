package io.headrace.ml.saga

import java.util.SplittableRandom

/** Which row comes next. */
trait RowOrder {
  def next(): Int
}

/**
 * Draws rows with replacement, one time in five each alike, else in proportion to w_i(|x_i|^2 + intercept): what its
 * gradient can change.
 *
 * A gradient is divided by the row's chance. So steps go by the mean of the rows' Lipschitz constants (at most 1.25
 * times), not by the largest (Schmidt et al. 2015, "Non-uniform stochastic average gradient"; Qian et al. 2019, "SAGA
 * with arbitrary sampling"), which decides for standardized rare features, and for weights. Where all are alike it is
 * the uniform draw. Walker's alias table: one number a draw, 12 bytes a row.
 *
 * @param chance
 *   of each row, adding up to 1
 */
final class RowSampler private (chance: Array[Double], keep: Array[Double], alias: Array[Int]) extends Serializable {

  /** The chance of a row in one draw. */
  def chanceOf(row: Int): Double = chance(row)

  /** Rows drawn from `seed` on: a function of it alone. */
  def order(seed: Long): RowOrder = {
    val random = new SplittableRandom(seed)
    () => {
      val spot = random.nextDouble() * keep.length
      val row  = spot.toInt
      if (spot - row < keep(row)) row else alias(row)
    }
  }
}

object RowSampler {

  /** How often a row is drawn whatever its size: none waits longer than five passes, and large rows lose little. */
  private val Alike = 0.2

  /** By each row's bound on its gradient's change. */
  def of(bounds: Array[Double]): RowSampler = {
    val n      = bounds.length
    val total  = bounds.sum
    val chance = if (total > 0) bounds.map(each => Alike / n + (1 - Alike) * each / total) else Array.fill(n)(1.0 / n)
    val keep   = chance.map(_ * n)
    val alias  = Array.tabulate(n)(identity)
    val small  = new Array[Int](n)
    val large  = new Array[Int](n)
    var (low, high) = (0, 0)
    for (row <- 0 until n)
      if (keep(row) < 1) { small(low) = row; low += 1 }
      else { large(high) = row; high += 1 }
    while (low > 0 && high > 0) {
      low -= 1
      val (short, long) = (small(low), large(high - 1))
      alias(short) = long
      keep(long) -= 1 - keep(short)
      if (keep(long) < 1) {
        high -= 1
        small(low) = long
        low += 1
      }
    }
    while (high > 0) { high -= 1; keep(large(high)) = 1.0 }
    while (low > 0) { low -= 1; keep(small(low)) = 1.0 } // rounding left them
    new RowSampler(chance, keep, alias)
  }
}

/** Where randomness comes from: a function of seed, round and partition, whenever and wherever it is asked again. */
final case class Draw(seed: Long, round: Int) {

  /** A partition's seed; mixed (Steele et al. 2014), so that neighbours are unrelated. */
  def of(partition: Int): Long = Draw.mixed(Draw.mixed(Draw.mixed(seed) + round) + partition)
}

object Draw {

  /** splitmix64's step: a bijection that leaves no bit where it was. */
  def mixed(x: Long): Long = {
    val a = (x + 0x9e3779b97f4a7c15L) * 0xbf58476d1ce4e5b9L
    val b = (a ^ (a >>> 30)) * 0x94d049bb133111ebL
    b ^ (b >>> 31)
  }
}
