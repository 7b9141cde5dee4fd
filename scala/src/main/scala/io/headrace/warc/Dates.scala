package io.headrace.warc

import java.time.{DateTimeException, LocalDate}

/** Dates of records in microseconds since 1970, UTC. */
object Dates {
  private val Micros = 1000000L
  private val Iso    =
    """(\d{4})(?:-(\d{2})(?:-(\d{2})(?:T(\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?(Z|[+-]\d{2}:?\d{2})?)?)?)?""".r

  /**
   * A WARC-Date: ISO 8601 as WARC 1.0 and 1.1 have it, from the year to nanoseconds, in UTC or with an offset.
   *
   * @return None if it cannot be read
   */
  def warc(text: Text): Option[Long] = fast(text).orElse(text.toString match {
    case Iso(year, month, day, hour, minute, second, fraction, zone) =>
      val micros = Option(fraction).fold(0L)(_.padTo(6, '0').take(6).toLong)
      of(year.toInt, part(month, 1), part(day, 1), part(hour, 0), part(minute, 0), part(second, 0))
        .map(_ + micros - offset(zone))
    case _ => None
  })

  /** An Archive-date of ARC: yyyyMMddHHmmss, further digits ignored. */
  def arc(text: String): Option[Long] = {
    def at(from: Int, until: Int) = text.substring(from, until).toInt
    of(at(0, 4), at(4, 6), at(6, 8), at(8, 10), at(10, 12), at(12, 14))
  }

  /** The form nearly all have, without a regular expression: 2020-08-08T16:54:17Z. */
  private def fast(text: Text): Option[Long] =
    if (text.length != 20 || text.bytes(text.end - 1) != 'Z') None
    else {
      val (b, s)                  = (text.bytes, text.start)
      def two(at: Int): Int       = 10 * digit(b(s + at)) + digit(b(s + at + 1))
      def is(at: Int, char: Char) = b(s + at) == char
      val shaped                  = is(4, '-') && is(7, '-') && is(10, 'T') && is(13, ':') && is(16, ':')
      if (shaped) of(100 * two(0) + two(2), two(5), two(8), two(11), two(14), two(17)) else None
    }

  /** What is no digit makes the number wrong, so that the date is refused. */
  private def digit(byte: Byte): Int = if (byte >= '0' && byte <= '9') byte - '0' else -1000000

  private def part(text: String, absent: Int): Int = if (text == null) absent else text.toInt

  private def offset(zone: String): Long =
    if (zone == null || zone == "Z") 0L
    else {
      val seconds = zone.substring(1, 3).toLong * 3600 + zone.takeRight(2).toLong * 60
      (if (zone.head == '-') -seconds else seconds) * Micros
    }

  private def of(year: Int, month: Int, day: Int, hour: Int, minute: Int, second: Int): Option[Long] =
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60 || year < 0) None
    else
      try Some((LocalDate.of(year, month, day).toEpochDay * 86400L + hour * 3600L + minute * 60L + second) * Micros)
      catch { case _: DateTimeException => None }
}
