package io.headrace.criteo

import java.nio.ByteBuffer
import java.nio.charset.{CharacterCodingException, CodingErrorAction}
import java.nio.charset.StandardCharsets.UTF_8

/**
 * Criteo's line, `label TAB i1 .. i13 TAB c1 .. c26`, read from bytes into long columns.
 *
 * Empty is missing; a label is 0 or 1; an integer is `-?[0-9]{1,19}` within 64 bits; a category is 1 to 8 hex digits,
 * read as unsigned 32 bits. `\r` before the newline belongs to the line end. `parse` accepts or does not; `reason` says
 * why not, in the same words as `parse_line` of `headrace.ingest.criteo_parse`, its reference.
 *
 * @param labelled
 *   40 fields with the label first, else 39 without
 * @param maxLineBytes
 *   longer lines are refused
 * @param rawBytes
 *   how much of a refused line is kept
 */
final case class LineFormat(labelled: Boolean, maxLineBytes: Int, rawBytes: Int) {
  import LineFormat._

  private val labels = if (labelled) 1 else 0
  val fields: Int    = labels + Ints + Categories

  def tooLong: String = s"line longer than $maxLineBytes bytes"

  /** Bytes kept of a refused line. */
  def headBytes: Int = math.min(rawBytes, maxLineBytes)

  /**
   * Read a line into row `row` of the cells.
   *
   * @param data
   *   holds the line
   * @param start
   *   its first byte; at the file's beginning, behind the byte-order mark
   * @param end
   *   behind its last byte, without the newline
   * @return
   *   whether it is a good line; if not, the row's cells are to be set anew
   */
  def parse(data: Array[Byte], start: Int, end: Int, row: Int, cells: RowCells): Boolean = {
    val stop = if (end > start && data(end - 1) == Return) end - 1 else end
    var at   = start
    if (labelled) {
      if (stop - at < 2 || data(at + 1) != Tab || (data(at) | 1) != '1') return false
      cells.label(row, data(at) - '0')
      at += 2
    } else cells.noLabel(row)
    var column = 0
    while (column < Ints) {
      at = integer(data, at, stop, row, column, cells)
      if (at < 0 || at >= stop || data(at) != Tab) return false
      at += 1
      column += 1
    }
    while (column < Columns) {
      at = category(data, at, stop, row, column, cells)
      column += 1
      if (at < 0) return false
      if (column < Columns) {
        if (at >= stop || data(at) != Tab) return false
        at += 1
      }
    }
    at == stop
  }

  /** The place behind the integer that begins at `from`, or -1 where there is none. */
  private def integer(data: Array[Byte], from: Int, stop: Int, row: Int, column: Int, cells: RowCells): Int = {
    var at = from
    if (at >= stop || data(at) == Tab) {
      cells.missing(row, column)
      return at
    }
    val negative = data(at) == Minus
    if (negative) at += 1
    val first = at
    var value = 0L
    var digit = 0
    while (at < stop && { digit = data(at) - '0'; digit >= 0 && digit <= 9 }) {
      value = value * 10 + digit
      at += 1
    }
    val digits = at - first
    // 19 digits fit 64 bits without sign; -2^63 is its own negative.
    if (digits == 0 || digits > MaxDigits || (value < 0 && !(negative && value == Long.MinValue))) return -1
    cells.value(row, column, if (negative) -value else value)
    at
  }

  private def category(data: Array[Byte], from: Int, stop: Int, row: Int, column: Int, cells: RowCells): Int = {
    if (stop - from >= MaxHexDigits) {
      val whole = Words.hex(data, from)
      if (whole >= 0) {
        cells.value(row, column, whole)
        return from + MaxHexDigits
      }
    }
    var at    = from
    val limit = math.min(stop, from + MaxHexDigits)
    var value = 0L
    var digit = 0
    while (at < limit && { digit = HexDigits(data(at) & 0xff); digit >= 0 }) {
      value = value << 4 | digit
      at += 1
    }
    if (at > from) cells.value(row, column, value)
    else if (at < stop && data(at) != Tab) return -1
    else cells.missing(row, column)
    at
  }

  /**
   * Why a line is refused, or null where it is not.
   *
   * @param line
   *   all its bytes, without newline
   * @param first
   *   it is the file's first, where a byte-order mark is dropped
   */
  def reason(line: Array[Byte], first: Boolean): String = {
    if (line.length > maxLineBytes) return tooLong
    val end   = if (line.nonEmpty && line.last == Return) line.length - 1 else line.length
    val start = if (first && markAt(line, 0, end)) Mark.length else 0
    val text  = java.util.Arrays.copyOfRange(line, start, end)
    val fault = notText(text)
    if (fault != null) return fault
    val cells = split(text)
    if (cells.length != fields) return s"${cells.length} columns instead of $fields"
    cellReason(cells)
  }

  private def cellReason(cells: Array[String]): String =
    if (labelled && cells(0) != "0" && cells(0) != "1") "label is not 0 or 1"
    else {
      val integers   = Iterator.range(0, Ints).flatMap(at => integerReason(at + 1, cells(labels + at)))
      val categories = Iterator.range(0, Categories).flatMap(at => categoryReason(at + 1, cells(labels + Ints + at)))
      (integers ++ categories).nextOption().orNull
    }

  private def integerReason(number: Int, cell: String): Option[String] =
    if (cell.isEmpty) None
    else if (!Integer.matches(cell)) Some(s"i$number is not an integer")
    else if (overflows(cell)) Some(s"i$number overflows 64 bits")
    else None

  private def categoryReason(number: Int, cell: String): Option[String] =
    if (cell.isEmpty || Category.matches(cell)) None else Some(s"c$number is not 1 to 8 hex digits")

  private def overflows(cell: String): Boolean =
    cell.stripPrefix("-").length > MaxDigits || cell.toLongOption.isEmpty
}

