package io.headrace.ml.saga

import scala.util.Random

import org.scalatest.funsuite.AnyFunSuite

class LossSuite extends AnyFunSuite {
  private def cases(loss: Loss): Seq[(Array[Double], Double)] = {
    val random = new Random(1)
    Seq.fill(200) {
      val margin = Array.fill(loss.outputs)(random.nextGaussian() * 3)
      val label  =
        if (loss == SquaredLoss) random.nextGaussian() else random.nextInt(GeneratedRows.classesOf(loss)).toDouble
      (margin, label)
    }
  }

  private def slopeOf(loss: Loss, margin: Array[Double], label: Double): Array[Double] = {
    val into = new Array[Double](loss.outputs)
    loss.slope(margin, label, into)
    into
  }

  test("slopes are the derivatives, and no curvature exceeds the loss's") {
    val step = 1e-5
    for (loss <- GeneratedRows.losses; (margin, label) <- cases(loss)) {
      val slope = slopeOf(loss, margin, label)
      for (k <- margin.indices) {
        def moved(by: Double) = margin.updated(k, margin(k) + by)
        val found             = (loss.value(moved(step), label) - loss.value(moved(-step), label)) / (2 * step)
        assert(math.abs(found - slope(k)) < 1e-6 * (1 + math.abs(slope(k))), s"$loss ${margin.toSeq} $label")
        val bend = (slopeOf(loss, moved(step), label)(k) - slopeOf(loss, moved(-step), label)(k)) / (2 * step)
        assert(bend <= loss.curvature * (1 + 1e-6), s"$loss ${margin.toSeq} $label")
      }
    }
  }

  test("value and conjugate add up to margin times slope, and at other slopes to more (Fenchel, Young)") {
    for (loss <- GeneratedRows.losses; (margin, label) <- cases(loss)) {
      def both(slope: Array[Double]) = {
        val along = margin.indices.map(k => margin(k) * slope(k)).sum
        loss.value(margin, label) + loss.conjugate(slope, label) - along
      }
      assert(math.abs(both(slopeOf(loss, margin, label))) < 1e-9, s"$loss ${margin.toSeq} $label")
      val other = slopeOf(loss, margin.map(_ * 0.3 + 0.1), label)
      assert(both(other) > -1e-9, s"$loss ${margin.toSeq} $label")
      val beyond = Array.fill(loss.outputs)(if (label > 0) 2.0 else -2.0) // the slope of no margin
      assert(loss == SquaredLoss || loss.conjugate(beyond, label).isPosInfinity, s"$loss $label")
    }
  }

  test("tilted slopes keep a finite conjugate while |t| < 1, and move by the matrix that is added up") {
    val random = new Random(2)
    for (loss <- GeneratedRows.losses; (margin, label) <- cases(loss)) {
      val t     = Array.fill(loss.outputs)((random.nextDouble() - 0.5) * 0.99)
      val slope = slopeOf(loss, margin, label)
      val rate  = new Array[Double](loss.outputs * loss.outputs)
      loss.tiltRate(slope, label, 1.0, rate, 0)
      val tilted = slope.clone
      loss.tilt(tilted, label, t)
      for (k <- slope.indices) {
        val expected = slope(k) - t.indices.map(m => rate(k * loss.outputs + m) * t(m)).sum
        assert(math.abs(tilted(k) - expected) < 1e-12)
      }
      assert(loss.conjugate(tilted, label) < Double.PositiveInfinity, s"$loss ${margin.toSeq} $label ${t.toSeq}")
    }
  }

  test("margins beyond exp's range have finite losses and slopes, tiny ones with all their digits") {
    for (loss <- GeneratedRows.losses; size <- Seq(1e3, 1e8); label <- Seq(0.0, 1.0)) {
      val margin = Array.tabulate(loss.outputs)(k => if (k == 0) size else -size)
      for (sign <- Seq(1, -1)) {
        val far = margin.map(_ * sign)
        assert(!loss.value(far, label).isNaN && !loss.value(far, label).isInfinite, s"$loss $size $label")
        assert(slopeOf(loss, far, label).forall(each => !each.isNaN && !each.isInfinite), s"$loss $size $label")
      }
    }
    assert(math.abs(slopeOf(LogisticLoss, Array(40.0), 1.0)(0) / -math.exp(-40) - 1) < 1e-12)
    assert(math.abs(slopeOf(SoftmaxLoss(2), Array(-40.0, 0.0), 1.0)(1) / -math.exp(-40) - 1) < 1e-12)
  }
}
