package io.headrace.ml.saga

/** The minimum by accelerated proximal gradients (FISTA with restarts) on all rows: slow, and independent of rounds. */
object Reference {
  def minimum(problem: Problem, blocks: Seq[CsrBlock], steps: Int = 20000): Array[Double] = {
    val weight = blocks.map(_.weightSum).sum
    val norm   =
      blocks.map(block => (0 until block.rows).map(row => block.weight(row) * (block.squaredNorm(row) + 1)).sum).sum
    val step  = weight / (problem.loss.curvature * norm)
    var point = new Array[Double](problem.shape.length)
    var far   = point
    var age   = 0
    var left  = steps
    while (left > 0) {
      val slope = gradient(problem, blocks, far).map(_ / weight)
      val next  = problem.proximalStep(far, slope, step)
      val turn  = next.indices.map(at => (far(at) - next(at)) * (next(at) - point(at))).sum
      age = if (turn > 0) 0 else age + 1 // O'Donoghue, Candes 2015
      val gone = next.indices.map(at => math.abs(next(at) - far(at))).max
      far = Array.tabulate(next.length)(at => next(at) + age / (age + 3.0) * (next(at) - point(at)))
      point = next
      left = if (gone < 1e-15) 0 else left - 1
    }
    point
  }

  def objective(problem: Problem, blocks: Seq[CsrBlock], point: Array[Double]): Double = {
    val losses = blocks.map(block => Evaluation.of(problem, block, point, Array.fill(block.rows)(true)).loss)
    losses.sum / blocks.map(_.weightSum).sum + problem.penaltyAt(point)
  }

  private def gradient(problem: Problem, blocks: Seq[CsrBlock], point: Array[Double]): Array[Double] =
    blocks
      .map { block =>
        val found = Evaluation.of(problem, block, point, Array.fill(block.rows)(true))
        Evaluation.gradient(problem.shape, block, found.table)
      }
      .reduce(Anchor.add)
}
