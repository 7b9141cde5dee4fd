package io.headrace.ml

import scala.util.Random

import org.scalatest.funsuite.AnyFunSuite

class LongIndexSuite extends AnyFunSuite {
  test("every value has its id, and no other value has one") {
    val random = new Random(1)
    for (size <- Seq(0, 1, 2, 3, 7, 8, 9, 1000, 65537)) {
      val drawn  = Seq.fill(size)(if (random.nextBoolean()) random.nextLong() else random.nextInt(size * 2).toLong)
      val values = (drawn ++ Seq(0L, Long.MinValue, Long.MaxValue).take(size)).distinct.toArray
      val ids    = values.indices.map(_ + 3).toArray
      val index  = LongIndex.of(values, ids)
      assert(index.size == values.length)
      assert(values.map(index.idOf(_, 2)).sameElements(ids))
      assert(index.entries.toMap == values.zip(ids).toMap)
      val held = values.toSet
      for (_ <- 1 to 1000; value = random.nextLong() if !held(value)) assert(index.idOf(value, 2) == 2)
    }
  }

  test("values that differ in high or in low bits only are spread over buckets") {
    for (step <- Seq(1L, 1L << 32, 1L << 40)) {
      val values = Array.tabulate(1 << 14)(_ * step)
      val index  = LongIndex.of(values, values.indices.toArray)
      assert(values.indices.forall(at => index.idOf(values(at), -1) == at))
    }
  }
}
