package io.headrace.warc

import java.io.ByteArrayOutputStream
import java.nio.charset.StandardCharsets.ISO_8859_1
import java.util.zip.GZIPOutputStream

/** WARC and ARC bytes made for tests, and what a reader finds in bytes. */
object Generated {

  def ascii(text: String): Array[Byte] = text.getBytes(ISO_8859_1)

  def gzip(bytes: Array[Byte]): Array[Byte] = {
    val out  = new ByteArrayOutputStream
    val gzip = new GZIPOutputStream(out)
    gzip.write(bytes)
    gzip.close()
    out.toByteArray
  }

  /** A record of that type, its block and further header lines. */
  def record(kind: String, block: Array[Byte], lines: String*): Array[Byte] = {
    val head = Seq(
      "WARC/1.0",
      s"WARC-Type: $kind",
      "WARC-Date: 2020-08-08T16:54:17Z",
      "WARC-Record-ID: <urn:uuid:1>",
      "WARC-Target-URI: http://example.com/"
    ) ++ lines :+ s"Content-Length: ${block.length}"
    ascii(head.mkString("", "\r\n", "\r\n\r\n")) ++ block ++ ascii("\r\n\r\n")
  }

  /** Records of random length, some longer than a reader's first buffers. */
  def records(count: Int, seed: Int, longest: Int): Seq[Array[Byte]] = {
    val random = new scala.util.Random(seed)
    (0 until count).map { i =>
      val body = Array.fill(random.nextInt(longest))(if (i % 3 == 0) random.nextInt().toByte else ('a' + i % 26).toByte)
      val block = ascii("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n") ++ body
      record("response", block, "Content-Type: application/http; msgtype=response", s"X-Number: $i")
    }
  }

  /** What became of a record or of bad bytes. */
  final case class Found(offset: Long, length: Long, inside: Long, kind: String, block: String, error: String)

  def read(
      bytes: Array[Byte],
      limits: Limits = Limits(),
      range: Range = Range(0, Long.MaxValue),
      wanted: Boolean = true,
      name: String = "memory"
  ): Seq[Found] = {
    val reader = new WarcReader(name, new ArrayBytes(bytes), limits, range, _ => wanted)
    try Iterator.continually(reader).takeWhile(_.next()).map(found).toList
    finally reader.close()
  }

  /** Reads the whole, proves that every byte is accounted for once, and gives what was found. */
  def readAll(bytes: Array[Byte], limits: Limits = Limits(), name: String = "memory"): Seq[Found] = {
    val all  = read(bytes, limits, name = name)
    val ends = all.scanLeft(0L)((at, one) => { assert(one.offset == at, s"$one should begin at $at"); at + one.length })
    assert(ends.last == bytes.length, s"${ends.last} of ${bytes.length} bytes are accounted for: ${all.takeRight(2)}")
    all
  }

  private def found(reader: WarcReader): Found = {
    val record = reader.record
    val block  =
      if (record.kept) new String(record.buffer, record.blockStart, record.blockEnd - record.blockStart, ISO_8859_1)
      else null
    Found(
      record.offset,
      record.length,
      record.memberOffset,
      Option(record.recordType).fold(null: String)(_.toString),
      block,
      record.error
    )
  }
}
