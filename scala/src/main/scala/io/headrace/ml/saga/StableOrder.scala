package io.headrace.ml.saga

import java.util.Arrays

/** A stable sort by keys that are hashes, in numbers alone: objects to compare cost more than the rest of a block. */
object StableOrder {

  /**
   * Places of keys in ascending order of keys, those of equal keys as they were.
   *
   * A key's upper half and its place make one number that is sorted; of hashes few others have the same upper half, and
   * these few are sorted by insertion.
   */
  def by(keys: Array[Long]): Array[Int] = {
    val both  = new Array[Long](keys.length)
    var place = 0
    while (place < keys.length) {
      both(place) = (keys(place) & Upper) | place
      place += 1
    }
    Arrays.sort(both)
    val order = new Array[Int](keys.length)
    var at    = 0
    while (at < both.length) {
      val next = both(at).toInt
      var to   = at
      while (to > 0 && keys(order(to - 1)) > keys(next)) {
        order(to) = order(to - 1)
        to -= 1
      }
      order(to) = next
      at += 1
    }
    order
  }

  private val Upper = 0xffffffff00000000L
}
