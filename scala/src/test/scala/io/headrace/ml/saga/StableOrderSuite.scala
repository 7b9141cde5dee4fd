package io.headrace.ml.saga

import scala.util.Random

import org.scalatest.funsuite.AnyFunSuite

class StableOrderSuite extends AnyFunSuite {

  test("places are those of a stable sort, also of keys that are alike in their upper half or whole") {
    val random = new Random(1)
    val kinds  = Seq[() => Long](
      () => random.nextLong(),
      () => random.nextInt(5).toLong - 2,
      () => (random.nextInt(3).toLong - 1) << 32 | random.nextInt(4) << 30
    )
    for (kind <- kinds; count <- Seq(0, 1, 2, 500)) {
      val keys = Array.fill(count)(kind())
      assert(StableOrder.by(keys).toSeq == keys.indices.sortBy(keys(_)))
    }
  }
}
