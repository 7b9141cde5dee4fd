package io.headrace.ml.saga

import org.apache.spark.rdd.RDD

/**
 * What is known of the rows as a whole.
 *
 * @param counts
 *   rows by class; empty where labels are numbers
 */
final case class TrainingFacts(features: Int, rows: Long, counts: Array[Long]) {
  def classes: Int = counts.length

  /** What the user should know. */
  def warnings: Seq[String] = {
    val rare = counts.indices.filter(counts(_) < TrainingFacts.Few)
    rare.map(k => s"class $k has ${counts(k)} rows")
  }

  /** Zero coefficients; intercepts by the classes' shares, or the labels' mean. */
  def prior(problem: Problem, moments: Moments): Array[Double] = {
    val start = new Array[Double](problem.shape.length)
    if (problem.shape.intercept) {
      val at = problem.shape.penalized
      problem.loss match {
        case LogisticLoss       => start(at) = math.log(counts(1).toDouble / counts(0))
        case SquaredLoss        => start(at) = moments.label
        case SquaredHingeLoss   => ()
        case SoftmaxLoss(names) =>
          val logs = counts.map(count => math.log(count.toDouble))
          for (k <- 0 until names) start(at + k) = logs(k) - logs.sum / names
      }
    }
    start
  }
}

object TrainingFacts {

  /** Rows of a class that are too few to learn it from. */
  private val Few = 10

  /** Refuses what no model can be learnt from, in the words of the first partition that has it. */
  def of(blocks: RDD[RawBlock], columns: Columns): TrainingFacts = {
    val told = blocks.map(each => (each.features, each.block.rows.toLong, each.labels, each.fault)).collect()
    told.flatMap(_._4).headOption.foreach(fault => throw new IllegalArgumentException(fault))
    val lengths = told.map(_._1).filter(_ >= 0).distinct
    val rows    = told.map(_._2).sum
    require(lengths.length <= 1, RowChecker.unlike(columns, lengths.headOption.getOrElse(0), lengths.last))
    require(
      rows > 0,
      s"there are no rows with a weight above zero to learn from (columns ${columns.label}, ${columns.features})"
    )
    TrainingFacts(
      lengths.head,
      rows,
      if (columns.classes) counted(RowChecker.added(told.map(_._3)), columns) else Array.empty
    )
  }

  private def counted(found: Map[Int, Long], columns: Columns): Array[Long] = {
    val names  = found.keys.toSeq.sorted
    val absent = (0 to names.last).find(!found.contains(_))
    require(
      names.length > 1,
      s"column ${columns.label} has one class only, ${names.head}: there is nothing to tell apart"
    )
    require(
      absent.isEmpty,
      s"column ${columns.label} has classes up to ${names.last} but no row of class ${absent.getOrElse(0)}: number them without holes"
    )
    names.map(found).toArray
  }
}
