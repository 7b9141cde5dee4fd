package io.headrace.warc

import scala.annotation.tailrec
import scala.collection.mutable

/** What a damaged file says in strict mode. */
final class DamagedFile(file: String, offset: Long, reason: String)
    extends java.io.IOException(s"$file, offset $offset: $reason")

/** The part of a file whose records are wanted: those that begin in `from until until`. */
final case class Range(from: Long, until: Long)

/**
 * The records of a file, one after the other, and its bad bytes between them: together they cover every byte once.
 *
 * A bad member ends where its own checks say, or else at the next place where a member begins whose first bytes
 * decompress to the beginning of a record.
 */
final class WarcReader(
    file: String,
    bytes: Bytes,
    limits: Limits = Limits(),
    range: Range = Range(0, Long.MaxValue),
    wanted: Record => Boolean = _ => true
) extends AutoCloseable {
  private val size        = bytes.size
  private val until       = math.min(range.until, size)
  private val window      = new Window(bytes, size)
  private val member      = Member.of(window, file, limits)
  private val plain       = member.isInstanceOf[PlainMember]
  private val flow        = new Flow(limits)
  private val parser      = new RecordParser(flow, limits, member)
  private val search      = new MemberSearch(window, member)
  private var inMember    = false
  private var memberStart = 0L
  private var ordinal     = 0
  private var started     = false
  private var unended     = -1L
  private var closed      = false
  private val starts      = mutable.LongMap.empty[Unit]
  private val budget      = math.max(WarcReader.LeastBudget, WarcReader.Budget * size)

  private var failed: BadMember = _

  /** The record that `next` found. */
  val record: Record = new Record

  /** Offset of what was not read yet. */
  def offset: Long = if (plain && inMember) parser.next else window.offset

  /** Go to the next record or bad bytes of the range; false when there is none. */
  def next(): Boolean = {
    if (!started) start()
    advance()
  }

  override def close(): Unit = {
    member.close()
    bytes.close()
  }

  private def start(): Unit = {
    started = true
    if (plain) {
      window.seek(0)
      if (size > 0) open()
    } else window.seek(firstMember(range.from))
  }

  /**
   * Offset of the first member at `from` or behind it.
   *
   * Bytes inside a member can look like one: an archive inside a record. So the search begins `lookback` bytes before,
   * and from there on goes from member to member.
   */
  private def firstMember(from: Long): Long =
    if (from <= 0) 0L
    else {
      window.seek(if (from <= limits.lookback) 0L else search.next(from - limits.lookback))
      while (inMember || window.offset < from && !window.atEnd) {
        if (inMember) readInMember(_ => false)
        else if (member.isAt(window)) open()
        else gap("")
      }
      window.offset
    }

  @tailrec
  private def advance(): Boolean =
    if (inMember) {
      if (plain && parser.next >= until) done()
      else {
        readInMember(if (plain && parser.next < range.from) _ => false else wanted)
        if (plain && record.offset < range.from) advance() else true
      }
    } else if (window.offset >= until) done()
    else if (!member.isAt(window)) {
      gap(s"no ${member.name} begins here")
      true
    } else {
      open()
      advance()
    }

  private def done(): Boolean =
    if (unended < 0) {
      if (!plain && !closed && until < size) checkNextRange()
      closed = true
      false
    } else {
      record.clear()
      record.error = s"the file is cut: it ends within the line ends of the record at $unended"
      place(size, size)
      unended = -1
      true
    }

  /** The next range must begin where this one ended: else a record would be read twice or not at all. */
  private def checkNextRange(): Unit = {
    val here = window.offset
    val seen = until <= limits.lookback || starts.contains(search.next(until - limits.lookback))
    if (!seen && firstMember(until) != here)
      throw new DamagedFile(
        file,
        until,
        "a record holds what looks like records, and is cut here: read without splitBytes"
      )
    window.seek(here)
  }

  private def open(): Unit = {
    memberStart = window.offset
    if (memberStart >= until - limits.lookback) starts(memberStart) = ()
    parser.reset()
    ordinal = 0
    inMember = true
    try {
      member.begin(window)
      flow.open(member)
    } catch { case bad: BadMember => failed = bad }
  }

  /** Read the next record of the member, or find out that it is bad. */
  private def readInMember(wanted: Record => Boolean): Unit =
    try {
      if (failed != null) throw failed
      parser.advance()
      if (plain) readPlain(wanted) else readOne(wanted)
    } catch {
      case bad: BadMember => skip(bad)
    }

  private def readPlain(wanted: Record => Boolean): Unit = {
    val start = flow.offset
    parser.parse(record, wanted)
    inMember = !parser.isLast && parser.wasted <= budget
    place(start, if (inMember) parser.next else size)
    if (parser.unended) unended = start
    if (!inMember) window.seek(size)
  }

  /** The records of a member but the last take one byte each of it, so that offsets name them. */
  private def readOne(wanted: Record => Boolean): Unit = {
    val inside = flow.offset
    parser.parse(record, wanted)
    inMember = !parser.isLast
    val start = memberStart + ordinal
    if (inMember && start + 1 >= member.offset) throw new BadMember(s"the ${member.name} holds more records than bytes")
    place(start, if (inMember) start + 1 else window.offset)
    record.memberOffset = inside
    ordinal += 1
  }

  private def skip(bad: BadMember): Unit = {
    failed = null
    inMember = false
    search.wasted += member.produced
    val here = window.offset
    val next =
      if (bad.ended && (here >= size || member.isAt(window))) here
      else nextMember(memberStart + 1)
    record.clear()
    record.error = if (next < size) bad.reason.replace("the file is cut: its last", "a") else bad.reason
    place(memberStart + ordinal, next)
    window.seek(next)
  }

  /** A file made to be searched for ever is given up. */
  private def nextMember(from: Long): Long = if (search.wasted > budget) size else search.next(from)

  /** Bytes where a member should begin and none does. */
  private def gap(reason: String): Unit = {
    val start = window.offset
    val next  = nextMember(start + 1)
    record.clear()
    record.error = reason
    place(start, next)
    window.seek(next)
  }

  private def place(start: Long, end: Long): Unit = {
    record.offset = start
    record.length = end - start
    record.memberOffset = 0
  }
}

