package io.headrace.warc

import java.util.zip.{DataFormatException, Deflater, Inflater}

import org.scalatest.funsuite.AnyFunSuite

/** The same bytes as zlib wherever it inflates at all, and it inflates whatever zlib deflates. */
class FastInflateSuite extends AnyFunSuite {
  private val random = new scala.util.Random(3)
  private val fast   = new FastInflate

  private def deflate(bytes: Array[Byte], level: Int, strategy: Int): Array[Byte] = {
    val deflater = new Deflater(level, true)
    deflater.setStrategy(strategy)
    deflater.setInput(bytes)
    deflater.finish()
    val out  = new Array[Byte](bytes.length * 2 + 1000)
    var size = 0
    while (!deflater.finished) size += deflater.deflate(out, size, out.length - size)
    deflater.end()
    out.take(size)
  }

  /** (bytes, input used), None where zlib refuses. */
  private def zlib(packed: Array[Byte], room: Int): Option[(Seq[Byte], Int)] = {
    val inflater = new Inflater(true)
    val out      = new Array[Byte](room)
    inflater.setInput(packed)
    try {
      val size = inflater.inflate(out)
      if (inflater.finished) Some((out.take(size).toSeq, packed.length - inflater.getRemaining)) else None
    } catch { case _: DataFormatException => None }
    finally inflater.end()
  }

  private def ours(packed: Array[Byte], room: Int): Option[(Seq[Byte], Int)] = {
    val out = Array.fill[Byte](room + 40)(7)
    val in  = Array[Byte](1, 2, 3) ++ packed ++ new Array[Byte](FastInflate.SLACK)
    val ok  = fast.inflate(in, 3, 3 + packed.length, out, 10, 10 + room)
    assert(out.take(10).forall(_ == 7) && out.drop(10 + room).forall(_ == 7), "written outside")
    if (ok) Some((out.slice(10, fast.produced).toSeq, fast.consumed - 3)) else None
  }

  private val texts = {
    val words         = Array.fill(500)(random.alphanumeric.take(1 + random.nextInt(9)).mkString)
    def prose(n: Int) = Seq.fill(n)(words((math.abs(random.nextGaussian()) * 80).toInt % 500)).mkString(" ").getBytes
    // Bytes as frequent as these numbers get codes of every length up to 15 bits: subtables.
    val counts    = Seq.iterate((1, 1), 22) { case (a, b) => (b, a + b) }.map(_._1)
    val fibonacci = random.shuffle(counts.indices.flatMap(i => Seq.fill(counts(i))((i * 11).toByte))).toArray
    Seq(
      Array.emptyByteArray,
      Array[Byte](1),
      new Array[Byte](100000),
      Array.fill(70000)(random.nextInt().toByte),
      Array.fill(70000)(math.max(0, random.nextGaussian() * 20).toByte),
      Array.tabulate(50000)(i => (i % 3).toByte),
      Array.tabulate(50000)(i => (i % 7).toByte),
      fibonacci,
      prose(30000),
      prose(50) ++ Array.fill(3000)(random.nextInt().toByte) ++ prose(20000)
    )
  }
  private val streams =
    for {
      text     <- texts
      level    <- Seq(0, 1, 6, 9)
      strategy <- Seq(Deflater.DEFAULT_STRATEGY, Deflater.HUFFMAN_ONLY, Deflater.FILTERED)
    } yield text -> deflate(text, level, strategy)

  test("what zlib deflates is inflated, and its end found") {
    for ((text, packed) <- streams) {
      val found = ours(packed ++ Array[Byte](9, 9, 9, 9, 9, 9, 9, 9), text.length + 400)
      assert(found.contains((text.toSeq, packed.length)))
      assert(ours(packed, text.length + 400).nonEmpty, "without anything behind")
    }
  }

  test("too little input or room is given up") {
    for ((text, packed) <- streams.filter(_._1.nonEmpty)) {
      assert(ours(packed.dropRight(1 + random.nextInt(packed.length)), text.length + 400).isEmpty)
      assert(ours(packed, random.nextInt(text.length)).isEmpty)
    }
  }

  test("damaged streams: never other bytes than zlib's") {
    val small = streams.filter(_._2.length < 60000)
    var good  = 0
    for (round <- 0 until 2000) {
      val (text, packed) = small(round % small.size)
      val bytes          = packed.clone()
      for (_ <- 0 to random.nextInt(3)) {
        val at = if (random.nextBoolean()) random.nextInt(math.min(200, bytes.length)) else random.nextInt(bytes.length)
        bytes(at) = (bytes(at) ^ 1 << random.nextInt(8)).toByte
      }
      val room = 2 * text.length + 400
      ours(bytes, room).foreach { found =>
        good += 1
        assert(zlib(bytes, room).contains(found))
      }
    }
    for (_ <- 0 until 10000) {
      val bytes = Array.fill(1 + random.nextInt(60))(random.nextInt().toByte)
      ours(bytes, 5000).foreach(found => assert(zlib(bytes, 5000).contains(found)))
    }
    assert(good > 100)
  }
}
