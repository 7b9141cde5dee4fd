package io.headrace.ml.saga

import org.scalatest.funsuite.AnyFunSuite

class RoundsSuite extends AnyFunSuite {
  private val count    = 300
  private val features = 12

  private def settings(solver: Solver, tol: Double = 1e-7, search: Boolean = false) =
    RoundSettings(solver, tol, byGap = true, 3000, solver.passes, search, seed = 3)

  private def run(problem: Problem, blocks: Seq[CsrBlock], how: RoundSettings): Outcome = {
    val shards = new LocalShards(blocks, problem)
    new Rounds(shards, how, _ => ()).run(new Array[Double](problem.shape.length))
  }

  for (loss <- GeneratedRows.losses)
    test(
      s"$loss: the minimum at 1, 2, 4, 16 partitions sorted by label, for every solver and penalty, and the bound holds"
    ) {
      val rows  = GeneratedRows.rows(count, features, GeneratedRows.classesOf(loss), seed = 8)
      val shape = Shape(features, loss.outputs, intercept = true)
      for (penalty <- GeneratedRows.penalties.filterNot(_.isNone)) {
        val problem = Problem(loss, penalty, shape)
        val whole   = Seq(GeneratedRows.block(rows))
        val least   = Reference.objective(problem, whole, Reference.minimum(problem, whole))
        for ((solver, at) <- Solver.byName.values.zipWithIndex; parts = Seq(1, 2, 4, 16)(at % 4)) {
          val told = s"$solver $penalty, $parts partitions"
          val tol  = if (penalty.l2 > 0) 1e-7 else 1e-6 // without l2 a bound is as good as the root of the distance
          val out  = run(problem, GeneratedRows.split(rows, parts, sorted = true), settings(solver, tol))
          val last = out.rounds.last
          assert(
            out.ended == "gap",
            s"$told: ended by ${out.ended} after ${last.epochs} epochs, gap ${last.objective - last.bound}"
          )
          assert(last.bound <= least * (1 + 1e-12), told)
          assert(Reference.objective(problem, whole, out.point) <= least * (1 + 1e-7) + 1e-15, told)
        }
      }
    }

  test("the objective falls in every round, whatever is asked of passes") {
    val rows    = GeneratedRows.rows(count, features, 2, seed = 9)
    val problem = Problem(LogisticLoss, Penalty(0.001, 0.001), Shape(features, 1, intercept = true))
    for (passes <- Seq(0.1, 40.0); solver <- Solver.byName.values if solver != Solver.Scsg) {
      val how = settings(solver).copy(passes = passes, maxEpochs = 60)
      val all = run(problem, GeneratedRows.split(rows, 16, sorted = true), how).rounds.map(_.objective)
      assert(all.zip(all.tail).forall { case (before, after) => after <= before }, s"$solver $passes")
    }
  }

  test("without penalty it ends by change; a line search and scsg's batches end where the others do") {
    val rows   = GeneratedRows.rows(count, features, 2, seed = 10)
    val blocks = GeneratedRows.split(rows, 4, sorted = false)
    val free   = Problem(LogisticLoss, Penalty(0, 0), Shape(features, 1, intercept = true))
    val least  = Reference.objective(free, blocks, Reference.minimum(free, blocks))
    for ((solver, search) <- Seq(Solver.Saga -> true, Solver.Scsg -> false, Solver.Sarah -> true)) {
      val out = run(free, blocks, settings(solver, 1e-9, search))
      assert(out.ended == "change" || out.ended == "rounding", s"$solver")
      assert(out.rounds.last.objective <= least * (1 + 1e-6), s"$solver")
      assert(out.rounds.exists(_.step == "batch") == (solver == Solver.Scsg))
    }
  }

