package io.headrace.ml.saga

import scala.util.Random

import org.scalatest.funsuite.AnyFunSuite

class LaggedProxSuite extends AnyFunSuite {
  private def repeated(prox: LaggedProx, x: Double, drift: Double, count: Int): Double =
    (0 until count).foldLeft(x)((at, _) => prox.one(at, drift))

  test("many steps at once are as many steps one by one, also over the sign") {
    val random  = new Random(1)
    var crossed = 0
    for (l1 <- Seq(0.0, 0.03, 1.0); l2 <- Seq(0.0, 1e-12, 1e-3, 0.5, 20.0); _ <- 1 to 100) {
      val prox  = new LaggedProx(0.1, l1, l2)
      val x     = if (random.nextInt(5) == 0) 0.0 else random.nextGaussian() * math.pow(10, random.nextInt(4) - 2.0)
      val drift = random.nextGaussian() * math.pow(10, random.nextInt(4) - 3.0)
      val count = 1 + random.nextInt(if (random.nextInt(10) == 0) 6000 else 60)
      val slow  = repeated(prox, x, drift, count)
      val fast  = prox.many(x, drift, count)
      if (x * slow < 0) crossed += 1
      assert(math.abs(fast - slow) <= 1e-11 * (1 + math.abs(x) + math.abs(slow)), s"$l1 $l2 $x $drift $count")
    }
    assert(crossed > 30)
  }

  test("a step is the proximal operator: nothing near it is better") {
    val random = new Random(2)
    val prox   = new LaggedProx(0.3, 0.7, 0.4)
    for (_ <- 1 to 200) {
      val (x, gradient)   = (random.nextGaussian(), random.nextGaussian() * 3)
      def cost(y: Double) = gradient * y + 0.7 * math.abs(y) + 0.2 * y * y + (y - x) * (y - x) / 0.6
      val found           = prox.one(x, 0.3 * gradient)
      for (by <- Seq(1e-4, -1e-4, 0.1, -0.1)) assert(cost(found) <= cost(found + by))
    }
  }

  test("lags of billions neither overflow nor underflow") {
    for (l2 <- Seq(0.0, 1e-9, 1.0)) {
      val prox = new LaggedProx(1e-3, 1e-3, l2)
      for (x <- Seq(-1e3, 0.0, 1e3); drift <- Seq(-1e-3, 0.0, 1e-3)) {
        val found = prox.many(x, drift, Int.MaxValue)
        assert(!found.isNaN && !found.isInfinite)
      }
    }
  }
}
