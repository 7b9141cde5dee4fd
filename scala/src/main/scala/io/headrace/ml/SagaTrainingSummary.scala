package io.headrace.ml

import com.fasterxml.jackson.databind.ObjectMapper

import io.headrace.ml.saga.{Outcome, Round}

/**
 * How a fit went, and how far from the minimum it can be at most.
 *
 * @param warnings
 *   constant features, rare classes
 */
final class SagaTrainingSummary private[ml] (
    outcome: Outcome,
    val warnings: Seq[String],
    val numRows: Long,
    val tol: Double
) extends Serializable {

  /** The rounds, with the point that it began from as the first. */
  def rounds: Seq[Round] = outcome.rounds

  /** The objective by round. */
  def objectiveHistory: Array[Double] = rounds.map(_.objective).toArray

  /** Where it ended. */
  def objective: Double = rounds.last.objective

  /** A lower bound of the minimum; -infinity where there is none (no penalty). */
  def bound: Double = rounds.last.bound

  /** (objective - bound) / |objective|: the relative distance from the minimum is not larger. */
  def relativeGap: Double = if (objective == bound) 0.0 else (objective - bound) / math.abs(objective)

  /** By each round, what its objective was above the last bound: a bound of its distance from the minimum. */
  def gapHistory: Array[Double] = objectiveHistory.map(_ - bound)

  /** Component gradients by rows. */
  def epochs: Double = rounds.last.epochs

  def totalIterations: Int = rounds.last.number

  def converged: Boolean = outcome.converged

  /** Why it ended: gap, change, rounding or epochs. */
  def ended: String = outcome.ended

  /** One line on how good the result is. */
  def certificate: String = {
    val proof =
      if (bound.isInfinite) "no bound: without penalty, or before a point that has one"
      else f"minimum >= $bound%.12g, relative gap <= $relativeGap%.3g"
    f"objective $objective%.12g, $proof; ended by $ended after $totalIterations%d rounds, $epochs%.1f epochs"
  }

  /** All of it as JSON, for other languages. */
  def json: String = {
    val mapper = new ObjectMapper
    val root   = mapper.createObjectNode
    root.put("certificate", certificate).put("ended", ended).put("converged", converged)
    root.put("objective", objective).put("bound", bound).put("relative_gap", relativeGap)
    root.put("epochs", epochs).put("num_rows", numRows)
    val told = root.putArray("warnings")
    warnings.foreach(told.add(_))
    val list = root.putArray("rounds")
    for (round <- rounds) {
      val one = list.addObject()
      one.put("number", round.number).put("epochs", round.epochs).put("gradients", round.gradients)
      one.put("objective", round.objective).put("gap", round.objective - bound).put("step", round.step)
      one.put("aggregated_bytes", round.traffic.aggregated).put("broadcast_bytes", round.traffic.broadcast)
      one.put("seconds", round.seconds)
    }
    mapper.writeValueAsString(root)
  }
}
