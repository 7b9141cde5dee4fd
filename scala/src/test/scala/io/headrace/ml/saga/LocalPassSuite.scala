package io.headrace.ml.saga

import scala.util.Random

import org.scalatest.funsuite.AnyFunSuite

class LocalPassSuite extends AnyFunSuite {
  private val count    = 40
  private val features = 9

  private def inOrder(rows: Seq[Int]): RowOrder = {
    val next = rows.iterator
    () => next.next()
  }

  test("sparse lagged steps are the dense rules to 1e-9, for every solver, loss and penalty, fed the same rows") {
    val random = new Random(3)
    for (loss <- GeneratedRows.losses; intercept <- Seq(true, false); preconditioned <- Seq(true, false)) {
      val plain         = GeneratedRows.rows(count, features, GeneratedRows.classesOf(loss), seed = 5)
      val (moved, kind) = GeneratedRows.preconditioned(plain.map(row => row.copy(x = row.x.updated(1, 40 * row.x(1)))))
      assert(kind.powers.length > 2)
      val (rows, precondition) = if (preconditioned) (moved, kind) else (plain, Preconditioner.none)
      val block                = GeneratedRows.block(rows)
      val shape                = Shape(features, loss.outputs, intercept)
      val shard                = Shard.of(0, block, shape)
      val start                = Array.fill(shape.length)(random.nextGaussian() * 0.2)
      val order                = Seq.fill(120)(random.nextInt(count))
      for (penalty <- GeneratedRows.penalties; solver <- Solver.byName.values; pull <- Seq(0.0, 0.3)) {
        val problem  = Problem(loss, penalty, shape, precondition)
        val found    = Evaluation.of(problem, block, start, Array.fill(count)(true))
        val others   = Array.fill(shape.length)(random.nextGaussian() * 0.05) // what other partitions add
        val gradient = Evaluation
          .gradient(shape, block, found.table)
          .map(_ / block.weightSum)
          .zip(others)
          .map(two => two._1 + two._2)
        val plan = PassPlan(solver, 3.0, loss.curvature, search = false, pull)
        val fast = LocalPass.of(problem, shard, plan, start, gradient, found.table).run(inOrder(order), order.length)
        val slow = DensePass.run(problem, rows, shard, plan, start, gradient, order)
        for (at <- slow.indices)
          assert(math.abs(fast.point(at) - slow(at)) < 1e-9, s"$solver $loss $penalty pull $pull at $at")
      }
    }
  }

  test("from the minimum no pass moves") {
    val rows  = GeneratedRows.rows(count, features, 2, seed = 6)
    val block = GeneratedRows.block(rows)
    val shape = Shape(features, 1, intercept = true)
    for (penalty <- Seq(Penalty(0, 0.05), Penalty(0.02, 0.05))) {
      val problem  = Problem(LogisticLoss, penalty, shape)
      val minimum  = Reference.minimum(problem, Seq(block))
      val found    = Evaluation.of(problem, block, minimum, Array.fill(count)(true))
      val gradient = Evaluation.gradient(shape, block, found.table).map(_ / block.weightSum)
      for (solver <- Solver.byName.values) {
        val plan = PassPlan(solver, 5.0, LogisticLoss.curvature, search = false, 0.0)
        val end  =
          LocalPass.of(problem, Shard.of(0, block, shape), plan, minimum, gradient, found.table).drawn(Draw(1, 1))
        for (at <- minimum.indices) assert(math.abs(end.point(at) - minimum(at)) < 1e-9, s"$solver $penalty")
      }
    }
  }

  test("a line search finds a curvature between the smallest and the loss's, and its pass is the same for a seed") {
    val (rows, kind) = GeneratedRows.preconditioned(GeneratedRows.rows(count, features, 2, seed = 7))
    val block        = GeneratedRows.block(rows)
    val shape        = Shape(features, 1, intercept = true)
    val problem      = Problem(LogisticLoss, Penalty(0.001, 0.01), shape, kind)
    val start        = new Array[Double](shape.length)
    val found        = Evaluation.of(problem, block, start, Array.fill(count)(true))
    val slope        = Evaluation.gradient(shape, block, found.table).map(_ / block.weightSum)
    for (solver <- Solver.byName.values) {
      val plan = PassPlan(solver, 4.0, LogisticLoss.curvature / 64, search = true, 0.0)
      def end  = LocalPass.of(problem, Shard.of(0, block, shape), plan, start, slope, found.table).drawn(Draw(2, 1))
      assert(end.curvature > plan.curvature && end.curvature <= LogisticLoss.curvature, s"$solver")
      assert(end.point.sameElements(end.point), s"$solver")
    }
  }

  test("rows are drawn as often as their chance says") {
    val bounds  = Array(0.0, 1.0, 5.0, 0.1, 3.0)
    val sampler = RowSampler.of(bounds)
    val order   = sampler.order(11)
    val draws   = 200000
    val counts  = new Array[Int](bounds.length)
    for (_ <- 1 to draws) counts(order.next()) += 1
    assert(math.abs(bounds.indices.map(sampler.chanceOf).sum - 1) < 1e-12)
    for (row <- bounds.indices) {
      val chance = sampler.chanceOf(row)
      assert(math.abs(counts(row) - draws * chance) < 5 * math.sqrt(draws * chance * (1 - chance)), s"row $row")
    }
  }
}
