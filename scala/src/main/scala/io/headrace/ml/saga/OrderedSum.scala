package io.headrace.ml.saga

import scala.reflect.ClassTag

import org.apache.spark.{HashPartitioner, TaskContext}
import org.apache.spark.rdd.RDD

/**
 * Sums over partitions in the order of partitions.
 *
 * Spark's own `treeAggregate` adds what comes first: two runs differ in their last bits, and a fit that takes a branch
 * by them in more. Here small sums come to the driver all at once; of large ones groups of neighbours are added by
 * tasks first, so that the driver gets one vector however many partitions there are.
 */
object OrderedSum {

  /** Numbers over all partitions up to which the driver takes them at once: 8 MiB. */
  private val Direct = 1L << 20

  /**
   * @param parts
   *   at most one array a partition
   * @param length
   *   of each
   * @param combine
   *   adds the second into the first and gives it back
   * @return
   *   nothing where no partition has any
   */
  def of(parts: RDD[Array[Double]], length: Int)(
      combine: (Array[Double], Array[Double]) => Array[Double]
  ): Option[Array[Double]] = {
    val size   = parts.getNumPartitions
    val summed = if (size.toLong * length <= Direct) parts else grouped(parts, combine)
    collected(summed).reduceOption(combine)
  }

  /** What `collect` brings; that reads the byte code of RDD and of SparkContext whenever it is called, to clean closures. */
  private def collected(parts: RDD[Array[Double]]): Seq[Array[Double]] = {
    val all = (_: TaskContext, part: Iterator[Array[Double]]) => part.toArray
    parts.sparkContext.runJob(parts, all, parts.partitions.indices).toSeq.flatten
  }

  private def grouped(
      parts: RDD[Array[Double]],
      combine: (Array[Double], Array[Double]) => Array[Double]
  ): RDD[Array[Double]] = {
    val size = parts.getNumPartitions
    if (size == 1) parts
    else {
      val fan = math.max(2, math.ceil(math.sqrt(size.toDouble)).toInt)
      grouped(ordered(parts, fan).mapPartitions(_.reduceOption(combine).iterator), combine)
    }
  }

  /** Every `fan` neighbours in one partition, in their order. */
  private def ordered[T: ClassTag](parts: RDD[T], fan: Int): RDD[T] = {
    val size = (parts.getNumPartitions + fan - 1) / fan
    dealt(parts.mapPartitionsWithIndex((at, all) => all.map(each => (at / fan, (at, each)))), size)
  }

  /** Values go to the partition that their key names, where they lie by the number of where they came from. */
  def dealt[T: ClassTag](parts: RDD[(Int, (Int, T))], size: Int): RDD[T] =
    parts
      .partitionBy(new HashPartitioner(size))
      .mapPartitions(_.map(_._2).toArray.sortBy(_._1).iterator.map(_._2), preservesPartitioning = true)
}
