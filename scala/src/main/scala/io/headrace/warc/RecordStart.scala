package io.headrace.warc

import java.nio.charset.StandardCharsets.ISO_8859_1

/** How a record begins: `WARC/` and a digit, or the one line of an ARC record. */
object RecordStart {

  /** An ARC line is never longer: URLs in the wild are, but then the record is refused. */
  val MaxLine: Int = 16 << 10

  private val Warc = "WARC/".getBytes(ISO_8859_1)

  /** The line of an ARC record (version 1, or 2), whose URL may hold spaces. */
  final case class Arc(url: String, ip: String, date: String, contentType: String, length: Long)

  def isWarc(bytes: Array[Byte], start: Int, end: Int): Boolean =
    end - start >= 6 && Character.isDigit(bytes(start + 5).toChar) && {
      var i = 0
      while (i < 5 && bytes(start + i) == Warc(i)) i += 1
      i == 5
    }

  /**
   * The ARC record that the line `bytes(start until end)` begins.
   *
   * @return the left: why it is none, though it looks like one; None: it does not look like one
   */
  def arc(bytes: Array[Byte], start: Int, end: Int): Option[Either[String, Arc]] =
    if (!isUrl(bytes, start, end)) None
    else {
      val words = new String(bytes, start, end - start, ISO_8859_1).trim.split(' ')
      val date  = words.lastIndexWhere(isDate, words.length - 2)
      if (date < 2 || !isAddress(words(date - 1))) None
      else Some(fields(words, date))
    }

  private def fields(words: Array[String], date: Int): Either[String, Arc] = {
    val text   = words.last
    val length = if (text.nonEmpty && text.length <= 18 && text.forall(c => c >= '0' && c <= '9')) text.toLong else -1L
    if (length < 0) Left(s"Archive-length is '${text.take(40)}', no length")
    else if (date + 2 >= words.length) Left("the ARC line has no content type")
    else Right(Arc(words.take(date - 1).mkString(" "), words(date - 1), words(date), words(date + 1), length))
  }

  /** Whether a WARC or ARC record begins at the window's offset, line ends passed over. */
  def isAt(window: Window): Boolean = {
    val room  = math.min(MaxLine, window.buffer.length)
    val whole = window.require(room)
    val end   = window.position + (if (whole) room else window.available)
    isAt(window.buffer, window.position, end)
  }

  def isAt(bytes: Array[Byte], start: Int, end: Int): Boolean = {
    var at = start
    while (at < end && (bytes(at) == '\r' || bytes(at) == '\n')) at += 1
    isWarc(bytes, at, end) || arc(bytes, at, lineEnd(bytes, at, end)).exists(_.isRight)
  }

  def lineEnd(bytes: Array[Byte], start: Int, end: Int): Int = {
    var at = start
    while (at < end && bytes(at) != '\n') at += 1
    at
  }

  /** `scheme:` of at most 10 letters. */
  private def isUrl(bytes: Array[Byte], start: Int, end: Int): Boolean = {
    var at = start
    while (at < end && at - start < 10 && bytes(at) >= 'a' && bytes(at) <= 'z') at += 1
    at > start && at < end && bytes(at) == ':'
  }

  private def isDate(word: String): Boolean =
    word.length >= 14 && word.length <= 18 && word.forall(c => c >= '0' && c <= '9')

  private def isAddress(word: String): Boolean =
    word.nonEmpty && word.length <= 45 && word.forall(c => c == '.' || c == ':' || Character.digit(c, 16) >= 0)
}

/** Whether bytes are a whole WARC header, as far as is needed to go on reading there after damage. */
private[warc] object WarcHead {
  val No: Int   = -1
  val More: Int = -2

  private val ContentLength = "content-length:".getBytes(ISO_8859_1)
  private val WarcType      = "warc-type:".getBytes(ISO_8859_1)

  /**
   * Read the header that begins at `start`: a version alone on its line, then lines with a colon or folded, one of
   * which tells the type and one the length, then an empty line.
   *
   * No line of a header can be a version line, so that a search that tries every version line is linear.
   *
   * @return the offset behind the header, or `No`, or `More` if `end` came first
   */
  def end(bytes: Array[Byte], start: Int, end: Int): Int = {
    if (end - start < 6) return More
    if (!RecordStart.isWarc(bytes, start, end)) return No
    var line   = RecordStart.lineEnd(bytes, start, end)
    var length = false
    var kind   = false
    if (line - start > 12) return No
    while (line < end) {
      val from = line + 1
      line = RecordStart.lineEnd(bytes, from, end)
      if (line < end && isEmpty(bytes, from, line)) return if (length && kind) line + 1 else No
      if (line < end && !hasColon(bytes, from, line)) return No
      length ||= starts(bytes, from, line, ContentLength)
      kind ||= starts(bytes, from, line, WarcType)
    }
    More
  }

  private def isEmpty(bytes: Array[Byte], start: Int, end: Int) =
    start == end || end - start == 1 && bytes(start) == '\r'

  private def hasColon(bytes: Array[Byte], start: Int, end: Int): Boolean = {
    var at = start
    while (at < end && bytes(at) != ':') at += 1
    at < end || bytes(start) == ' ' || bytes(start) == '\t'
  }

  private def starts(bytes: Array[Byte], start: Int, end: Int, lower: Array[Byte]): Boolean =
    end - start >= lower.length && Text(bytes, start, start + lower.length).equalsIgnoreCase(lower)
}
