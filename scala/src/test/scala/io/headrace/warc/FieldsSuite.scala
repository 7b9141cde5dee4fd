package io.headrace.warc

import java.io.ByteArrayOutputStream
import java.util.zip.{Deflater, DeflaterOutputStream}

import com.github.luben.zstd.Zstd
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.sources._
import org.apache.spark.sql.types.StructType
import org.scalatest.funsuite.AnyFunSuite

/** Headers, dates, digests, bodies and filters, each by hand. */
class FieldsSuite extends AnyFunSuite {
  import Generated._

  private def head(text: String): Seq[(String, String)] = {
    val lines = new Head
    val bytes = ascii("skipped") ++ text.getBytes("UTF-8")
    lines.read(bytes, 3, 7, bytes.length)
    (0 until lines.count).map(i => lines.name(i).toString -> lines.value(i).toString)
  }

  test("header lines: folded, LF only, without a colon, white space, UTF-8") {
    assert(head("A: b\r\nC:d \r\n\r\n") == Seq("A" -> "b", "C" -> "d"))
    assert(head("A: b\n c\n\td\nE:\n") == Seq("A" -> "b c d", "E" -> ""))
    assert(head("no colon\nA : \u00fc:x\n") == Seq("" -> "no colon", "A" -> "\u00fc:x"))
    assert(head((0 until 100).map(i => s"N$i: v\r\n").mkString).size == 100)
  }

  test("header lines as an array of Spark's: any length, any text, one array after the other") {
    val maker = new HeaderArray
    val texts =
      Seq("", "A: b\r\n", (0 until 100).map(i => s"${"n" * i}: ${"v" * (100 - i)}\n").mkString, "B: \u00fc\u20ac\n c\n")
    for (text <- texts) {
      val lines = new Head
      val bytes = text.getBytes("UTF-8")
      lines.read(bytes, 0, 0, bytes.length)
      val array = maker.of(lines)
      val found = (0 until array.numElements).map { i =>
        val row = array.getStruct(i, 2)
        row.getUTF8String(0).toString -> row.getUTF8String(1).toString
      }
      assert(found == head(text), text)
    }
    val western = new Head
    western.read(Array('a', ':', 0x80.toByte), 0, 0, 3)
    assert(maker.of(western).getStruct(0, 2).getUTF8String(1).toString == "\u20ac")
  }

  private def rows(columns: String*): Record => InternalRow = {
    val options = WarcOptions(body = true)
    val maker   = new Rows("file", StructType(Schema.of(options).filter(f => columns.contains(f.name))), options)
    maker.row
  }

  test("a body without codings is the payload itself, another is not") {
    def check(lines: String, content: Array[Byte])(holds: (Array[Byte], Array[Byte]) => Boolean): Unit = {
      val block  = ascii(s"HTTP/1.1 200 OK\r\n$lines\r\n") ++ content
      val reader = new WarcReader("file", new ArrayBytes(record("response", block, "Content-Type: application/http")))
      assert(reader.next())
      val row = rows("payload", "body")(reader.record)
      assert(holds(row.getBinary(0), row.getBinary(1)), lines)
    }
    val page = ascii("a page")
    check("A: b\r\n", page)((payload, body) => (payload eq body) && payload.sameElements(page))
    check("Transfer-Encoding: chunked\r\n", ascii("6\r\na page\r\n0\r\n\r\n"))((payload, body) =>
      payload.length > page.length && body.sameElements(page)
    )
  }

  test("block and payload with the same digest: both hold, or neither") {
    def ok(digest: String): Boolean = {
      val lines  = Seq(s"WARC-Block-Digest: $digest", s"WARC-Payload-Digest: $digest")
      val reader = new WarcReader("file", new ArrayBytes(record("resource", Array.emptyByteArray, lines: _*)))
      assert(reader.next())
      rows("digest_ok")(reader.record).getBoolean(0)
    }
    assert(ok("sha1:3I42H3S6NNFQ2MSVX7XZKYAYSCX5QBYJ") && !ok("sha1:3I42H3S6NNFQ2MSVX7XZKYAYSCX5QBYA"))
  }

  test("text that is not UTF-8 is Windows-1252") {
    assert(Text(Array(0x80.toByte, 'a'), 0, 2).toString == "\u20aca")
    assert(
      Text.of("<http://a/>").bare.toString == "http://a/" && Text.of("12").number == 12 && Text.of("1x").number == -1
    )
  }

  test("dates of WARC 1.0, 1.1 and ARC; others are none") {
    val known = Map(
      "2020-08-08T16:54:17Z"           -> 1596905657000000L,
      "2020-08-08T16:54:17.123456789Z" -> 1596905657123456L,
      "2020-08-08T18:54:17+02:00"      -> 1596905657000000L,
      "2020-08-08T16:54Z"              -> 1596905640000000L,
      "2020-08-08"                     -> 1596844800000000L,
      "1970"                           -> 0L
    )
    for ((text, micros) <- known) assert(Dates.warc(Text.of(text)).contains(micros), text)
    for (
      text <- Seq(
        "2008-10-294T05:21:46-0700",
        "2020-13-01T00:00:00Z",
        "2020-02-30T00:00:00Z",
        "x020-08-08T16:54:17Z",
        ""
      )
    )
      assert(Dates.warc(Text.of(text)).isEmpty, text)
    assert(Dates.arc("20140216050221").contains(1392526941000000L) && Dates.arc("20149916050221").isEmpty)
  }