  test("features of sizes so unlike that no step moves the small ones end by rounding, and not as converged") {
    val rows = GeneratedRows.rows(count, features, 2, seed = 12).map { row =>
      row.copy(x = row.x.updated(0, 1e9 * (1 + row.x(0) / 10)))
    }
    val problem = Problem(LogisticLoss, Penalty(0, 0.02), Shape(features, 1, intercept = true))
    val out     = run(problem, GeneratedRows.split(rows, 2, sorted = false), settings(Solver.Saga, 1e-6))
    val last    = out.rounds.last
    assert(last.objective - last.bound > 1e-3 * last.objective)
    assert(out.ended == "rounding" && out.rounds.length > 2 && !out.converged)
  }

  test("a preconditioner changes the way and not the minimum, whose bound is the same") {
    val rows = GeneratedRows.rows(count, features, 2, seed = 13).map { row =>
      row.copy(x = row.x.updated(1, 100 * row.x(1)))
    }
    val (moved, kind) = GeneratedRows.preconditioned(rows)
    val shape         = Shape(features, 1, intercept = true)
    val whole         = Seq(GeneratedRows.block(rows))
    for (penalty <- GeneratedRows.penalties.filterNot(_.isNone)) {
      val exact = Problem(LogisticLoss, penalty, shape)
      val out   = run(
        exact.copy(preconditioner = kind),
        GeneratedRows.split(moved, 4, sorted = true),
        settings(Solver.Saga, 1e-6)
      )
      val told = out.rounds.last
      val back =
        Array.tabulate(shape.length)(at => if (at < features) out.point(at) * kind.factor(at) else out.point(at))
      assert(out.ended == "gap" && told.epochs < 500, s"$penalty ${told.epochs}")
      val found = Reference.objective(exact, whole, back)
      assert(math.abs(found - told.objective) <= 1e-6 * found) // with l1 a proximal step comes after the last round
      assert(told.bound <= found && told.bound >= found * (1 - 1e-6), s"$penalty")
    }
  }

  test("powers bring numbers to size one and rare features to the mean feature's part of the rows") {
    val present = Array(1.0, 0.5, 0.5, 0.001, 0.001, 0.0, 1e-9)
    val moment  = Array(1.0, 0.5, 0.5 * 1e8, 0.001, 0.001 * 4, 0.0, 1e300)
    val found   = Preconditioner.of(present, moment)
    val mean    = present.filter(_ > 0).sum / 6
    for (at <- Seq(0, 1, 2, 3, 4)) {
      val ratio = found.factor(at) * found.factor(at) * moment(at) / math.max(present(at), mean)
      assert(ratio >= 0.5 && ratio <= 2.0, s"feature $at")
    }
    assert(found.factor(0) == 1.0 && found.factor(1) == 1.0 && found.factor(5) == 1.0)
    assert(found.factor(6) > 0 && found.factor(6) < 1e-17 && found.powers.toSeq == found.powers.sorted.distinct.toSeq)
  }

  test("rows without features, without an intercept and without a penalty: coefficients are zero") {
    val builder = new CsrBuilder
    for (label <- Seq(0.0, 1.0, 1.0)) builder.row(label, 1.0)
    val problem = Problem(LogisticLoss, Penalty(0, 0), Shape(2, 1, intercept = false))
    val out     = run(problem, Seq(builder.result()), settings(Solver.Saga))
    assert(out.point.toSeq == Seq(0.0, 0.0) && out.converged)
  }

  test("coefficients that are zero at the minimum are exactly zero") {
    val rows    = GeneratedRows.rows(count, features, 2, seed = 11)
    val problem = Problem(LogisticLoss, Penalty(0.05, 0), Shape(features, 1, intercept = true))
    val out     = run(problem, GeneratedRows.split(rows, 4, sorted = true), settings(Solver.Saga))
    val exact   = Reference.minimum(problem, Seq(GeneratedRows.block(rows)))
    val end     = run(problem, GeneratedRows.split(rows, 4, sorted = true), settings(Solver.Saga, tol = 1e-12))
    assert(end.ended == "rounding" && end.converged) // as far as l1 alone lets it prove
    assert(exact.count(_ == 0) > 2)
    assert(out.point.map(_ == 0).sameElements(exact.map(_ == 0)))
  }
}
