package io.headrace.ml.saga

/**
 * The partitions, wherever they lie. What comes back are sums over them in the order of partitions: the same bits
 * whoever was ready first.
 */
trait Shards {

  /** What is minimized over them. */
  def problem: Problem

  /** Rows in all. */
  def rows: Long

  /** How many partitions there are. */
  def size: Int

  /** sum_i w_i (|x_i|^2 + intercept) / sum_i w_i: times the curvature it bounds the smoothness of F. */
  def norm: Double

  /** Evaluate a point, and hold every row's slope at it until it is released. */
  def evaluate(point: Array[Double], batch: Batch): Anchor

  /** Numbers that partitions have sent, and that were sent to them. */
  def traffic: Traffic
}

/** Bytes so far: partial sums that left a partition, and points that went to the partitions. */
final case class Traffic(aggregated: Long, broadcast: Long)

/**
 * What a partition's part in a mean is of: of intercepts its part of the weight, of a feature's coefficients its part of
 * the second moment. A partition that has few non-zeros of a feature knows nothing of its curvature and goes far along
 * it; by weight alone it would outvote the one that knows (Konecny et al. 2016, FSVRG, scale such steps alike).
 *
 * @param moments
 *   sum_i w_i x_ij^2 by feature
 */
final case class Whole(weight: Double, moments: Array[Double])

/**
 * A point that was evaluated.
 *
 * @param loss
 *   F there
 * @param gradient
 *   of F, as long as the point
 * @param tiltRate
 *   mean matrix of [[Loss.tilt]], outputs x outputs; empty without intercept
 * @param batchRows
 *   rows that were taken
 */
final class Anchor(
    val point: Array[Double],
    val loss: Double,
    val gradient: Array[Double],
    val tiltRate: Array[Double],
    val batchRows: Long,
    held: Anchor.Held
) {

  /** A pass in every partition from here; the mean of where they ended, by coordinate ([[Whole]]). */
  def pass(plan: PassPlan, draw: Draw): PassEnd = {
    val sums   = held.pass(plan, gradient, draw)
    val length = point.length
    PassEnd(Array.tabulate(length)(at => point(at) + sums(at)), sums(length), sums(length + 1).toLong)
  }

  /** Mean of tilted, scaled slopes times features, and behind it the mean of l*. */
  def dual(t: Array[Double], scale: Double): Array[Double] = held.dual(t, scale)

  /** Forget the slopes. */
  def release(): Unit = held.release()
}

object Anchor {

  /** What partitions keep of a point: every row's slope. */
  trait Held {
    def pass(plan: PassPlan, gradient: Array[Double], draw: Draw): Array[Double]
    def dual(t: Array[Double], scale: Double): Array[Double]
    def release(): Unit
  }

  /**
   * What a partition sends of an evaluation.
   *
   * @return
   *   gradient, loss, weight, rows, tilt's rate, one behind the other: sums over its rows
   */
  def packed(shape: Shape, block: CsrBlock, evaluation: Evaluation): Array[Double] =
    Evaluation.gradient(shape, block, evaluation.table) ++
      Array(evaluation.loss, evaluation.weight, evaluation.rows.toDouble) ++ evaluation.tiltRate

  /**
   * What a partition sends of a pass: how far each coordinate went times its part in it, its curvature times its weight,
   * and its count.
   */
  def packed(shape: Shape, shard: Shard, start: Array[Double], end: PassEnd, whole: Whole): Array[Double] = {
    val share = shard.block.weightSum / whole.weight
    val own   = shard.secondMoments
    val sent  = new Array[Double](shape.length + 2)
    var at    = 0
    while (at < shape.length) {
      val feature = at / shape.outputs
      val known   = at < shape.penalized && whole.moments(feature) > 0
      val part    = if (known) own(feature) / whole.moments(feature) else share
      sent(at) = part * (end.point(at) - start(at))
      at += 1
    }
    sent(shape.length) = end.curvature * share
    sent(shape.length + 1) = end.gradients.toDouble
    sent
  }

  /** Numbers of what a partition sends of an evaluation. */
  def packedLength(shape: Shape): Int = shape.length + 3 + (if (shape.intercept) shape.outputs * shape.outputs else 0)

  /** Of the sum of what partitions sent. */
  def of(shape: Shape, point: Array[Double], sums: Array[Double], held: Held): Anchor = {
    val weight = sums(shape.length + 1)
    new Anchor(
      point,
      sums(shape.length) / weight,
      sums.take(shape.length).map(_ / weight),
      sums.drop(shape.length + 3).map(_ / weight),
      sums(shape.length + 2).toLong,
      held
    )
  }

  /** Add in place. */
  def add(into: Array[Double], other: Array[Double]): Array[Double] = {
    var at = 0
    while (at < into.length) {
      into(at) += other(at)
      at += 1
    }
    into
  }
}
