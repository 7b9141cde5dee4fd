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

/**
 * Rows into blocks, one a partition, checked on the way. Rows of weight zero are left out. A block is a function of the
 * rows in a partition, not of their order ([[CsrBlock.canonical]]).
 */
object TrainingBlocks {

  /** One block a partition. */
  def of(rows: RDD[TrainingRow], columns: Columns): RDD[RawBlock] =
    rows.mapPartitions(part => Iterator(built(part, columns)))

  /** The rows dealt to `size` partitions at random, so that they are alike. */
  def dealt(rows: RDD[TrainingRow], size: Int, seed: Long, columns: Columns): RDD[RawBlock] = {
    val hands = of(rows, columns).mapPartitionsWithIndex { (from, blocks) =>
      blocks.flatMap { all =>
        split(all, size, Draw(seed, 0).of(from)).zipWithIndex.map { case (block, to) => (to, (from, block)) }
      }
    }
    OrderedSum.dealt(hands, size).mapPartitions(parts => Iterator(joined(parts.toArray, columns)))
  }

  private def built(rows: Iterator[TrainingRow], columns: Columns): RawBlock = {
    val checker = new RowChecker(columns)
    val builder = new CsrBuilder
    while (rows.hasNext && checker.fault.isEmpty) {
      val row = rows.next()
      if (checker.accepts(row)) {
        val cells = row.features.toSparse // without zeros
        builder.features(cells.indices, cells.values, 0, cells.indices.length)
        builder.row(row.label, row.weight)
      }
    }
    RawBlock(builder.result().canonical, checker.length, checker.classes, checker.fault)
  }

  /** What is said of all rows goes with the first part. */
  private def split(all: RawBlock, size: Int, seed: Long): Iterator[RawBlock] = {
    val random   = new SplittableRandom(seed)
    val builders = Array.fill(size)(new CsrBuilder)
    for (row <- 0 until all.block.rows) builders(random.nextInt(size)).take(all.block, row)
    builders.iterator.zipWithIndex.map { case (builder, at) =>
      if (at == 0) all.copy(block = builder.result()) else RawBlock(builder.result(), all.features, Map.empty, None)
    }
  }

  private def joined(parts: Array[RawBlock], columns: Columns): RawBlock = {
    val builder = new CsrBuilder(parts.map(_.block.rows).sum, parts.map(_.block.index.length).sum)
    for (part <- parts; row <- 0 until part.block.rows) builder.take(part.block, row)
    val lengths = parts.map(_.features).filter(_ >= 0).distinct
    val unlike  = if (lengths.length > 1) Some(RowChecker.unlike(columns, lengths(0), lengths(1))) else None
    val fault   = parts.flatMap(_.fault).headOption.orElse(unlike)
    RawBlock(builder.result(), lengths.headOption.getOrElse(-1), RowChecker.added(parts.map(_.labels)), fault)
  }
}
