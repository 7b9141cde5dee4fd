package io.headrace.ml.saga

import java.util.SplittableRandom

/**
 * @param tol
 *   of the relative gap, or of the relative change
 * @param byGap
 *   whether the gap decides, where there is one
 * @param maxEpochs
 *   component gradients by rows at which it ends in any case
 * @param passes
 *   steps of a local pass by the partition's rows
 * @param search
 *   whether the curvature is searched for
 */
final case class RoundSettings(
    solver: Solver,
    tol: Double,
    byGap: Boolean,
    maxEpochs: Int,
    passes: Double,
    search: Boolean,
    seed: Long
)

/**
 * A round as it ended.
 *
 * @param gradients
 *   component gradients so far; an evaluation counts as one a row
 * @param objective
 *   P; of a batch where `step` is "batch"
 * @param bound
 *   the best lower bound of min P so far, -infinity where none was asked for yet
 * @param step
 *   how the point was reached: start, batch, extrapolated, pass, part or proximal
 * @param pull
 *   rho of the pass
 * @param traffic
 *   bytes so far
 * @param seconds
 *   since the start
 */
final case class Round(
    number: Int,
    epochs: Double,
    gradients: Long,
    objective: Double,
    bound: Double,
    step: String,
    pull: Double,
    traffic: Traffic,
    seconds: Double
)

/**
 * Where it ended.
 *
 * @param ended
 *   gap, change, rounding (two rounds brought no decrease that numbers can hold, and no proximal step is sure of one) or
 *   epochs
 * @param enough
 *   relative gap up to which an end by rounding is one at the minimum
 */
final case class Outcome(point: Array[Double], rounds: Seq[Round], ended: String, enough: Double) {

  /** Where the penalty feels next to nothing of a feature an end by rounding may be the minimum, but nothing proves it. */
  def converged: Boolean = ended match {
    case "epochs"   => false
    case "rounding" => rounds.last.bound.isInfinite || within
    case _          => true
  }

  private def within: Boolean =
    rounds.last.objective - rounds.last.bound <= enough * math.abs(rounds.last.objective)
}

/**
 * Rounds of local passes over partitions: any of the [[Solver]]s inside, the exact optimum outside.
 *
 * A round starts at a point x with every row's slope there on record in its partition, and the gradient F'(x) over all
 * of them. Every partition takes a pass ([[LocalPass]]) corrected by that gradient, the ends are averaged ([[Whole]]) to
 * T(x), and the next point is
 *
 * {{{
 * x+ = b + k / (k + 3) (b - b of the round before),   b = x + sigma (T(x) - x)
 * }}}
 *
 * where it is evaluated: this renews table and gradient. It is distributed SVRG (De, Goldstein 2016; Konecny et al.
 * 2016, FSVRG) in that passes are anchored at a full gradient, CentralVR in that tables of scalars stay with their partition
 * and follow the pass (sag, saga), and AIDE (Reddi et al. 2016) in that rounds are extrapolated. If x is the minimum no
 * pass moves, whatever partitions hold.
 *
 * '''Convergence.''' Let L = curvature * norm, which bounds the smoothness of F, and
 *
 * {{{
 * D(x) = max_y -<F'(x), y - x> - L/2 |y - x|^2 - R(y) + R(x) >= 0
 * }}}
 *
 * what a proximal step of 1/L is sure to gain. A round's candidates are tried in turn until
 *
 * {{{
 * P(x+) <= P(x) - D(x) / 2:   extrapolated; b; a part of the way to T(x); the proximal step
 * }}}
 *
 * and the last satisfies it always (descent lemma). So P falls in every round, and where P(x) - min P <= L/mu D(x) (the
 * proximal Polyak-Lojasiewicz inequality: Karimi, Nutini, Schmidt 2016; any l2 > 0 gives it on a level set), then by the
 * factor 1 - mu / 2L at least. Convexity alone gives D >= gap^2 / 2 L d^2 on a level set of diameter d (for gaps up to
 * L d^2), so gap = O(1 / rounds). It needs nothing of partitions, steps or solvers: those only decide how much faster
 * than this it is.
 *
 * '''Pace.''' Partitions that are not alike overshoot, each in the directions where it sees too little curvature. Shown
 * by a gain under half of what the gradient promised, it lowers sigma to where a parabola has its minimum; shown by an
 * extrapolation that fails soon after it began, sigma falls too (k begins anew in any case); where a whole pass makes P
 * rise, rho pulls the next ones back towards their start. All come back slowly.
 */
