package io.headrace.ml.saga

import java.util.SplittableRandom

/**
 * Which rows an evaluation takes: each with the chance `share`, by a draw of (seed, round, partition) alone.
 *
 * @param share
 *   in (0, 1]; 1 is all rows
 */
final case class Batch(share: Double, draw: Draw) {
  def whole: Boolean = share >= 1

  /** Whether it takes each of a partition's rows. */
  def of(partition: Int, rows: Int): Array[Boolean] = {
    val random = new SplittableRandom(draw.of(partition))
    val taken  = new Array[Boolean](rows)
    for (row <- 0 until rows) taken(row) = whole || random.nextDouble() < share
    taken
  }
}

object Batch {
  val Whole: Batch = Batch(1.0, Draw(0L, 0))
}