  test("digests in base32, hexadecimal and base64, of four algorithms") {
    val digests = new Digests
    val empty   = Array.emptyByteArray
    val good    = Seq(
      "sha1:3I42H3S6NNFQ2MSVX7XZKYAYSCX5QBYJ",
      "sha1:3i42h3s6nnfq2msvx7xzkyayscx5qbyj",
      "SHA-1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
      "sha1:2jmj7l5rSw0yVb/vlWAYkK/YBwk=",
      "sha1:2jmj7l5rSw0yVb_vlWAYkK_YBwk",
      "md5:d41d8cd98f00b204e9800998ecf8427e",
      "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
      "sha-256:4OYMIQUY7QOBJGX36TEJS35ZEQT24QPEMSNZGTFESWMRW6CSXBKQ===="
    )
    for (text <- good) assert(digests.holds(Text.of(text), empty, 0, 0).contains(true), text)
    for (text <- Seq("sha1:1112H3S6NNFQ2MSVX7XZKYAYSCX5QBYJ", "sha1:", "md5:zz", good.head.replace('3', '4')))
      assert(digests.holds(Text.of(text), empty, 0, 0).contains(false), text)
    for (text <- Seq("crc32:00000000", "da39a3ee", "")) assert(digests.holds(Text.of(text), empty, 0, 0).isEmpty, text)
  }

  private def body(headers: String, content: Array[Byte], limits: Limits = Limits()): Body = {
    val bytes = ascii(s"HTTP/1.1 200 OK\r\n$headers\r\n\r\n") ++ content
    val http  = new Http
    http.read(bytes, 0, bytes.length, 1 << 16)
    assert(http.status == 200)
    Body.of(http, bytes, http.bodyStart, bytes.length, limits)
  }

  private def deflate(bytes: Array[Byte], raw: Boolean): Array[Byte] = {
    val out    = new ByteArrayOutputStream
    val stream = new DeflaterOutputStream(out, new Deflater(6, raw))
    stream.write(bytes)
    stream.close()
    out.toByteArray
  }

  test("bodies without their codings") {
    val text                                                 = ascii("a page " * 100)
    val gzip                                                 = Generated.gzip(text)
    def same(headers: String, content: Array[Byte]): Boolean = {
      val found = body(headers, content)
      found.error == null && found.bytes.sameElements(text)
    }
    assert(same("A: b", text) && same("Content-Encoding: identity", text))
    assert(same("Content-Encoding: gzip", gzip) && same("Content-Encoding: zstd", Zstd.compress(text)))
    assert(same("Content-Encoding: deflate", deflate(text, raw = false)))
    assert(same("content-encoding: deflate", deflate(text, raw = true)))
    assert(same("Content-Encoding: gzip, gzip", Generated.gzip(gzip)))
    val chunks = ascii("2bc\r\n") ++ text ++ ascii("\r\n0\r\n\r\n")
    assert(same("Transfer-Encoding: chunked", chunks) && same("Transfer-Encoding: chunked", text))
    val packed = ascii(s"${gzip.length.toHexString};x=y\r\n") ++ gzip ++ ascii("\r\n0\r\n\r\n")
    assert(same("Transfer-Encoding: chunked\r\nContent-Encoding: gzip", packed))
    assert(same("Content-Encoding: gzip", text), "a coding that was taken off before")
    assert(same("Content-Encoding: deflate", text), "a coding that was taken off before")
  }

  test("bodies that are cut, damaged, too large or of unknown coding") {
    val text = ascii("a page " * 100)
    val cut  = body("Content-Encoding: gzip", Generated.gzip(text).dropRight(12))
    assert(cut.error.contains("cut") && text.startsWith(cut.bytes))
    assert(body("Content-Encoding: br", text).error.contains("'br'"))
    val bomb = Generated.gzip(new Array[Byte](20 << 20))
    assert(body("Content-Encoding: gzip", bomb).error.contains("maxRatio"))
    assert(
      body("Content-Encoding: gzip", Generated.gzip(new Array[Byte](5000)), Limits(maxRecordBytes = 1000)).error != null
    )
  }

  test("filters follow SQL's logic of three values") {
    val is     = EqualTo("type", "response")
    val wanted = TypeFilter(Seq(Or(is, IsNotNull("error"))))
    assert(wanted.accepts("response", isIntact = true) && wanted.accepts(null, isIntact = false))
    assert(!wanted.accepts("request", isIntact = true) && !wanted.accepts(null, isIntact = true))
    assert(
      !TypeFilter(Seq(Not(is))).accepts(null, isIntact = true) && TypeFilter(Seq(Not(is))).accepts("x", isIntact = true)
    )
    assert(TypeFilter(Seq(In("type", Array("a", "b")))).accepts("b", isIntact = true))
    assert(!TypeFilter(Seq(Not(In("type", Array("a", null))))).accepts("b", isIntact = true))
    assert(TypeFilter(Seq(EqualNullSafe("type", null))).accepts(null, isIntact = true))
    assert(TypeFilter.isOurs(And(is, IsNull("error"))) && !TypeFilter.isOurs(Or(is, EqualTo("file", "x"))))
  }
}