final class Rounds(shards: Shards, settings: RoundSettings, onRound: Round => Unit) {
  private val began     = System.nanoTime()
  private val problem   = shards.problem
  private val bounding  = math.max(problem.loss.curvature * shards.norm, Rounds.Least)
  private val pace      = new Pace(bounding)
  private val lengths   = new SplittableRandom(settings.seed)
  private var curvature = problem.loss.curvature * (if (settings.search) Rounds.FirstGuess else 1.0)
  private var gradients = 0L
  private var bound     = Double.NegativeInfinity
  private var still     = 0
  private var flat      = 0
  private var number    = 0
  private var told      = Vector.empty[Round]

  def run(start: Array[Double]): Outcome = {
    var here  = evaluate(if (settings.solver == Solver.Scsg) grown(start) else start, Batch.Whole)
    var last  = here.point
    var ended = reason(Double.NaN, here)
    note(here, "start")
    while (ended.isEmpty && gradients < settings.maxEpochs.toDouble * shards.rows) {
      number += 1
      val next = round(here, last)
      here.release()
      ended = reason(objective(here), next.anchor)
      here = next.anchor
      last = next.reached
      note(here, next.how)
    }
    val point = finished(here)
    here.release()
    Outcome(point, told, if (ended.isEmpty) "epochs" else ended, enough)
  }

  private def round(here: Anchor, last: Array[Double]): Taken = {
    val end = pass(here, 1.0)
    extrapolated(here, end, last).getOrElse {
      val reached = Rounds.between(here.point, end, pace.sigma)
      val there   = evaluate(reached, Batch.Whole)
      val ratio   = gained(here, there)
      if (falls(here, there)) {
        pace.passed(ratio)
        Taken(there, reached, "pass")
      } else {
        there.release()
        pace.rose(ratio)
        part(here, end).getOrElse(proximal(here))
      }
    }
  }

  private def extrapolated(here: Anchor, end: Array[Double], last: Array[Double]): Option[Taken] =
    if (pace.momentum == 0) None
    else {
      val reached = Rounds.between(here.point, end, pace.sigma)
      val there   = evaluate(Rounds.between(last, reached, 1 + pace.extrapolation), Batch.Whole)
      if (falls(here, there)) {
        pace.extrapolated()
        Some(Taken(there, reached, "extrapolated"))
      } else {
        there.release()
        pace.restart()
        None
      }
    }

  private def part(here: Anchor, end: Array[Double]): Option[Taken] = {
    val reached = Rounds.between(here.point, end, pace.sigma)
    val there   = evaluate(reached, Batch.Whole)
    if (falls(here, there)) Some(Taken(there, reached, "part"))
    else {
      there.release()
      None
    }
  }

  private def proximal(here: Anchor): Taken = {
    val reached = problem.proximalStep(here.point, here.gradient, 1 / bounding)
    Taken(evaluate(reached, Batch.Whole), reached, "proximal")
  }

  /** Where a pass of that share of the usual length ends. */
  private def pass(here: Anchor, share: Double): Array[Double] = {
    val length = if (settings.solver == Solver.Scsg) -math.log(1 - lengths.nextDouble()) else 1.0
    val passes = settings.passes * share * math.min(math.max(length, Rounds.Shortest), Rounds.Longest)
    val plan   = PassPlan(settings.solver, passes, curvature, settings.search, pace.pull)
    val end    = here.pass(plan, Draw(settings.seed, number))
    gradients += end.gradients
    if (settings.search) curvature = end.curvature / 2 // the rule's 2^(-1/n) a step
    end.point
  }

  /** scsg's first rounds: batches of growing size, whose rounds nothing is promised of. */
  private def grown(start: Array[Double]): Array[Double] = {
    var point = start
    var share = math.max(Rounds.FirstBatch, Rounds.FewestRows / shards.rows)
    while (share < 1) {
      number += 1
      val here = evaluate(point, Batch(share, Draw(~settings.seed, number)))
      note(here, "batch")
      point = pass(here, share)
      here.release()
      share *= Rounds.Growth
    }
    point
  }

  private def evaluate(point: Array[Double], batch: Batch): Anchor = {
    val anchor = shards.evaluate(point, batch)
    gradients += anchor.batchRows
    anchor
  }

  private def objective(anchor: Anchor): Double = anchor.loss + problem.penaltyAt(anchor.point)

  private def falls(here: Anchor, there: Anchor): Boolean = objective(there) <= objective(here) - sure(here) / 2

  /** D: what a proximal step is sure to gain. */
  private def sure(here: Anchor): Double = {
    val next = problem.proximalStep(here.point, here.gradient, 1 / bounding)
    promised(here, next) - bounding / 2 * Rounds.squaredDistance(here.point, next)
  }

  /** What the gradient promises of a way, of which convexity lets no way gain more. */
  private def promised(here: Anchor, to: Array[Double]): Double = {
    var along = problem.penaltyAt(here.point) - problem.penaltyAt(to)
    for (at <- to.indices) along -= here.gradient(at) * (to(at) - here.point(at))
    along
  }

  private def gained(here: Anchor, there: Anchor): Double =
    (objective(here) - objective(there)) / promised(here, there.point)

