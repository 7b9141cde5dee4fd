package io.headrace.ml

/**
 * Ids of distinct longs in flat arrays: about 15 bytes an entry, nothing boxed, read by any number of threads.
 *
 * Entries lie sorted by bucket of a multiplicative hash, `starts` says where each bucket begins (the layout of a sparse
 * matrix by rows): no slot is empty, so no value is reserved. There are half as many buckets as entries, or as many.
 */
final class LongIndex private (starts: Array[Int], keys: Array[Long], ids: Array[Int]) extends Serializable {
  private val shift = LongIndex.shiftOf(starts.length - 1)

  def size: Int = keys.length

  /** The id of a value, or `other`. */
  def idOf(value: Long, other: Int): Int = {
    val bucket = LongIndex.bucketOf(value, shift)
    var at     = starts(bucket)
    val end    = starts(bucket + 1)
    while (at < end) {
      if (keys(at) == value) return ids(at)
      at += 1
    }
    other
  }

  /** All entries, in no order. */
  def entries: Iterator[(Long, Int)] = keys.iterator.zip(ids.iterator)
}

object LongIndex {
  private val Golden = 0x9e3779b97f4a7c15L // 2^64 over the golden ratio: Fibonacci hashing (Knuth, vol. 3, 6.4)

  private def shiftOf(buckets: Int): Int = 64 - Integer.numberOfTrailingZeros(buckets)

  private def bucketOf(value: Long, shift: Int): Int =
    if (shift == 64) 0 else ((value * Golden) >>> shift).toInt

  /**
   * Build an index.
   *
   * @param values
   *   distinct
   * @param ids
   *   as many
   */
  def of(values: Array[Long], ids: Array[Int]): LongIndex = {
    require(values.length == ids.length, s"${values.length} values, ${ids.length} ids")
    val buckets = math.max(1, Integer.highestOneBit(values.length))
    val shift   = shiftOf(buckets)
    val starts  = new Array[Int](buckets + 1)
    for (value <- values) starts(bucketOf(value, shift) + 1) += 1
    for (bucket <- 1 to buckets) starts(bucket) += starts(bucket - 1)
    val next           = starts.clone
    val (keys, sorted) = (new Array[Long](values.length), new Array[Int](values.length))
    for (at <- values.indices) {
      val bucket = bucketOf(values(at), shift)
      keys(next(bucket)) = values(at)
      sorted(next(bucket)) = ids(at)
      next(bucket) += 1
    }
    new LongIndex(starts, keys, sorted)
  }

  val empty: LongIndex = of(Array.empty, Array.empty)
}
