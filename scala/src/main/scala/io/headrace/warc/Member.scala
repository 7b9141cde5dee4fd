package io.headrace.warc

/**
 * What is wrong with a member.
 *
 * @param ended whether the member's last byte is known, all but its content being in order
 */
final class BadMember(val reason: String, val ended: Boolean = false) extends Exception(reason) {

  /** Damage is counted, not debugged: a trace would cost more than the member. */
  override def fillInStackTrace(): Throwable = this
}

/** Sizes beyond which a record or a member is refused. */
final case class Limits(
    maxRecordBytes: Int = 64 << 20,
    maxHeaderBytes: Int = 64 << 10,
    maxRatio: Int = 250,
    lookback: Long = 8L << 20
)

/** A way to store decompressed bytes in a file, one member after the other: gzip members, zstd or lz4 frames, plain. */
trait Member extends AutoCloseable {

  /** The noun of messages: "gzip member". */
  def name: String

  /** Whether a member seems to begin at the window's offset. */
  def isAt(window: Window): Boolean

  /**
   * Read the header of the member at the window's offset.
   *
   * @throws BadMember it has none, or it is cut
   */
  def begin(window: Window): Unit

  /**
   * Decompress up to `length` (> 0) bytes.
   *
   * @return how many, -1 once when the member has ended and all its checks hold: the window is then behind it
   * @throws BadMember its bytes are damaged, cut, or inflate beyond the limits
   */
  def read(into: Array[Byte], start: Int, length: Int): Int

  /** Number of decompressed bytes where it is known before they are read, else -1. */
  def size: Long = -1

  /** Go on at decompressed offset `to`; false where that cannot be done without reading. */
  def seek(to: Long): Boolean = false

  /** Offset behind the last byte that was decompressed. */
  def offset: Long

  /** Bytes that the member gave so far. */
  def produced: Long

  override def close(): Unit = ()
}

object Member {

  /** Below this many bytes a ratio says nothing: a short page of spaces is no bomb. */
  val RatioFloor: Long = 8L << 20

  def checkRatio(in: Long, out: Long, limits: Limits, name: String): Unit =
    if (out > RatioFloor && out > in * limits.maxRatio)
      throw new BadMember(s"the $name inflates to more than maxRatio = ${limits.maxRatio} times its size")

  /** The member of a file by its first bytes, or by its name where these are damaged. */
  def of(window: Window, fileName: String, limits: Limits): Member = {
    val known = List(new GzipMember(limits), new ZstdFrame(limits), new Lz4Frame(limits))
    val lower = fileName.toLowerCase(java.util.Locale.ROOT)
    // Frames that can be skipped look the same before zstd and lz4: what follows them tells.
    val start = window.offset
    try Frames.passSkippable(window, "frame")
    catch { case _: BadMember => window.seek(start) }
    val first = known.find(_.isAt(window))
    window.seek(start)
    val found = first
      .orElse(if (RecordStart.isAt(window)) None else known.find(_.suffixes.exists(lower.endsWith)))
    known.filterNot(found.contains).foreach(_.close())
    found.getOrElse(new PlainMember)
  }
}

/** A member of a kind that a file's name tells. */
trait Compressed extends Member {
  def suffixes: Seq[String]
}

/** A file that is not compressed: one member from its first byte to its last. */
final class PlainMember extends Member {
  private var window: Window = _

  override def name: String = "file"

  override def isAt(window: Window): Boolean = true

  override def begin(window: Window): Unit = this.window = window

  override def read(into: Array[Byte], start: Int, length: Int): Int =
    if (window.atEnd) -1
    else {
      val count = math.min(length, window.available)
      System.arraycopy(window.buffer, window.position, into, start, count)
      window.position += count
      count
    }

  override def size: Long = window.end

  override def seek(to: Long): Boolean = {
    window.seek(to)
    true
  }

  override def offset: Long = window.offset

  override def produced: Long = window.offset
}
