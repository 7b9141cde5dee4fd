package io.headrace.ml.saga

import scala.collection.mutable

/** Refuses rows that no model can be learnt from, with the column and what is wrong. */
final class RowChecker(columns: Columns) {
  private val counts = mutable.Map.empty[Int, Long]

  /** The first thing that was wrong. */
  var fault: Option[String] = None

  /** Features of the rows so far, -1 before the first. */
  var length: Int = -1

  /** Rows by class. */
  def classes: Map[Int, Long] = counts.toMap

  /** Whether the row is to be learnt from; one of weight zero is not, one that is wrong is the last. */
  def accepts(row: TrainingRow): Boolean = {
    fault = labelFault(row).orElse(weightFault(row)).orElse(featuresFault(row))
    val taken = fault.isEmpty && row.weight > 0
    if (taken && columns.classes) counts.updateWith(row.label.toInt)(before => Some(before.getOrElse(0L) + 1))
    taken
  }

  private def labelFault(row: TrainingRow): Option[String] = {
    val name = columns.label
    if (row.label == null) Some(s"column $name has a null")
    else if (row.label.isNaN || row.label.isInfinite) Some(s"column $name has the label ${row.label}")
    else if (!columns.classes) None
    else if (row.label < 0 || row.label != math.floor(row.label))
      Some(s"column $name has the label ${row.label}, where classes are whole numbers 0, 1, ...")
    else if (row.label >= RowChecker.MostClasses)
      Some(
        s"column $name has the label ${row.label}, where there may be ${RowChecker.MostClasses} classes, numbered from 0"
      )
    else None
  }

  private def weightFault(row: TrainingRow): Option[String] =
    if (row.weight == null) Some(s"column ${columns.weight} has a null")
    else if (row.weight.isNaN || row.weight.isInfinite || row.weight < 0)
      Some(s"column ${columns.weight} has the weight ${row.weight}, where weights are finite and >= 0")
    else None

  private def featuresFault(row: TrainingRow): Option[String] = {
    val name = columns.features
    if (row.features == null) Some(s"column $name has a null")
    else if (row.features.size == 0) Some(s"column $name has a vector of no features")
    else if (length >= 0 && row.features.size != length)
      Some(RowChecker.unlike(columns, length, row.features.size))
    else {
      length = row.features.size
      val cells = row.features.toSparse
      var at    = 0
      while (at < cells.values.length && java.lang.Double.isFinite(cells.values(at))) at += 1
      if (at == cells.values.length) None
      else Some(s"column $name has ${cells.values(at)} at feature ${cells.indices(at)}")
    }
  }
}

object RowChecker {

  /** Classes of which a row of coefficients each is bearable. */
  val MostClasses = 100000

  /** What is wrong with vectors of two lengths. */
  def unlike(columns: Columns, one: Int, other: Int): String =
    s"column ${columns.features} has vectors of $one and of $other features"

  /** Counts of several partitions. */
  def added(parts: Iterable[Map[Int, Long]]): Map[Int, Long] =
    parts.flatten.groupMapReduce(_._1)(_._2)(_ + _)
}
