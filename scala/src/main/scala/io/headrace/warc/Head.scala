package io.headrace.warc

import java.util.Arrays

import org.apache.spark.unsafe.types.UTF8String

/**
 * Header lines `Name: value` as places in a buffer: nothing is copied until it is asked for.
 *
 * Lines end with CRLF or LF; a line that begins with a space or tab goes on with the value before it; a line without a
 * colon is kept with an empty name. Names are compared without regard to case, and the first of equal names counts.
 */
final class Head {
  private var places = new Array[Int](4 * 32)
  private var folded = Set.empty[Int]
  private var from   = Array.emptyByteArray
  private var base   = 0
  private var length = 0
  private var owned  = false
  var count: Int     = 0

  def clear(): Unit = count = 0

  /** The same lines, now in `buffer` from `start` on. */
  def move(buffer: Array[Byte], start: Int): Unit = {
    from = buffer
    base = start
  }

  /** Copy the lines, which are in `buffer` from `start` on, so that they stay when the buffer does not. */
  def keep(buffer: Array[Byte], start: Int): Unit = if (!owned) {
    move(Arrays.copyOfRange(buffer, start, start + length), 0)
    owned = true
  }

  /** Take the lines in `buffer(first until end)`; places are kept relative to `start`. */
  def read(buffer: Array[Byte], start: Int, first: Int, end: Int): Unit = {
    clear()
    from = buffer
    base = start
    length = end - start
    owned = false
    if (folded.nonEmpty) folded = Set.empty
    var line = first
    while (line < end) {
      var stop = line
      while (stop < end && buffer(stop) != '\n') stop += 1
      val last = if (stop > line && buffer(stop - 1) == '\r') stop - 1 else stop
      if (last > line) add(line, last)
      line = stop + 1
    }
  }

  /** The number of the first line of that (lower case) name, -1 if there is none. */
  def find(name: Array[Byte]): Int = {
    var i = 0
    while (i < count && !isNamed(i, name)) i += 1
    if (i < count) i else -1
  }

  def name(i: Int): Text = Text(from, base + places(4 * i), base + places(4 * i + 1))

  /** A value without the white space around it; folded lines are joined by a space. */
  def value(i: Int): Text = {
    val text = Text(from, base + places(4 * i + 2), base + places(4 * i + 3))
    if (folded.nonEmpty && folded.contains(i)) text.unfold else text
  }

  def value(name: Array[Byte]): Option[Text] = find(name) match {
    case -1 => None
    case i  => Some(value(i))
  }

  private def add(start: Int, end: Int): Unit =
    if (Text.isSpace(from(start)) && count > 0) {
      val last = trimEnd(start, end)
      if (last > start) {
        folded += count - 1
        places(4 * count - 1) = last - base
      }
    } else {
      if (4 * count == places.length) places = Arrays.copyOf(places, 2 * places.length)
      var colon = start
      while (colon < end && from(colon) != ':') colon += 1
      val valueStart = trimStart(if (colon < end) colon + 1 else start, end)
      val nameEnd    = if (colon < end) colon else start
      val nameStart  = trimStart(start, nameEnd)
      places(4 * count) = nameStart - base
      places(4 * count + 1) = trimEnd(nameStart, nameEnd) - base
      places(4 * count + 2) = valueStart - base
      places(4 * count + 3) = trimEnd(valueStart, end) - base
      count += 1
    }

  private def isNamed(i: Int, name: Array[Byte]): Boolean = {
    val start = base + places(4 * i)
    if (places(4 * i + 1) - places(4 * i) != name.length) false
    else {
      var k = 0
      while (k < name.length && lower(from(start + k)) == name(k)) k += 1
      k == name.length
    }
  }

  private def lower(byte: Byte): Int = if (byte >= 'A' && byte <= 'Z') byte + 32 else byte.toInt

  private def trimStart(start: Int, end: Int): Int = {
    var at = start
    while (at < end && Text.isSpace(from(at))) at += 1
    at
  }

  private def trimEnd(start: Int, end: Int): Int = {
    var at = end
    while (at > start && Text.isSpace(from(at - 1))) at -= 1
    at
  }
}

/** Some bytes of a buffer that are text: UTF-8, or else Windows-1252, which gives every byte a meaning. */
final case class Text(bytes: Array[Byte], start: Int, end: Int) {

  def length: Int = end - start

  /** As Spark's strings are: in place where the bytes are UTF-8, so that it lives no longer than the buffer. */
  def utf8: UTF8String =
    if (Text.isAscii(bytes, start, end)) UTF8String.fromBytes(bytes, start, length)
    else UTF8String.fromString(toString)

  override def toString: String = Text.decode(bytes, start, end)

  def equalsIgnoreCase(lower: Array[Byte]): Boolean = length == lower.length && {
    var i = 0
    while (
      i < length && (bytes(start + i) | (if (bytes(start + i) >= 'A' && bytes(start + i) <= 'Z') 32 else 0)) == lower(i)
    )
      i += 1
    i == length
  }

  /** Decimal digits as a number; -1 if it is anything else, or too large. */
  def number: Long =
    if (length == 0 || length > 18) -1L
    else {
      var sum = 0L
      var i   = start
      while (i < end && sum >= 0) {
        val digit = bytes(i) - '0'
        sum = if (digit < 0 || digit > 9) -1L else 10 * sum + digit
        i += 1
      }
      sum
    }

  def isSame(other: Text): Boolean = Arrays.equals(bytes, start, end, other.bytes, other.start, other.end)

  /** Without the spaces and tabs around it. */
  def trim: Text = {
    var (from, until) = (start, end)
    while (from < until && Text.isSpace(bytes(from))) from += 1
    while (until > from && Text.isSpace(bytes(until - 1))) until -= 1
    Text(bytes, from, until)
  }

  /** Without the line ends inside, and the white space around them. */
  def unfold: Text = Text.of(toString.split("\r?\n").map(_.trim).filter(_.nonEmpty).mkString(" "))

  /** Without the angle brackets that wget writes around a URI. */
  def bare: Text =
    if (length >= 2 && bytes(start) == '<' && bytes(end - 1) == '>') Text(bytes, start + 1, end - 1) else this
}

object Text {
  import java.nio.ByteBuffer
  import java.nio.charset.{CharacterCodingException, Charset}
  import java.nio.charset.StandardCharsets.{ISO_8859_1, UTF_8}

  private val western = Charset.forName("windows-1252")

  def of(text: String): Text = {
    val bytes = text.getBytes(UTF_8)
    Text(bytes, 0, bytes.length)
  }

  def isSpace(byte: Byte): Boolean = byte == ' ' || byte == '\t'

  def isAscii(bytes: Array[Byte], start: Int, end: Int): Boolean = {
    var i = start
    while (i < end && bytes(i) >= 0) i += 1
    i == end
  }

  def decode(bytes: Array[Byte], start: Int, end: Int): String =
    if (isAscii(bytes, start, end)) new String(bytes, start, end - start, ISO_8859_1)
    else
      try UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes, start, end - start)).toString
      catch { case _: CharacterCodingException => new String(bytes, start, end - start, western) }
}