  /** Why to end, or nothing. */
  private def reason(before: Double, now: Anchor): String = {
    val value = objective(now)
    val tol   = settings.tol * math.abs(value)
    still = if (math.abs(before - value) <= tol) still + 1 else 0
    flat = if (before - value <= Rounds.Rounding * math.abs(value)) flat + 1 else 0
    val guess = Certificate.guess(problem, now)
    if (guess <= tol || (guess.isInfinite && math.abs(before - value) <= Rounds.Nearly * tol))
      bound = math.max(bound, Certificate.bound(problem, now))
    val bounded = settings.byGap && !problem.penalty.isNone
    if (bounded && value - bound <= tol) "gap"
    else if (!bounded && still > 1) "change"
    else if (flat > 1 && sure(now) <= Rounds.Rounding * math.abs(value)) "rounding"
    else ""
  }

  /** Without l2 a bound is of first order in the distance: its gap is as the root of what the objective's is. */
  private def enough: Double = {
    val held = math.max(settings.tol, Rounds.Proven)
    if (problem.penalty.l2 > 0) held else math.sqrt(held)
  }

  /** With l1 a proximal step more: an average is seldom exactly zero where it should be, and P does not rise. */
  private def finished(here: Anchor): Array[Double] = {
    if (objective(here) - bound > settings.tol * math.abs(objective(here)))
      bound = math.max(bound, Certificate.bound(problem, here))
    told = told.init :+ told.last.copy(bound = bound)
    if (problem.penalty.l1 > 0) problem.proximalStep(here.point, here.gradient, 1 / bounding) else here.point
  }

  private def note(here: Anchor, how: String): Unit = {
    val seconds = (System.nanoTime() - began) / 1e9
    val epochs  = gradients.toDouble / shards.rows
    told :+= Round(number, epochs, gradients, objective(here), bound, how, pace.pull, shards.traffic, seconds)
    onRound(told.last)
  }
}

/** A candidate that was taken; `reached` is what the next extrapolation starts from. */
private final case class Taken(anchor: Anchor, reached: Array[Double], how: String)

private object Rounds {

  /** Curvature of rows without features: a step of one by it times no gradient is zero, not NaN. */
  private val Least = 1e-300

  /** Of the curvature, where it is searched for. */
  private val FirstGuess = 1.0 / 8

  /** A gain below it times P is lost in the rounding of a sum. */
  private val Rounding = 1e-16

  /** A relative gap that no end by rounding can be asked to be below. */
  private val Proven = 1e-8

  /** Times the tolerance: changes below it are worth a bound that costs two more evaluations. */
  private val Nearly = 10.0

  /** scsg: the first batch's share of rows, its fewest rows, its growth, and limits of a pass's random length. */
  private val FirstBatch = 1.0 / 64
  private val FewestRows = 256.0
  private val Growth     = 4.0
  private val Shortest   = 0.1
  private val Longest    = 5.0

  /** from + by (to - from). */
  private def between(from: Array[Double], to: Array[Double], by: Double): Array[Double] =
    if (by == 1) to else Array.tabulate(to.length)(at => from(at) + by * (to(at) - from(at)))

  private def squaredDistance(a: Array[Double], b: Array[Double]): Double = {
    var total = 0.0
    for (at <- a.indices) total += (a(at) - b(at)) * (a(at) - b(at))
    total
  }
}

/** How far rounds dare go: sigma, the momentum's age k, and rho. See [[Rounds]]. */
private final class Pace(bounding: Double) {
  private var age      = 0
  private var share    = 1.0
  private var strength = 0.0

  def momentum: Int         = age
  def extrapolation: Double = age / (age + 3.0)
  def sigma: Double         = share
  def pull: Double          = strength

  def extrapolated(): Unit = {
    age += 1
    share = math.min(1.0, share * Pace.Recovery)
    relax()
  }

  def passed(ratio: Double): Unit = {
    age += 1
    if (ratio < 0.5) shrink(math.max(0.5, 0.5 / (1 - ratio)))
    relax()
  }

  def restart(): Unit = {
    if (age <= Pace.Early) shrink(Pace.Fall)
    age = 0
  }

  def rose(ratio: Double): Unit = {
    age = 0
    shrink(if (ratio < 0.5) math.max(0.1, 0.5 / (1 - ratio)) else 0.5)
    strength = math.max(2 * strength, Pace.Weakest * bounding)
  }

  private def shrink(by: Double): Unit = share = math.max(Pace.Least, share * by)

  private def relax(): Unit = strength = if (strength < Pace.Weakest * bounding) 0.0 else strength / 2
}

private object Pace {
  private val Recovery = 1.03
  private val Fall     = 0.6
  private val Early    = 5
  private val Least    = 0.05
  private val Weakest  = 1e-4
}
