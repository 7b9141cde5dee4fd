package io.headrace.ml.saga

import scala.util.Random

/** Sparse rows made for tests, whose features are more or less rare, and their split into partitions. */
object GeneratedRows {

  /** A row densely, for references. */
  final case class Dense(x: Array[Double], label: Double, weight: Double)

  def rows(count: Int, features: Int, classes: Int, seed: Int): Seq[Dense] = {
    val random = new Random(seed)
    val truth  = Array.fill(features, classes)(random.nextGaussian())
    Seq.fill(count) {
      val x = Array.tabulate(features) { at =>
        if (random.nextDouble() < 1.0 / (1 + at % 6)) random.nextGaussian() * (1 + at % 3) else 0.0
      }
      val scores = Array.tabulate(math.max(classes, 1)) { k =>
        x.indices.map(at => x(at) * truth(at)(k)).sum / 2 + random.nextGaussian()
      }
      val label = classes match {
        case 1 => scores(0)
        case 2 => if (scores(0) > 0) 1.0 else 0.0
        case _ => scores.indices.maxBy(scores(_)).toDouble
      }
      Dense(x, label, 0.5 + random.nextDouble())
    }
  }

  def block(rows: Seq[Dense]): CsrBlock = {
    val builder = new CsrBuilder
    for (row <- rows) {
      for (at <- row.x.indices if row.x(at) != 0) builder.feature(at, row.x(at))
      builder.row(row.label, row.weight)
    }
    builder.result()
  }

  /** Partitions of unequal size; sorted by label they have little in common. */
  def split(rows: Seq[Dense], parts: Int, sorted: Boolean): Seq[CsrBlock] = {
    val order  = if (sorted) rows.sortBy(_.label) else rows
    val bounds = (0 to parts).map(at => math.round(order.length * math.pow(at.toDouble / parts, 1.2)).toInt)
    bounds.zip(bounds.tail).map { case (from, until) => block(order.slice(from, until)) }
  }

  /** The labels that a loss takes. */
  def classesOf(loss: Loss): Int = loss match {
    case SquaredLoss         => 1
    case SoftmaxLoss(number) => number
    case _                   => 2
  }

  val losses: Seq[Loss] = Seq(LogisticLoss, SquaredHingeLoss, SquaredLoss, SoftmaxLoss(3))

  /** Rows as the preconditioner that fits them leaves them, and that. */
  def preconditioned(rows: Seq[Dense]): (Seq[Dense], Preconditioner) = {
    val total                                       = rows.map(_.weight).sum
    def mean(of: Double => Double, at: Int): Double = rows.map(row => row.weight * of(row.x(at))).sum / total
    def by(of: Double => Double): Array[Double]     = rows.head.x.indices.map(mean(of, _)).toArray
    val found                                       = Preconditioner.of(by(x => if (x == 0) 0 else 1), by(x => x * x))
    val moved = rows.map(row => row.copy(x = row.x.indices.map(at => row.x(at) * found.factor(at)).toArray))
    (moved, found)
  }

  val penalties: Seq[Penalty] = Seq(Penalty(0, 0), Penalty(0, 0.02), Penalty(0.02, 0), Penalty(0.01, 0.02))
}
