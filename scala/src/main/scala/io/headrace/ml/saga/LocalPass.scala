package io.headrace.ml.saga

/**
 * What a round asks of every partition.
 *
 * @param passes
 *   steps by the partition's rows
 * @param curvature
 *   of the loss, or a guess where `search`
 * @param search
 *   whether the guess is doubled where a row shows it to be too small
 * @param pull
 *   rho of the term rho / 2 |x - start|^2 that is added to the partition's view
 */
final case class PassPlan(solver: Solver, passes: Double, curvature: Double, search: Boolean, pull: Double)

/** Where a pass ended, the curvature it ended with, and the component gradients it took. */
final case class PassEnd(point: Array[Double], curvature: Double, gradients: Long)

/**
 * Proximal steps on one partition's rows from the round's point, with the gradient estimates of [[Solver]]; the mean
 * starts as the gradient over all partitions, so that what is minimized is
 *
 * {{{
 * F_p(x) + <F'(start) - F_p'(start), x> + rho / 2 |x - start|^2 + R(x)
 * }}}
 *
 * A step costs what the row's non-zeros do: other coordinates are left as they stood at `last` and are brought up to
 * date when a row needs them ([[LaggedProx]]), all at the end. Intercepts are dense. `rho` times the start is a part of
 * the mean, the rest of that term is in the proximal step.
 *
 * @param start
 *   the round's point
 * @param gradient
 *   of F there
 * @param table
 *   slopes of the partition's rows there, outputs a row; NaN where the row was not in the batch
 */
