package io.headrace.warc

/**
 * Reads the record at the beginning of a flow, and proves that it ends where it says.
 *
 * A record is whole if its block is followed by the end of the member or by a record, in a plain file also if it is
 * followed by the line ends that the format asks for. Where it is not, it becomes an error, and the flow goes on at the next line that begins a record.
 */
final class RecordParser(flow: Flow, limits: Limits, member: Member) {
  private val plain = member.isInstanceOf[PlainMember]
  private var used  = 0

  /** Bytes that were read in vain for bad records. */
  var wasted: Long = 0

  /** Whether the last record's line ends were cut off by the file's end. */
  var unended: Boolean = false

  /** Offset, among the member's decompressed bytes, of what follows the record. */
  def next: Long = flow.offset + used

  /** Forget the record that was parsed: the flow has begun anew. */
  def reset(): Unit = used = 0

  /** Drop the record that was parsed. */
  def advance(): Unit = {
    flow.drop(used)
    used = 0
  }

  /** Whether nothing follows the record. */
  def isLast: Boolean = !flow.ensure(used + 1)

  /**
   * Read the next record into `record`.
   *
   * @param wanted whether a block of that record is to be kept; where bytes can be passed over it is not read otherwise
   * @throws BadMember the member is damaged, cut, or inflates too far
   */
  def parse(record: Record, wanted: Record => Boolean): Unit = {
    record.clear()
    unended = false
    val lead = lineEnds(0)._1
    if (!flow.ensure(lead + 1)) fail(record, s"the ${member.name} holds no record", lead)
    else {
      flow.ensure(lead + 6)
      if (RecordStart.isWarc(flow.buffer, flow.start + lead, flow.end)) parseWarc(record, lead, wanted)
      else parseArc(record, lead)
    }
  }

  private def parseWarc(record: Record, lead: Int, wanted: Record => Boolean): Unit = {
    val end = blankLine(lead)
    if (end < 0) {
      val reason =
        if (flow.available - lead > limits.maxHeaderBytes)
          s"the header is over maxHeaderBytes = ${limits.maxHeaderBytes}"
        else "the header has no end"
      fail(record, reason, lead + 1)
    } else {
      val first = RecordStart.lineEnd(flow.buffer, flow.start + lead, flow.end) + 1
      record.head.read(flow.buffer, flow.start, first, flow.start + end)
      record.declared(Names.ContentLength) match {
        case null                    => fail(record, "the record has no Content-Length", end)
        case text if text.number < 0 => fail(record, s"Content-Length is '${text.toString.take(40)}', no length", end)
        case text                    => block(record, end, text.number, wanted)
      }
    }
  }

  private def parseArc(record: Record, lead: Int): Unit = {
    var end = lead
    while (end - lead < RecordStart.MaxLine && flow.ensure(end + 1) && flow(end) != '\n') end += 1
    RecordStart.arc(flow.buffer, flow.start + lead, flow.start + end) match {
      case None               => fail(record, "no record begins here", lead + 1)
      case Some(Left(reason)) => fail(record, reason, end)
      case Some(Right(line))  =>
        record.arc = line
        block(record, math.min(end + 1, flow.available), line.length, _ => true)
    }
  }

  /** The block begins at `start`: keep it or pass over it, and see that the record ends there. */
  private def block(record: Record, start: Int, length: Long, wanted: Record => Boolean): Unit =
    if (length > limits.maxRecordBytes) {
      keepHead(record)
      val reason = s"the record's $length bytes are over maxRecordBytes = ${limits.maxRecordBytes}"
      passOver(record, start, length)
      if (record.isIntact) record.error = reason
    } else if (plain && !wanted(record) && length > flow.available) {
      keepHead(record)
      passOver(record, start, length)
    } else if (!flow.has(start + length.toInt)) fail(record, tooLong(record, length, there(start)), start)
    else if (!isEnded(record, start + length.toInt)) fail(record, RecordParser.NotEnding, start)
    else {
      record.kept = true
      record.head.move(flow.buffer, flow.start)
      record.buffer = flow.buffer
      record.blockStart = flow.start + start
      record.blockEnd = record.blockStart + length.toInt
    }

  private def passOver(record: Record, start: Int, length: Long): Unit = {
    flow.drop(start)
    val begin = flow.offset
    val there = flow.discard(length)
    if (there < length || !isEnded(record, 0)) {
      flow.seek(begin)
      fail(record, if (there < length) tooLong(record, length, there) else RecordParser.NotEnding, 0)
    }
  }

