package io.headrace.criteo

import java.io.{ByteArrayInputStream, ByteArrayOutputStream, EOFException, IOException}
import java.util.zip.GZIPOutputStream

import scala.util.Random

import org.scalatest.funsuite.AnyFunSuite

class GzipMembersSuite extends AnyFunSuite {
  private val text = new Random(3).nextBytes(200000).map(byte => (byte & 15).toByte)

  private def packed(bytes: Array[Byte]): Array[Byte] = {
    val out  = new ByteArrayOutputStream
    val gzip = new GZIPOutputStream(out)
    gzip.write(bytes)
    gzip.close()
    out.toByteArray
  }

  private def unpacked(bytes: Array[Byte]): Array[Byte] =
    new GzipMembers(new ByteArrayInputStream(bytes), "a.gz").readAllBytes()

  test("members, empty ones and zero padding among them, make one text") {
    val (a, b)  = text.splitAt(77777)
    val padding = new Array[Byte](100000)
    assert(unpacked(packed(text)).sameElements(text))
    assert(unpacked(packed(a) ++ packed(Array.empty) ++ padding ++ packed(b) ++ padding).sameElements(text))
    assert(unpacked(Array.empty).isEmpty)
  }

  test("all optional header fields are passed over") {
    val whole  = packed(text)
    val fields = Array[Byte](3, 0, 1, 2, 3) ++ "name\u0000".getBytes ++ "comment\u0000".getBytes ++ Array[Byte](9, 9)
    val header = whole.take(3) ++ Array[Byte](2 | 4 | 8 | 16) ++ whole.slice(4, 10) ++ fields
    assert(unpacked(header ++ whole.drop(10)).sameElements(text))
  }

  test("a cut anywhere but between members is an error, and so is damage") {
    val whole = packed(text.take(100)) ++ packed(text.slice(100, 150))
    for (length <- 1 until whole.length if length != packed(text.take(100)).length)
      assertThrows[EOFException](unpacked(whole.take(length)))
    for (at <- Seq(0, 1, 2, whole.length - 1, whole.length - 5)) {
      val damaged = whole.clone
      damaged(at) = (damaged(at) ^ 1).toByte
      assertThrows[IOException](unpacked(damaged))
    }
    assertThrows[IOException](unpacked(whole ++ Array[Byte](1)))
  }
}