abstract class LocalPass(
    problem: Problem,
    shard: Shard,
    plan: PassPlan,
    start: Array[Double],
    gradient: Array[Double],
    table: Array[Double]
) {
  protected val shape: Shape          = problem.shape
  protected val outputs: Int          = shape.outputs
  protected val block: CsrBlock       = shard.block
  protected val record: Array[Double] = table.clone
  protected val point: Array[Double]  = start.clone
  protected val mean: Array[Double]   = LocalPass.less(gradient, plan.pull, start)
  protected val last: Array[Int]      = new Array[Int](shape.features)
  protected val margin: Array[Double] = new Array[Double](outputs)
  protected val slope: Array[Double]  = new Array[Double](outputs)
  protected val change: Array[Double] = new Array[Double](outputs)
  private val trial                   = new Array[Double](outputs)
  protected var curvature: Double     = plan.curvature
  protected var gradients: Long       = 0L
  protected var step: Double          = 0.0
  private val lagged                  = new Array[LaggedProx](problem.penalties.length)
  private var interceptShrink         = 1.0
  protected var fetched: Double       = 0.0
  setStep()

  /** The partition's steps of a round, on rows drawn by (seed, round, partition). */
  def drawn(draw: Draw): PassEnd = {
    val steps = math.min(math.ceil(plan.passes * block.rows), Int.MaxValue - 1.0).toInt
    run(shard.sampler.order(draw.of(shard.partition)), steps)
  }

  /** Take `steps` steps on rows in this order. */
  def run(order: RowOrder, steps: Int): PassEnd = {
    val rows = new Array[Int](LocalPass.Ahead)
    var time = if (steps > 0) begin() else 0
    while (time < steps) {
      val count = math.min(rows.length, steps - time)
      var at    = 0
      while (at < count) {
        rows(at) = order.next()
        at += 1
      }
      fetch(rows, count)
      at = 0
      while (at < count) {
        advance(rows(at), time)
        at += 1
        time += 1
      }
    }
    settle(steps)
    PassEnd(point, curvature, gradients)
  }

  /**
   * Read from each of the rows that come next. They lie anywhere in memory: to wait for one after the other is a good
   * part of what a step does, and they can be waited for at once.
   */
  private def fetch(rows: Array[Int], count: Int): Unit = {
    var total = 0.0
    var at    = 0
    while (at < count) {
      val row   = rows(at)
      val first = block.start(row)
      if (first < block.index.length) total += block.index(first) + block.value(first)
      total += (block.label(row) + block.weight(row)) + (record(row * outputs) + shard.sampler.chanceOf(row))
      at += 1
    }
    fetched = total // else the compiler leaves the reads out
  }

  /** Take the steps that need no row, and say how many. */
  protected def begin(): Int = 0

  /** The step from `time` to `time` + 1, on this row. */
  protected def advance(row: Int, time: Int): Unit

  /** Bring every coordinate up to `time`. */
  protected def settle(time: Int): Unit

  /** The steps of a feature's coefficients. */
  protected final def proxOf(feature: Int): LaggedProx = lagged(problem.preconditioner.kindOf(feature))

  /** A row's margins at a point, and its slope there. */
  protected final def slopeAt(row: Int, x: Array[Double], margins: Array[Double], into: Array[Double]): Unit = {
    shape.margins(block, row, x, margins)
    problem.loss.slope(margins, block.label(row), into)
  }

  /** What the row's change is multiplied with. */
  protected final def scaleOf(row: Int): Double =
    if (plan.solver.reweighs) shard.share(row) / shard.sampler.chanceOf(row) else shard.share(row)

  protected final def interceptStep(at: Int, slopeThere: Double): Unit =
    point(at) = (point(at) - step * slopeThere) * interceptShrink

  /**
   * The line search of Schmidt et al. 2017, section 4.6, which for a row of a linear model is one along its slope:
   * loss(z - s / c) <= loss(z) - |s|^2 / 2c holds for any c that is not below the curvature. Where it does not, c is
   * doubled; the step changes, so that lags must be settled first.
   */
  protected final def search(row: Int, time: Int): Unit =
    if (plan.search && curvature < problem.loss.curvature) {
      val label = block.label(row)
      var size  = 0.0
      for (k <- 0 until outputs) size += slope(k) * slope(k)
      val before = problem.loss.value(margin, label)
      val held   = curvature
      while (curvature < problem.loss.curvature && size > LocalPass.Flat && tooSmall(label, before, size))
        curvature = math.min(2 * curvature, problem.loss.curvature)
      if (curvature != held) {
        settle(time)
        setStep()
      }
    }

  private def tooSmall(label: Double, before: Double, size: Double): Boolean = {
    for (k <- 0 until outputs) trial(k) = margin(k) - slope(k) / curvature
    problem.loss.value(trial, label) > before - size / (2 * curvature)
  }

  private def setStep(): Unit = {
    step = plan.solver.stepFactor / math.max(curvature * shard.largest, Double.MinPositiveValue)
    step = math.min(step, LocalPass.LongestStep)
    for (kind <- lagged.indices) {
      val penalty = problem.penalties(kind)
      lagged(kind) = new LaggedProx(step, penalty.l1, penalty.l2 + plan.pull)
    }
    interceptShrink = 1 / (1 + step * plan.pull)
  }
}

object LocalPass {

  /** Rows that are drawn, and fetched, at once: many together, and what they hold stays in the cache until their steps. */
  private val Ahead = 32

  /** Squared slopes below it say nothing of the curvature. */
  private val Flat = 1e-8

  /** Of rows without features. */
  private val LongestStep = 1e12

  /** a - by b. */
  private def less(a: Array[Double], by: Double, b: Array[Double]): Array[Double] = {
    val into = new Array[Double](a.length)
    for (at <- into.indices) into(at) = a(at) - by * b(at)
    into
  }

  /** The pass of a solver. */
  def of(
      problem: Problem,
      shard: Shard,
      plan: PassPlan,
      start: Array[Double],
      gradient: Array[Double],
      table: Array[Double]
  ): LocalPass =
    if (plan.solver == Solver.Sarah) new RecursivePass(problem, shard, plan, start, gradient, table)
    else new TablePass(problem, shard, plan, start, gradient, table)
}