  /** Whether the record ends at `at`, where its block does. */
  private def isEnded(record: Record, at: Int): Boolean = {
    val (end, lines) = lineEnds(at)
    used = end
    if (!flow.ensure(end + 1)) {
      unended = lines < (if (record.arc == null) 2 else 1)
      true
    } else startsAt(end) || plain && lines >= 2
  }

  /** Mark a record as bad and go to the next that begins at `from` or behind. */
  private def fail(record: Record, reason: String, from: Int): Unit = {
    if (record.head.count > 0) keepHead(record)
    record.error = reason
    record.kept = false
    wasted += flow.available
    used = 0
    val skipped     = math.min(from, flow.available)
    val onLineStart = skipped > 0 && flow(skipped - 1) == '\n'
    flow.drop(skipped)
    toNextRecord(onLineStart)
  }

  /** Leave the flow at the next line that begins a record, or at its end. */
  private def toNextRecord(onLineStart: Boolean): Unit = {
    var at        = 0
    var lineStart = onLineStart
    while (flow.ensure(at + 1)) {
      if (lineStart && startsAt(at)) {
        flow.drop(at)
        return
      }
      while (at < flow.available && flow(at) != '\n') at += 1
      lineStart = at < flow.available
      if (lineStart) at += 1
      if (at >= RecordParser.Step) {
        flow.drop(at)
        at = 0
      }
    }
    flow.drop(flow.available)
  }

  /** Whether a record begins at `at`. */
  private def startsAt(at: Int): Boolean = {
    var ahead = 64
    flow.ensure(at + ahead)
    while (warcHead(at) == WarcHead.More && ahead < limits.maxHeaderBytes && flow.ensure(at + ahead + 1))
      ahead = math.min(2 * math.max(ahead, flow.available - at), limits.maxHeaderBytes)
    warcHead(at) > 0 || isArc(at)
  }

  private def warcHead(at: Int): Int = WarcHead.end(flow.buffer, flow.start + at, flow.end)

  /** Also if its length is none: it is then a bad record of its own. */
  private def isArc(at: Int): Boolean = {
    var end = at
    if (!flow.ensure(at + 1) || flow(at) < 'a' || flow(at) > 'z') return false
    while (end - at < RecordStart.MaxLine && flow.ensure(end + 1) && flow(end) != '\n') end += 1
    RecordStart.arc(flow.buffer, flow.start + at, flow.start + end).isDefined
  }

  /** Pass over line ends from `at` on: (the offset behind them, how many lines they end). */
  private def lineEnds(at: Int): (Int, Int) = {
    var end   = at
    var lines = 0
    while (end - at < RecordParser.MaxLineEnds && flow.ensure(end + 1) && (flow(end) == '\n' || flow(end) == '\r')) {
      if (flow(end) == '\n') lines += 1
      end += 1
    }
    (end, lines)
  }

  /** Offset behind the first empty line from `from` on, -1 if there is none in time. */
  private def blankLine(from: Int): Int = {
    var at   = from
    var line = 0
    while (at - from <= limits.maxHeaderBytes && flow.ensure(at + 1)) {
      // What is there in one go: the flow does not move meanwhile.
      val (buffer, start) = (flow.buffer, flow.start)
      val end             = math.min(flow.available, from + limits.maxHeaderBytes + 1)
      while (at < end) {
        val byte = buffer(start + at)
        at += 1
        if (byte == '\n') {
          if (line == 0) return at
          line = 0
        } else if (byte != '\r') line += 1
      }
    }
    -1
  }

  /** The head stays readable when the flow goes on. */
  private def keepHead(record: Record): Unit = record.head.keep(flow.buffer, flow.start)

  private def tooLong(record: Record, length: Long, there: Long) =
    s"${if (record.arc == null) "Content-Length" else "Archive-length"} is $length, $there bytes are there"

  /** Bytes from `start` to the end of the member, as far as they are known. */
  private def there(start: Int): Long =
    if (plain) member.size - flow.offset - start else flow.available.toLong - start
}

private object RecordParser {
  val MaxLineEnds: Int = 64

  val NotEnding = "the record does not end where its Content-Length says"

  /** Bytes searched for a record before they are let go. */
  val Step: Int = 256 << 10
}
