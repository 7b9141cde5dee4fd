package io.headrace.ml.saga

/** The rules of [[Solver]] as they are written, every coordinate at every step: slow, and fit to be compared with. */
object DensePass {
  def run(
      problem: Problem,
      rows: Seq[GeneratedRows.Dense],
      shard: Shard,
      plan: PassPlan,
      start: Array[Double],
      gradient: Array[Double],
      order: Seq[Int]
  ): Array[Double] = {
    val (outputs, features) = (problem.shape.outputs, problem.shape.features)
    val total               = rows.map(_.weight).sum
    val step                = plan.solver.stepFactor / (problem.loss.curvature * shard.largest)

    def slopeAt(point: Array[Double], row: GeneratedRows.Dense): Array[Double] = {
      val margin = Array.tabulate(outputs) { k =>
        (if (problem.shape.intercept) point(features * outputs + k) else 0.0) +
          row.x.indices.map(at => row.x(at) * point(at * outputs + k)).sum
      }
      val into = new Array[Double](outputs)
      problem.loss.slope(margin, row.label, into)
      into
    }

    def wide(row: GeneratedRows.Dense, slope: Array[Double]): Array[Double] = {
      val x = if (problem.shape.intercept) row.x :+ 1.0 else row.x
      x.flatMap(value => slope.map(_ * value))
    }

    def moved(point: Array[Double], direction: Array[Double]): Array[Double] =
      Array.tabulate(point.length) { at =>
        val v = point(at) - step * direction(at) + step * plan.pull * start(at)
        if (at >= features * outputs) v / (1 + step * plan.pull)
        else {
          val by = problem.preconditioner.factor(at / outputs)
          Penalty.soft(v, step * by * problem.penalty.l1) / (1 + step * (by * by * problem.penalty.l2 + plan.pull))
        }
      }

    var point  = start
    var before = start
    var mean   = gradient
    val record = rows.map(slopeAt(start, _)).toArray
    val drawn  = order.iterator
    for (time <- order.indices) {
      val direction =
        if (plan.solver == Solver.Sarah && time == 0) mean
        else {
          val at     = drawn.next()
          val row    = rows(at)
          val share  = row.weight / total
          val chance = shard.sampler.chanceOf(at)
          val slope  = slopeAt(point, row)
          val old    = if (plan.solver == Solver.Sarah) slopeAt(before, row) else record(at)
          val change = wide(row, slope.zip(old).map { case (a, b) => a - b })
          val scale  = if (plan.solver == Solver.Sag) share else share / chance
          val taken  = mean.zip(change).map { case (g, c) => g + scale * c }
          plan.solver match {
            case Solver.Sag | Solver.Saga =>
              record(at) = slope
              mean = mean.zip(change).map { case (g, c) => g + share * c }
            case Solver.Sarah => mean = taken
            case _            => ()
          }
          taken
        }
      before = point
      point = moved(point, direction)
    }
    point
  }
}
