package io.headrace.ml.saga

import java.util.Arrays.fill

import org.apache.spark.rdd.RDD

/**
 * Spread of every feature.
 *
 * @param deviation
 *   the weighted standard deviation as MLlib has it, the root of sum w (x - mean)^2 / (sum w - sum w^2 / sum w); exactly
 *   0 where all rows have the same value
 * @param center
 *   the weighted mean of a feature that no row lacks and that is not constant, else 0
 * @param present
 *   the part of the rows, by weight, that have the feature
 * @param spread
 *   sum w (x - center)^2 / sum w
 * @param weight
 *   sum of weights
 * @param label
 *   weighted mean of labels
 */
final case class Moments(
    deviation: Array[Double],
    center: Array[Double],
    present: Array[Double],
    spread: Array[Double],
    weight: Double,
    label: Double
)

/** Passes over blocks in memory: sums of squares are taken around the mean, so that a large mean costs no digits. */
object Moments {
  def of(blocks: RDD[CsrBlock], features: Int): Moments = {
    val length         = 2 * features + 4
    val found          = OrderedSum.of(blocks.map(firsts(_, features)), length + 2 * features)(joined(length)).get
    val (sums, ranges) = found.splitAt(length)
    val weight         = sums(2 * features)
    val rows           = sums(2 * features + 3)
    val counts         = sums.slice(features, 2 * features)
    val mean           = sums.take(features).map(_ / weight)
    val constant       = Array.tabulate(features) { at =>
      val (most, least) = (ranges(at), -ranges(features + at))
      counts(at) == 0 || (counts(at) == rows && most == least)
    }
    val squares = OrderedSum.of(blocks.map(seconds(_, mean)), 2 * features)(Anchor.add).get
    val free    = weight - sums(2 * features + 1) / weight
    val around  = Array.tabulate(features) { at => // sum w (x - mean)^2 over all rows
      squares(at) + math.max(0.0, weight - squares(features + at)) * mean(at) * mean(at)
    }
    val deviation =
      Array.tabulate(features)(at => if (constant(at) || free <= 0) 0.0 else math.sqrt(around(at) / free))
    val center  = Array.tabulate(features)(at => if (counts(at) == rows && !constant(at)) mean(at) else 0.0)
    val present = squares.drop(features).map(_ / weight)
    val spread  = Array.tabulate(features)(at => around(at) / weight + (mean(at) - center(at)) * mean(at))
    Moments(deviation, center, present, spread, weight, sums(2 * features + 2) / weight)
  }

  /**
   * sum w x and non-zero rows by feature; sum w, sum w^2, sum w label, rows; the largest non-zero value by feature, and
   * behind it minus the smallest.
   */
  private def firsts(block: CsrBlock, features: Int): Array[Double] = {
    val into = new Array[Double](4 * features + 4)
    val most = 2 * features + 4
    fill(into, most, into.length, Double.NegativeInfinity)
    var (row, at) = (0, 0)
    while (row < block.rows) {
      val weight = block.weight(row)
      while (at < block.start(row + 1)) {
        val feature = block.index(at)
        val value   = block.value(at)
        into(feature) += weight * value
        into(features + feature) += 1
        into(most + feature) = math.max(into(most + feature), value)
        into(most + features + feature) = math.max(into(most + features + feature), -value)
        at += 1
      }
      into(2 * features) += weight
      into(2 * features + 1) += weight * weight
      into(2 * features + 2) += weight * block.label(row)
      row += 1
    }
    into(2 * features + 3) = block.rows.toDouble
    into
  }

  /** sum w (x - mean)^2 and sum w over non-zeros by feature. */
  private def seconds(block: CsrBlock, mean: Array[Double]): Array[Double] = {
    val into      = new Array[Double](2 * mean.length)
    var (row, at) = (0, 0)
    while (row < block.rows) {
      val weight = block.weight(row)
      while (at < block.start(row + 1)) {
        val feature = block.index(at)
        val off     = block.value(at) - mean(feature)
        into(feature) += weight * off * off
        into(mean.length + feature) += weight
        at += 1
      }
      row += 1
    }
    into
  }

  /** The first `length` numbers are added, of the others the larger is kept. */
  private def joined(length: Int)(into: Array[Double], other: Array[Double]): Array[Double] = {
    for (at <- 0 until length) into(at) += other(at)
    for (at <- length until into.length) into(at) = math.max(into(at), other(at))
    into
  }
}
