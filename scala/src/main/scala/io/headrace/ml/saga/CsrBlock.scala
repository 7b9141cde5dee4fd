package io.headrace.ml.saga

import scala.collection.mutable.ArrayBuilder

/**
 * Rows of one partition, compressed: row i's features are `index` and `value` from start(i) until start(i + 1).
 *
 * @param weight
 *   of each row, > 0
 */
final class CsrBlock(
    val start: Array[Int],
    val index: Array[Int],
    val value: Array[Double],
    val label: Array[Double],
    val weight: Array[Double]
) extends Serializable {
  def rows: Int = label.length

  val weightSum: Double = weight.sum

  /** Every feature less its center, times its factor; those of factor 0 are left out. See [[ModelScale]]. */
  def scaled(scale: ModelScale): CsrBlock = {
    val builder   = new CsrBuilder(rows, index.length)
    var (row, at) = (0, 0)
    while (row < rows) {
      while (at < start(row + 1)) {
        val by = scale.factor(index(at))
        if (by != 0) builder.feature(index(at), (value(at) - scale.center(index(at))) * by)
        at += 1
      }
      builder.row(label(row), weight(row))
      row += 1
    }
    builder.result()
  }

  /**
   * The rows in an order that depends on what they hold alone, by a hash of it. A partition that a shuffle brought, and
   * that comes again after a loss, has the same rows, not in the same order.
   */
  def canonical: CsrBlock = {
    val hashes = new Array[Long](rows)
    for (row <- 0 until rows) hashes(row) = hash(row)
    val builder = new CsrBuilder(rows, index.length)
    for (row <- StableOrder.by(hashes)) builder.take(this, row)
    builder.result()
  }

  private def hash(row: Int): Long = {
    var found = Draw.mixed(label(row).hashCode.toLong ^ java.lang.Double.doubleToLongBits(weight(row)))
    var at    = start(row)
    while (at < start(row + 1)) {
      found = Draw.mixed(Draw.mixed(found + index(at)) ^ java.lang.Double.doubleToLongBits(value(at)))
      at += 1
    }
    found
  }

  /** sum_i w_i x_ij^2 by feature. */
  def secondMoments(features: Int): Array[Double] = {
    val into      = new Array[Double](features)
    var (row, at) = (0, 0)
    while (row < rows) {
      while (at < start(row + 1)) {
        into(index(at)) += weight(row) * value(at) * value(at)
        at += 1
      }
      row += 1
    }
    into
  }

  /** Squared length of a row's features. */
  def squaredNorm(row: Int): Double = {
    var total = 0.0
    var at    = start(row)
    while (at < start(row + 1)) {
      total += value(at) * value(at)
      at += 1
    }
    total
  }
}

/**
 * Takes rows one by one into a [[CsrBlock]].
 *
 * @param rows
 *   how many may come, 0 where nobody knows; so `nonZeros`
 */
final class CsrBuilder(rows: Int = 0, nonZeros: Int = 0) {
  // addOne and addAll of these classes take numbers as they are, += boxes them
  private val index  = new ArrayBuilder.ofInt
  private val value  = new ArrayBuilder.ofDouble
  private val start  = new ArrayBuilder.ofInt
  private val label  = new ArrayBuilder.ofDouble
  private val weight = new ArrayBuilder.ofDouble
  index.sizeHint(nonZeros)
  value.sizeHint(nonZeros)
  label.sizeHint(rows)
  weight.sizeHint(rows)
  start.sizeHint(rows + 1)
  start.addOne(0)

  /** Take a feature of the row that comes next. */
  def feature(at: Int, amount: Double): Unit = {
    refuseOver(1)
    index.addOne(at)
    value.addOne(amount)
  }

  /** Take features of the row that comes next, from `from` until `until`. */
  def features(at: Array[Int], amount: Array[Double], from: Int, until: Int): Unit = {
    refuseOver(until - from)
    index.addAll(at, from, until - from)
    value.addAll(amount, from, until - from)
  }

  /** Close the row. */
  def row(labelGiven: Double, weightGiven: Double): Unit = {
    start.addOne(index.length)
    label.addOne(labelGiven)
    weight.addOne(weightGiven)
  }

  /** Take a block's row. */
  def take(block: CsrBlock, from: Int): Unit = {
    features(block.index, block.value, block.start(from), block.start(from + 1))
    row(block.label(from), block.weight(from))
  }

  def result(): CsrBlock =
    new CsrBlock(start.result(), index.result(), value.result(), label.result(), weight.result())

  private def refuseOver(more: Int): Unit =
    if (index.length > CsrBuilder.Most - more)
      throw new IllegalArgumentException(s"a partition has over ${CsrBuilder.Most} non-zeros: use more partitions")
}

object CsrBuilder {

  /** Non-zeros of a block: what an array holds. */
  private val Most = Int.MaxValue - 8
}