object LineFormat {
  val Ints       = 13
  val Categories = 26
  val Columns    = Ints + Categories

  private val MaxDigits    = 19
  private val MaxHexDigits = 8
  private val Tab          = '\t'.toByte
  private val Return       = '\r'.toByte
  private val Minus        = '-'.toByte
  private val Mark         = Array(0xef, 0xbb, 0xbf).map(_.toByte)
  private val MarkText     = "\ufeff"
  private val Integer      = "-?[0-9]+".r
  private val Category     = "[0-9a-fA-F]{1,8}".r

  private val HexDigits: Array[Byte] = {
    val table = Array.fill[Byte](256)(-1)
    for (digit <- 0 until 16; text = digit.toHexString; byte <- (text + text.toUpperCase).getBytes(UTF_8))
      table(byte.toInt) = digit.toByte
    table
  }

  /** The length of the byte-order mark that a file's first line begins with, or 0. */
  def markLength(data: Array[Byte], start: Int, end: Int): Int = if (markAt(data, start, end)) Mark.length else 0

  private def markAt(data: Array[Byte], start: Int, end: Int): Boolean =
    end - start >= Mark.length && Mark.indices.forall(at => data(start + at) == Mark(at))

  private def notText(text: Array[Byte]): String =
    if (text.contains(0.toByte)) "NUL byte"
    else
      decoded(text) match {
        case None                                                  => "not UTF-8"
        case Some(line) if line.contains(MarkText)                 => "byte-order mark inside the file"
        case Some(line) if line.contains('"')                      => "stray quote"
        case Some(line) if line.forall(c => c == ' ' || c == '\r') => "blank line"
        case _                                                     => null
      }

  private def decoded(text: Array[Byte]): Option[String] = {
    val strict = UTF_8.newDecoder.onMalformedInput(CodingErrorAction.REPORT)
    try Some(strict.decode(ByteBuffer.wrap(text)).toString)
    catch { case _: CharacterCodingException => None }
  }

  private def split(text: Array[Byte]): Array[String] = new String(text, UTF_8).split("\t", -1)
}

/** Where a line's values go: the row is set cell by cell, and set anew where the line turns out to be no good one. */
trait RowCells {
  def label(row: Int, value: Int): Unit
  def noLabel(row: Int): Unit
  def value(row: Int, column: Int, value: Long): Unit
  def missing(row: Int, column: Int): Unit
}
