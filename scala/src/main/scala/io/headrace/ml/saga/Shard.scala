package io.headrace.ml.saga

/** A partition's rows as all rounds see them: the block, and which rows matter more. */
final class Shard(
    val partition: Int,
    val block: CsrBlock,
    val sampler: RowSampler,
    val norm: Double,
    val largest: Double,
    features: Int
) extends Serializable {

  /** [[CsrBlock.secondMoments]]: every pass asks for them. A function of the block, so that it is not sent with it. */
  @transient lazy val secondMoments: Array[Double] = block.secondMoments(features)

  /** What a row's gradient counts by in the partition's mean. */
  def share(row: Int): Double = block.weight(row) / block.weightSum
}

object Shard {

  /**
   * With `norm` = sum_i share_i |x_i|^2 and `largest` = max_i share_i |x_i|^2 / chance_i, where |x_i|^2 counts the
   * intercept as a feature of one: times the loss's curvature they bound the Lipschitz constants of the mean gradient
   * and of a drawn row's, as it is weighed.
   */
  def of(partition: Int, block: CsrBlock, shape: Shape): Shard = {
    val norms   = Array.tabulate(block.rows)(row => block.squaredNorm(row) + (if (shape.intercept) 1.0 else 0.0))
    val bounds  = Array.tabulate(block.rows)(row => norms(row) * block.weight(row) / block.weightSum)
    val sampler = RowSampler.of(bounds)
    var largest = 0.0
    for (row <- 0 until block.rows) largest = math.max(largest, bounds(row) / sampler.chanceOf(row))
    new Shard(partition, block, sampler, bounds.sum, largest, shape.features)
  }
}
