package io.headrace.warc

import java.nio.charset.StandardCharsets.ISO_8859_1
import java.security.MessageDigest
import java.util.Arrays

/** Digests as WARC headers declare them: `sha1:` and base32, also hexadecimal or base64; md5, sha256, sha512. */
final class Digests {
  import Digests._

  private val algorithms = Seq(
    new Algorithm("SHA-1", 20, "sha1", "sha-1"),
    new Algorithm("MD5", 16, "md5"),
    new Algorithm("SHA-256", 32, "sha256", "sha-256"),
    new Algorithm("SHA-512", 64, "sha512", "sha-512")
  )
  private val declaredBytes = new Array[Byte](64)

  /** Whether a declared digest is that of `buffer(start until end)`; None if its algorithm is not known. */
  def holds(declared: Text, buffer: Array[Byte], start: Int, end: Int): Option[Boolean] = {
    var colon = declared.start
    while (colon < declared.end && declared.bytes(colon) != ':') colon += 1
    val name  = Text(declared.bytes, declared.start, colon).trim
    val value = Text(declared.bytes, math.min(colon + 1, declared.end), declared.end).trim
    val found = if (colon == declared.end) None else algorithms.find(_.isNamed(name))
    found.map { algorithm =>
      decode(value, declaredBytes, algorithm.length) && {
        val right = algorithm.of(buffer, start, end)
        Arrays.equals(right, 0, algorithm.length, declaredBytes, 0, algorithm.length)
      }
    }
  }

  private final class Algorithm(name: String, val length: Int, names: String*) {
    private lazy val digest = MessageDigest.getInstance(name)
    private val lower       = names.map(_.getBytes(ISO_8859_1))

    def isNamed(text: Text): Boolean = lower.exists(text.equalsIgnoreCase)

    def of(buffer: Array[Byte], start: Int, end: Int): Array[Byte] = {
      digest.update(buffer, start, end - start)
      digest.digest()
    }
  }
}

private object Digests {
  private val Hexadecimal = alphabet(4, "0123456789abcdef", "ABCDEF" -> 10)
  private val Base32      = alphabet(5, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "abcdefghijklmnopqrstuvwxyz" -> 0)
  private val Base64      =
    alphabet(6, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", "-_" -> 62)

  /** What each byte stands for, -1 for nothing; `bits` a character. */
  private final case class Alphabet(bits: Int, values: Array[Byte])

  private def alphabet(bits: Int, letters: String, also: (String, Int)): Alphabet = {
    val values = Array.fill[Byte](256)(-1)
    for ((letter, value) <- letters.zipWithIndex) values(letter.toInt) = value.toByte
    for ((letter, i) <- also._1.zipWithIndex) values(letter.toInt) = (also._2 + i).toByte
    Alphabet(bits, values)
  }

  /** The `length` bytes that `text` spells, whose alphabet its own length tells; false if it does not spell so many. */
  private def decode(text: Text, into: Array[Byte], length: Int): Boolean = {
    var end = text.end
    while (end > text.start && text.bytes(end - 1) == '=') end -= 1
    val letters = end - text.start
    if (letters == 2 * length) spell(text, end, Hexadecimal, into)
    else if (letters == (8 * length + 4) / 5) spell(text, end, Base32, into)
    else if (letters == (4 * length + 2) / 3) spell(text, end, Base64, into)
    else false
  }

  /** Bits that are left over at the end make no byte and are passed over. */
  private def spell(text: Text, end: Int, alphabet: Alphabet, into: Array[Byte]): Boolean = {
    var (bits, held, out) = (0, 0, 0)
    var at                = text.start
    while (at < end) {
      val value = alphabet.values(text.bytes(at) & 0xff)
      if (value < 0) return false
      bits = bits << alphabet.bits | value
      held += alphabet.bits
      if (held >= 8) {
        held -= 8
        into(out) = (bits >> held).toByte
        out += 1
      }
      at += 1
    }
    true
  }
}
