package io.headrace.warc

import java.io.ByteArrayOutputStream
import java.util.zip.CRC32

import com.github.luben.zstd.Zstd
import net.jpountz.lz4.LZ4FrameOutputStream
import net.jpountz.lz4.LZ4FrameOutputStream.{BLOCKSIZE, FLG}
import org.scalatest.funsuite.AnyFunSuite

/** Every way to store records gives the same records; what a format allows is read, what it forbids is told. */
class FormatsSuite extends AnyFunSuite {
  import Generated._

  private val few    = records(5, seed = 2, longest = 200_000)
  private val blocks = readAll(few.flatten.toArray).map(_.block)

  private def lz4(bytes: Array[Byte], flags: FLG.Bits*): Array[Byte] = {
    val out   = new ByteArrayOutputStream
    val frame = new LZ4FrameOutputStream(out, BLOCKSIZE.SIZE_64KB, -1, FLG.Bits.BLOCK_INDEPENDENCE +: flags: _*)
    frame.write(bytes)
    frame.close()
    out.toByteArray
  }

  /** A gzip member with every optional header field. */
  private def decorated(bytes: Array[Byte]): Array[Byte] = {
    val plain = gzip(bytes)
    val extra = Array.fill[Byte](300)(7)
    Array[Byte](0x1f, 0x8b.toByte, 8, 31, 0, 0, 0, 0, 0, 3) ++ Array[Byte](300.toByte, 1) ++ extra ++
      ascii("name.warc\u0000a comment\u0000") ++ Array[Byte](1, 2) ++ plain.drop(10)
  }

  test("zstd, lz4 and gzip frames, one a record and one for all") {
    val packers = Seq[Array[Byte] => Array[Byte]](
      gzip,
      decorated,
      Zstd.compress(_, 3),
      lz4(_),
      lz4(_, FLG.Bits.CONTENT_CHECKSUM, FLG.Bits.BLOCK_CHECKSUM)
    )
    for (pack <- packers) {
      assert(readAll(few.flatMap(pack(_)).toArray).map(_.block) == blocks)
      assert(readAll(pack(few.flatten.toArray)).map(_.block) == blocks)
    }
  }

  test("frames that can be skipped belong to the record behind them") {
    val skipped = Array[Byte](0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3)
    for (pack <- Seq[Array[Byte] => Array[Byte]](Zstd.compress(_, 3), lz4(_)))
      assert(readAll(skipped ++ few.flatMap(pack(_))).map(_.block) == blocks)
  }

  test("zstd and lz4 files cut anywhere, or with a byte changed, keep the other records") {
    val small = records(4, seed = 3, longest = 200)
    val want  = readAll(small.flatten.toArray).map(_.block)
    val check = Seq(FLG.Bits.CONTENT_CHECKSUM)
    for (pack <- Seq[Array[Byte] => Array[Byte]](Zstd.compress(_, 3), lz4(_, check: _*))) {
      val bytes = small.flatMap(pack(_)).toArray
      for (cut <- 1 until bytes.length) {
        val found = readAll(bytes.take(cut), name = "x.zst").filter(_.error == null).map(_.block)
        assert(found == want.take(found.size))
      }
      for (at <- bytes.indices) {
        val changed = bytes.updated(at, (bytes(at) ^ 0x10).toByte)
        val found   = readAll(changed, name = if (bytes(0) == 4) "x.lz4" else "x.zst").filter(_.error == null)
        assert(found.size >= 2, s"byte $at")
      }
    }
  }

  test("a gzip member whose checksum or length is wrong is bad, its neighbours are not") {
    val members = few.map(gzip)
    for (at <- Seq(8, 4)) {
      val bad   = members(2).updated(members(2).length - at, (members(2)(members(2).length - at) ^ 1).toByte)
      val found = readAll(members.updated(2, bad).flatten.toArray)
      assert(found.map(_.length) == members.map(_.length.toLong) && found.count(_.error != null) == 1)
      assert(found(2).error.contains(if (at == 8) "CRC" else "length"))
    }
  }

  test("padding, foreign bytes and empty members between records are told") {
    val members = few.map(gzip)
    for (foreign <- Seq(new Array[Byte](100), ascii("no archive"), gzip(Array.emptyByteArray), gzip(ascii("text")))) {
      val found = readAll(members.head ++ foreign ++ members(1))
      assert(found.map(_.error == null) == Seq(true, false, true) && found(1).length == foreign.length)
    }
  }

  test("empty files have no records") {
    assert(readAll(Array.emptyByteArray).isEmpty && readAll(Array.emptyByteArray, name = "x.gz").isEmpty)
  }

  test("the lz4 block decoder refers to earlier blocks and refuses what leads outside") {
    val into = ascii("abcdefgh") ++ new Array[Byte](16)
    val made = Array[Byte](0x04, 8, 0, 0x10, 'x')
    assert(Lz4Block.decode(made, 0, made.length, into, 8, 24) == 17)
    assert(new String(into, 8, 9, "ISO-8859-1") == "abcdefghx")
    assert(Lz4Block.decode(Array[Byte](0x04, 9, 0), 0, 3, into, 8, 24) == -1)
    assert(Lz4Block.decode(Array[Byte](0x0f, 1, 0, -1, -1, 9), 0, 6, into, 8, 24) == -1)
    assert(Lz4Block.decode(Array[Byte](0xf0.toByte, -1), 0, 2, into, 8, 24) == -1)
  }

  test("ARC records, version 1 and 2, with spaces in URLs; a bad length costs its record") {
    val first = "filedesc://a.arc 127.0.0.1 20140216050221 text/plain 10\n1 0 Tests\n\n"
    val page  = "http://example.com/a b 93.184.216.119 20140216050221 text/html 23\nHTTP/1.1 200 OK\n\n<p>...\n"
    val two   = "http://example.com/ 93.184.216.119 20140216050221 text/html 200 - - 0 a.arc 2\nhi\n"
    val bad   = "http://example.com/ 93.184.216.119 20140216050221 text/html abc\n\n"
    val found = readAll(ascii(first + page + bad + two))
    assert(found.map(_.kind) == Seq("warcinfo", "response", null, "resource"))
    assert(found.map(_.error == null) == Seq(true, true, false, true))
    assert(found.map(_.block) == Seq("1 0 Tests\n", "HTTP/1.1 200 OK\n\n<p>...", null, "hi"))
    assert(readAll(gzip(ascii(first)) ++ gzip(ascii(page))).map(_.kind) == Seq("warcinfo", "response"))
  }

  test("the reference CRC of the tests is zlib's") {
    val crc = new CRC32
    crc.update(few.head)
    val member = gzip(few.head)
    val told   = (1 to 4).foldLeft(0L)((sum, i) => sum << 8 | (member(member.length - 4 - i) & 0xff))
    assert(told == crc.getValue)
  }
}
