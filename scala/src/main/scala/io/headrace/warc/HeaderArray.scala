package io.headrace.warc

import java.util.Arrays

import org.apache.spark.sql.catalyst.expressions.UnsafeArrayData
import org.apache.spark.unsafe.Platform

/**
 * Header lines as Spark's rows hold an array of (name, value): one run of bytes, written once.
 *
 * As objects a line would be two strings, a row and what holds them: with some eighteen lines a record a tenth of the
 * reader's time, and each would be written into Spark's row one by one.
 */
final class HeaderArray {
  import HeaderArray._

  private var bytes = new Array[Byte](1 << 12)
  private var end   = 0
  private val array = new UnsafeArrayData

  /** The lines' array; good until the next is made. */
  def of(head: Head): UnsafeArrayData = {
    val slots = UnsafeArrayData.calculateHeaderPortionInBytes(head.count)
    end = 0
    clear(slots + 8 * head.count)
    putLong(0, head.count.toLong)
    var i = 0
    while (i < head.count) {
      val start = end
      clear(RowBytes)
      write(head.name(i), start, 1)
      write(head.value(i), start, 2)
      putLong(slots + 8 * i, place(start, end - start))
      i += 1
    }
    array.pointTo(bytes, Platform.BYTE_ARRAY_OFFSET.toLong, end)
    array
  }

  /** Append a text, filled up to whole words, and tell its place in word `word` of the row. */
  private def write(text: Text, row: Int, word: Int): Unit =
    if (Text.isAscii(text.bytes, text.start, text.end)) write(text.bytes, text.start, text.length, row, word)
    else {
      val coded = text.utf8.getBytes
      write(coded, 0, coded.length, row, word)
    }

  private def write(from: Array[Byte], start: Int, length: Int, row: Int, word: Int): Unit = {
    putLong(row + 8 * word, place(end - row, length))
    val at = end
    clear((length + 7) & ~7)
    System.arraycopy(from, start, bytes, at, length)
  }

  /** Append zeros. */
  private def clear(count: Int): Unit = {
    if (bytes.length - end < count) bytes = Arrays.copyOf(bytes, 2 * (end + count))
    Arrays.fill(bytes, end, end + count, 0.toByte)
    end += count
  }

  private def putLong(at: Int, value: Long): Unit =
    Platform.putLong(bytes, Platform.BYTE_ARRAY_OFFSET.toLong + at, value)
}

private object HeaderArray {

  /** A row of two: a word of null bits, a word for each place. */
  val RowBytes: Int = 24

  /** Where something lies, as Spark writes it. */
  def place(offset: Int, size: Int): Long = offset.toLong << 32 | size
}