private object WarcReader {

  /** Bytes that may be decompressed in vain, a byte of the file, and for a small file. */
  val Budget: Long      = 64
  val LeastBudget: Long = 1L << 30
}

/** Finds the next member by its first bytes and by what they decompress to. */
private[warc] final class MemberSearch(window: Window, member: Member) {
  private val probe = new Array[Byte](RecordStart.MaxLine)

  /** Bytes decompressed in vain. */
  var wasted: Long = 0

  /** Offset of the first member at `from` or behind it that begins with a record; the file's end if there is none. */
  def next(from: Long): Long = {
    window.seek(from)
    while (!window.atEnd && !isMember) window.position += 1
    window.offset
  }

  private def isMember: Boolean = member.isAt(window) && {
    val start = window.offset
    val found =
      try beginsRecord()
      catch { case _: BadMember => false }
    window.seek(start)
    found
  }

  private def beginsRecord(): Boolean = {
    member.begin(window)
    var length = 0
    var count  = 0
    while (count >= 0 && length < probe.length && !isDecided(length)) {
      count = member.read(probe, length, math.min(256, probe.length - length))
      length += math.max(count, 0)
    }
    wasted += length
    RecordStart.isAt(probe, 0, length)
  }

  /** Whether more bytes would not change the answer: a whole line is there. */
  private def isDecided(length: Int): Boolean = {
    var at = 0
    while (at < length && (probe(at) == '\r' || probe(at) == '\n')) at += 1
    at < length && RecordStart.lineEnd(probe, at, length) < length
  }
}
