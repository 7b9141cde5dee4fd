package io.headrace.ml.saga

import java.util.concurrent.atomic.AtomicLong

import scala.reflect.ClassTag

import org.apache.spark.broadcast.Broadcast
import org.apache.spark.rdd.RDD
import org.apache.spark.storage.StorageLevel

/**
 * Partitions of an RDD.
 *
 * The tables at a point are an RDD of their own, made of the blocks and the broadcast point and of nothing else: a lost
 * executor's tables come back from them with the same bits, and no lineage grows over rounds. What a pass draws is a
 * function of (seed, round, partition).
 *
 * @param shards
 *   at most one a partition; persisted by the caller
 */
final class RddShards(shards: RDD[Shard], override val problem: Problem) extends Shards {
  private val features   = problem.shape.features
  private val aggregated = new AtomicLong
  private val sent       = new AtomicLong

  private val totals = OrderedSum.of(RddShards.totals(shards), features + 4)(Anchor.add).get
  private val weight = totals(features + 2)
  private val common = shards.sparkContext.broadcast(Common(problem, Whole(weight, totals.take(features))))

  override def rows: Long       = totals(features + 1).toLong
  override def size: Int        = totals(features).toInt
  override def norm: Double     = totals(features + 3) / weight
  override def traffic: Traffic = Traffic(aggregated.get, sent.get)

  /** Forget what partitions were told. */
  def release(): Unit = common.destroy()

  override def evaluate(point: Array[Double], batch: Batch): Anchor = {
    val place  = broadcast(point)
    val tables = RddShards.tables(shards, common, place, batch).persist(StorageLevel.MEMORY_AND_DISK)
    val parts  = RddShards.evaluations(shards, tables, problem.shape)
    Anchor.of(problem.shape, point, summed(parts, Anchor.packedLength(problem.shape)), new Held(place, tables))
  }

  private final class Held(place: Broadcast[Array[Double]], tables: RDD[Evaluation]) extends Anchor.Held {

    override def pass(plan: PassPlan, gradient: Array[Double], draw: Draw): Array[Double] = {
      val slope = broadcast(gradient)
      try summed(RddShards.passes(shards, tables, common, plan, draw, place, slope), gradient.length)
      finally slope.destroy()
    }

    override def dual(t: Array[Double], scale: Double): Array[Double] =
      summed(RddShards.duals(shards, tables, common, t, scale), problem.shape.length).map(_ / weight)

    override def release(): Unit = {
      tables.unpersist(blocking = false)
      place.destroy()
    }
  }

  private def broadcast(numbers: Array[Double]): Broadcast[Array[Double]] = {
    sent.addAndGet(8L * numbers.length * size)
    shards.sparkContext.broadcast(numbers)
  }

  private def summed(parts: RDD[Array[Double]], length: Int): Array[Double] = {
    val sum = OrderedSum.of(parts, length)(Anchor.add).get
    aggregated.addAndGet(8L * sum.length * size)
    sum
  }
}

/** What every partition is told once. */
private final case class Common(problem: Problem, whole: Whole)

/** What tasks do: closures that hold nothing of the driver's. */
private object RddShards {
  def tables(
      shards: RDD[Shard],
      common: Broadcast[Common],
      place: Broadcast[Array[Double]],
      batch: Batch
  ): RDD[Evaluation] = shards.map { shard =>
    Evaluation.of(common.value.problem, shard.block, place.value, batch.of(shard.partition, shard.block.rows))
  }

  def evaluations(shards: RDD[Shard], tables: RDD[Evaluation], shape: Shape): RDD[Array[Double]] =
    zipped(shards, tables)((shard, found) => Anchor.packed(shape, shard.block, found))

  /** sum_i w_i x_ij^2 by feature, and behind it: one for the shard, rows, sum of weights, norm times that. */
  def totals(shards: RDD[Shard]): RDD[Array[Double]] = shards.map { shard =>
    val weight = shard.block.weightSum
    shard.secondMoments ++ Array(1.0, shard.block.rows.toDouble, weight, shard.norm * weight)
  }

  def passes(
      shards: RDD[Shard],
      tables: RDD[Evaluation],
      common: Broadcast[Common],
      plan: PassPlan,
      draw: Draw,
      place: Broadcast[Array[Double]],
      gradient: Broadcast[Array[Double]]
  ): RDD[Array[Double]] =
    zipped(shards, tables) { (shard, found) =>
      val all  = common.value
      val pass = LocalPass.of(all.problem, shard, plan, place.value, gradient.value, found.table)
      Anchor.packed(all.problem.shape, shard, place.value, pass.drawn(draw), all.whole)
    }

  def duals(
      shards: RDD[Shard],
      tables: RDD[Evaluation],
      common: Broadcast[Common],
      t: Array[Double],
      scale: Double
  ): RDD[Array[Double]] =
    zipped(shards, tables)((shard, found) => Evaluation.dual(common.value.problem, shard.block, found.table, t, scale))

  def zipped[T: ClassTag](shards: RDD[Shard], tables: RDD[Evaluation])(part: (Shard, Evaluation) => T): RDD[T] =
    shards.zipPartitions(tables)((own, found) => own.zip(found).map { case (shard, table) => part(shard, table) })
}
