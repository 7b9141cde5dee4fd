package io.headrace.warc

import org.scalatest.funsuite.AnyFunSuite

/** Whole and damaged files: every byte accounted for, whole records once. */
class WarcReaderSuite extends AnyFunSuite {
  import Generated._

  private val limits = Limits(maxRecordBytes = 1 << 20, lookback = 0)
  private val few    = records(7, seed = 1, longest = 300)
  private val plain  = few.flatten.toArray
  private val packed = few.map(gzip)
  private val blocks = readAll(plain).map(_.block)

  test("plain and by member give the same records; offsets are those of records and members") {
    val members = readAll(packed.flatten.toArray)
    assert(members.map(_.block) == blocks && blocks.size == 7 && members.forall(_.error == null))
    assert(members.map(_.length) == packed.map(_.length.toLong))
    assert(readAll(plain).map(_.length) == few.map(_.length.toLong))
  }

  test("one member of many records: all are read, each under an offset of its own") {
    val found = readAll(gzip(plain))
    assert(found.map(_.block) == blocks && found.forall(_.error == null))
    assert(found.map(_.inside) == few.scanLeft(0L)(_ + _.length).init)
  }

  test("a file cut anywhere keeps its complete records and tells where it is cut") {
    for (bytes <- Seq(plain, packed.flatten.toArray, gzip(plain)); cut <- 0 until bytes.length) {
      val found = readAll(bytes.take(cut), name = "x.warc.gz")
      val whole = found.filter(_.error == null)
      assert(whole.map(_.block) == blocks.take(whole.size), s"cut at $cut")
      val starts = readAll(bytes).map(_.offset)
      if (!starts.contains(cut.toLong)) assert(found.last.error != null, s"cut at $cut is not told")
      if (bytes eq plain) assert(whole.size >= starts.count(_ <= cut) - 1)
    }
  }

  test("a flipped byte costs at most the member it is in") {
    val bytes = packed.flatten.toArray
    for (at <- bytes.indices; bit <- Seq(0, 3, 7)) {
      val damaged = bytes.clone()
      damaged(at) = (damaged(at) ^ 1 << bit).toByte
      val whole = readAll(damaged, name = "x.warc.gz").filter(_.error == null).map(_.block)
      assert(whole.size >= 6 && whole.forall(blocks.contains), s"byte $at, bit $bit")
      assert(whole.distinct == whole)
    }
  }

  test("ranges of any size give every record once") {
    for (bytes <- Seq(plain, packed.flatten.toArray); size <- 1 to bytes.length) {
      val parts = (0L until bytes.length.toLong by size.toLong).flatMap(at => read(bytes, limits, Range(at, at + size)))
      assert(parts == readAll(bytes, limits), s"ranges of $size bytes")
    }
  }
}
