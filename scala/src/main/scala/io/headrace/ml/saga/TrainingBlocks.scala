package io.headrace.ml.saga

import java.util.SplittableRandom

import org.apache.spark.ml.linalg.Vector
import org.apache.spark.rdd.RDD

/** A row as it comes: label, weight, features; null where the cell was. */
final case class TrainingRow(label: java.lang.Double, weight: java.lang.Double, features: Vector)

/** What columns are called, for messages, and whether labels are classes. */
final case class Columns(label: String, weight: String, features: String, classes: Boolean)

/**
 * A partition's rows before scaling.
 *
 * @param features
 *   length of its vectors, -1 without rows
 * @param labels
 *   rows by class, where labels are classes
 * @param fault
 *   the first thing wrong, in the user's words
 */
final case class RawBlock(block: CsrBlock, features: Int, labels: Map[Int, Long], fault: Option[String])
    extends Serializable

/** Rows into blocks, one a partition, checked on the way. Rows of weight zero are left out. */
object TrainingBlocks {

  /** One block a partition, in the order of its rows. */
  def of(rows: RDD[TrainingRow], columns: Columns): RDD[RawBlock] =
    rows.mapPartitions(part => Iterator(built(part, 1, columns, () => 0)(0)))

  /**
   * The rows dealt to `size` partitions at random, so that they are alike. Which rows go where, and their order there, is
   * a function of the seed and of the order that rows come in.
   */
  def dealt(rows: RDD[TrainingRow], size: Int, seed: Long, columns: Columns): RDD[RawBlock] = {
    val hands = rows.mapPartitionsWithIndex { (from, part) =>
      val random = new SplittableRandom(Draw(seed, 0).of(from))
      built(part, size, columns, () => random.nextInt(size)).iterator.zipWithIndex
        .map { case (block, to) => (to, (from, block)) }
    }
    OrderedSum.dealt(hands, size).mapPartitions(parts => Iterator(joined(parts.toArray)))
  }

  private def built(
      rows: Iterator[TrainingRow],
      size: Int,
      columns: Columns,
      target: () => Int
  ): Array[RawBlock] = {
    val checker  = new RowChecker(columns)
    val builders = Array.fill(size)(new CsrBuilder)
    while (rows.hasNext && checker.fault.isEmpty) {
      val row = rows.next()
      if (checker.accepts(row)) {
        val builder = builders(target())
        row.features.foreachActive((at, value) => if (value != 0) builder.feature(at, value))
        builder.row(row.label, row.weight)
      }
    }
    builders.zipWithIndex.map { case (builder, at) =>
      val mine = at == 0 // counts go with the first, so that they are counted once
      RawBlock(
        builder.result(),
        checker.length,
        if (mine) checker.classes else Map.empty,
        if (mine) checker.fault else None
      )
    }
  }

  private def joined(parts: Array[RawBlock]): RawBlock = {
    val builder = new CsrBuilder
    for (part <- parts) builder.append(part.block)
    val lengths = parts.map(_.features).filter(_ >= 0).distinct
    RawBlock(builder.result(), lengths.headOption.getOrElse(-1), RowChecker.added(parts.map(_.labels)), parts.flatMap(_.fault).headOption)
  }
}
