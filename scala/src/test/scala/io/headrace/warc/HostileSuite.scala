package io.headrace.warc

import org.scalatest.funsuite.AnyFunSuite

/** Bytes made to mislead: nothing is thrown, memory and time stay bounded, every byte is accounted for. */
class HostileSuite extends AnyFunSuite {
  import Generated._

  private val small = Limits(maxRecordBytes = 1 << 20, maxHeaderBytes = 1 << 10, maxRatio = 100)
  private val good  = record("response", ascii("good"))

  private def errors(bytes: Array[Byte], limits: Limits = small, name: String = "x"): Seq[String] =
    readAll(bytes, limits, name).map(_.error)

  test("a member that inflates too far is given up, the next is read") {
    val bomb = gzip(record("response", new Array[Byte](50 << 20)))
    assert(errors(bomb ++ gzip(good)).last == null)
    assert(errors(bomb).head.contains("maxRatio"))
    assert(errors(bomb, small.copy(maxRatio = 2000)).head.contains("over maxRecordBytes"))
  }

  test("a bomb behind a good record in the same member") {
    val found = errors(gzip(good ++ new Array[Byte](50 << 20)) ++ gzip(good))
    assert(found.last == null && found.init.exists(e => e != null && e.contains("maxRatio")))
  }

  test("lengths that are none, negative, absurd, missing, twice") {
    for (length <- Seq("-1", "1e3", "0x10", "99999999999999999999", "", "4 4")) {
      val bytes = ascii(s"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: $length\r\n\r\ngood\r\n\r\n")
      assert(errors(bytes ++ good).map(_ == null) == Seq(false, true), length)
      assert(errors(gzip(bytes) ++ gzip(good)).map(_ == null) == Seq(false, true), length)
    }
    assert(
      errors(ascii("WARC/1.0\r\nWARC-Type: response\r\n\r\ngood\r\n\r\n") ++ good).map(_ == null) == Seq(false, true)
    )
  }

  test("a Content-Length that is too small or too large costs its record") {
    val block = ascii("some text without an empty line")
    for (wrong <- Seq(0, 5, block.length - 1, block.length + 5, block.length + 200, 900 << 10, 2 << 20, Int.MaxValue)) {
      val text =
        new String(record("response", block), "ISO-8859-1").replace(s"Length: ${block.length}", s"Length: $wrong")
      val bytes = ascii(text)
      val plain = errors(bytes ++ good ++ good)
      assert(plain.map(_ == null) == Seq(false, true, true), s"$wrong: $plain")
      assert(errors(gzip(bytes) ++ gzip(good)).map(_ == null) == Seq(false, true), wrong)
      assert(errors(gzip(bytes ++ good ++ good)).last == null || wrong > (1 << 20), wrong)
    }
  }

  test("headers without an end, longer than allowed, of one line of a megabyte") {
    for (
      head <- Seq(
        "WARC/1.0\r\nWARC-Type: response\r\n",
        "WARC/1.0\r\n" + "a: b\r\n" * 1000,
        "WARC/1.0\r\na: " + "b" * 1000000
      )
    ) {
      val found = errors(ascii(head + "\r\n" * 0) ++ ascii("\n") ++ good)
      assert(found.last == null || found.size == 1, head.take(20))
      assert(errors(gzip(ascii(head)) ++ gzip(good)).map(_ == null) == Seq(false, true))
    }
  }

  test("ten thousand beginnings of members and of headers are searched in time that grows with them") {
    val members = Array.fill(10000)(Array[Byte](0x1f, 0x8b.toByte, 8, 8, 0, 0, 0, 0, 0, 3)).flatten
    assert(errors(members ++ gzip(good), name = "x.gz").last == null)
    assert(errors(ascii("WARC/1.0\r\n" * 10000) ++ good).last == null)
    assert(errors(ascii("WARC/1.0\r\na: b\r\n" * 10000) ++ good).last == null)
    assert(errors(ascii("WARC/1.0\r\nWARC-Type: x\r\nContent-Length: 700000\r\n\r\n" * 3000) ++ good).nonEmpty)
    assert(errors(ascii("\r\n" * 100000) ++ good).last == null)
  }

  test("any bytes at all are accounted for") {
    val random = new scala.util.Random(5)
    val whole  = Seq(gzip(good), good, records(3, 7, 300).map(gzip).flatten.toArray)
    for (round <- 0 until 3000) {
      val bytes = whole(round % whole.size).clone()
      for (_ <- 0 to random.nextInt(4)) bytes(random.nextInt(bytes.length)) = random.nextInt().toByte
      val from = random.nextInt(bytes.length)
      val made =
        if (round % 2 == 0) bytes else bytes.take(from) ++ Array.fill(20)(random.nextInt().toByte) ++ bytes.drop(from)
      readAll(made, small, if (round % 3 == 0) "x.gz" else "x")
    }
    for (size <- 0 to 300) readAll(Array.fill(size)(random.nextInt().toByte), small, "x.gz")
  }

  test("an archive inside a record is found by the range that looks back, and told by the one that does not") {
    val inner  = (0 until 40).map(i => gzip(record("response", ascii(s"inner $i")))).flatten.toArray
    val outer  = stored(record("response", inner))
    val bytes  = gzip(good) ++ outer ++ gzip(good)
    val limits = Limits(lookback = outer.length.toLong + 100)
    val whole  = readAll(bytes)
    assert(whole.size == 3)
    for (size <- 100 until bytes.length by 97) {
      val parts = (0 until bytes.length by size).map(at => Range(at.toLong, at.toLong + size))
      assert(parts.flatMap(read(bytes, limits, _)) == whole)
      val blind = parts.flatMap(part => scala.util.Try(read(bytes, Limits(lookback = 0), part)).toOption.toSeq.flatten)
      assert(blind == whole || parts.exists(part => scala.util.Try(read(bytes, Limits(lookback = 0), part)).isFailure))
    }
  }

  /** A member whose bytes are stored, not compressed. */
  private def stored(bytes: Array[Byte]): Array[Byte] = {
    val deflater = new java.util.zip.Deflater(0, true)
    deflater.setInput(bytes)
    deflater.finish()
    val out = new Array[Byte](bytes.length + 1000)
    val n   = deflater.deflate(out)
    gzip(bytes).take(10) ++ out.take(n) ++ gzip(bytes).takeRight(8)
  }
}
