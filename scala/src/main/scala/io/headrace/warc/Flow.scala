package io.headrace.warc

/** The decompressed bytes of a member, as far ahead as a reader of records asks for. */
final class Flow(limits: Limits) {
  var buffer: Array[Byte]        = new Array[Byte](1 << 16)
  var start: Int                 = 0
  var end: Int                   = 0
  private var member: Member     = _
  private var ended              = false
  private var base               = 0L
  private var failure: BadMember = _

  /** Offset of the first byte among the member's decompressed bytes. */
  def offset: Long = base + start

  def available: Int = end - start

  /**
   * Begin with a member whose header was read, and read ahead: a member of common size is proved before it is used.
   *
   * @throws BadMember the member is all there, and its checks do not hold
   */
  def open(member: Member): Unit = {
    this.member = member
    start = 0
    end = 0
    base = 0
    ended = false
    failure = null
    if (member.size < 0)
      try while (available < Flow.Ahead && !ended) pull(available + 1)
      catch { case bad: BadMember => if (bad.ended) throw bad else failure = bad }
  }

  /** Go to decompressed offset `to`, forwards or backwards; false, and nothing done, where the member cannot. */
  def seek(to: Long): Boolean = {
    val ahead = to - offset
    if (ahead >= 0 && ahead <= available) drop(ahead.toInt)
    else if (member.seek(to)) {
      start = 0
      end = 0
      base = to
      ended = false
    } else return false
    true
  }

  /**
   * Whether `count` bytes can be had, which are then in the buffer.
   *
   * @throws BadMember the member is damaged, cut, or inflates too far
   */
  def ensure(count: Int): Boolean = {
    while (available < count && !ended) pull(count)
    available >= count
  }

  /** The byte `at` places ahead, which must be in the buffer. */
  def apply(at: Int): Byte = buffer(start + at)

  def drop(count: Int): Unit = start += count

  /** Like `ensure`, but reads nothing where the member is known to be shorter. */
  def has(count: Int): Boolean = (member.size < 0 || offset + count <= member.size) && ensure(count)

  /** Drop `count` bytes, however many, without keeping them; gives how many there were. */
  def discard(count: Long): Long =
    if (member.size >= 0) {
      val there = math.min(count, member.size - offset)
      seek(offset + there)
      there
    } else {
      var done = 0L
      while (done < count && ensure(1)) {
        val now = math.min(count - done, available.toLong).toInt
        drop(now)
        done += now
      }
      done
    }

  private def pull(wanted: Int): Unit = {
    if (failure != null) throw failure
    makeRoom(wanted)
    val count = member.read(buffer, end, buffer.length - end)
    if (count < 0) ended = true else end += count
  }

  private def makeRoom(wanted: Int): Unit = {
    if (start == end || wanted > buffer.length - start || end == buffer.length) compact()
    if (wanted > buffer.length || end == buffer.length) grow(wanted)
  }

  private def compact(): Unit = {
    System.arraycopy(buffer, start, buffer, 0, available)
    base += start
    end -= start
    start = 0
  }

  private def grow(wanted: Int): Unit = {
    val most = math.max(limits.maxRecordBytes, Flow.Ahead).toLong + 2L * limits.maxHeaderBytes + Flow.Slack
    val size = math.min(most, math.max(wanted.toLong, buffer.length * 2L))
    assert(size > end, s"a record of $wanted bytes was asked for, at most $most are kept")
    buffer = java.util.Arrays.copyOf(buffer, size.toInt)
  }
}

private object Flow {

  /** Bytes of a member that are decompressed before its first record is given. */
  val Ahead: Int = 8 << 20

  /** Line ends and the first bytes of what follows a record. */
  val Slack: Int = 128 << 10
}
