package io.headrace.warc

import java.util.zip.{CRC32, DataFormatException, Inflater}

/**
 * A gzip member (RFC 1952): its end, CRC and length are checked, the rest of its header is passed over.
 *
 * Members that lie in the window are inflated at once by FastInflate, and by zlib if it cannot: what is wrong with a
 * member is always zlib's word.
 */
final class GzipMember(limits: Limits) extends Compressed {
  import GzipMember._

  private val inflater       = new Inflater(true)
  private val fast           = new FastInflate
  private val crc            = new CRC32
  private var window: Window = _
  private var first          = 0L
  private var out            = 0L
  private var begun          = false
  private var inflated       = false
  private var ended          = false

  override def name: String = "gzip member"

  override def suffixes: Seq[String] = Seq(".gz", ".gzip")

  override def isAt(window: Window): Boolean =
    window.require(4) && {
      val (b, p) = (window.buffer, window.position)
      b(p) == 0x1f && b(p + 1) == 0x8b.toByte && b(p + 2) == 8 && (b(p + 3) & ReservedFlags) == 0
    }

  override def begin(window: Window): Unit = {
    this.window = window
    first = window.offset
    inflater.reset()
    crc.reset()
    out = 0
    begun = false
    inflated = false
    ended = false
    if (!isAt(window)) throw new BadMember("no gzip member begins here")
    need(10)
    val flags = window.buffer(window.position + 3)
    window.position += 10
    if ((flags & Extra) != 0) {
      need(2)
      val length = littleEndian(2).toInt
      window.position += 2
      need(length)
      window.position += length
    }
    if ((flags & Name) != 0) passText()
    if ((flags & Comment) != 0) passText()
    if ((flags & HeaderCrc) != 0) {
      need(2)
      window.position += 2
    }
  }

  override def read(into: Array[Byte], start: Int, length: Int): Int =
    if (ended) -1
    else {
      val whole = if (begun) 0 else inflateWhole(into, start, length)
      begun = true
      val count = if (whole > 0) whole else inflateSome(into, start, length)
      if (count == 0) {
        checkTrailer()
        ended = true
        -1
      } else {
        crc.update(into, start, count)
        out += count
        Member.checkRatio(offset - first, out, limits, name)
        count
      }
    }

  /** The common case: the member lies in the window, and there is room for all of it. Else 0, and zlib has to do it. */
  private def inflateWhole(into: Array[Byte], start: Int, length: Int): Int = {
    if (window.available < FewBytes) window.fill()
    inflated = fast.inflate(window.buffer, window.position, window.limit, into, start, start + length)
    if (!inflated && window.position > FewBytes && window.fill())
      inflated = fast.inflate(window.buffer, window.position, window.limit, into, start, start + length)
    if (inflated) {
      window.position = fast.consumed
      fast.produced - start
    } else 0
  }

  /** As much as zlib gives, 0 at the end of the member's data. */
  private def inflateSome(into: Array[Byte], start: Int, length: Int): Int = {
    if (inflated) return 0
    var count = 0
    while (count == 0 && !inflater.finished) {
      if (inflater.needsInput) feed()
      count = inflate(into, start, length)
      if (count == 0 && inflater.needsDictionary) throw new BadMember("the gzip member wants a preset dictionary")
    }
    if (count == 0) window.position -= inflater.getRemaining
    count
  }

  override def offset: Long = window.offset - (if (ended || inflated) 0 else inflater.getRemaining)

  override def produced: Long = out

  override def close(): Unit = inflater.end()

  private def inflate(into: Array[Byte], start: Int, length: Int): Int =
    try inflater.inflate(into, start, length)
    catch {
      case fault: DataFormatException =>
        throw new BadMember(s"the gzip member is damaged: ${Option(fault.getMessage).getOrElse("bad data")}")
    }

  private def feed(): Unit = {
    if (window.atEnd) throw cut
    inflater.setInput(window.buffer, window.position, window.available)
    window.position = window.limit
  }

  private def checkTrailer(): Unit = {
    need(8)
    val (sum, size) = (littleEndian(4), littleEndian(4, 4))
    window.position += 8
    if (sum != crc.getValue) throw new BadMember("the gzip member's CRC does not hold", ended = true)
    if (size != (out & 0xffffffffL)) throw new BadMember("the gzip member's length does not hold", ended = true)
  }

  private def littleEndian(bytes: Int, from: Int = 0): Long =
    (bytes - 1 to 0 by -1).foldLeft(0L)((sum, i) => sum << 8 | (window.buffer(window.position + from + i) & 0xff))

  /** File name and comment end with a NUL. */
  private def passText(): Unit = {
    var length = 0
    do {
      need(1)
      length += 1
      if (length > MaxText) throw new BadMember("the gzip member's file name has no end")
      window.position += 1
    } while (window.buffer(window.position - 1) != 0)
  }

  private def need(count: Int): Unit = if (!window.require(count)) throw cut

  private def cut = new BadMember("the file is cut: its last gzip member has no end")
}

private object GzipMember {
  val HeaderCrc     = 2
  val Extra         = 4
  val Name          = 8
  val Comment       = 16
  val ReservedFlags = 0xe0

  /** Fewer bytes than this in the window are likely to be cut: it moves on first. */
  val FewBytes: Int = 64 << 10

  /** A longer file name is no file name, and would make the search for members slow. */
  val MaxText = 1024
}
