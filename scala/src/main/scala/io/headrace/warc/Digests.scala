package io.headrace.warc

import java.security.MessageDigest
import java.util.{Base64, Locale}

import scala.util.Try

/** Digests as WARC headers declare them: `sha1:` and base32, also hexadecimal or base64; md5, sha256, sha512. */
final class Digests {
  private val sha1   = new Algorithm("SHA-1", 20)
  private val md5    = new Algorithm("MD5", 16)
  private val sha256 = new Algorithm("SHA-256", 32)
  private val sha512 = new Algorithm("SHA-512", 64)

  /** Whether a declared digest is that of `buffer(start until end)`; None if its algorithm is not known. */
  def holds(declared: Text, buffer: Array[Byte], start: Int, end: Int): Option[Boolean] = {
    val text  = declared.toString
    val colon = text.indexOf(':')
    val value = text.substring(colon + 1).trim
    val found = if (colon < 0) None else algorithm(text.substring(0, colon))
    found.map(algorithm =>
      Digests.decode(value, algorithm.length).exists(MessageDigest.isEqual(_, algorithm.of(buffer, start, end)))
    )
  }

  private def algorithm(name: String): Option[Algorithm] =
    name.trim.toLowerCase(Locale.ROOT) match {
      case "sha1" | "sha-1"     => Some(sha1)
      case "md5"                => Some(md5)
      case "sha256" | "sha-256" => Some(sha256)
      case "sha512" | "sha-512" => Some(sha512)
      case _                    => None
    }

  private final class Algorithm(name: String, val length: Int) {
    private lazy val digest = MessageDigest.getInstance(name)

    def of(buffer: Array[Byte], start: Int, end: Int): Array[Byte] = {
      digest.update(buffer, start, end - start)
      digest.digest()
    }
  }
}

private[warc] object Digests {
  private val Base32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

  /** The `length` bytes that `text` spells in hexadecimal, base32 or base64, told apart by how long it is. */
  def decode(text: String, length: Int): Option[Array[Byte]] = {
    val bare = text.reverse.dropWhile(_ == '=').reverse
    if (bare.length == 2 * length) hex(bare)
    else if (bare.length == (8 * length + 4) / 5) base32(bare, length)
    else if (bare.length == (4 * length + 2) / 3) base64(bare)
    else None
  }

  private def hex(text: String): Option[Array[Byte]] =
    if (!text.forall(Character.digit(_, 16) >= 0)) None
    else Some(text.grouped(2).map(Integer.parseInt(_, 16).toByte).toArray)

  private def base32(text: String, length: Int): Option[Array[Byte]] = {
    val values = text.toUpperCase(Locale.ROOT).map(char => Base32.indexOf(char.toInt))
    val number = values.foldLeft(BigInt(0))((sum, value) => sum << 5 | value) >> (5 * values.length - 8 * length)
    if (values.contains(-1)) None
    else Some(Array.tabulate(length)(i => (number >> (8 * (length - 1 - i))).toByte))
  }

  private def base64(text: String): Option[Array[Byte]] =
    Try(Base64.getUrlDecoder.decode(text.replace('+', '-').replace('/', '_'))).toOption
}
