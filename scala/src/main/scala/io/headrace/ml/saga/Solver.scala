package io.headrace.ml.saga

/**
 * How a local pass estimates the gradient from one row. With s the row's new slope, s' the one on record, a its share
 * of the partition's mean, p its chance, and g the mean gradient of all slopes on record:
 *
 * {{{
 * sag    d = a (s - s') x_i + g       the record is renewed   Schmidt, Le Roux, Bach 2017    step 1 / L
 * saga   d = a/p (s - s') x_i + g     the record is renewed   Defazio et al. 2014            step 1 / 3L
 * svrg   d = a/p (s - s') x_i + g     the record stays        Johnson, Zhang 2013; Xiao, Zhang 2014   step 1 / 3L
 * scsg   as svrg, but the record is of a batch that grows and the length of a pass is geometric: Lei, Jordan 2017
 * sarah  d = a/p (s - s'') x_i + d    s'' at the point before Nguyen et al. 2017             step 1 / 2L
 * }}}
 *
 * L is the loss's curvature times [[Shard.largest]]. All but sag are right in the mean, sarah over a pass; sag has no
 * theorem with a penalty that is not smooth: rounds are safe with any of them ([[Rounds]]). Its mean forgets where it
 * began within a pass or two only, and overshoots meanwhile: it takes longer passes. What sarah once estimated wrongly
 * stays in d to the end, and shifts features that are rare by more the longer a pass is, so that its rounds gain as much
 * by short ones: 100,000 rows of 10,000 features took 67, 67, 65 and 65 rounds with .1, .3, 1 and 2 passes each.
 *
 * @param reweighs
 *   whether the change is divided by the row's chance
 * @param renews
 *   whether a row's record and the mean follow its slope
 * @param stepFactor
 *   step times L
 * @param passes
 *   steps of a round by the partition's rows, at least, where the user sets none
 */
sealed abstract class Solver(
    val reweighs: Boolean,
    val renews: Boolean,
    val stepFactor: Double,
    val passes: Double = 2.0
) extends Serializable {

  /** Passes of a round where partitions have so many rows: more of small ones, whose rounds are mostly overhead. */
  def passesOf(rows: Long): Double = math.max(passes, math.min(Solver.MostPasses, Solver.FewSteps / rows))
}

object Solver {

  /** Steps of a pass that cost less than its round does. */
  private val FewSteps   = 16384.0
  private val MostPasses = 8.0

  case object Sag   extends Solver(reweighs = false, renews = true, stepFactor = 1.0, passes = 8.0)
  case object Saga  extends Solver(reweighs = true, renews = true, stepFactor = 1.0 / 3)
  case object Svrg  extends Solver(reweighs = true, renews = false, stepFactor = 1.0 / 3)
  case object Scsg  extends Solver(reweighs = true, renews = false, stepFactor = 1.0 / 3)
  case object Sarah extends Solver(reweighs = true, renews = false, stepFactor = 1.0 / 2, passes = 0.5)

  /** By the name that the Param `solver` takes. */
  val byName: Map[String, Solver] = Map("sag" -> Sag, "saga" -> Saga, "svrg" -> Svrg, "scsg" -> Scsg, "sarah" -> Sarah)
}
