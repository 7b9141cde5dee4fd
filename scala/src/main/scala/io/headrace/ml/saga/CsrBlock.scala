package io.headrace.ml.saga

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

  /** Every feature times its factor; those of factor 0 are left out. */
  def scaled(factor: Array[Double]): CsrBlock = {
    val builder = new CsrBuilder
    for (row <- 0 until rows) {
      for (at <- start(row) until start(row + 1); by = factor(index(at)) if by != 0)
        builder.feature(index(at), value(at) * by)
      builder.row(label(row), weight(row))
    }
    builder.result()
  }

  /**
   * The rows in an order that depends on what they hold alone, by a hash of it. A partition that a shuffle brought, and
   * that comes again after a loss, has the same rows, not in the same order.
   */
  def canonical: CsrBlock = {
    val hashes  = Array.tabulate(rows)(hash)
    val builder = new CsrBuilder
    for (row <- (0 until rows).sortBy(hashes(_))) builder.take(this, row)
    builder.result()
  }

  private def hash(row: Int): Long = {
    var found = Draw.mixed(label(row).hashCode.toLong ^ java.lang.Double.doubleToLongBits(weight(row)))
    for (at <- start(row) until start(row + 1))
      found = Draw.mixed(Draw.mixed(found + index(at)) ^ java.lang.Double.doubleToLongBits(value(at)))
    found
  }

  /** sum_i w_i x_ij^2 by feature. */
  def secondMoments(features: Int): Array[Double] = {
    val into = new Array[Double](features)
    for (row <- 0 until rows; at <- start(row) until start(row + 1))
      into(index(at)) += weight(row) * value(at) * value(at)
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

/** Takes rows one by one into a [[CsrBlock]]. */
final class CsrBuilder {
  private val index  = Array.newBuilder[Int]
  private val value  = Array.newBuilder[Double]
  private val start  = Array.newBuilder[Int] += 0
  private val label  = Array.newBuilder[Double]
  private val weight = Array.newBuilder[Double]
  private var filled = 0

  /** Take a feature of the row that comes next. */
  def feature(at: Int, amount: Double): Unit = {
    if (filled == CsrBuilder.Most)
      throw new IllegalArgumentException(s"a partition has over ${CsrBuilder.Most} non-zeros: use more partitions")
    index += at
    value += amount
    filled += 1
  }

  /** Close the row. */
  def row(labelGiven: Double, weightGiven: Double): Unit = {
    start += filled
    label += labelGiven
    weight += weightGiven
  }

  /** Take a block's row. */
  def take(block: CsrBlock, from: Int): Unit = {
    for (at <- block.start(from) until block.start(from + 1)) feature(block.index(at), block.value(at))
    row(block.label(from), block.weight(from))
  }

  def result(): CsrBlock =
    new CsrBlock(start.result(), index.result(), value.result(), label.result(), weight.result())
}

object CsrBuilder {

  /** Non-zeros of a block: what an array holds. */
  private val Most = Int.MaxValue - 8
}
