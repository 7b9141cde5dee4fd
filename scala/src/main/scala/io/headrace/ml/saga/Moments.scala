package io.headrace.ml.saga

import org.apache.spark.rdd.RDD

/**
 * Spread of every feature.
 *
 * @param deviation
 *   the weighted standard deviation as MLlib has it, the root of sum w (x - mean)^2 / (sum w - sum w^2 / sum w); exactly
 *   0 where all rows have the same value
 * @param weight
 *   sum of weights
 * @param label
 *   weighted mean of labels
 */
final case class Moments(deviation: Array[Double], weight: Double, label: Double)

/** Passes over blocks in memory: sums of squares are taken around the mean, so that a large mean costs no digits. */
object Moments {
  def of(blocks: RDD[CsrBlock], features: Int): Moments = {
    val sums     = OrderedSum.of(blocks.map(firsts(_, features)), 2 * features + 4)(Anchor.add).get
    val ranges   = OrderedSum.of(blocks.map(bounds(_, features)), 2 * features)(largest).get
    val weight   = sums(2 * features)
    val rows     = sums(2 * features + 3)
    val counts   = sums.slice(features, 2 * features)
    val mean     = sums.take(features).map(_ / weight)
    val constant = Array.tabulate(features) { at =>
      val (most, least) = (ranges(at), -ranges(features + at))
      counts(at) == 0 || (counts(at) == rows && most == least)
    }
    val squares = OrderedSum.of(blocks.map(seconds(_, mean)), 2 * features)(Anchor.add).get
    val free    = weight - sums(2 * features + 1) / weight
    val spread  = Array.tabulate(features) { at =>
      val absent = math.max(0.0, weight - squares(features + at)) * mean(at) * mean(at)
      if (constant(at) || free <= 0) 0.0 else math.sqrt((squares(at) + absent) / free)
    }
    Moments(spread, weight, sums(2 * features + 2) / weight)
  }

  /** sum w x and non-zero rows by feature; sum w, sum w^2, sum w label, rows. */
  private def firsts(block: CsrBlock, features: Int): Array[Double] = {
    val into = new Array[Double](2 * features + 4)
    each(block) { (row, feature, value) =>
      into(feature) += block.weight(row) * value
      into(features + feature) += 1
    }
    for (row <- 0 until block.rows) {
      val weight = block.weight(row)
      into(2 * features) += weight
      into(2 * features + 1) += weight * weight
      into(2 * features + 2) += weight * block.label(row)
    }
    into(2 * features + 3) = block.rows.toDouble
    into
  }

  /** The largest non-zero value by feature, and behind it minus the smallest. */
  private def bounds(block: CsrBlock, features: Int): Array[Double] = {
    val into = Array.fill(2 * features)(Double.NegativeInfinity)
    each(block) { (_, feature, value) =>
      into(feature) = math.max(into(feature), value)
      into(features + feature) = math.max(into(features + feature), -value)
    }
    into
  }

  /** sum w (x - mean)^2 and sum w over non-zeros by feature. */
  private def seconds(block: CsrBlock, mean: Array[Double]): Array[Double] = {
    val into = new Array[Double](2 * mean.length)
    each(block) { (row, feature, value) =>
      val off = value - mean(feature)
      into(feature) += block.weight(row) * off * off
      into(mean.length + feature) += block.weight(row)
    }
    into
  }

  private def each(block: CsrBlock)(visit: (Int, Int, Double) => Unit): Unit =
    for (row <- 0 until block.rows; at <- block.start(row) until block.start(row + 1))
      visit(row, block.index(at), block.value(at))

  private def largest(into: Array[Double], other: Array[Double]): Array[Double] = {
    for (at <- into.indices) into(at) = math.max(into(at), other(at))
    into
  }
}
