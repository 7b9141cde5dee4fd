package io.headrace.criteo

import scala.util.Random

import org.scalatest.funsuite.AnyFunSuite

class WordsSuite extends AnyFunSuite {
  private val digits = "0123456789abcdefABCDEF"

  test("eight hex digits in any case are their number") {
    val random = new Random(1)
    for (_ <- 1 to 20000) {
      val text = Seq.fill(8)(digits(random.nextInt(digits.length))).mkString
      assert(Words.hex(s"..$text".getBytes, 2) == java.lang.Long.parseLong(text, 16), text)
    }
    assert(Words.hex("ffffffff".getBytes, 0) == 0xffffffffL && Words.hex("00000000".getBytes, 0) == 0)
  }

  test("any byte that is no hex digit is seen in any place, whatever its neighbours") {
    for (place <- 0 until 8; byte <- 0 until 256; around <- Seq('0', '9', 'a', 'F')) {
      val text = Array.fill(8)(around.toByte)
      text(place) = byte.toByte
      assert((Words.hex(text, 0) >= 0) == digits.contains(byte.toChar), s"$byte at $place among $around")
    }
  }

  test("the first newline, whatever lies before and behind it") {
    val random = new Random(2)
    for (_ <- 1 to 20000) {
      val bytes = Array.fill(random.nextInt(40))(Seq[Byte](9, 10, 11, -118, 0, 1)(random.nextInt(6)))
      val from  = random.nextInt(bytes.length + 1)
      val to    = from + random.nextInt(bytes.length - from + 1)
      val found = bytes.slice(from, to).indexOf('\n'.toByte)
      assert(Words.newline(bytes, from, to) == (if (found < 0) to else from + found))
    }
  }
}
